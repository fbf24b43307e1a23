package nodeconfig

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/eddy-backup/eddy/internal/hint"
)

// ErrNotEdited: the file was left alone, because a change of it alone could not
// be made.
var ErrNotEdited = errors.New("config.toml was not changed")

// Change is one key with its new value: a string or a bool.
type Change struct {
	Key   string // dotted: "p2p.pex"
	Value any
}

// literal is the value as TOML.
func (c Change) literal() string {
	if s, ok := c.Value.(string); ok {
		return quote(s)
	}
	return fmt.Sprint(c.Value)
}

func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// Edited is a text with its changes.
type Edited struct {
	lines    []string // of the old text, with their ends
	replaced map[int]string
	inserted map[int][]string // behind the line; -1: in front of all
}

// maxFile bounds a configuration file, bytes.
const maxFile = 1 << 20

// Edit changes values and leaves everything else. A key that is not there is
// written behind the last one of its table. The error, ErrNotEdited, says what
// stands in the way.
func Edit(text string, changes []Change) (*Edited, error) {
	e, err := edit(text, changes)
	if err != nil {
		return nil, hint.Add(fmt.Errorf("%w: %w", ErrNotEdited, err), "change it by hand")
	}
	return e, nil
}

func edit(text string, changes []Change) (*Edited, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	before, err := decode(text)
	if err != nil {
		return nil, err
	}
	found, err := statements(text)
	if err != nil {
		return nil, err
	}
	e := newEdited(text)
	var absent []Change
	for _, c := range changes {
		at, err := find(found, c.Key)
		switch {
		case err != nil:
			return nil, err
		case at < 0:
			absent = append(absent, c)
		default:
			if err := e.replace(text, found[at], c); err != nil {
				return nil, err
			}
		}
	}
	for _, c := range absent {
		e.insert(found, c)
	}
	after, err := decode(e.String())
	if err != nil {
		return nil, fmt.Errorf("the table of one of its keys is written in a form that eddy does not edit (then %w)", err)
	}
	return e, compare(before, after, changes)
}

// decode reads a text with the parser that nodes use.
func decode(text string) (map[string]any, error) {
	m := map[string]any{}
	err := toml.Unmarshal([]byte(text), &m)
	var d *toml.DecodeError
	if errors.As(err, &d) {
		line, _ := d.Position()
		return nil, fmt.Errorf("line %d is no TOML: %w", line, err)
	}
	if err != nil {
		return nil, fmt.Errorf("it is no TOML: %w", err)
	}
	return m, nil
}

// find returns the statement that sets key, -1 where none does. Nodes read names
// without regard to case: two that differ in it alone would be one key to them.
func find(all []statement, key string) (int, error) {
	at := -1
	for i, s := range all {
		if s.header || !strings.EqualFold(s.path, key) {
			continue
		}
		if s.path != key {
			return 0, fmt.Errorf("line %d writes %s for %s", s.line+1, s.path, key)
		}
		at = i
	}
	return at, nil
}

func (e *Edited) replace(text string, s statement, c Change) error {
	old := text[s.from:s.to]
	if strings.Contains(old, "\n") {
		return fmt.Errorf("the value of %s in line %d goes over several lines", c.Key, s.line+1)
	}
	start := 0
	for _, l := range e.lines[:s.line] {
		start += len(l)
	}
	line := e.lines[s.line]
	e.replaced[s.line] = line[:s.from-start] + c.literal() + line[s.to-start:]
	return nil
}

// insert writes a key that is not there.
func (e *Edited) insert(all []statement, c Change) {
	dot := strings.LastIndexByte(c.Key, '.')
	table, name := "", c.Key[dot+1:]
	if dot >= 0 {
		table = c.Key[:dot]
	}
	line, current, there := -1, "", table == ""
	for _, s := range all {
		if s.header {
			current = s.path
		}
		if current == table {
			line, there = s.line, true
		}
	}
	end := "\n"
	if len(e.lines) > 0 && strings.HasSuffix(e.lines[max(line, 0)], "\r\n") {
		end = "\r\n"
	}
	indent := ""
	if line >= 0 {
		indent = e.lines[line][:len(e.lines[line])-len(strings.TrimLeft(e.lines[line], " \t"))]
	}
	text := indent + name + " = " + c.literal() + end
	if !there {
		line = len(e.lines) - 1
		text = "[" + table + "]" + end + name + " = " + c.literal() + end
		if len(e.inserted[line]) > 0 { // the table is new, and this is not its first key
			text = name + " = " + c.literal() + end
		} else if line >= 0 {
			text = end + text
		}
	}
	// A value of several lines ends later than it begins.
	if line >= 0 && there {
		for i, s := range all {
			if s.line == line {
				line = lastLine(e.lines, all, i)
			}
		}
	}
	if line == len(e.lines)-1 && line >= 0 {
		if l := cmp.Or(e.replaced[line], e.lines[line]); !strings.HasSuffix(l, "\n") {
			e.replaced[line] = l + end
		}
	}
	e.inserted[line] = append(e.inserted[line], strings.SplitAfter(strings.TrimSuffix(text, "\n"), "\n")...)
	last := &e.inserted[line][len(e.inserted[line])-1]
	*last += "\n"
}

// lastLine is the line in which a statement's value ends.
func lastLine(lines []string, all []statement, i int) int {
	s := all[i]
	if s.header {
		return s.line
	}
	start, n := 0, 0
	for n < len(lines) && start+len(lines[n]) < s.to {
		start += len(lines[n])
		n++
	}
	return max(n, s.line)
}

// String is the new text.
func (e *Edited) String() string {
	var b strings.Builder
	for _, o := range e.ops() {
		if o.kind != '-' {
			b.WriteString(o.text)
		}
	}
	return b.String()
}

// Changed tells whether the new text differs from the old one.
func (e *Edited) Changed() bool {
	return slices.ContainsFunc(e.ops(), func(o op) bool { return o.kind != ' ' })
}

// compare refuses a text in which anything else has changed.
func compare(before, after map[string]any, changes []Change) error {
	for _, c := range changes {
		got, ok := take(after, c.Key)
		if !ok || !reflect.DeepEqual(got, c.Value) {
			return fmt.Errorf("%s cannot be set there", c.Key)
		}
		take(before, c.Key)
		parent, _, nested := cutLast(c.Key)
		if m, ok := after[parent].(map[string]any); nested && ok && len(m) == 0 && before[parent] == nil {
			delete(after, parent) // a table that was made for the change
		}
	}
	if !reflect.DeepEqual(before, after) {
		return errors.New("another key would have changed with it")
	}
	return nil
}

func cutLast(key string) (parent, name string, nested bool) {
	if i := strings.LastIndexByte(key, '.'); i >= 0 {
		return key[:i], key[i+1:], true
	}
	return "", key, false
}

// take removes a key and returns what it was.
func take(m map[string]any, key string) (any, bool) {
	head, rest, nested := strings.Cut(key, ".")
	v, ok := m[head]
	if !nested {
		delete(m, head)
		return v, ok
	}
	below, ok := v.(map[string]any)
	if !ok {
		return nil, false
	}
	return take(below, rest)
}

// op is a line of a diff: ' ', '-' or '+'.
type op struct {
	kind byte
	text string
}

func (e *Edited) ops() []op {
	var out []op
	insert := func(i int) {
		for _, l := range e.inserted[i] {
			out = append(out, op{'+', l})
		}
	}
	insert(-1)
	for i, l := range e.lines {
		if r, ok := e.replaced[i]; ok && r != l {
			out = append(out, op{'-', l}, op{'+', r})
		} else {
			out = append(out, op{' ', l})
		}
		insert(i)
	}
	return out
}

// Diff is the change as a unified diff with three lines of context, "" where
// nothing changes. patch applies it.
func (e *Edited) Diff(name string) string {
	const context = 3
	ops := e.ops()
	var b strings.Builder
	oldLine, newLine := 1, 1
	for i := 0; i < len(ops); {
		next := slices.IndexFunc(ops[i:], func(o op) bool { return o.kind != ' ' })
		if next < 0 {
			break
		}
		from := max(i, i+next-context)
		oldLine, newLine = oldLine+from-i, newLine+from-i
		to, quiet := from, 0
		for to < len(ops) && quiet <= 2*context {
			if quiet++; ops[to].kind != ' ' {
				quiet = 0
			}
			to++
		}
		if quiet > context {
			to -= quiet - context
		}
		if b.Len() == 0 {
			b.WriteString("--- " + name + "\n+++ " + name + "\n")
		}
		hunk := ops[from:to]
		minus, plus := 0, 0
		for _, o := range hunk {
			if o.kind != '+' {
				minus++
			}
			if o.kind != '-' {
				plus++
			}
		}
		b.WriteString("@@ -" + span(oldLine, minus) + " +" + span(newLine, plus) + " @@\n")
		for _, o := range hunk {
			b.WriteString(string(o.kind) + o.text)
			if !strings.HasSuffix(o.text, "\n") {
				b.WriteString("\n\\ No newline at end of file\n")
			}
		}
		oldLine, newLine, i = oldLine+minus, newLine+plus, to
	}
	return b.String()
}

// span is a hunk's place: an empty one is named by the line before it.
func span(line, n int) string {
	if n == 0 {
		line--
	}
	return strconv.Itoa(line) + "," + strconv.Itoa(n)
}
