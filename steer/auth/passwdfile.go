package auth

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/rs/zerolog"
)

// maxFaults is how many faulty lines one error names.
const maxFaults = 10

// PasswdFile verifies users by a file in the format of Dovecot's passwd-file. The file is read again when it changed; a
// new one with a fault in it is logged and the old users stay.
type PasswdFile struct {
	path    string
	master  Master
	log     zerolog.Logger
	hashing chan struct{} // one place for each core: more at once would only take longer
	users   atomic.Pointer[userTable]

	reload sync.Mutex
	seen   os.FileInfo // of the file looked at last, good or bad; under reload
}

// userTable is one reading of the file.
type userTable struct {
	users map[string]entry // by name in lower case: Fred and fred are one user (auth_username_format's default)
	decoy verifier         // what the password of an unknown user is compared with, so that it takes as long; nil: nobody has one
}

// OpenPasswdFile reads the file. All faulty lines are reported, up to ten: number, user, and what is wrong.
func OpenPasswdFile(path string, master Master, log zerolog.Logger) (*PasswdFile, error) {
	p := &PasswdFile{path: path, master: master, log: log, hashing: make(chan struct{}, runtime.GOMAXPROCS(0))}
	table, info, err := readUsers(path, master.User)
	if err != nil {
		return nil, err
	}
	p.seen = info
	p.users.Store(table)
	return p, nil
}

// Authenticate implements Driver.
func (p *PasswdFile) Authenticate(ctx context.Context, r Request) (Answer, error) {
	name, by, err := Identify(r.Login, p.master.Separator)
	if err != nil {
		return Answer{}, err
	}
	if by != "" {
		return Answer{}, fmt.Errorf("%w: a login for another user, and the passwd-file has no master users", ErrCredentials)
	}
	table := p.current()
	e, known := table.users[strings.ToLower(name)]
	verify := e.password
	if verify == nil {
		verify = table.decoy
	}
	matches := r.Certified()
	if !matches {
		if matches, err = p.matches(ctx, verify, r.Login.Password); err != nil {
			return Answer{}, err
		}
	}
	switch {
	case !known:
		return Answer{}, fmt.Errorf("%w: unknown user", ErrCredentials)
	case e.password == nil:
		return Answer{}, fmt.Errorf("%w: no password is set", ErrCredentials)
	case !matches:
		return Answer{}, fmt.Errorf("%w: password mismatch", ErrCredentials)
	}
	return e.fields.Answer(r, p.master, e.name)
}

// Find implements Finder. A locked account gets its mail: it is the password that is locked.
func (p *PasswdFile) Find(_ context.Context, r Request) (Answer, error) {
	e, known := p.current().users[strings.ToLower(r.Login.User)]
	if !known {
		return Answer{}, ErrUnknown
	}
	return e.fields.Found(r, e.name)
}

// matches does the costly part, in its turn.
func (p *PasswdFile) matches(ctx context.Context, verify verifier, password string) (bool, error) {
	if verify == nil || len(password) > maxPassword {
		return false, nil
	}
	select {
	case p.hashing <- struct{}{}:
		defer func() { <-p.hashing }()
		return verify.Match(password), nil
	case <-ctx.Done():
		return false, fmt.Errorf("%w: too many logins at once: %w", ErrTemporary, context.Cause(ctx))
	}
}

// current is the table of the file as it is now. One login reads a changed file; those at the same time go by the old one.
func (p *PasswdFile) current() *userTable {
	if !p.reload.TryLock() {
		return p.users.Load()
	}
	defer p.reload.Unlock()
	info, err := os.Stat(p.path)
	if err == nil && sameFile(info, p.seen) || err != nil && p.seen == nil {
		return p.users.Load()
	}
	table, info, err := readUsers(p.path, p.master.User)
	p.seen = info // so that a fault is logged once; nil while there is no file
	if err != nil {
		p.log.Error().Err(err).Str("file", p.path).Msg("the changed passwd-file is not used; the users from before stay")
		return p.users.Load()
	}
	p.users.Store(table)
	p.log.Info().Str("file", p.path).Int("users", len(table.users)).Msg("passwd-file read again")
	return table
}

// sameFile compares what an edit changes: a file renamed into place has another inode, one written in place another time or size.
func sameFile(a, b os.FileInfo) bool {
	return b != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// readUsers reads the whole file. The FileInfo is of the file as it was opened, and nil when it could not be.
func readUsers(path, master string) (*userTable, os.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("open the passwd-file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("open the passwd-file: %w", err)
	}
	table, err := parseUsers(path, f, master)
	return table, info, err
}

func parseUsers(path string, r io.Reader, master string) (*userTable, error) {
	table := &userTable{users: make(map[string]entry)}
	var faults []error
	lines := bufio.NewScanner(r)
	for number := 1; lines.Scan() && len(faults) < maxFaults; number++ {
		line := lines.Text()
		if line == "" || line[0] == '#' {
			continue
		}
		name, e, err := parseLine(line, master)
		key := strings.ToLower(name)
		if _, twice := table.users[key]; twice && err == nil {
			err = errors.New("the user was in an earlier line")
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("%s:%d: user %q: %w", path, number, name, err))
			continue
		}
		table.users[key] = e
		if _, cheap := table.decoy.(plain); table.decoy == nil || cheap {
			table.decoy = cmp.Or(e.password, table.decoy)
		}
	}
	if err := lines.Err(); err != nil {
		faults = append(faults, fmt.Errorf("read %s: %w", path, err))
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return table, nil
}
