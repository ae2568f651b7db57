package config

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
)

// binder moves a decoded TOML tree into the typed Config and collects what does not fit.
// go-toml's own decoder stops at the first value of a wrong type; people who edit a file want
// to hear of all of them.
type binder struct {
	file     string
	places   places
	problems Problems
}

func (b *binder) bad(key, format string, args ...any) {
	b.problems = append(b.problems, b.places.problem(b.file, key, fmt.Sprintf(format, args...)))
}

func (b *binder) root(cfg *Config, tree map[string]any) {
	b.table(reflect.ValueOf(cfg).Elem(), tree, "")
}

func (b *binder) table(dst reflect.Value, tree map[string]any, path string) {
	// In the order of the names: maps have none, and messages have to be stable.
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		field, ok := fieldNamed(dst.Type(), name)
		if !ok {
			b.bad(join(path, name), "%s", unknownKey(dst.Type(), name, path))
			continue
		}
		b.value(dst.FieldByIndex(field.Index), tree[name], join(path, name), field.Tag.Get("oneof"))
	}
}

func (b *binder) value(dst reflect.Value, v any, key, oneof string) {
	if _, ok := dst.Addr().Interface().(encoding.TextUnmarshaler); ok || isScalar(dst) {
		if err := setScalar(dst, v, oneof); err != nil {
			b.bad(key, "%v", err)
		}
		return
	}
	switch dst.Kind() {
	case reflect.Struct:
		tree, ok := v.(map[string]any)
		if !ok {
			b.bad(key, "want a table, got %s: write [%s]", describe(v), key)
			return
		}
		b.table(dst, tree, key)
	case reflect.Pointer:
		p := reflect.New(dst.Type().Elem())
		setDefaults(p)
		b.value(p.Elem(), v, key, "")
		dst.Set(p)
	case reflect.Slice:
		b.list(dst, v, key)
	default:
		panic("config: no binding for " + dst.Type().String())
	}
}

func (b *binder) list(dst reflect.Value, v any, key string) {
	elements, ok := v.([]any)
	if !ok {
		if _, isTable := v.(map[string]any); isTable {
			b.bad(key, "there may be several: write [[%s]]", key)
		} else {
			b.bad(key, "want a list, got %s: write [%s]", describe(v), describeValue(v))
		}
		return
	}
	list := reflect.MakeSlice(dst.Type(), len(elements), len(elements))
	for i, element := range elements {
		setDefaults(list.Index(i).Addr())
		b.value(list.Index(i), element, fmt.Sprintf("%s[%d]", key, i), "")
	}
	dst.Set(list)
}

// environment applies USHER_<TABLE>_<KEY> to the single values of the single tables.
func (b *binder) environment(cfg *Config, environ []string) {
	root := reflect.ValueOf(cfg).Elem()
	for _, kv := range slices.Sorted(slices.Values(environ)) {
		variable, value, _ := strings.Cut(kv, "=")
		rest, ok := strings.CutPrefix(variable, "USHER_")
		if !ok {
			continue
		}
		table, name, ok := strings.Cut(strings.ToLower(rest), "_")
		if !ok {
			continue // USHER_SOCKET and the like
		}
		tableField, ok := fieldNamed(root.Type(), table)
		if !ok {
			continue
		}
		key := join(table, name)
		bad := func(format string, args ...any) {
			b.problems = append(b.problems, Problem{File: variable, Key: key, Text: fmt.Sprintf(format, args...)})
		}
		if tableField.Type.Kind() != reflect.Struct {
			bad("there may be several [[%s]], the environment cannot say which one is meant", table)
			continue
		}
		field, ok := fieldNamed(tableField.Type, name)
		if !ok {
			bad("%s", unknownKey(tableField.Type, name, table))
			continue
		}
		dst := root.FieldByIndex(tableField.Index).FieldByIndex(field.Index)
		_, isText := dst.Addr().Interface().(encoding.TextUnmarshaler)
		if kind := dst.Kind(); !isText && !isScalar(dst) {
			bad("is a %s, only single values can come from the environment", map[bool]string{true: "list", false: "table"}[kind == reflect.Slice])
			continue
		}
		v, err := fromText(dst, value)
		if err == nil {
			err = setScalar(dst, v, field.Tag.Get("oneof"))
		}
		if err != nil {
			bad("%v", err)
			continue
		}
		b.places[key] = place{file: variable}
	}
}

// fromText gives the text of an environment variable the type that TOML would have.
func fromText(dst reflect.Value, text string) (any, error) {
	switch {
	case dst.Kind() == reflect.Bool:
		if text != "true" && text != "false" {
			return nil, fmt.Errorf("want true or false, got %q", text)
		}
		return text == "true", nil
	case dst.Kind() == reflect.Int:
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("want a number, got %q", text)
		}
		return n, nil
	}
	return text, nil
}

func isScalar(v reflect.Value) bool {
	switch v.Kind() {
	case reflect.String, reflect.Bool, reflect.Int:
		return true
	}
	return false
}

// setScalar puts a value of TOML's type into dst. oneof lists the words that are allowed.
func setScalar(dst reflect.Value, v any, oneof string) error {
	if text, ok := dst.Addr().Interface().(encoding.TextUnmarshaler); ok {
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("want a text such as %s, got %s", example(dst), describe(v))
		}
		// Values are only taken over when they are right, so that the checks that follow see
		// either what was written or the default.
		fresh := reflect.New(dst.Type())
		if err := fresh.Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			if _, own := text.(interface{ example() string }); own {
				return err
			}
			return fmt.Errorf("%q is not understood, want something like %s", s, example(dst))
		}
		dst.Set(fresh.Elem())
		return nil
	}
	switch dst.Kind() {
	case reflect.String:
		s, ok := v.(string)
		if !ok {
			return fmt.Errorf("want a text in quotes, got %s", describe(v))
		}
		if words := strings.Fields(oneof); len(words) > 0 && !slices.Contains(words, s) {
			return fmt.Errorf("%q is not known, want %s%s", s, alternatives(words), didYouMean(s, words))
		}
		dst.SetString(s)
	case reflect.Bool:
		t, ok := v.(bool)
		if !ok {
			return fmt.Errorf("want true or false, got %s", describe(v))
		}
		dst.SetBool(t)
	case reflect.Int:
		n, ok := v.(int64)
		if !ok {
			return fmt.Errorf("want a number, got %s", describe(v))
		}
		if dst.OverflowInt(n) {
			return fmt.Errorf("%d is too large", n)
		}
		dst.SetInt(n)
	}
	return nil
}

// fieldNamed finds the field of a struct type by its key.
func fieldNamed(t reflect.Type, name string) (reflect.StructField, bool) {
	for i := range t.NumField() {
		if f := t.Field(i); f.Tag.Get("toml") == name && name != "" {
			return f, true
		}
	}
	return reflect.StructField{}, false
}

func setDefaults(p reflect.Value) {
	if d, ok := p.Interface().(interface{ setDefaults() }); ok {
		d.setDefaults()
	}
}

// example is a good value in quotes for a type that is written as text.
func example(v reflect.Value) string {
	text := "10.1.0.2"
	switch p := v.Addr().Interface().(type) {
	case interface{ example() string }:
		text = p.example()
	case interface{ Port() uint16 }: // netip.AddrPort
		text = "10.1.0.2:9090"
	}
	return strconv.Quote(text)
}

// describe names a value of TOML for people.
func describe(v any) string {
	switch v := v.(type) {
	case map[string]any:
		return "a table"
	case []any:
		return "a list"
	case string:
		return fmt.Sprintf("the text %q", v)
	case bool:
		return fmt.Sprintf("%t", v)
	case int64:
		return fmt.Sprintf("the number %d", v)
	case float64:
		return fmt.Sprintf("the number %v", v)
	case time.Time:
		return "a date"
	}
	return "a date or time"
}

func describeValue(v any) string {
	if s, ok := v.(string); ok {
		return strconv.Quote(s)
	}
	return fmt.Sprint(v)
}
