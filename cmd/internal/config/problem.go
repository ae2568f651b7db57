package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	File string `json:"file"`           // the file as it was named, or the environment variable the value came from
	Line int    `json:"line,omitempty"` // counted from 1; 0: no line (the environment, or something that is missing altogether)
	Key  string `json:"key,omitempty"`  // dotted, tables of an array counted from 0: "listener[1].protocol"; empty for a syntax error
	Text string `json:"text"`           // what is wrong and what would be right
}

// String is "usher.toml:12: director.user_expire: 5s is too low, at least 10s".
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Key != "" {
		b.WriteString(": " + p.Key)
	}
	b.WriteString(": " + p.Text)
	return b.String()
}

// Problems is an error with one Problem per line, in the order of the file.
type Problems []Problem

func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Err is ps as an error, nil when there are none. (A nil Problems in an error variable would
// not compare equal to nil.)
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}

// sort brings the problems into the order of the file; those of the environment come last,
// those without any line first.
func (ps Problems) sort(file string) {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if aHere, bHere := a.File == file, b.File == file; aHere != bHere {
			if aHere {
				return -1
			}
			return 1
		}
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.File, b.File))
	})
}
