package state

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	toml "github.com/pelletier/go-toml/v2"
	"github.com/rs/zerolog"

	"usher/director"
)

// version is that of the file's format. It grows when older programs would misread the file.
const version = 1

// ErrVersion: the file was written by another version of the program, which must be asked what it means.
var ErrVersion = errors.New("unknown version of the state file")

const header = `# What was ordered of usher at run time. It keeps this file up to date by itself: change it only while
# it is stopped. To forget everything, stop it and remove the file.
`

// file is the form on disk, version 1.
type file struct {
	Version int          `toml:"version"`
	Hosts   []hostOrder  `toml:"host,omitempty"`
	Users   []userOrder  `toml:"user,omitempty"`
	Drains  []drainOrder `toml:"drain,omitempty"`
	Ring    *ringOrder   `toml:"ring,omitempty"`
}

type hostOrder struct {
	Address    netip.Addr `toml:"address"`
	Name       string     `toml:"name,omitempty"`
	Tag        string     `toml:"tag,omitempty"`
	Weight     int        `toml:"weight"`
	Configured *int       `toml:"configured,omitempty"` // weight; left out: in no configuration file
	Removed    bool       `toml:"removed,omitempty"`
	Down       bool       `toml:"down,omitempty"`
	Changed    *time.Time `toml:"changed,omitempty"` // up or down
	Ordered    *time.Time `toml:"ordered,omitempty"` // weight, or removal
}

type userOrder struct {
	Name    string     `toml:"name,omitempty"` // for people: the hash counts
	Hash    uint32     `toml:"hash"`
	Tag     string     `toml:"tag,omitempty"`
	Host    netip.Addr `toml:"host"`
	Ordered *time.Time `toml:"ordered,omitempty"`
	Expires *time.Time `toml:"expires,omitempty"`
}

type drainOrder struct {
	Host     string  `toml:"host"` // empty: all hosts
	Rate     float64 `toml:"rate"`
	Parallel int     `toml:"parallel,omitempty"`
}

type ringOrder struct {
	Added   []netip.AddrPort `toml:"added,omitempty"`
	Removed []netip.AddrPort `toml:"removed,omitempty"`
}

// Load reads the file at path. That there is none is a State without orders. Errors: ErrVersion, and those of
// the operating system. A file that is broken is renamed, logged, and taken for none: orders are lost then, but
// users are served.
func Load(path string, log zerolog.Logger) (State, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, fmt.Errorf("read the state file: %w", err)
	}
	s, err := decode(data)
	if err == nil {
		return s, nil
	}
	if errors.Is(err, ErrVersion) {
		return State{}, fmt.Errorf("%s: %w", path, err)
	}
	aside := fmt.Sprintf("%s.broken-%d", path, time.Now().Unix())
	if renameErr := os.Rename(path, aside); renameErr != nil {
		return State{}, fmt.Errorf("keep the broken state file aside: %w", errors.Join(err, renameErr))
	}
	log.Error().Err(err).Str("file", path).Str("kept_as", aside).Msg("the state file is broken: what was ordered at run time is forgotten")
	return State{}, nil
}

func decode(data []byte) (State, error) {
	var v struct {
		Version *int `toml:"version"`
	}
	if err := toml.Unmarshal(data, &v); err != nil {
		return State{}, err
	}
	switch {
	case v.Version == nil:
		return State{}, errors.New("it has no version")
	case *v.Version != version:
		return State{}, fmt.Errorf("%w: it is %d, this program knows %d; use the program that wrote it, or remove the file to forget what was ordered",
			ErrVersion, *v.Version, version)
	}
	var f file
	if err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(&f); err != nil {
		return State{}, err
	}
	return f.state()
}

func (f *file) state() (s State, err error) {
	s.Configured = map[netip.Addr]int{}
	for i, h := range f.Hosts {
		if !h.Address.IsValid() {
			return State{}, fmt.Errorf("host %d has no address", i)
		}
		if h.Configured != nil {
			s.Configured[h.Address] = *h.Configured
		}
		s.Orders.Hosts = append(s.Orders.Hosts, director.HostOrder{
			Host:    director.Host{Addr: h.Address, Name: h.Name, Tag: h.Tag, Weight: h.Weight},
			Removed: h.Removed, Down: h.Down, Changed: stamp(h.Changed), Ordered: stamp(h.Ordered),
		})
	}
	for i, u := range f.Users {
		if !u.Host.IsValid() || u.Hash == 0 {
			return State{}, fmt.Errorf("user %d has no host or hash", i)
		}
		s.Orders.Moved = append(s.Orders.Moved, director.MoveOrder{
			Key: director.Key{Hash: u.Hash, Tag: u.Tag}, Host: u.Host, Ordered: stamp(u.Ordered), Expires: stamp(u.Expires),
		})
	}
	for _, d := range f.Drains {
		drain := Drain{Rate: d.Rate, Parallel: d.Parallel}
		if d.Host != "" {
			if drain.Host, err = netip.ParseAddr(d.Host); err != nil {
				return State{}, fmt.Errorf("drain: %w", err)
			}
		}
		s.Drains = append(s.Drains, drain)
	}
	if f.Ring != nil {
		s.DirectorsAdded, s.DirectorsRemoved = f.Ring.Added, f.Ring.Removed
	}
	return s, nil
}

// encode is the content of the file; the same State gives the same bytes.
func encode(s State) ([]byte, error) {
	f := file{Version: version}
	for _, o := range s.Orders.Hosts {
		h := hostOrder{
			Address: o.Host.Addr, Name: o.Host.Name, Tag: o.Host.Tag, Weight: o.Host.Weight,
			Removed: o.Removed, Down: o.Down, Changed: moment(o.Changed), Ordered: moment(o.Ordered),
		}
		if w, ok := s.Configured[o.Host.Addr]; ok {
			h.Configured = &w
		}
		f.Hosts = append(f.Hosts, h)
	}
	for _, o := range s.Orders.Moved {
		f.Users = append(f.Users, userOrder{
			Name: s.Names[o.Key], Hash: o.Key.Hash, Tag: o.Key.Tag, Host: o.Host, Ordered: moment(o.Ordered), Expires: moment(o.Expires),
		})
	}
	for _, d := range s.Drains {
		o := drainOrder{Rate: d.Rate, Parallel: d.Parallel}
		if d.Host.IsValid() {
			o.Host = d.Host.String()
		}
		f.Drains = append(f.Drains, o)
	}
	if len(s.DirectorsAdded)+len(s.DirectorsRemoved) > 0 {
		f.Ring = &ringOrder{Added: s.DirectorsAdded, Removed: s.DirectorsRemoved}
	}
	body, err := toml.Marshal(f)
	return append([]byte(header), body...), err
}

// stamp and moment translate between unix seconds, 0 for never, and times that people can read.
func stamp(t *time.Time) int64 {
	if t == nil {
		return 0
	}
	return t.Unix()
}

func moment(s int64) *time.Time {
	if s == 0 {
		return nil
	}
	t := time.Unix(s, 0).UTC()
	return &t
}

// replace writes a file as a whole: whoever reads it, after a crash as well, finds the old content or the new one.
func replace(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp, err := os.CreateTemp(dir, filepath.Base(path)+".new-") // mode 0600: it has the names of users
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(temp.Name())
		}
	}()
	_, err = temp.Write(data)
	// Without the sync a crash of the machine could leave the new name with no content.
	if err = errors.Join(err, temp.Sync(), temp.Close()); err != nil {
		return err
	}
	if err = os.Rename(temp.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
