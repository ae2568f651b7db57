package director

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestPurity: everything below director/ decides and does nothing else. So it imports only the standard
// library and itself, nothing of it that reaches the world, reads no clock and starts no goroutine.
// Tests are exempt, and so is ring/peer, which has the ring's sockets.
func TestPurity(t *testing.T) {
	forbidden := map[string]string{
		"net": "sockets", "net/http": "sockets", "os": "files and environment", "os/exec": "processes",
		"os/signal": "signals", "syscall": "the kernel", "io/fs": "files", "io/ioutil": "files", "log": "output",
		"log/slog": "output", "math/rand": "chance", "math/rand/v2": "chance", "crypto/rand": "chance",
		"sync": "there is one caller", "sync/atomic": "there is one caller", "context": "nothing here waits",
		"unsafe": "no need", "runtime": "no need",
	}
	clock := map[string]bool{"Now": true, "Since": true, "Until": true, "Sleep": true, "After": true,
		"AfterFunc": true, "Tick": true, "NewTimer": true, "NewTicker": true}

	files := 0
	err := filepath.WalkDir(".", func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() && filepath.ToSlash(path) == "ring/peer" {
			return fs.SkipDir
		}
		if entry != nil && entry.IsDir() && path == filepath.Join("ring", "peer") {
			return filepath.SkipDir
		}
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		files++
		set := token.NewFileSet()
		file, err := parser.ParseFile(set, path, nil, 0)
		if err != nil {
			return err
		}
		for _, spec := range file.Imports {
			name, _ := strconv.Unquote(spec.Path.Value)
			if why, ok := forbidden[name]; ok {
				t.Errorf("%s imports %s: %s", set.Position(spec.Pos()), name, why)
			}
			first, _, _ := strings.Cut(name, "/")
			if strings.Contains(first, ".") || first == "usher" && !strings.HasPrefix(name+"/", "usher/director/") {
				t.Errorf("%s imports %s: neither the standard library nor part of director", set.Position(spec.Pos()), name)
			}
			if spec.Name != nil {
				t.Errorf("%s renames %s, which this test cannot follow", set.Position(spec.Pos()), name)
			}
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s starts a goroutine", set.Position(n.Pos()))
			case *ast.SelectStmt, *ast.SendStmt, *ast.ChanType:
				t.Errorf("%s uses a channel", set.Position(n.Pos()))
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && clock[n.Sel.Name] {
					t.Errorf("%s reads the clock: time.%s", set.Position(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files < 10 {
		t.Fatalf("only %d files were looked at", files)
	}
}
