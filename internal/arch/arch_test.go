package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHouse(t *testing.T) {
	files := sources(t, "../..")
	if len(files) < 10 {
		t.Fatalf("only %d Go files found", len(files))
	}
	for _, v := range (checker{module, leaves, table, homes, testOnly, effects}).check(files) {
		t.Error(v)
	}
}

// sources reads the module's Go files. What git ignores, other modules, testdata
// and directories that the go tool does not look into are left out.
func sources(t *testing.T, root string) map[string]string {
	t.Helper()
	files := map[string]string{}
	ignored := ignoredDirs(t, root)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			if rel == "." {
				return nil
			}
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil {
				return filepath.SkipDir
			}
			if strings.HasPrefix(d.Name(), ".") || strings.HasPrefix(d.Name(), "_") || d.Name() == "testdata" || slices.Contains(ignored, rel) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(rel, ".go") {
			return nil
		}
		b, err := os.ReadFile(p)
		files[rel] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// ignoredDirs are the lines "/dir/" of .gitignore and of the clone's own list.
func ignoredDirs(t *testing.T, root string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, ".gitignore"))
	if err != nil {
		t.Fatal(err)
	}
	if own, err := os.ReadFile(filepath.Join(root, ".git", "info", "exclude")); err == nil {
		text = append(append(text, '\n'), own...)
	}
	var out []string
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") && strings.HasSuffix(line, "/") {
			out = append(out, strings.Trim(line, "/"))
		}
	}
	return out
}

// The checker sees what it is for: each planted file breaks one rule, and the
// sound ones none.
func TestPlantedViolations(t *testing.T) {
	c := checker{
		module: "m",
		leaves: []string{"leaf"},
		table: []row{
			{pkg: "low", never: []string{"net"}},
			{pkg: "high", imports: []string{"low"}},
			{pkg: "tree/...", imports: []string{"low"}},
			{pkg: "cmd/x", imports: []string{"high", "tree/..."}},
		},
		homes:    map[string][]string{"example.org/yaml": {"high"}},
		testOnly: []string{"example.org/rapid"},
		effects:  []string{"low"},
	}
	sound := map[string]string{
		"leaf/leaf.go":      "// Package leaf is one.\npackage leaf\nimport _ \"os\"\n",
		"low/low.go":        "// Package low is one.\npackage low\nimport (\"fmt\"; _ \"m/leaf\"; _ \"netx\")\nvar _ = fmt.Sprint()\n",
		"low/more.go":       "package low\nimport \"os\"\nfunc h(f fs) { f.Remove(os.Args[0]); f.OpenFile(\"x\", os.O_WRONLY|os.O_CREATE, 0); os.OpenFile(\"x\", os.O_RDONLY, 0) }\n",
		"low/low_test.go":   "package low\nimport (_ \"net/http\"; _ \"example.org/rapid\"; _ \"m/high\")\nfunc init() {}\n",
		"high/high.go":      "// Package high is one.\npackage high\nimport (_ \"m/low\"; _ \"m/leaf\"; _ \"net\"; _ \"example.org/yaml/v3\")\n",
		"tree/tree.go":      "// Package tree is one.\npackage tree\nimport _ \"m/low\"\n",
		"tree/a/b/b.go":     "// Package b is one.\npackage b\nimport _ \"m/low\"\n",
		"cmd/x/main.go":     "// Command x is one.\npackage main\nimport (\"os\"; _ \"m/high\"; _ \"m/tree/a/b\")\nfunc main() { os.Exit(1) }\n",
		"high/printer.go":   "package high\ntype fmtT struct{}\nfunc (fmtT) Println() {}\nfunc f() { var fmt fmtT; fmt.Println() }\n",
		"tree/init_util.go": "package tree\ntype t struct{}\nfunc (t) init() {}\n",
	}
	if got := c.check(sound); len(got) > 0 {
		t.Errorf("sound files: %q", got)
	}
	for _, x := range []struct{ file, src, want string }{
		{"low/x.go", "package low\nimport _ \"m/high\"\n", "low/x.go:2:8: low must not import high"},
		{"low/x.go", "package low\nimport _ \"net\"\n", "low/x.go:2:8: low must not import net"},
		{"low/x.go", "package low\nimport _ \"net/http\"\n", "low/x.go:2:8: low must not import net/http"},
		{"leaf/x.go", "package leaf\nimport _ \"m/low\"\n", "leaf/x.go:2:8: leaf is a leaf and imports low"},
		{"leaf/x.go", "package leaf\nimport _ \"net/url\"\n", "leaf/x.go:2:8: leaf must not import net/url"},
		{"tree/a/x.go", "// Package a is one.\npackage a\nimport _ \"m/high\"\n", "tree/a/x.go:3:8: tree/a must not import high"},
		{"cmd/x/x.go", "package main\nimport _ \"m/low\"\n", "cmd/x/x.go:2:8: cmd/x must not import low"},
		{"high/x.go", "package high\nimport _ \"example.org/rapid/gen\"\n", "high/x.go:2:8: example.org/rapid/gen is for tests, high is none"},
		{"low/x.go", "package low\nimport _ \"example.org/yaml/v3\"\n", "low/x.go:2:8: example.org/yaml/v3 is used in high only, not in low"},
		{"high/x.go", "package high\nimport _ \"log\"\n", "high/x.go:2:8: package log: what a library has to say it returns, or emits as an event"},
		{"high/x.go", "package high\nimport \"fmt\"\nfunc g() { fmt.Println() }\n", "high/x.go:3:12: fmt.Println: write to the stream that was given"},
		{"high/x.go", "package high\nimport f \"fmt\"\nfunc g() { f.Printf(\"\") }\n", "high/x.go:3:12: fmt.Printf: write to the stream that was given"},
		{"high/x.go", "package high\nimport \"context\"\nvar c = context.TODO()\n", "high/x.go:3:9: context.TODO: take the caller's context"},
		{"high/x.go", "package high\nimport \"os\"\nfunc g() { os.Exit(1) }\n", "high/x.go:3:12: os.Exit: return an error, the command exits"},
		{"high/x.go", "package high\nfunc init() {}\n", "high/x.go:2:1: func init: nothing happens by being imported"},
		{"low/x.go", "package low\nimport \"os\"\nfunc g() { os.Remove(\"x\") }\n", "low/x.go:3:12: os.Remove: change files by an fsx.FS"},
		{"low/x.go", "package low\nimport \"os\"\nfunc g() { os.OpenFile(\"x\", os.O_RDONLY|os.O_CREATE, 0) }\n", "low/x.go:3:41: os.O_CREATE: change files by an fsx.FS"},
		{"new/x.go", "// Package new is one.\npackage new\n", "new/x.go: package new is not in the table"},
		{"tree/bare/x.go", "package bare\n", "tree/bare: no package comment"},
		{"tree/bare/x.go", "// Something else.\npackage bare\n", "tree/bare: no package comment"},
	} {
		files := map[string]string{x.file: x.src}
		for name, src := range sound {
			files[name] = src
		}
		if diff := cmp.Diff([]string{x.want}, c.check(files)); diff != "" {
			t.Errorf("%s %q:\n%s", x.file, x.src, diff)
		}
	}
}

// A file that cannot be read is no file that passes.
func TestUnreadableFile(t *testing.T) {
	got := checker{module: "m"}.check(map[string]string{"x/x.go": "package x\nfunc {\n"})
	if len(got) != 1 || !strings.HasPrefix(got[0], "x/x.go:2:6: ") {
		t.Errorf("%q", got)
	}
}

// Every row is of a package that can be there, and no package has two.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range table {
		if seen[r.pkg] || slices.Contains(leaves, r.pkg) {
			t.Errorf("%s is there twice", r.pkg)
		}
		seen[r.pkg] = true
	}
	for _, r := range table {
		for _, imp := range r.imports {
			if !seen[imp] {
				t.Errorf("%s may import %s, which has no row", r.pkg, imp)
			}
		}
	}
}
