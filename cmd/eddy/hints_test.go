package main

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"github.com/eddy-backup/eddy/internal/config"
)

// said is a text of the program, in one piece: what is put in at run time is X.
type said struct {
	text string
	pos  token.Position
	hint bool // it is one, beyond doubt
}

// sourceTexts are the texts in all packages of the module.
func sourceTexts(t *testing.T) (all []said) {
	t.Helper()
	set := token.NewFileSet()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && path != "../.." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "lab" || d.Name() == "testdata"):
			return filepath.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		all = append(all, textsOf(set, file)...)
		return nil
	})
	must(t, err)
	return all
}

// hintArgs are the functions with an argument that is a hint, and which one it is.
var hintArgs = map[string]int{"hint.Add": 1, "hint.Or": 1, "unfit": 0, "behind": 0, "warn": 1, "refuse": 0}

func textsOf(set *token.FileSet, file *ast.File) (all []said) {
	hints, inner := map[ast.Expr]bool{}, map[ast.Expr]bool{}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.ImportSpec:
			return false
		case *ast.Field: // its tag is no text
			if n.Tag != nil {
				inner[n.Tag] = true
			}
		case *ast.CallExpr:
			name := ""
			switch f := n.Fun.(type) {
			case *ast.Ident:
				name = f.Name
			case *ast.SelectorExpr:
				if x, ok := f.X.(*ast.Ident); ok {
					name = x.Name + "." + f.Sel.Name
				}
			}
			if i, ok := hintArgs[name]; ok && i < len(n.Args) {
				hints[n.Args[i]] = true
			}
		case *ast.KeyValueExpr:
			if k, ok := n.Key.(*ast.Ident); ok && k.Name == "Hint" {
				hints[n.Value] = true
			}
		case ast.Expr:
			if text, ok := fold(n, inner); ok && !inner[n] {
				all = append(all, said{text, set.Position(n.Pos()), hints[n]})
			}
		}
		return true
	})
	return all
}

var verbs = regexp.MustCompile(`%(\.[0-9]+)?[a-z]`)

// fold joins the parts of a text; ok is false for what is none. The parts are
// entered in inner.
func fold(e ast.Expr, inner map[ast.Expr]bool) (text string, ok bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		if e.Kind != token.STRING {
			return "X", false
		}
		text, err := strconv.Unquote(e.Value)
		return verbs.ReplaceAllString(text, "X"), err == nil
	case *ast.BinaryExpr:
		if e.Op != token.ADD {
			return "X", false
		}
		inner[e.X], inner[e.Y] = true, true
		a, first := fold(e.X, inner)
		b, second := fold(e.Y, inner)
		return a + b, first || second
	}
	return "X", false
}

var (
	typed    = regexp.MustCompile("`([^`]+)`")
	keyValue = regexp.MustCompile(`^([a-z_]+(?:\.[a-zX_]+)*): .`)
	dotted   = regexp.MustCompile(`(?:^|[^\w.-])((?:replica|store|retention|backup|stage|notify)(?:\.[a-z_]+)+)\b`)
	aFile    = regexp.MustCompile(`\b(?:deploy|docs|scripts)/[\w.@/-]*\w`)
	flagWord = regexp.MustCompile(`(?:^|[ (])(--[a-z][a-z-]*)`)
	bareVerb = regexp.MustCompile(`(?:^|[ (])eddy ([a-z]+)`)
)

// Flags of other programs that hints speak of.
var foreignFlags = []string{"--rm", "--init", "--stop-signal", "--stop-timeout"}

// Everything that a text of the program tells somebody to type, or to look at, is
// there: verbs, arguments, flags, keys of eddy.yaml, files.
func TestHintsNameWhatThereIs(t *testing.T) {
	c, err := config.Load(os.DevNull, nil, config.Overrides{}, config.NeedNothing)
	must(t, err)
	keys := map[string]bool{}
	for _, s := range c.Settings() {
		for key := s.Key; key != ""; key = key[:max(0, strings.LastIndexByte(key, '.'))] {
			keys[key] = true
		}
	}
	words, flags := map[string]bool{}, map[string]bool{}
	for _, f := range foreignFlags {
		flags[f] = true
	}
	everyCommand((&app{}).rootCommand(), func(cmd *cobra.Command) {
		words[cmd.Name()] = true
		for _, m := range flagWord.FindAllStringSubmatch(cmd.Flags().FlagUsages()+cmd.PersistentFlags().FlagUsages(), -1) {
			flags[m[1]] = true
		}
	})
	commands, settings, hints := 0, 0, 0
	for _, s := range sourceTexts(t) {
		complain := func(what string, err error) { t.Errorf("%s: %q: %s: %v", s.pos, s.text, what, err) }
		for _, m := range typed.FindAllStringSubmatch(s.text, -1) {
			if rest, ok := strings.CutPrefix(m[1], "eddy "); ok {
				commands++
				if err := tryWords(strings.Fields(rest)); err != nil && !words[rest] { // a verb alone is only named
					complain(m[0], err)
				}
			}
			if k := keyValue.FindStringSubmatch(m[1]); k != nil && k[1] != "key" {
				settings++
				if err := trySetting(t, m[1]); err != nil {
					complain(m[0], err)
				}
			}
		}
		for _, m := range dotted.FindAllStringSubmatch(s.text, -1) {
			if key := m[1]; !keys[key] && !slices.Contains([]string{".json", ".sh"}, filepath.Ext(key)) {
				complain(key, errors.New("no such key of eddy.yaml"))
			}
		}
		for _, name := range aFile.FindAllString(s.text, -1) {
			if _, err := os.Stat(filepath.Join("../..", name)); err != nil {
				complain(name, err)
			}
		}
		if !s.hint {
			continue
		}
		hints++
		prose := typed.ReplaceAllString(s.text, "")
		for _, m := range flagWord.FindAllStringSubmatch(prose, -1) {
			if !flags[m[1]] {
				complain(m[1], errors.New("no such flag"))
			}
		}
		for _, m := range bareVerb.FindAllStringSubmatch(prose, -1) {
			if words[m[1]] {
				complain("eddy "+m[1], errors.New("what is typed stands between backticks"))
			}
		}
	}
	if commands < 15 || settings < 15 || hints < 150 {
		t.Errorf("only %d commands, %d settings and %d hints were found", commands, settings, hints)
	}
}

func everyCommand(cmd *cobra.Command, visit func(*cobra.Command)) {
	visit(cmd)
	for _, c := range cmd.Commands() {
		everyCommand(c, visit)
	}
}

// trySetting tells whether eddy.yaml takes a key, named whole, with its value.
func trySetting(t *testing.T, text string) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "eddy.yaml")
	must(t, os.WriteFile(file, []byte(setKey("", text)), 0o600))
	var all *config.Error
	if _, err := config.Load(file, nil, config.Overrides{}, config.NeedNothing); !errors.As(err, &all) {
		return err
	}
	for _, p := range all.Problems {
		if strings.Contains(p.What, "unknown key") || strings.Contains(p.What, "wants") {
			return errors.New(p.What)
		}
	}
	return nil // its value is for the reader to fill in
}

// setKey does in a text of eddy.yaml what a hint says: a key, named whole, gets the
// value.
func setKey(text, keyAndValue string) string {
	key, value, _ := strings.Cut(keyAndValue, ": ")
	top, err := parsed(text)
	var set *yaml.Node
	if err == nil {
		set, err = parsed(value)
	}
	if err != nil {
		return "unreadable: " + err.Error()
	}
	at := top
	names := strings.Split(key, ".")
	for i, name := range names {
		if at.Kind != yaml.MappingNode {
			*at = yaml.Node{Kind: yaml.MappingNode}
		}
		var next *yaml.Node
		for j := 0; j+1 < len(at.Content); j += 2 {
			if at.Content[j].Value == name {
				next = at.Content[j+1]
			}
		}
		if next == nil {
			next = &yaml.Node{Kind: yaml.MappingNode}
			at.Content = append(at.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: name}, next)
		}
		if i == len(names)-1 {
			*next = *set
		}
		at = next
	}
	out, err := yaml.Marshal(top)
	if err != nil {
		return "unreadable: " + err.Error()
	}
	return string(out)
}

func parsed(text string) (*yaml.Node, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return nil, err
	}
	if len(doc.Content) == 0 {
		return &yaml.Node{Kind: yaml.MappingNode}, nil
	}
	return doc.Content[0], nil
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
