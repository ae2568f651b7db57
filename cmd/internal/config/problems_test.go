package config

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestProblems has one row per rule. The text stands below good, so that its line 1 is line 7;
// a row that begins with "!" stands alone.
func TestProblems(t *testing.T) {
	for _, c := range []struct {
		name, text string
		environ    string
		want       []string // without the leading "usher.toml:"
	}{
		{name: "syntax", text: "[steer]\nmode = auto\n", want: []string{"8: unexpected character U+0061 'a' at start of value"}},
		{name: "key twice", text: "[log]\nlevel = \"info\"\nlevel = \"info\"\n", want: []string{"9: key level is already defined"}},

		{name: "unknown key", text: "[director]\nuser_expires = \"15m\"\n",
			want: []string{`8: director.user_expires: unknown key; did you mean "user_expire"?`}},
		{name: "Dovecot's name", text: "[director]\ndirector_user_expire = \"15m\"\n",
			want: []string{`8: director.director_user_expire: unknown key; did you mean "user_expire"?`}},
		{name: "key of another table", text: "[director]\nmax_flows = 1\n",
			want: []string{`8: director.max_flows: unknown key here; it belongs to [steer]`}},
		{name: "unknown key without a likeness", text: "[log]\nfacility = 1\n",
			want: []string{`8: log.facility: unknown key; there are level, format`}},
		{name: "unknown table", text: "[directors]\n", want: []string{`7: directors: unknown key; did you mean "director"?`}},
		{name: "unknown key in the second table of an array", text: "[[listener]]\nprotocol=\"pop3\"\naddress=\"127.0.0.1:110\"\ntls=\"none\"\nport=1\n",
			want: []string{`11: listener[1].port: unknown key; there are protocol, address, tls, backend_port, backend_tls, proxy_protocol_from, disable_plaintext_auth, max_connections`}},
		{name: "unknown key in an inline table", text: "!log = {level = \"info\",\n  colour = true}\n" + good,
			want: []string{`2: log.colour: unknown key; there are level, format`}},

		{name: "wrong types", text: "[director]\nname = 1\nuser_expire = 900\nmax_parallel_moves = \"100\"\nservers = \"10.1.0.1\"\n[steer]\nclsact = \"yes\"\ninterfaces = [\"eth0\", 1]\n",
			want: []string{
				`8: director.name: want a text in quotes, got the number 1`,
				`9: director.user_expire: want a text such as "15m", got the number 900`,
				`10: director.max_parallel_moves: want a number, got the text "100"`,
				`11: director.servers: want a list, got the text "10.1.0.1": write ["10.1.0.1"]`,
				`13: steer.clsact: want true or false, got the text "yes"`,
				`14: steer.interfaces[1]: want a text in quotes, got the number 1`,
			}},
		{name: "single table for an array", text: "!backend = {hosts = [\"10.0.0.1\"]}\n[[listener]]\nprotocol=\"imap\"\naddress=\"127.0.0.1:143\"\n",
			want: []string{`1: backend: there may be several: write [[backend]]`}},
		{name: "array for a single table", text: "[[log]]\nlevel=\"info\"\n", want: []string{`7: log: want a table, got a list: write [log]`}},

		{name: "words", text: "[steer]\nmode = \"xpd\"\n[log]\nlevel = \"verbose\"\n", want: []string{
			`8: steer.mode: "xpd" is not known, want "auto", "xdp", "tc", "splice" or "copy"`,
			`10: log.level: "verbose" is not known, want "trace", "debug", "info", "warn" or "error"`}},
		{name: "word nearby", text: "[auth]\ndriver = \"passwd_file\"\nfile=\"/x\"\n",
			want: []string{`8: auth.driver: "passwd_file" is not known, want "static", "passwd-file", "dovecot" or "http"; did you mean "passwd-file"?`, `9: auth.file: belongs to driver = "passwd-file", but driver is "static"`}},

		{name: "director ranges", text: "[director]\nuser_expire = \"5s\"\nmax_parallel_moves = 0\nmax_parallel_kicks = 1000000\nping_idle_timeout = \"1ms\"\noutput_buffer_size = \"1K\"\nname = \"a b\"\nuser_kick_delay = \"-1s\"\nping_max_timeout = \"0s\"\n",
			want: []string{
				`8: director.user_expire: 5s is too low, at least 10s`,
				`9: director.max_parallel_moves: 0 is out of range, want 1 to 100000`,
				`10: director.max_parallel_kicks: 1000000 is out of range, want 1 to 100000`,
				`11: director.ping_idle_timeout: 1ms is too low, at least 1s`,
				`12: director.output_buffer_size: 1024 bytes are too few, at least "64K"`,
				`13: director.name: "a b" must not have spaces in it`,
				`14: director.user_kick_delay: "-1s" is no time span, write "15m", "30s" or "1h30m"`,
				`15: director.ping_max_timeout: 0s is too low, at least 1s`,
			}},
		{name: "ring without a listener", text: "[director]\nservers = [\"10.1.0.2\", \"dir.example\"]\n",
			want: []string{`7: director.ring_listen: missing: with servers, the address for the other directors is needed, such as "10.1.0.2:9090"`}},
		{name: "ring addresses", text: "[director]\nservers = [\"10.1.0.2:0\",\n\"x y\"]\nring_listen = \"9090\"\n",
			want: []string{
				`8: director.servers[0]: "10.1.0.2:0" is no director, write "10.1.0.2", "10.1.0.3:9090", "[fd00::3]:9090" or "dir.example"`,
				`9: director.servers[1]: "x y" is no director, write "10.1.0.2", "10.1.0.3:9090", "[fd00::3]:9090" or "dir.example"`,
				`10: director.ring_listen: "9090" is not understood, want something like "10.1.0.2:9090"`,
			}},
		{name: "flush socket", text: "[director]\nflush_socket = \"/bin/flush\"\n",
			want: []string{`8: director.flush_socket: "/bin/flush" is no flush socket, write "exec:...", "unix:..." or "tcp:..."`}},

		{name: "nothing", text: "!", want: []string{
			` backend: missing: at least one [[backend]] with hosts is needed`,
			` listener: missing: at least one [[listener]] with protocol and address is needed`}},
		{name: "empty tables", text: "![[backend]]\n[[listener]]\ntls = \"none\"\n", want: []string{
			`1: backend[0].hosts: missing: want a list of addresses, ranges or names, such as ["10.2.0.11-10.2.0.30"]`,
			`2: listener[0].protocol: missing: write "imap" or "pop3"`,
			`2: listener[0].address: missing: write "[::]:143", for example`}},
		{name: "hosts of the wrong type", text: "![[backend]]\nhosts=\"10.0.0.1\"\n[[listener]]\nprotocol=\"imap\"\naddress=\":143\"\n", want: []string{
			`2: backend[0].hosts: want a list, got the text "10.0.0.1": write ["10.0.0.1"]`,
			`5: listener[0].address: ":143" is no address with a port, write "[::]:143", "10.1.0.2:143" or "systemd:imap"`}},
		{name: "backend ranges", text: "[[backend]]\nhosts = [\"10.9.0.1\"]\nweight = 1001\ntag = \"a b\"\n", want: []string{
			`9: backend[1].weight: 1001 is out of range, want 0 to 1000`,
			`10: backend[1].tag: "a b" must not have spaces in it`}},
		{name: "backends twice", text: "[[backend]]\nhosts = [\n  \"10.2.0.12\",\n  \"MAIL.example\",\n  \"mail.Example\",\n  \"10.2.0.13-10.2.0.20\",\n]\n", want: []string{
			`9: backend[1].hosts[0]: 10.2.0.12 is listed already, by backend[0].hosts[0]`,
			`11: backend[1].hosts[2]: mail.example is listed already, by backend[1].hosts[1]`,
			`12: backend[1].hosts[3]: 10.2.0.13 is listed already, by backend[0].hosts[0]`}},
		{name: "health of no backend", text: "![backend.health]\n" + good[strings.Index(good, "[[listener]]"):], want: []string{`1: backend: there may be several: write [[backend]]`}},
		{name: "health login", text: "[[backend]]\nhosts = [\"10.9.0.1\"]\n[backend.health]\ncheck = \"login\"\nrise = 0\n", want: []string{
			`9: backend[1].health.user: missing: check = "login" logs in with it`,
			`9: backend[1].health.password_file: missing: check = "login" logs in with it`,
			`11: backend[1].health.rise: 0 is out of range, want 1 to 1000`}},
		{name: "health user without login", text: "[[backend]]\nhosts = [\"10.9.0.1\"]\n[backend.health]\nuser = \"x\"\npassword_file = \"x\"\ninterval=\"1ms\"\n", want: []string{
			`10: backend[1].health.user: only check = "login" has a use for it`,
			`11: backend[1].health.password_file: only check = "login" has a use for it`,
			`11: backend[1].health.password_file: "x" must be an absolute path`,
			`12: backend[1].health.interval: 1ms is too low, at least 100ms`}},

		{name: "listeners twice", text: "[[listener]]\nprotocol=\"pop3\"\naddress=\"127.0.0.1:143\"\n[[listener]]\nprotocol=\"pop3\"\naddress=\"[::]:143\"\n[[listener]]\nprotocol=\"pop3\"\naddress=\"0.0.0.0:110\"\n[[listener]]\nprotocol=\"pop3\"\naddress=\"[::1]:110\"\n", want: []string{
			`9: listener[1].address: 127.0.0.1:143 is taken by listener[0], 127.0.0.1:143`,
			`12: listener[2].address: [::]:143 is taken by listener[0], 127.0.0.1:143`,
			`12: listener[2].address: [::]:143 is taken by listener[1], 127.0.0.1:143`}},
		{name: "systemd sockets", text: "[[listener]]\nprotocol=\"pop3\"\naddress=\"systemd:pop3\"\n[[listener]]\nprotocol=\"pop3\"\naddress=\"systemd:pop3\"\nbackend_port=110\n[[listener]]\nprotocol=\"pop3\"\naddress=\"systemd:\"\n", want: []string{
			`7: listener[1].backend_port: missing: systemd:pop3 does not tell a port`,
			`12: listener[2].address: systemd:pop3 is taken by listener[1], systemd:pop3`,
			`16: listener[3].address: "systemd:" names no socket, write "systemd:imap"`}},
		{name: "listener values", text: "[[listener]]\nprotocol=\"imaps\"\naddress=\"127.0.0.1:993\"\ntls=\"ssl\"\nbackend_port=70000\nproxy_protocol_from=[\"10.0.0.1/8\",\"all\"]\nmax_connections=0\n", want: []string{
			`8: listener[1].protocol: "imaps" is not known, want "imap", "pop3", "submission", "lmtp", "sieve" or "doveadm"; did you mean "imap"?`,
			`10: listener[1].tls: "ssl" is not known, want "none", "starttls" or "implicit"`,
			`11: listener[1].backend_port: 70000 is out of range, want 1 to 65535`,
			`12: listener[1].proxy_protocol_from[0]: "10.0.0.1/8" has bits behind its mask, write "10.0.0.0/8"`,
			`12: listener[1].proxy_protocol_from[1]: "all" is no network, write "10.0.0.0/8" or "fd00::/64"`,
			`13: listener[1].max_connections: 0 is out of range, want 1 to 10000000`}},

		{name: "tls without a certificate", text: "[[listener]]\nprotocol=\"imap\"\naddress=\"127.0.0.1:993\"\ntls=\"implicit\"\n[tls]\ncertificate=\"\"\nkey=\"key.pem\"\n", want: []string{
			`12: tls.certificate: missing: listener[1] has tls = "implicit"`,
			`13: tls.key: "key.pem" must be an absolute path`}},
		{name: "no certificate, no tls", text: "[tls]\ncertificate=\"\"\nkey=\"\"\nbackend_ca=\"insecure\"\n"},

		{name: "static verifies nothing", text: "[auth]\nnopassword = false\n", want: []string{
			`8: auth.nopassword: driver = "static" verifies no password: write nopassword = true (the backend does) or name a fixed host`}},
		{name: "static with a fixed host", text: "[auth]\nnopassword = false\nhost = \"10.0.0.1\"\n"},
		{name: "fixed host that is none", text: "[auth]\nhost = \"0.0.0.0\"\n", want: []string{`8: auth.host: "0.0.0.0" is not the address of a host`}},
		{name: "static with a master user", text: "[auth]\nmaster_user = \"m\"\n", want: []string{
			`7: auth.master_password_file: missing: master_user is set`,
			`8: auth.master_user: with a master user the proxy must verify the user itself, which driver = "static" does not: anybody could be anybody`}},
		{name: "master password without user", text: "[auth]\ndriver=\"passwd-file\"\nfile=\"/u\"\nmaster_password_file = \"/p\"\n", want: []string{
			`7: auth.master_user: missing: master_password_file is set`}},
		{name: "passwd-file with nopassword", text: "[auth]\ndriver=\"passwd-file\"\nnopassword = true\nhost = \"10.0.0.1\"\n", want: []string{
			`7: auth.file: missing: driver = "passwd-file" needs it`,
			`9: auth.nopassword: driver = "passwd-file" verifies the password itself`,
			`10: auth.host: belongs to driver = "static", but driver is "passwd-file"`}},
		{name: "keys of other drivers", text: "[auth]\nurl=\"x\"\nsocket=\"/s\"\nuser_separator=\"**\"\n", want: []string{
			`8: auth.url: belongs to driver = "http", but driver is "static"`,
			`8: auth.url: "x" is no address of a web server, write "http://127.0.0.1:9000/auth"`,
			`9: auth.socket: belongs to driver = "dovecot", but driver is "static"`,
			`10: auth.user_separator: "**" is no separator, write one character or nothing`}},

		{name: "steer", text: "[steer]\ninterfaces=[\"eth0\",\"eth0\",\"much-too-long-name\"]\npin_path=\"\"\nmax_flows=1\nidle_timeout=\"1ms\"\nquiet=\"2s\"\nsource_addresses=[\"\", \"x\", \"10.0.0.1\", \"10.0.0.1\"]\n", want: []string{
			`8: steer.interfaces[1]: "eth0" is listed twice`,
			`8: steer.interfaces[2]: "much-too-long-name" is no name of an interface`,
			`9: steer.pin_path: must not be empty, write "/sys/fs/bpf/usher"`,
			`10: steer.max_flows: 1 is out of range, want 2 to 67108864`,
			`11: steer.idle_timeout: 1ms is too low, at least 1s`,
			`12: steer.quiet: 2s is too long, at most 1s`,
			`13: steer.source_addresses[1]: "x" is not understood, want something like "10.1.0.2"`,
			`13: steer.source_addresses[0]: must not be empty`,
			`13: steer.source_addresses[3]: 10.0.0.1 is listed twice`}},
		{name: "admin", text: "[admin]\nsocket=\"admin.sock\"\nhttp=\"localhost:9180\"\n", want: []string{
			`8: admin.socket: "admin.sock" must be an absolute path`,
			`9: admin.http: "localhost:9180" is not understood, want something like "10.1.0.2:9090"`}},
		{name: "long socket path", text: "[admin]\nsocket=\"/" + strings.Repeat("x", 107) + "\"\n", want: []string{
			`8: admin.socket: 108 bytes are too many for the path of a socket, at most 107`}},

		{name: "environment: bad value", environ: "USHER_DIRECTOR_USER_EXPIRE=5s", want: []string{
			`USHER_DIRECTOR_USER_EXPIRE: director.user_expire: 5s is too low, at least 10s`}},
		{name: "environment: bad type", environ: "USHER_STEER_MAX_FLOWS=many", want: []string{`USHER_STEER_MAX_FLOWS: steer.max_flows: want a number, got "many"`}},
		{name: "environment: bad word", environ: "USHER_STEER_MODE=fast", want: []string{
			`USHER_STEER_MODE: steer.mode: "fast" is not known, want "auto", "xdp", "tc", "splice" or "copy"`}},
		{name: "environment: bool", environ: "USHER_STEER_CLSACT=1", want: []string{`USHER_STEER_CLSACT: steer.clsact: want true or false, got "1"`}},
		{name: "environment: unknown key", environ: "USHER_STEER_MODES=tc", want: []string{`USHER_STEER_MODES: steer.modes: unknown key; did you mean "mode"?`}},
		{name: "environment: list", environ: "USHER_STEER_INTERFACES=eth0", want: []string{
			`USHER_STEER_INTERFACES: steer.interfaces: is a list, only single values can come from the environment`}},
		{name: "environment: tables", environ: "USHER_LISTENER_PROTOCOL=imap", want: []string{
			`USHER_LISTENER_PROTOCOL: listener.protocol: there may be several [[listener]], the environment cannot say which one is meant`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			text, alone := strings.CutPrefix(c.text, "!")
			if !alone {
				text = good + text
			}
			var environ []string
			if c.environ != "" {
				environ = []string{c.environ}
			}
			_, err := Parse("usher.toml", []byte(text), environ)
			var got []string
			if err != nil {
				got = strings.Split(err.Error(), "\n")
			}
			for i := range got {
				got[i] = strings.TrimPrefix(got[i], "usher.toml:")
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestUsernameHashIsParsed(t *testing.T) {
	_, err := Parse("usher.toml", []byte(good+"[director]\nusername_hash = \"%{bogus}\"\n"), nil)
	if err == nil || !strings.HasPrefix(err.Error(), "usher.toml:8: director.username_hash: ") || !strings.Contains(err.Error(), "%{bogus}") {
		t.Errorf("got %v", err)
	}
}

func TestUnbuilt(t *testing.T) {
	const text = `[director]
servers = ["10.1.0.2"]
ring_listen = "10.1.0.2:9090"
flush_socket = "exec:flush"
[[backend]]
hosts = ["10.2.0.11"]
[backend.health]
[[listener]]
protocol = "sieve"
address = "systemd:sieve"
backend_port = 4190
backend_tls = "starttls"
proxy_protocol_from = ["10.0.0.0/8"]
[auth]
driver = "http"
url = "http://127.0.0.1/auth"
[dovecot]
base_dir = "/run/dovecot"
ipc = "/run/dovecot/ipc"
`
	want := []string{
		`usher.toml:2: director.servers: not built yet: there is no ring of directors; leave it empty`,
		`usher.toml:3: director.ring_listen: not built yet: there is no ring of directors; leave it empty`,
		`usher.toml:4: director.flush_socket: not built yet: leave it empty`,
		`usher.toml:7: backend[0].health: not built yet: there are no health checks; leave the table out`,
		`usher.toml:8: listener[0].tls: not built yet: "starttls" (the default); write tls = "none"`,
		`usher.toml:9: listener[0].protocol: not built yet: "sieve"; write "imap" or "pop3"`,
		`usher.toml:10: listener[0].address: not built yet: sockets from systemd; write an address and port`,
		`usher.toml:12: listener[0].backend_tls: not built yet: "starttls"; write backend_tls = "none"`,
		`usher.toml:13: listener[0].proxy_protocol_from: not built yet: leave it empty`,
		`usher.toml:15: auth.driver: not built yet: "http"; write "static" or "passwd-file"`,
		`usher.toml:18: dovecot.base_dir: not built yet: leave it empty`,
		`usher.toml:19: dovecot.ipc: not built yet: leave it empty`,
	}
	got := strings.Split(parse(t, text).Unbuilt().Error(), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWarnings(t *testing.T) {
	text := strings.Replace(good, "127.0.0.1", "10.1.0.2", 1) + "[tls]\nbackend_ca=\"insecure\"\n[admin]\nhttp=\"0.0.0.0:9180\"\n"
	want := []string{
		`usher.toml:3: listener[0].disable_plaintext_auth: true (the default) without TLS: only clients on this machine can log in, as auth.trusted_networks is empty`,
		`usher.toml:8: tls.backend_ca: the certificates of the backends are not verified`,
		`usher.toml:10: admin.http: 0.0.0.0:9180 can be reached from other machines, and shows the names of users to everybody`,
	}
	got := strings.Split(parse(t, text).Warnings().Error(), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
