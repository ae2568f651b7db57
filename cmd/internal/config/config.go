package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	toml "github.com/pelletier/go-toml/v2"
)

// Config is a valid configuration with its defaults filled in. The fields have the names of the
// keys; the reference file testdata/usher.toml explains each one.
type Config struct {
	Director  Director   `toml:"director"`
	Backends  []Backend  `toml:"backend"`
	Listeners []Listener `toml:"listener"`
	TLS       TLS        `toml:"tls"`
	Auth      Auth       `toml:"auth"`
	Limits    Limits     `toml:"limits"`
	Steer     Steer      `toml:"steer"`
	Dovecot   Dovecot    `toml:"dovecot"`
	Admin     Admin      `toml:"admin"`
	Log       Log        `toml:"log"`

	file   string
	places places // where each key that was written stands
}

// Director is [director]: who decides, and for how long.
type Director struct {
	Name             string         `toml:"name"` // Load fills in the machine's host name when it is empty
	Servers          []RingServer   `toml:"servers"`
	RingListen       netip.AddrPort `toml:"ring_listen"`
	RingProtocol     string         `toml:"ring_protocol" oneof:"dovecot"`
	UserExpire       Duration       `toml:"user_expire"`
	UsernameHash     string         `toml:"username_hash"` // format of protocol document user-hash.md
	UserKickDelay    Duration       `toml:"user_kick_delay"`
	MaxParallelMoves int            `toml:"max_parallel_moves"`
	MaxParallelKicks int            `toml:"max_parallel_kicks"`
	FlushSocket      string         `toml:"flush_socket"` // "exec:...", "unix:...", "tcp:..."
	PingIdleTimeout  Duration       `toml:"ping_idle_timeout"`
	PingMaxTimeout   Duration       `toml:"ping_max_timeout"`
	OutputBufferSize Size           `toml:"output_buffer_size"`

	// StateFile keeps what was ordered at run time (hosts, moved users, ring members) over a restart of
	// the daemon; empty: it is forgotten.
	StateFile string `toml:"state_file"`
	// RingTLS wraps the ring's connections; nil: they are plain.
	RingTLS *RingTLS `toml:"ring_tls"`
}

// RingTLS is [director.ring_tls]: mutual TLS between Ushers. Dovecot's directors know none of it.
type RingTLS struct {
	Certificate string       `toml:"certificate"` // of this director, shown to all others
	Key         string       `toml:"key"`
	CA          string       `toml:"ca"`    // signs the certificates of all members
	Plain       []netip.Addr `toml:"plain"` // members whose connections stay plain: Dovecot's directors
}

// Backend is one [[backend]]: a group of hosts that are alike.
type Backend struct {
	Hosts  []HostSpec `toml:"hosts"`
	Weight int        `toml:"weight"` // vhosts, 0 to 1000; 0: no new users
	Tag    string     `toml:"tag"`
	Health *Health    `toml:"health"` // nil: no checks
}

// Health is [backend.health].
type Health struct {
	Interval     Duration `toml:"interval"`
	Timeout      Duration `toml:"timeout"`
	Rise         int      `toml:"rise"` // good checks before up
	Fall         int      `toml:"fall"` // bad checks before down
	Check        string   `toml:"check" oneof:"connect greeting login"`
	User         string   `toml:"user"`
	PasswordFile string   `toml:"password_file"`

	// DrainRate is how many users per second are moved away from a host that went down; 0: they stay.
	DrainRate int `toml:"drain_rate"`
	// FlapLimit is how many times down are forgiven, 0: always. A host that goes down more often is held
	// down for FlapWindow, then for twice, four and eight times as long; each FlapWindow up forgives one.
	FlapLimit  int      `toml:"flap_limit"`
	FlapWindow Duration `toml:"flap_window"`
}

// Steer is [steer]: how the bytes go.
type Steer struct {
	Mode            string       `toml:"mode" oneof:"auto xdp tc splice copy"`
	Interfaces      []string     `toml:"interfaces"` // empty: those that carry the routes to clients and backends
	PinPath         string       `toml:"pin_path"`   // a directory of a bpf file system
	MaxFlows        int          `toml:"max_flows"`  // directions; a session has two
	IdleTimeout     Duration     `toml:"idle_timeout"`
	SourceAddresses []netip.Addr `toml:"source_addresses"`

	// Quiet is how long both directions of a session have to be silent before it is handed to
	// the kernel (default 5ms). Shorter: more hand-overs that are undone because data came in
	// between; longer: a busy session stays longer in user space.
	Quiet Duration `toml:"quiet"`
	// ClsAct attaches the programs by a clsact qdisc, as before Linux 6.6, even where tcx links
	// work: for machines whose other tools only know tc filters.
	ClsAct bool `toml:"clsact"`
}

// Dovecot is [dovecot]: the sockets for Dovecot's own processes.
type Dovecot struct {
	BaseDir string `toml:"base_dir"`
	IPC     string `toml:"ipc"`
}

// Admin is [admin]: how one looks at the daemon and commands it.
type Admin struct {
	Socket string         `toml:"socket"`
	HTTP   netip.AddrPort `toml:"http"` // not valid: off
}

// Log is [log].
type Log struct {
	Level  string `toml:"level" oneof:"trace debug info warn error"`
	Format string `toml:"format" oneof:"console json"` // empty: console on a terminal, json otherwise
}

// Default is the configuration of an empty file. It is not valid by itself: a listener and a
// backend have to be named. With setDefaults below, this is the one place of all defaults.
func Default() *Config {
	return &Config{
		Director: Director{
			RingProtocol:     "dovecot",
			UserExpire:       Duration(15 * time.Minute),
			UsernameHash:     "%Lu",
			UserKickDelay:    Duration(2 * time.Second),
			MaxParallelMoves: 100,
			MaxParallelKicks: 100,
			PingIdleTimeout:  Duration(30 * time.Second),
			PingMaxTimeout:   Duration(time.Minute),
			OutputBufferSize: 10 << 20,
			StateFile:        "/var/lib/usher/state.toml",
		},
		TLS: TLS{
			Certificate: "/etc/usher/tls/cert.pem",
			Key:         "/etc/usher/tls/key.pem",
			MinVersion:  "1.2",
		},
		Auth:   defaultAuth(),
		Limits: defaultLimits(),
		Steer: Steer{
			Mode:        "auto",
			PinPath:     "/sys/fs/bpf/usher",
			MaxFlows:    1 << 20,
			IdleTimeout: Duration(30 * time.Minute),
			Quiet:       Duration(5 * time.Millisecond),
		},
		Admin: Admin{
			Socket: "/run/usher/admin.sock",
			HTTP:   netip.MustParseAddrPort("127.0.0.1:9180"),
		},
		Log: Log{Level: "info"},
	}
}

func (b *Backend) setDefaults() { b.Weight = 100 }

func (h *Health) setDefaults() {
	*h = Health{
		Interval: Duration(5 * time.Second),
		Timeout:  Duration(3 * time.Second),
		Rise:     2,
		Fall:     3,
		Check:    "greeting",

		DrainRate:  10,
		FlapLimit:  3,
		FlapWindow: Duration(10 * time.Minute),
	}
}

// Load reads the file at path with the environment of this process. The error is Problems when
// the content is wrong, and an *fs.PathError inside when the file could not be read.
func Load(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	cfg, err := Parse(path, data, os.Environ())
	if err != nil {
		return nil, err
	}
	if cfg.Director.Name == "" {
		// Only shown to people: a machine that does not know its name may still steer.
		cfg.Director.Name, _ = os.Hostname()
	}
	return cfg, nil
}

// Parse reads data, a TOML document which name stands for in problems, and the overrides of
// environ ("KEY=value" as of os.Environ). The error is always Problems: all there are, except
// that a file which is no TOML at all has only its first one reported.
func Parse(name string, data []byte, environ []string) (*Config, error) {
	cfg := Default()
	cfg.file = name

	var tree map[string]any
	if err := toml.Unmarshal(data, &tree); err != nil {
		return nil, Problems{syntaxProblem(name, err)}
	}
	cfg.places = findPlaces(name, data)

	b := binder{file: name, places: cfg.places}
	b.root(cfg, tree)
	b.environment(cfg, environ)
	cfg.fillIn()
	problems := b.problems
	for _, p := range cfg.check() {
		// A value that could not be read is reported already; that it is missing now, too,
		// is nothing new.
		if !slices.ContainsFunc(b.problems, func(q Problem) bool { return q.Key == p.Key }) {
			problems = append(problems, p)
		}
	}
	problems.sort(name)
	if err := problems.Err(); err != nil {
		return nil, err
	}
	return cfg, nil
}

// fillIn sets the defaults that depend on other keys.
func (c *Config) fillIn() {
	c.Auth.fillIn(c.isSet)
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if !c.isSet(fmt.Sprintf("listener[%d].backend_port", i)) {
			l.BackendPort = int(l.Address.Port())
		}
	}
}

// isSet says whether the key was written in the file or the environment.
func (c *Config) isSet(key string) bool {
	_, ok := c.places[key]
	return ok
}

// problem places text at key.
func (c *Config) problem(key, format string, args ...any) Problem {
	return c.places.problem(c.file, key, fmt.Sprintf(format, args...))
}

func syntaxProblem(file string, err error) Problem {
	p := Problem{File: file, Text: strings.TrimPrefix(err.Error(), "toml: ")}
	var de *toml.DecodeError
	if errors.As(err, &de) {
		p.Line, _ = de.Position()
	}
	return p
}
