package config

import (
	"fmt"
	"reflect"
	"strings"
)

// unknownKey says what might have been meant by a key that the table of type t does not have.
func unknownKey(t reflect.Type, name, path string) string {
	keys := keysOf(t)
	if s := didYouMean(name, keys); s != "" {
		return "unknown key" + s
	}
	// A key of another table: mostly a forgotten or misplaced [table] line.
	root := reflect.TypeFor[Config]()
	for i := range root.NumField() {
		table := root.Field(i)
		inner, brackets := table.Type, "[%s]"
		if inner.Kind() == reflect.Slice {
			inner, brackets = inner.Elem(), "[[%s]]"
		}
		if tag := table.Tag.Get("toml"); tag != "" && tag != path {
			if _, ok := fieldNamed(inner, name); ok {
				return "unknown key here; it belongs to " + fmt.Sprintf(brackets, tag)
			}
		}
	}
	if path == "" {
		return "unknown table; there are " + strings.Join(keys, ", ")
	}
	return "unknown key; there are " + strings.Join(keys, ", ")
}

func keysOf(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		if key := t.Field(i).Tag.Get("toml"); key != "" {
			keys = append(keys, key)
		}
	}
	return keys
}

// didYouMean is "; did you mean "x"?" for the word next to s, or empty when none is near.
func didYouMean(s string, words []string) string {
	// Names as in Dovecot's configuration.
	s = strings.ReplaceAll(strings.ToLower(s), "-", "_")
	s = strings.TrimPrefix(s, "director_")
	best, least := "", 1+max(1, len(s)/3)
	for _, w := range words {
		if d := distance(s, strings.ReplaceAll(w, "-", "_")); d < least {
			best, least = w, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance counts the letters to insert, delete or replace between a and b (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replace := diagonal
			if a[i] != b[j] {
				replace++
			}
			diagonal = row[j+1]
			row[j+1] = min(replace, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// alternatives is `"a", "b" or "c"`.
func alternatives(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = fmt.Sprintf("%q", w)
	}
	if len(quoted) == 1 {
		return quoted[0]
	}
	last := len(quoted) - 1
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}
