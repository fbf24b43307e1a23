package arch

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
)

// checker holds the rules, so that a test can give it others.
type checker struct {
	module   string
	leaves   []string
	table    []row
	homes    map[string][]string
	testOnly []string
	effects  []string // packages that change files by an fsx.FS only
}

// check returns every violation in files, a map from a path relative to the
// module to a Go source.
func (c checker) check(files map[string]string) []string {
	var out []string
	documented := map[string]bool{}
	for _, name := range sortedKeys(files) {
		pkg := path.Dir(name)
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, name, files[name], parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			out = append(out, err.Error())
			continue
		}
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		documented[pkg] = documented[pkg] || isPackageComment(f)
		r, ok := c.row(pkg)
		if !ok {
			out = append(out, fmt.Sprintf("%s: package %s is not in the table", name, pkg))
			continue
		}
		at := func(n ast.Node) string { return fset.Position(n.Pos()).String() }
		for _, spec := range f.Imports {
			imp, _ := strconv.Unquote(spec.Path.Value) // the parser has unquoted it before
			if why := c.refuse(pkg, r, imp); why != "" {
				out = append(out, at(spec)+": "+why)
			}
		}
		out = append(out, habits(f, pkg, at)...)
		if slices.Contains(c.effects, pkg) {
			out = append(out, changes(f, at)...)
		}
	}
	for _, pkg := range sortedKeys(documented) {
		if !documented[pkg] {
			out = append(out, fmt.Sprintf("%s: no package comment", pkg))
		}
	}
	return out
}

func (c checker) row(pkg string) (row, bool) {
	if slices.Contains(c.leaves, pkg) {
		return row{pkg: pkg, never: []string{"net", "github.com/aws", "github.com/cometbft"}}, true
	}
	i := slices.IndexFunc(c.table, func(r row) bool { return covers(r.pkg, pkg) })
	if i < 0 {
		return row{}, false
	}
	return c.table[i], true
}

// refuse says why pkg must not import imp, or "".
func (c checker) refuse(pkg string, r row, imp string) string {
	if imp == "log" {
		return "package log: what a library has to say it returns, or emits as an event"
	}
	if rel, ok := strings.CutPrefix(imp, c.module+"/"); ok {
		if slices.Contains(c.leaves, pkg) {
			return fmt.Sprintf("%s is a leaf and imports %s", pkg, rel)
		}
		if slices.Contains(c.leaves, rel) || slices.ContainsFunc(r.imports, func(allowed string) bool { return covers(allowed, rel) }) {
			return ""
		}
		return fmt.Sprintf("%s must not import %s", pkg, rel)
	}
	for _, never := range r.never {
		if below(imp, never) {
			return fmt.Sprintf("%s must not import %s", pkg, imp)
		}
	}
	for _, m := range c.testOnly {
		if below(imp, m) {
			return fmt.Sprintf("%s is for tests, %s is none", imp, pkg)
		}
	}
	for m, homes := range c.homes {
		if below(imp, m) && !slices.ContainsFunc(homes, func(h string) bool { return covers(h, pkg) }) {
			return fmt.Sprintf("%s is used in %s only, not in %s", imp, strings.Join(homes, ", "), pkg)
		}
	}
	return ""
}

// covers tells whether a row's name stands for pkg.
func covers(name, pkg string) bool {
	if tree, ok := strings.CutSuffix(name, "/..."); ok {
		return below(pkg, tree)
	}
	return name == pkg
}

func below(imp, tree string) bool { return imp == tree || strings.HasPrefix(imp, tree+"/") }

func isPackageComment(f *ast.File) bool {
	text := f.Doc.Text()
	if f.Name.Name == "main" {
		return strings.HasPrefix(text, "Command ") || strings.HasPrefix(text, "Package main ")
	}
	return strings.HasPrefix(text, "Package "+f.Name.Name+" ")
}

// habits are the things that no code of ours does, whatever its package: an init
// function, a context out of nowhere; and outside of cmd, printing and exiting.
func habits(f *ast.File, pkg string, at func(ast.Node) string) []string {
	var out []string
	names := importNames(f)
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Name.Name == "init" && n.Recv == nil {
				out = append(out, at(n)+": func init: nothing happens by being imported")
			}
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if !ok {
				return true
			}
			cmd := below(pkg, "cmd")
			switch what := names[x.Name] + "." + n.Sel.Name; what {
			case "context.TODO":
				out = append(out, at(n)+": "+what+": take the caller's context")
			case "fmt.Print", "fmt.Printf", "fmt.Println":
				out = append(out, at(n)+": "+what+": write to the stream that was given")
			case "os.Exit":
				if !cmd {
					out = append(out, at(n)+": "+what+": return an error, the command exits")
				}
			}
		}
		return true
	})
	return out
}

// importNames are the packages by the names that they have in a file.
func importNames(f *ast.File) map[string]string {
	names := map[string]string{}
	for _, spec := range f.Imports {
		imp, _ := strconv.Unquote(spec.Path.Value)
		name := path.Base(imp)
		if spec.Name != nil {
			name = spec.Name.Name
		}
		names[name] = imp
	}
	return names
}

// changing are the functions that change files past an fsx.FS.
var changing = map[string][]string{
	"os": {
		"Chmod", "Chown", "Chtimes", "CopyFS", "Create", "CreateTemp", "Lchown", "Link", "Mkdir", "MkdirAll", "MkdirTemp",
		"OpenRoot", "Remove", "RemoveAll", "Rename", "Symlink", "Truncate", "WriteFile",
		"O_APPEND", "O_CREATE", "O_RDWR", "O_TRUNC", "O_WRONLY",
	},
	"golang.org/x/sys/unix":  {"Fdatasync", "Fsync", "Link", "Linkat", "Mkdir", "Mkdirat", "Open", "Openat", "Rename", "Renameat", "Renameat2", "Rmdir", "Symlink", "Syncfs", "Unlink", "Unlinkat"},
	module + "/internal/fsx": {"Clone", "Copy", "SyncDir", "WriteFileAtomic", "WriteFileLike", "WriteFileOwned"},
}

// changes finds what a crash harness would not see. The flags of os.OpenFile are
// welcome as an argument of an FS's or a Root's.
func changes(f *ast.File, at func(ast.Node) string) []string {
	var out []string
	names := importNames(f)
	flags := map[ast.Node]bool{} // arguments of a method that sees its effect
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			sel, ok := n.Fun.(*ast.SelectorExpr)
			if !ok || sel.Sel.Name != "OpenFile" {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && names[x.Name] == "os" {
				return true
			}
			for _, a := range n.Args {
				ast.Inspect(a, func(n ast.Node) bool { flags[n] = true; return true })
			}
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			if !ok || flags[n] || !slices.Contains(changing[names[x.Name]], n.Sel.Name) {
				return true
			}
			out = append(out, at(n)+": "+x.Name+"."+n.Sel.Name+": change files by an fsx.FS")
		}
		return true
	})
	return out
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
