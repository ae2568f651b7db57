package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"usher/steer/sasl"
)

// entry is one user of a passwd-file.
type entry struct {
	user     string   // whom the director routes: destuser=, else user=, else the name
	password verifier // nil: locked
	nologin  bool
	upstream string // pass=: the password for the backend; empty: the client's
	tag      string
	host     netip.Addr
	port     uint16
}

// parseLine reads "name:password:uid:gid:gecos:home:shell:extra fields" (Dovecot's passwd-file). From the third field on
// everything may be left out; uid to shell are a backend's business and not looked at.
func parseLine(line string) (name string, e entry, err error) {
	fields := strings.SplitN(line, ":", 8)
	name = fields[0]
	if name == "" || !sasl.Allowed(line) {
		return name, entry{}, errors.New("no user name, or a control character")
	}
	if len(fields) < 2 {
		return name, entry{}, errors.New("no password field")
	}
	e.user = name
	if e.password, err = parsePassword(fields[1]); err != nil {
		return name, entry{}, err
	}
	if len(fields) == 8 {
		if err := e.parseExtra(strings.Fields(fields[7])); err != nil {
			return name, entry{}, err
		}
	}
	return name, e, nil
}

// parseExtra reads the extra fields. What has a meaning to Dovecot's proxy and none here yet is refused, not ignored.
func (e *entry) parseExtra(extra []string) error {
	var user, destuser string
	seen := make(map[string]bool)
	for _, field := range extra {
		key, value, _ := strings.Cut(field, "=")
		if seen[key] {
			return fmt.Errorf("extra field %s twice", key)
		}
		seen[key] = true
		var err error
		switch key {
		case "host":
			e.host, err = netip.ParseAddr(value)
		case "port":
			var port uint64
			port, err = strconv.ParseUint(value, 10, 16)
			e.port = uint16(port)
			if err == nil && port == 0 {
				err = errors.New("0 is no port")
			}
		case "director_tag":
			e.tag = value
		case "pass":
			e.upstream, err = value, wanted(value)
		case "user":
			user, err = value, wanted(value)
		case "destuser":
			destuser, err = value, wanted(value)
		case "nologin":
			e.nologin, err = true, flag(value)
		case "proxy": // everybody is
			err = flag(value)
		default:
			if strings.HasPrefix(key, "userdb_") { // for the backend's user database
				continue
			}
			return fmt.Errorf("extra field %s is not built yet; there are host, port, director_tag, pass, user, destuser, nologin, proxy", key)
		}
		if err != nil {
			return fmt.Errorf("extra field %s: %w", field, err)
		}
	}
	switch {
	case destuser != "":
		e.user = destuser
	case user != "":
		e.user = user
	}
	return nil
}

func wanted(value string) error {
	if value == "" {
		return errors.New("no value")
	}
	return nil
}

// flag takes what a field that is just there may be set to. Dovecot does not look at the value, so that a "no" is a trap.
func flag(value string) error {
	switch value {
	case "", "y", "yes":
		return nil
	}
	return errors.New("only y is a value; leave the field out for no")
}
