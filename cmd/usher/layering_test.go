package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "usher"

// rule says which packages may not import something. Importers are named by folder,
// what they import by import path; "…/**" is a package and all below it.
type rule struct {
	who     []string // importers it is about; none: all
	except  []string // importers it is not about
	tests   bool     // it is about _test.go files as well
	imports []string // what they may not import; with std: what alone they may import
	helpers bool     // they may not import packages for tests
	std     bool     // and the standard library, but nothing else
	why     string
}

// ringSockets is the one package below director that touches the world.
const ringSockets = "director/ring/peer"

// rules are the rooms of the house and their doors. (That director is pure within the
// standard library, too, is checked in its own tests.)
var rules = []rule{
	{
		who: []string{"director/**"}, except: []string{ringSockets}, imports: []string{"usher/director/**"}, std: true,
		why: "director decides and does nothing else: it can be tested and simulated without a world",
	},
	{
		who: []string{"director/**"}, except: []string{ringSockets},
		imports: []string{"net", "net/http/**", "crypto/tls", "os/**", "syscall", "usher/" + ringSockets},
		why:     "only the sockets of the ring reach the world, and they are driven from outside",
	},
	{
		who: []string{ringSockets}, imports: []string{"usher/director/**", "github.com/rs/zerolog"}, std: true,
		why: "the sockets of the ring know the ring's boundary, and nothing else of the project",
	},
	{
		who:     []string{"steer/**"},
		imports: []string{"github.com/cilium/ebpf/**", "usher/loader/**", "usher/bpf/**"},
		why:     "steer asks for a hand-over by its own interface: it works, and is tested, without a kernel program",
	},
	{
		except:  []string{"loader/**", "bpf/**"},
		imports: []string{"github.com/cilium/ebpf/**"},
		why:     "who wants to know what is in a BPF map asks loader: one place knows the library and the layout",
	},
	{
		except:  []string{"testenv/**", "cmd/internal/site/**", "cmd/internal/demo/**"},
		imports: []string{"usher/testenv/**"},
		why:     "the test bed is not part of the daemon; only what shows a whole site has it in the binary",
	},
	{
		helpers: true,
		why:     "a package whose name ends in \"test\" is part of tests, and what it imports would come along",
	},
	{
		except:  []string{"loader/**", "testenv/**"},
		imports: []string{"github.com/vishvananda/netlink/**"}, tests: true,
		why: "interfaces and namespaces are handled by loader and by the lab, with handles bound to a namespace",
	},
	{
		except:  []string{"cmd/**"},
		imports: []string{"usher/cmd/**", "github.com/spf13/cobra/**"}, tests: true,
		why: "cmd wires everything together: nothing may depend on it",
	},
	{
		who: []string{"loader/**", "bpf/**"}, imports: []string{"usher/steer"},
		why: "the kernel side serves the interfaces of steer's packages, not the server itself",
	},
}

func matches(pattern, name string) bool {
	if parent, below := strings.CutSuffix(pattern, "/**"); below {
		return name == parent || strings.HasPrefix(name, parent+"/")
	}
	return name == pattern
}

func anyMatches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(p, name) })
}

func isStd(name string) bool {
	first, _, _ := strings.Cut(name, "/")
	return first != module && !strings.Contains(first, ".")
}

// isTestHelper reports whether a package is one for tests, by its name (as httptest).
func isTestHelper(dir string) bool { return strings.HasSuffix(path.Base(dir), "test") }

// allows says whether a file of package dir may import name.
func (r rule) allows(dir string, test bool, name string) bool {
	about := (len(r.who) == 0 || anyMatches(r.who, dir)) && !anyMatches(r.except, dir) && (!test || r.tests)
	if r.helpers {
		return test || !strings.HasPrefix(name, module+"/") || !isTestHelper(name)
	}
	if !about {
		return true
	}
	if r.std {
		return isStd(name) || anyMatches(r.imports, name)
	}
	return !anyMatches(r.imports, name)
}

// source is a Go file of the module.
type source struct {
	path, dir string // from the module's root, with slashes
	test      bool
	file      *ast.File
}

// walk calls f for every file of the module that is not hidden or test data.
func walk(t *testing.T, f func(file string)) {
	t.Helper()
	root := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := e.Name()
		if e.IsDir() && p != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
			return filepath.SkipDir
		}
		if !e.IsDir() {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			f(filepath.ToSlash(rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	walk(t, func(file string) {
		if !strings.HasSuffix(file, ".go") {
			return
		}
		s := source{path: file, dir: path.Dir(file)}
		s.test = strings.HasSuffix(file, "_test.go") || isTestHelper(s.dir)
		var err error
		s.file, err = parser.ParseFile(token.NewFileSet(), filepath.Join("..", "..", file), nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, s)
	})
	if len(all) < 100 {
		t.Fatalf("only %d Go files were found", len(all))
	}
	return all
}

func TestLayering(t *testing.T) {
	for _, s := range sources(t) {
		for _, spec := range s.file.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range rules {
				if !r.allows(s.dir, s.test, name) {
					t.Errorf("%s imports %s: %s", s.path, name, r.why)
				}
			}
		}
	}
}

// TestRules: each rule forbids what it is there for. A pattern with a typing error
// would forbid nothing.
func TestRules(t *testing.T) {
	for _, row := range []struct {
		dir     string
		test    bool
		name    string
		allowed bool
	}{
		{"director/users", false, "slices", true},
		{"director/users", false, "usher/director/hosts", true},
		{"director", false, "github.com/rs/zerolog", false},
		{"director", false, "usher/steer/route", false},
		{"director", true, "pgregory.net/rapid", true},
		{"directory", false, "github.com/rs/zerolog", true},
		{"director/ring", false, "usher/director", true},
		{"director/ring", false, "net/netip", true},
		{"director/ring", false, "net", false},
		{"director/ring", false, "os", false},
		{"director/ring", false, "github.com/rs/zerolog", false},
		{"director/ring", false, "usher/director/ring/peer", false},
		{"director/ring", true, "usher/director/ring/peer", true},
		{"director/ring/peer", false, "net", true},
		{"director/ring/peer", false, "crypto/tls", true},
		{"director/ring/peer", false, "github.com/rs/zerolog", true},
		{"director/ring/peer", false, "usher/director/ring", true},
		{"director/ring/peer", false, "usher/steer/route", false},
		{"steer/handover", false, "github.com/cilium/ebpf", false},
		{"steer/handover", false, "github.com/cilium/ebpf/link", false},
		{"steer", false, "usher/loader", false},
		{"steer", true, "usher/loader/netns", true},
		{"steer", false, "usher/bpf", false},
		{"steer", false, "usher/director", true},
		{"loader", false, "github.com/cilium/ebpf", true},
		{"bpf", false, "github.com/cilium/ebpf", true},
		{"bpf", true, "github.com/cilium/ebpf/asm", true},
		{"cmd/usher", false, "github.com/cilium/ebpf", false},
		{"cmd/usher", true, "github.com/cilium/ebpf", true},
		{"cmd/internal/serve", false, "github.com/cilium/ebpf", false},
		{"cmd/internal/serve", false, "usher/testenv/lab", false},
		{"cmd/internal/site", false, "usher/testenv/lab", true},
		{"cmd/internal/demo", false, "usher/testenv/lab", true},
		{"cmd/usher", false, "usher/testenv/lab", false},
		{"cmd/usher", true, "usher/testenv/lab", true},
		{"loader", false, "usher/testenv/lab", false},
		{"loader", true, "usher/testenv/lab", true},
		{"loader/netns", false, "github.com/vishvananda/netlink", true},
		{"testenv/lab", false, "github.com/vishvananda/netlink", true},
		{"cmd/internal/site", false, "github.com/vishvananda/netlink/nl", false},
		{"steer/upstream", false, "usher/steer/upstream/internal/dovecottest", false},
		{"steer/upstream", true, "usher/steer/upstream/internal/dovecottest", true},
		{"steer/expire", false, "usher/cmd/internal/admin", false},
		{"testenv/client", false, "github.com/spf13/cobra", false},
		{"loader", false, "usher/steer", false},
		{"loader", false, "usher/steer/handover", true},
	} {
		allowed := true
		for _, r := range rules {
			allowed = allowed && r.allows(row.dir, row.test, row.name)
		}
		if allowed != row.allowed {
			t.Errorf("%s (test: %v) may import %s: %v, want %v", row.dir, row.test, row.name, allowed, row.allowed)
		}
	}
}

// TestPackagesAreDocumented: every package says what it is, once.
func TestPackagesAreDocumented(t *testing.T) {
	docs := map[string][]string{}
	for _, s := range sources(t) {
		if strings.HasSuffix(s.path, "_test.go") {
			continue
		}
		if _, ok := docs[s.dir]; !ok {
			docs[s.dir] = nil
		}
		if s.file.Doc == nil {
			continue
		}
		text := s.file.Doc.Text()
		// Only what a directive or a generator's header leaves is empty.
		if strings.HasPrefix(text, "Package "+s.file.Name.Name+" ") || s.file.Name.Name == "main" && text != "" {
			docs[s.dir] = append(docs[s.dir], s.path)
		} else if text != "" {
			t.Errorf("%s: the comment at the package clause does not begin with \"Package %s\"", s.path, s.file.Name.Name)
		}
	}
	for dir, files := range docs {
		if len(files) != 1 {
			t.Errorf("package %s has %d doc comments %v, want one", dir, len(files), files)
		}
	}
}

// TestLicenceOfKernelCode: BPF programs are loaded under the GPL, the rest of the
// project is Apache-2.0: each C file says by itself what it is.
func TestLicenceOfKernelCode(t *testing.T) {
	found := 0
	walk(t, func(file string) {
		if path.Dir(file) != "bpf" || !strings.HasSuffix(file, ".c") && !strings.HasSuffix(file, ".h") {
			return
		}
		found++
		text, err := os.ReadFile(filepath.Join("..", "..", file))
		if err != nil {
			t.Fatal(err)
		}
		head := strings.Split(string(text), "\n")
		if !slices.ContainsFunc(head[:min(3, len(head))], func(l string) bool {
			return strings.Contains(l, "SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause")
		}) {
			t.Errorf("%s: no SPDX line in the first three", file)
		}
	})
	if found < 2 {
		t.Errorf("only %d C files were found", found)
	}
}
