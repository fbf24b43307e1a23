package ui

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// message is an event as the source defines it.
type message struct {
	kind   string // its message_type
	where  string // file and line
	fields []string
}

// messages reads all events of the repository: the structs that have a method
// MessageType, and the values of the field that it returns where it returns one.
func messages(t *testing.T, root string) (all []message) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if name := d.Name(); path != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "lab") {
			return filepath.SkipDir
		}
		all = append(all, messagesIn(t, path)...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func messagesIn(t *testing.T, dir string) (all []message) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	fset := token.NewFileSet()
	structs := map[string]*ast.StructType{}
	returns := map[string]ast.Expr{} // type -> what its MessageType returns
	literals := map[string][]*ast.CompositeLit{}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, name, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.TypeSpec:
				if s, ok := n.Type.(*ast.StructType); ok {
					structs[n.Name.Name] = s
				}
			case *ast.CompositeLit:
				if id, ok := n.Type.(*ast.Ident); ok {
					literals[id.Name] = append(literals[id.Name], n)
				}
			case *ast.FuncDecl:
				if n.Recv == nil || n.Name.Name != "MessageType" || len(n.Body.List) != 1 {
					break
				}
				typ := n.Recv.List[0].Type
				if star, ok := typ.(*ast.StarExpr); ok {
					typ = star.X
				}
				returns[typ.(*ast.Ident).Name] = n.Body.List[0].(*ast.ReturnStmt).Results[0]
			}
			return true
		})
	}
	add := func(typ string, kind ast.Expr) {
		lit, ok := kind.(*ast.BasicLit)
		if !ok {
			t.Errorf("%s: the message_type of %s is no literal, so no test can hold json.md to it", fset.Position(kind.Pos()), typ)
			return
		}
		word, err := strconv.Unquote(lit.Value)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, message{word, fset.Position(lit.Pos()).String(), jsonFields(structs[typ])})
	}
	for typ, result := range returns {
		field, ok := result.(*ast.SelectorExpr)
		if !ok {
			add(typ, result)
			continue
		}
		for _, lit := range literals[typ] {
			for _, e := range lit.Elts {
				if kv, ok := e.(*ast.KeyValueExpr); ok && kv.Key.(*ast.Ident).Name == field.Sel.Name {
					add(typ, kv.Value)
				}
			}
		}
	}
	return all
}

func jsonFields(s *ast.StructType) (names []string) {
	if s == nil {
		return nil
	}
	for _, f := range s.Fields.List {
		if f.Tag == nil {
			continue
		}
		name, _, _ := strings.Cut(reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json"), ",")
		if name != "" && name != "-" {
			names = append(names, name)
		}
	}
	return names
}

// Every message that the program can print has a row in docs/json.md that names
// its fields, and every row has a message.
func TestJSONDocsAreInStep(t *testing.T) {
	root := filepath.Join("..", "..")
	text, err := os.ReadFile(filepath.Join(root, "docs", "json.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\|.*$").FindAllStringSubmatch(string(text), -1) {
		if rows[m[1]] != "" {
			t.Errorf("docs/json.md has two rows for %s", m[1])
		}
		rows[m[1]] = m[0]
	}
	all := messages(t, root)
	if len(all) < 10 {
		t.Fatalf("only %d messages were found in the source", len(all))
	}
	seen := map[string]bool{}
	for _, m := range all {
		seen[m.kind] = true
		row, ok := rows[m.kind]
		if !ok {
			t.Errorf("%s: message_type %s has no row in docs/json.md", m.where, m.kind)
			continue
		}
		for _, f := range m.fields {
			if !strings.Contains(row, "`"+f+"`") {
				t.Errorf("%s: docs/json.md does not name the field %s of %s", m.where, f, m.kind)
			}
		}
	}
	for kind := range rows {
		if !seen[kind] {
			t.Errorf("docs/json.md describes %s, which nothing prints", kind)
		}
	}
}
