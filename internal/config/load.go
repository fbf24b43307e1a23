package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxFile bounds what is read, in bytes.
const maxFile = 1 << 20

// Load reads the file at path, the EDDY_ variables of env (in the form of
// os.Environ) and the flags, and checks the whole, including that what need
// names is there. On failure the error is an *Error with every problem.
//
// A path of "", or one that equals EDDY_CONFIG in env, is a default: where that
// file does not exist, variables and flags must suffice. Any other file must
// exist. Load reads the file, files named by _FILE variables, and symlinks of
// directories that must not lie inside each other; it touches no network.
func Load(path string, env []string, over Overrides, need Need) (*Config, error) {
	vars := environ(env)
	optional := path == "" || path == vars["EDDY_CONFIG"]
	if path == "" {
		path = cmp.Or(vars["EDDY_CONFIG"], DefaultFile)
	}
	l := newLoader(path)
	data, err := readBounded(path, maxFile)
	switch {
	case err == nil:
		l.exists = true
		l.file(data)
	case errors.Is(err, fs.ErrNotExist) && optional:
	case errors.Is(err, fs.ErrNotExist):
		return nil, &Error{[]Problem{{File: path, What: "no such file", Hint: "write one with `eddy config init -c " + path + "`"}}}
	case errors.Is(err, fs.ErrPermission):
		return nil, &Error{[]Problem{{File: path, What: "permission denied", Hint: "run eddy as the node's user and give the file to that user, or say -c /dev/null to use variables and flags alone"}}}
	default:
		return nil, &Error{[]Problem{{File: path, What: plainIO(err)}}}
	}
	l.environment(vars)
	l.flags(over)
	if !l.c.Replica.Chain() && l.c.origins["schedule"].Source == FromDefault {
		l.c.Schedule = DefaultSchedule
	}
	l.check(need)
	if len(l.problems) > 0 {
		return nil, &Error{l.sorted()}
	}
	return l.c, nil
}

// loader collects values, where they came from, and problems.
type loader struct {
	c        *Config
	path     string
	exists   bool
	fields   []field
	byKey    map[string]field
	children map[string][]string // section ("" is the top) to names below it
	lines    map[string]int      // of sections and elements in the file
	bad      map[string]bool     // keys with a problem: nothing further is said of them
	fromFile map[string]bool     // keys whose value a _FILE variable gave
	broken   bool                // the file could not be read to its end
	problems []Problem
}

func newLoader(path string) *loader {
	l := &loader{
		c: &Config{origins: map[string]Origin{}}, path: path,
		byKey: map[string]field{}, children: map[string][]string{}, lines: map[string]int{}, bad: map[string]bool{}, fromFile: map[string]bool{},
	}
	l.fields = walk(l.c)
	for _, f := range l.fields {
		l.byKey[f.key] = f
		for key := f.key; key != ""; {
			section, name := "", key
			if i := strings.LastIndexByte(key, '.'); i >= 0 {
				section, name = key[:i], key[i+1:]
			}
			if slices.Contains(l.children[section], name) {
				break
			}
			l.children[section] = append(l.children[section], name)
			key = section
		}
		if f.preset == "" {
			continue
		}
		if err := f.setText(f.preset); err != nil {
			panic("config: default of " + f.key + ": " + err.Error())
		}
	}
	return l
}

// problem notes a mistake in the effective value of key.
func (l *loader) problem(key, what, advice string) {
	p := Problem{Key: key, What: what, Hint: advice}
	base, _, _ := strings.Cut(key, "[")
	f, ok := l.byKey[base]
	for !ok && strings.Contains(base, ".") {
		base = base[:strings.LastIndexByte(base, '.')]
		f, ok = l.byKey[base]
	}
	o := l.c.origins[f.key]
	switch o.Source {
	case FromFile:
		p.File, p.Line = o.File, o.Line
		if n := l.lines[key]; n > 0 {
			p.Line = n
		}
	case FromEnv, FromFlag:
		p.Name = o.Name
	case FromDefault:
		if !l.exists {
			break
		}
		p.File = l.path
		for k := key; p.Line == 0 && k != ""; {
			p.Line = l.lines[k]
			k = k[:max(0, strings.LastIndexByte(k, '.'))]
		}
	}
	l.bad[f.key], l.bad[key] = true, true
	l.problems = append(l.problems, p)
}

// at notes a mistake on a line of the file.
func (l *loader) at(line int, key, what, advice string) {
	l.bad[key] = true
	l.problems = append(l.problems, Problem{File: l.path, Line: line, Key: key, What: what, Hint: advice})
}

// sorted orders problems by line, then variables, then flags; what no line is to
// blame for ends the file's.
func (l *loader) sorted() []Problem {
	rank := func(p Problem) int {
		switch {
		case strings.HasPrefix(p.Name, "--"):
			return 3
		case p.Name != "":
			return 2
		case p.Line == 0:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(l.problems, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Line, b.Line))
	})
	return l.problems
}

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// file reads eddy.yaml.
func (l *loader) file(data []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return
	} else if err != nil {
		l.syntax(err)
		return
	}
	var next yaml.Node
	if err := dec.Decode(&next); err == nil {
		l.at(next.Line, "", "a second document", "one file configures one replica: remove the line ---")
	} else if !errors.Is(err, io.EOF) {
		l.syntax(err)
	}
	top := resolve(doc.Content[0])
	switch {
	case isNull(top):
	case top.Kind != yaml.MappingNode:
		l.broken = true
		l.at(top.Line, "", "not a list of keys", "write `key: value` lines, as `eddy config init` does")
	default:
		l.mapping(top, "")
	}
}

func (l *loader) syntax(err error) {
	l.broken = true
	line, what := 0, strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ = strconv.Atoi(m[1]) // the expression takes digits only
		what = m[2]
	}
	if strings.ContainsAny(what, "@\n") || strings.Contains(what, "://") {
		what = "unreadable"
	}
	l.at(line, "", "not YAML: "+what, "look for a missing quote, a tab, or a wrong indent at or before this line")
}

func resolve(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.Tag == "!!null" }

// mapping reads the keys of one section.
func (l *loader) mapping(n *yaml.Node, section string) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], resolve(n.Content[i+1])
		key := k.Value
		if section != "" {
			key = section + "." + k.Value
		}
		_, isLeaf := l.byKey[key]
		_, isSection := l.children[key]
		if k.Kind != yaml.ScalarNode || !isLeaf && !isSection || k.Value == "" {
			l.unknown(k, section)
			continue
		}
		if first, twice := seen[k.Value]; twice {
			l.at(k.Line, key, "written twice", fmt.Sprintf("the first is in line %d", first))
			continue
		}
		seen[k.Value] = k.Line
		l.lines[key] = k.Line
		switch {
		case isLeaf:
			l.leaf(l.byKey[key], k.Line, v)
		case isNull(v): // a section whose keys are all commented out
		case v.Kind != yaml.MappingNode:
			l.at(v.Line, key, "wants keys below it", "known here: "+strings.Join(l.children[key], ", "))
		default:
			l.mapping(v, key)
		}
	}
}

// unknown reports a key that is not eddy's, with the one that may be meant.
func (l *loader) unknown(k *yaml.Node, section string) {
	name := k.Value
	key := keyText(name)
	if section != "" {
		key = section + "." + key
	}
	here := l.children[section]
	advice := ""
	if meant := closest(name, here); meant != "" {
		meant = strings.TrimPrefix(section+"."+meant, ".")
		l.bad[meant] = true
		advice = "did you mean " + meant + "?"
	} else {
		for _, f := range l.fields {
			if strings.HasSuffix(f.key, "."+name) {
				l.bad[f.key] = true
				advice = "did you mean " + f.key + "?"
				break
			}
		}
	}
	if advice == "" {
		advice = "known here: " + strings.Join(here, ", ")
	}
	l.at(k.Line, key, "unknown key", advice)
}

// leaf sets one key from the file.
func (l *loader) leaf(f field, line int, v *yaml.Node) {
	if o := l.c.origins[f.key]; o.Source == FromFile { // once by its whole name, once below its section
		l.at(line, f.key, "written twice", fmt.Sprintf("the first is in line %d", o.Line))
		return
	}
	l.c.origins[f.key] = Origin{Source: FromFile, File: l.path, Line: line}
	if isNull(v) {
		l.at(line, f.key, "no value", "write one, or remove the line")
		return
	}
	var err error
	switch {
	case f.isList():
		err = l.list(f, v)
	case f.isMap():
		err = l.dict(f, v)
	case v.Kind != yaml.ScalarNode:
		err = &valueError{"wants one value", "write it behind the colon, without brackets"}
	default:
		err = f.setScalar(v.Value)
	}
	if err != nil {
		l.value(f.key, cmp.Or(v.Line, line), err)
	}
}

func (l *loader) value(key string, line int, err error) {
	var v *valueError
	if !errors.As(err, &v) {
		panic("config: " + err.Error())
	}
	l.at(line, key, v.what, v.hint)
}

func (l *loader) list(f field, v *yaml.Node) error {
	if v.Kind != yaml.SequenceNode {
		return &valueError{"wants a list", "write [a, b]"}
	}
	words := make([]string, 0, len(v.Content))
	for i, n := range v.Content {
		n = resolve(n)
		if n.Kind != yaml.ScalarNode || isNull(n) {
			l.at(n.Line, fmt.Sprintf("%s[%d]", f.key, i), "wants one word", "write [a, b]; quote words with colons")
			l.bad[f.key] = true
			continue
		}
		l.lines[fmt.Sprintf("%s[%d]", f.key, len(words))] = n.Line
		words = append(words, n.Value)
	}
	f.value.Set(reflect.ValueOf(words))
	return nil
}

func (l *loader) dict(f field, v *yaml.Node) error {
	if v.Kind != yaml.MappingNode {
		return &valueError{"wants names with directories", "write {name: /dir}"}
	}
	m := map[string]string{}
	for i := 0; i+1 < len(v.Content); i += 2 {
		k, n := v.Content[i], resolve(v.Content[i+1])
		key := f.key + "." + keyText(k.Value)
		_, twice := m[k.Value]
		switch {
		case k.Kind != yaml.ScalarNode || n.Kind != yaml.ScalarNode || isNull(n):
			l.at(k.Line, key, "wants a directory", "write name: /dir")
			l.bad[f.key] = true
			continue
		case twice:
			l.at(k.Line, key, "written twice", fmt.Sprintf("the first is in line %d", l.lines[key]))
			continue
		}
		l.lines[key] = k.Line
		m[k.Value] = n.Value
	}
	f.value.Set(reflect.ValueOf(m))
	return nil
}

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("larger than %s", Size(limit))
	}
	return data, err
}

// plainIO is an I/O error without the path that the problem names already.
func plainIO(err error) string {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Op + ": " + p.Err.Error()
	}
	return err.Error()
}
