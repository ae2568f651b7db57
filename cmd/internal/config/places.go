package config

import (
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2/unstable"
)

// place is where a value was written.
type place struct {
	file string // or the name of an environment variable
	line int    // from 1; 0 in the environment
}

// places maps dotted keys ("listener[1].protocol", "backend[0].hosts[3]") to where they stand.
type places map[string]place

// problem places text at key, or at the nearest table around it when the key itself was not
// written: what is missing is reported at the table it is missing from.
func (ps places) problem(file, key, text string) Problem {
	for at := key; at != ""; at = at[:max(0, strings.LastIndexAny(at, ".["))] {
		if p, ok := ps[at]; ok {
			return Problem{File: p.file, Line: p.line, Key: key, Text: text}
		}
	}
	return Problem{File: file, Key: key, Text: text}
}

// findPlaces walks over data, which must be TOML that has been decoded without an error.
func findPlaces(file string, data []byte) places {
	w := walker{file: file, places: places{}, arrays: map[string]int{}}
	w.parser.Reset(data)
	table := ""
	for w.parser.NextExpression() {
		switch n := w.parser.Expression(); n.Kind {
		case unstable.Table:
			table = w.key("", n.Key())
		case unstable.ArrayTable:
			table = w.arrayTable(n.Key())
		case unstable.KeyValue:
			w.keyValue(table, n)
		}
	}
	return w.places
}

type walker struct {
	file   string
	parser unstable.Parser
	places places
	arrays map[string]int // tables seen so far of each array of tables
}

// key joins the parts of a dotted key to prefix. A part that names an array of tables means its
// last table (TOML 1.0, section "Array of Tables").
func (w *walker) key(prefix string, parts unstable.Iterator) string {
	for parts.Next() {
		prefix = join(prefix, string(parts.Node().Data))
		w.note(prefix, parts.Node().Raw)
		if n := w.arrays[prefix]; n > 0 {
			prefix = fmt.Sprintf("%s[%d]", prefix, n-1)
		}
	}
	return prefix
}

func (w *walker) arrayTable(parts unstable.Iterator) string {
	prefix := ""
	for parts.Next() {
		prefix = join(prefix, string(parts.Node().Data))
		w.note(prefix, parts.Node().Raw)
		if parts.IsLast() {
			w.arrays[prefix]++
		}
		if n := w.arrays[prefix]; n > 0 {
			prefix = fmt.Sprintf("%s[%d]", prefix, n-1)
			w.note(prefix, parts.Node().Raw)
		}
	}
	return prefix
}

func (w *walker) keyValue(prefix string, n *unstable.Node) {
	w.value(w.key(prefix, n.Key()), n.Value())
}

// value goes into arrays and inline tables.
func (w *walker) value(key string, n *unstable.Node) {
	switch n.Kind {
	case unstable.Array:
		i := 0
		for it := n.Children(); it.Next(); i++ {
			element := fmt.Sprintf("%s[%d]", key, i)
			// Arrays within arrays have no position of their own; nothing here nests them.
			if it.Node().Raw.Length > 0 {
				w.note(element, it.Node().Raw)
			}
			w.value(element, it.Node())
		}
	case unstable.InlineTable:
		for it := n.Children(); it.Next(); {
			w.keyValue(key, it.Node())
		}
	}
}

// note keeps the first place of a key: that of [director], not of a later [director.x].
func (w *walker) note(key string, raw unstable.Range) {
	if _, ok := w.places[key]; !ok {
		w.places[key] = place{file: w.file, line: w.parser.Shape(raw).Start.Line}
	}
}

func join(prefix, key string) string {
	if prefix == "" {
		return key
	}
	return prefix + "." + key
}
