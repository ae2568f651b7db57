package auth

import (
	"errors"
	"fmt"
	"strings"

	"usher/steer/sasl"
)

// entry is one user of a passwd-file.
type entry struct {
	name     string   // as written in the file
	password verifier // nil: locked
	fields   Fields
}

// parseLine reads "name:password:uid:gid:gecos:home:shell:extra fields" (Dovecot's passwd-file). From the third field on
// everything may be left out; uid to shell are a backend's business and not looked at. A master= other than the site's
// master user needs a pass=, since the user's own password is not the master's.
func parseLine(line, master string) (name string, e entry, err error) {
	fields := strings.SplitN(line, ":", 8)
	name = fields[0]
	if name == "" || !sasl.Allowed(line) {
		return name, entry{}, errors.New("no user name, or a control character")
	}
	if len(fields) < 2 {
		return name, entry{}, errors.New("no password field")
	}
	e.name = name
	if e.password, err = parsePassword(fields[1]); err != nil {
		return name, entry{}, err
	}
	if len(fields) == 8 {
		if err := e.parseExtra(strings.Fields(fields[7])); err != nil {
			return name, entry{}, err
		}
	}
	if m := e.fields.Master; m != "" && m != master && e.fields.Pass == "" {
		return name, entry{}, errors.New("extra field master without pass, the master user's password")
	}
	return name, e, nil
}

// parseExtra reads the extra fields. What has a meaning to Dovecot's proxy and none here yet is refused, not ignored.
func (e *entry) parseExtra(extra []string) error {
	seen := make(map[string]bool)
	for _, field := range extra {
		key, value, _ := strings.Cut(field, "=")
		if seen[key] {
			return fmt.Errorf("extra field %s twice", key)
		}
		seen[key] = true
		if err := e.fields.Set(key, value); errors.Is(err, ErrField) {
			return fmt.Errorf("extra field %s is %w", key, err)
		} else if err != nil {
			if key == "pass" {
				field = key
			}
			return fmt.Errorf("extra field %s: %w", field, err)
		}
	}
	if err := e.fields.check(); err != nil {
		return fmt.Errorf("extra field %w", err)
	}
	return nil
}
