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
			want: []string{`11: listener[1].port: unknown key; there are protocol, address, tls, backend_port, backend_tls, proxy_protocol_from, disable_plaintext_auth, max_connections, max_connections_per_address, forward_client, backend_proxy_protocol, recipient_delimiter, max_mail`}},
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
		{name: "ring listener without a ring", text: "[director]\nring_listen = \"10.1.0.2:0\"\nstate_file = \"state\"\n[director.ring_tls]\n", want: []string{
			`7: director.servers: missing: with ring_listen, list every director of the ring, this one included`,
			`8: director.ring_listen: 10.1.0.2:0 has no port, write "10.1.0.2:9090"`,
			`9: director.state_file: "state" must be an absolute path`,
			`10: director.ring_tls: there is no ring: director.servers is empty`,
			`10: director.ring_tls.certificate: missing: each director shows a certificate of the ring's CA`,
			`10: director.ring_tls.key: missing: each director shows a certificate of the ring's CA`,
			`10: director.ring_tls.ca: missing: each director shows a certificate of the ring's CA`}},
		{name: "ring tls", text: "[director]\nservers = [\"10.1.0.2\"]\nring_listen = \"10.1.0.2:9090\"\n[director.ring_tls]\ncertificate = \"/c\"\nkey = \"k\"\nca = \"/a\"\nplain = [\"10.1.0.3\", \"10.1.0.3\", \"0.0.0.0\"]\npsk = 1\n", want: []string{
			`12: director.ring_tls.key: "k" must be an absolute path`,
			`14: director.ring_tls.plain[1]: 10.1.0.3 is listed twice`,
			`14: director.ring_tls.plain[2]: want the address of a director`,
			`15: director.ring_tls.psk: unknown key; there are certificate, key, ca, plain`}},
		{name: "environment: a table", environ: "USHER_DIRECTOR_RING_TLS=x", want: []string{
			`USHER_DIRECTOR_RING_TLS: director.ring_tls: is a table, only single values can come from the environment`}},
		{name: "flush socket", text: "[director]\nflush_socket = \"/bin/flush\"\n",
			want: []string{`8: director.flush_socket: "/bin/flush" is no flush socket, write "exec:...", "unix:..." or "tcp:..."`}},

		{name: "nothing", text: "!", want: []string{
			` backend: missing: at least one [[backend]] with hosts is needed`,
			` listener: missing: at least one [[listener]] with protocol and address is needed`}},
		{name: "empty tables", text: "![[backend]]\n[[listener]]\ntls = \"none\"\n", want: []string{
			`1: backend[0].hosts: missing: want a list of addresses, ranges or names, such as ["10.2.0.11-10.2.0.30"]`,
			`2: listener[0].protocol: missing: write "imap", "pop3", "submission", "sieve" or "lmtp"`,
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
		{name: "health limits", text: "[[backend]]\nhosts = [\"10.9.0.1\"]\n[backend.health]\ndrain_rate = -1\nflap_limit = 1001\nflap_window = \"1ms\"\n", want: []string{
			`10: backend[1].health.drain_rate: -1 is out of range, want 0 to 100000`,
			`11: backend[1].health.flap_limit: 1001 is out of range, want 0 to 1000`,
			`12: backend[1].health.flap_window: 1ms is too low, at least 1s`}},
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
		{name: "listener values", text: "[[listener]]\nprotocol=\"imaps\"\naddress=\"127.0.0.1:993\"\ntls=\"ssl\"\nbackend_port=70000\nproxy_protocol_from=[\"10.0.0.1/8\",\"all\"]\nmax_connections=0\nmax_connections_per_address=-1\n", want: []string{
			`8: listener[1].protocol: "imaps" is not known, want "imap", "pop3", "submission", "lmtp", "sieve" or "doveadm"; did you mean "imap"?`,
			`10: listener[1].tls: "ssl" is not known, want "none", "starttls" or "implicit"`,
			`11: listener[1].backend_port: 70000 is out of range, want 1 to 65535`,
			`12: listener[1].proxy_protocol_from[0]: "10.0.0.1/8" has bits behind its mask, write "10.0.0.0/8"`,
			`12: listener[1].proxy_protocol_from[1]: "all" is no network, write "10.0.0.0/8" or "fd00::/64"`,
			`13: listener[1].max_connections: 0 is out of range, want 1 to 10000000`,
			`14: listener[1].max_connections_per_address: -1 is out of range, want 0 to 10000000`}},

		{name: "lmtp's own keys", text: "[[listener]]\nprotocol=\"pop3\"\naddress=\"127.0.0.1:110\"\nmax_mail=\"10M\"\nrecipient_delimiter=\"-\"\n[[listener]]\nprotocol=\"lmtp\"\naddress=\"127.0.0.1:24\"\nmax_mail=\"10M\"\nrecipient_delimiter=\" \"\n", want: []string{
			`10: listener[1].max_mail: belongs to protocol = "lmtp", but protocol is "pop3"`,
			`11: listener[1].recipient_delimiter: belongs to protocol = "lmtp", but protocol is "pop3"`,
			`16: listener[2].recipient_delimiter: " " must not have spaces in it`}},

		{name: "pairs", text: "[tls]\nstaple = \"s\"\nclient_ca = \"c\"\n[[tls.pair]]\ncertificate = \"/c\"\n[[tls.pair]]\ncertificate = \"c\"\nkey = \"/k\"\nocsp = \"x\"\n", want: []string{
			`8: tls.staple: "s" must be an absolute path`,
			`9: tls.client_ca: "c" must be an absolute path`,
			`10: tls.pair[0].key: missing`,
			`13: tls.pair[1].certificate: "c" must be an absolute path`,
			`15: tls.pair[1].ocsp: unknown key; there are certificate, key, staple`}},
		{name: "limits", text: "[limits]\nline = \"100\"\nliteral = \"1\"\nbytes = \"1G\"\ncommands = 1\ninvalid = 0\nattempts = 0\nidle = \"1ms\"\nwhole = \"0s\"\n", want: []string{
			`8: limits.line: 100 bytes are out of range, want 512 to 1048576`,
			`9: limits.literal: 1 bytes are out of range, want 256 to 1048576`,
			`10: limits.bytes: 1073741824 bytes are out of range, want 4096 to 16777216`,
			`11: limits.commands: 1 is out of range, want 8 to 100000`,
			`12: limits.invalid: 0 is out of range, want 1 to 1000`,
			`13: limits.attempts: 0 is out of range, want 1 to 1000`,
			`14: limits.idle: 1ms is too low, at least 1s`,
			`15: limits.whole: 0s is too low, at least 1s`}},
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

		{name: "more keys of other drivers", text: "[auth]\nca=\"/ca\"\nheader_file=\"h\"\ntimeout=\"1s\"\npass_client_cert=true\n", want: []string{
			`8: auth.ca: belongs to driver = "http", but driver is "static"`,
			`9: auth.header_file: belongs to driver = "http", but driver is "static"`,
			`9: auth.header_file: "h" must be an absolute path`,
			`10: auth.timeout: belongs to driver = "http" or "dovecot", but driver is "static"`,
			`11: auth.pass_client_cert: belongs to driver = "http", but driver is "static"`}},
		{name: "http", text: "[auth]\ndriver=\"http\"\nurl=\"http://joe:secret@auth.example/\"\nca=\"/ca\"\nheader_file=\"/h\"\ntimeout=\"1s\"\n", want: []string{
			`9: auth.url: must not have a password in it: write a header to header_file`}},
		{name: "dovecot without a socket", text: "[auth]\ndriver=\"dovecot\"\n", want: []string{
			`7: auth.socket: missing: driver = "dovecot" needs it`}},
		{name: "dovecot with the socket for logins alone", text: "[auth]\ndriver=\"dovecot\"\nlogin_socket=\"/l\"\n"},
		{name: "dovecot and mail without the socket for it", text: "[[listener]]\nprotocol=\"lmtp\"\naddress=\"127.0.0.1:24\"\n[auth]\ndriver=\"dovecot\"\nlogin_socket=\"/l\"\n", want: []string{
			`10: auth.socket: missing: driver = "dovecot" needs it`}},
		{name: "dovecot without the socket for logins", text: "[auth]\ndriver=\"dovecot\"\nsocket=\"/s\"\nlogin_socket=\"\"\n", want: []string{
			`10: auth.login_socket: missing: driver = "dovecot" needs it`}},
		{name: "mechanisms", text: "[auth]\nmechanisms = [\"PLAIN\", \"XOAUTH2\", \"PLAIN\", \"EXTERNAL\", \"SCRAM-SHA-1\"]\nfailure_delay = \"1m\"\n[auth.unknown_users]\ntotal = 0\nburst = 1\n", want: []string{
			`8: auth.mechanisms[2]: PLAIN is listed twice`,
			`8: auth.mechanisms[3]: EXTERNAL is offered to those who show a certificate of tls.client_ca, without being listed`,
			`8: auth.mechanisms[4]: "SCRAM-SHA-1" is not known, want "PLAIN", "LOGIN", "XOAUTH2" or "OAUTHBEARER"; others are those of driver = "dovecot", without being listed`,
			`9: auth.failure_delay: 1m is too long, at most 15s`,
			`11: auth.unknown_users.total: 0 is out of range, want 1 to 10000000`,
			`12: auth.unknown_users.burst: unknown key; there are per_address, per_address_burst, total, total_burst`}},

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
		{name: "ipc without a Dovecot", text: "[dovecot]\nipc=\"/run/dovecot/ipc\"\n", want: []string{
			`7: dovecot.base_dir: missing: ipc is where the sessions of its processes are kicked`}},
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
		{name: "environment: a table within", environ: "USHER_AUTH_UNKNOWN_USERS=1", want: []string{
			`USHER_AUTH_UNKNOWN_USERS: auth.unknown_users: is a table, only single values can come from the environment`}},
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
	const text = `[[backend]]
hosts = ["10.2.0.11"]
[[listener]]
protocol = "doveadm"
address = "systemd:doveadm"
backend_port = 24245
`
	want := []string{
		`usher.toml:4: listener[0].protocol: not built yet: "doveadm"`,
		`usher.toml:5: listener[0].address: not built yet: sockets from systemd; write an address and port`,
	}
	got := strings.Split(parse(t, text).Unbuilt().Error(), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A site whose clients come to Dovecot's own login processes has no listener.
func TestLoginProcesses(t *testing.T) {
	const text = "[[backend]]\nhosts = [\"10.2.0.11\"]\n[dovecot]\nbase_dir = \"/run/dovecot\"\nipc = \"/run/dovecot/anvil\"\n"
	cfg := parse(t, text)
	if all := append(cfg.Unbuilt(), cfg.Warnings()...); len(all) > 0 {
		t.Errorf("%v", all)
	}
}

// What a large site may write is all built.
func TestBuilt(t *testing.T) {
	const text = `[director]
servers = ["10.1.0.2"]
ring_listen = "10.1.0.2:9090"
flush_socket = "exec:flush"
[[backend]]
hosts = ["10.2.0.11"]
[backend.health]
[[listener]]
protocol = "imap"
address = "[::]:143"
proxy_protocol_from = ["10.0.0.0/8"]
[[listener]]
protocol = "submission"
address = "[::]:587"
backend_tls = "starttls"
[[listener]]
protocol = "sieve"
address = "[::]:4190"
backend_proxy_protocol = true
[[listener]]
protocol = "lmtp"
address = "[::]:24"
tls = "none"
[[listener]]
protocol = "pop3"
address = "[::]:995"
tls = "implicit"
backend_tls = "implicit"
[auth]
driver = "http"
url = "http://127.0.0.1/auth"
`
	if ps := parse(t, text).Unbuilt(); len(ps) > 0 {
		t.Errorf("not built: %v", ps)
	}
}

func TestWarnings(t *testing.T) {
	text := strings.Replace(good, "127.0.0.1", "10.1.0.2", 1) + "[tls]\nbackend_ca=\"insecure\"\n[admin]\nhttp=\"0.0.0.0:9180\"\n[director]\nservers=[\"10.1.0.2\",\"10.1.0.3\"]\nring_listen=\"10.1.0.2:9090\"\n"
	want := []string{
		`usher.toml:3: listener[0].disable_plaintext_auth: true (the default) without TLS: only clients on this machine can log in, as auth.trusted_networks is empty`,
		`usher.toml:8: tls.backend_ca: the certificates of the backends are not verified`,
		`usher.toml:10: admin.http: 0.0.0.0:9180 can be reached from other machines, and shows the names of users to everybody`,
		`usher.toml:13: director.ring_listen: the ring is not encrypted, and who can send from the address of a director commands it; see ring_tls`,
	}
	got := strings.Split(parse(t, text).Warnings().Error(), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWarningsOfTheWay(t *testing.T) {
	text := good + `proxy_protocol_from = ["10.0.0.0/8", "::/0"]
[[listener]]
protocol = "lmtp"
address = "10.1.0.2:24"
tls = "none"
[auth]
driver = "http"
url = "http://auth.example/"
`
	want := []string{
		`usher.toml:7: listener[0].proxy_protocol_from: everybody may say who they are: name the networks of the load balancers`,
		`usher.toml:14: auth.url: passwords go there without TLS`,
	}
	got := strings.Split(parse(t, text).Warnings().Error(), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for _, url := range []string{"http://127.0.0.1:9000/", "http://[::1]/", "http://localhost/", "https://auth.example/"} {
		if ps := parse(t, good+"[auth]\ndriver = \"http\"\nurl = \""+url+"\"\n").Warnings(); len(ps) > 0 {
			t.Errorf("%s: %v", url, ps)
		}
	}
}
