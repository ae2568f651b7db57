package auth

import (
	"crypto/pbkdf2"
	"crypto/sha1" // of Dovecot's PBKDF2, where its weakness does not matter
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-crypt/crypt/algorithm/argon2"
	"github.com/go-crypt/crypt/algorithm/bcrypt"
	"github.com/go-crypt/crypt/algorithm/shacrypt"
)

// What one verification may cost at most. Each limit is about a second of one core: a login must not be a weapon.
const (
	maxRounds       = 1_000_000 // SHA256-CRYPT, SHA512-CRYPT
	maxPBKDF2Rounds = 2_000_000
	maxBcryptCost   = 14         // 2^14 iterations
	maxArgonMemory  = 256 << 10  // KiB
	maxArgonWork    = 1024 << 10 // KiB times passes
	maxArgonThreads = 16
	// maxPassword is the longest password that is compared at all; SHA-crypt's cost grows with it.
	maxPassword = 1024
)

// verifier compares a password with a stored one, in a time that does not depend on where they differ.
type verifier interface {
	Match(password string) bool
}

// plain is the SHA-256 of a password that was stored as it is: equally long strings compare in constant time.
type plain [sha256.Size]byte

func (p plain) Match(password string) bool {
	sum := sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(sum[:], p[:]) == 1
}

// identifiers are the crypt(3) identifiers that each of Dovecot's schemes may have.
var identifiers = map[string][]string{
	"SHA256-CRYPT": {"5"},
	"SHA512-CRYPT": {"6"},
	"BLF-CRYPT":    {"2a", "2b", "2y"},
	"ARGON2I":      {"argon2i"},
	"ARGON2ID":     {"argon2id"},
	"CRYPT":        {"5", "6", "2a", "2b", "2y"},
}

// parsePassword reads the password field, "{SCHEME}data" (CRYPT when there is no scheme, as in Dovecot). It returns nil
// for a locked account: an empty field, or one that begins with "!" or "*" (shadow(5)).
func parsePassword(field string) (verifier, error) {
	scheme, data := "CRYPT", field
	if rest, ok := strings.CutPrefix(field, "{"); ok {
		if scheme, data, ok = strings.Cut(rest, "}"); !ok {
			return nil, errors.New("password scheme without }")
		}
		scheme = strings.ToUpper(scheme)
	}
	if scheme == "PLAIN" {
		return plain(sha256.Sum256([]byte(data))), nil
	}
	allowed, ok := identifiers[scheme]
	if !ok && scheme != "PBKDF2" {
		return nil, fmt.Errorf("password scheme {%s} is not supported; use one of PLAIN, SHA512-CRYPT, SHA256-CRYPT, BLF-CRYPT, ARGON2ID, ARGON2I, PBKDF2, CRYPT", scheme)
	}
	if data == "" || data[0] == '!' || data[0] == '*' {
		return nil, nil
	}
	if scheme == "PBKDF2" {
		return parsePBKDF2(data)
	}
	parts := strings.Split(data, "$")
	if len(parts) < 4 || parts[0] != "" || !slices.Contains(allowed, parts[1]) {
		return nil, fmt.Errorf("not a password hash of the scheme {%s} (a password as it is has {PLAIN} in front)", scheme)
	}
	v, err := decode(parts[1], parts[2], data)
	if err != nil {
		return nil, fmt.Errorf("password hash of the scheme {%s}: %w", scheme, err)
	}
	return v, nil
}

// pbkdf2Hash is Dovecot's PBKDF2: HMAC-SHA1, and the salt as it is written.
type pbkdf2Hash struct {
	salt   string
	rounds int
	key    []byte
}

func (h pbkdf2Hash) Match(password string) bool {
	key, err := pbkdf2.Key(sha1.New, password, []byte(h.salt), h.rounds, len(h.key))
	return err == nil && subtle.ConstantTimeCompare(key, h.key) == 1
}

// parsePBKDF2 reads "$1$salt$rounds$key", the key in hexadecimal digits.
func parsePBKDF2(data string) (verifier, error) {
	parts := strings.Split(data, "$")
	if len(parts) != 5 || parts[0] != "" || parts[1] != "1" || parts[2] == "" {
		return nil, errors.New("not a password hash of the scheme {PBKDF2}, $1$salt$rounds$key")
	}
	rounds, err := strconv.Atoi(parts[3])
	if err != nil || rounds < 1 || rounds > maxPBKDF2Rounds {
		return nil, fmt.Errorf("password hash of the scheme {PBKDF2}: rounds %q are not from 1 to %d", parts[3], maxPBKDF2Rounds)
	}
	key, err := hex.DecodeString(parts[4])
	if err != nil || len(key) != sha1.Size {
		return nil, fmt.Errorf("password hash of the scheme {PBKDF2}: the key is not %d bytes in hexadecimal digits", sha1.Size)
	}
	return pbkdf2Hash{salt: parts[2], rounds: rounds, key: key}, nil
}

// decode reads a hash "$identifier$parameters$..." whose cost is bearable.
func decode(identifier, parameters, data string) (verifier, error) {
	switch identifier[0] {
	case '2':
		if cost, err := strconv.Atoi(parameters); err != nil || cost < 4 || cost > maxBcryptCost {
			return nil, fmt.Errorf("cost %q is not from 4 to %d", parameters, maxBcryptCost)
		}
		return bcrypt.Decode(data)
	case 'a':
		if err := argonCost(data); err != nil {
			return nil, err
		}
		return argon2.Decode(data)
	default:
		if rounds, ok := strings.CutPrefix(parameters, "rounds="); ok {
			if n, err := strconv.Atoi(rounds); err != nil || n < 1000 || n > maxRounds {
				return nil, fmt.Errorf("rounds %q are not from 1000 to %d", rounds, maxRounds)
			}
		}
		return shacrypt.Decode(data)
	}
}

// argonCost checks the field "m=65536,t=3,p=1" of $argon2id$v=19$m=65536,t=3,p=1$salt$key.
func argonCost(data string) error {
	parts := strings.Split(data, "$")
	if len(parts) != 6 {
		return errors.New("not of the form $argon2id$v=19$m=,t=,p=$salt$key")
	}
	var memory, passes, threads int
	if n, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &passes, &threads); n != 3 || err != nil ||
		parts[3] != fmt.Sprintf("m=%d,t=%d,p=%d", memory, passes, threads) {
		return fmt.Errorf("parameters %q, want m=,t=,p=", parts[3])
	}
	if memory < 8*threads || memory > maxArgonMemory || passes < 1 || passes > maxArgonWork/memory || threads < 1 || threads > maxArgonThreads {
		return fmt.Errorf("parameters %q: memory up to %d KiB, memory times passes up to %d KiB, up to %d threads", parts[3], maxArgonMemory, maxArgonWork, maxArgonThreads)
	}
	return nil
}
