package nodeconfig

import (
	"fmt"
	"strings"
)

// statement is a table's header or a key with its value. Offsets are bytes of
// the text.
type statement struct {
	header bool
	path   string // dotted, unquoted: "p2p.pex"; of a header the table's
	line   int    // counted from 0
	from   int    // of the value
	to     int    // behind the value
}

// noPath stands for a name that is none that anybody looks for: a name with
// escapes or dots in its quotes, an array of tables.
const noPath = "\x00"

// scanner finds the statements of a text that a TOML parser has accepted. It
// checks nothing: Edit compares what comes of it.
type scanner struct {
	text string
	pos  int
	line int
}

func statements(text string) ([]statement, error) {
	s := scanner{text: strings.TrimPrefix(text, "\ufeff")}
	s.text, s.pos = text, len(text)-len(s.text)
	var out []statement
	table := ""
	for s.pos < len(s.text) {
		s.blanks()
		switch c := s.peek(); c {
		case 0:
		case '\n':
			s.pos++
			s.line++
		case '#':
			s.toLineEnd()
		case '[':
			st := statement{header: true, line: s.line}
			if strings.HasPrefix(s.text[s.pos:], "[[") {
				table = noPath
				s.toLineEnd()
				st.path = table
				out = append(out, st)
				continue
			}
			s.pos++
			name, err := s.name(']')
			if err != nil {
				return nil, err
			}
			table, st.path = name, name
			s.toLineEnd()
			out = append(out, st)
		default:
			st := statement{line: s.line}
			name, err := s.name('=')
			if err != nil {
				return nil, err
			}
			st.path = strings.TrimPrefix(table+"."+name, ".")
			s.blanks()
			st.from = s.pos
			if err := s.value(); err != nil {
				return nil, err
			}
			st.to = s.pos
			s.toLineEnd()
			out = append(out, st)
		}
	}
	return out, nil
}

// peek returns the next byte, 0 at the end. A NUL is no TOML.
func (s *scanner) peek() byte {
	if s.pos >= len(s.text) {
		return 0
	}
	return s.text[s.pos]
}

func (s *scanner) blanks() {
	for c := s.peek(); c == ' ' || c == '\t' || c == '\r'; c = s.peek() {
		s.pos++
	}
}

// toLineEnd goes on to the next line feed, which it leaves.
func (s *scanner) toLineEnd() {
	if i := strings.IndexByte(s.text[s.pos:], '\n'); i >= 0 {
		s.pos += i
		return
	}
	s.pos = len(s.text)
}

// name reads a dotted name up to and with the byte that ends it.
func (s *scanner) name(end byte) (string, error) {
	var parts []string
	odd := false
	for {
		s.blanks()
		switch c := s.peek(); c {
		case '"', '\'':
			from := s.pos + 1
			if err := s.quoted(c); err != nil {
				return "", err
			}
			part := s.text[from : s.pos-1]
			odd = odd || part == "" || strings.ContainsAny(part, ".\\")
			parts = append(parts, part)
		default:
			from := s.pos
			for c := s.peek(); c != 0 && !strings.ContainsRune(" \t\r\n.=]\"'", rune(c)); c = s.peek() {
				s.pos++
			}
			if from == s.pos {
				return "", s.lost()
			}
			parts = append(parts, s.text[from:s.pos])
		}
		s.blanks()
		switch s.peek() {
		case '.':
			s.pos++
		case end:
			s.pos++
			if odd {
				return noPath, nil
			}
			return strings.Join(parts, "."), nil
		default:
			return "", s.lost()
		}
	}
}

func (s *scanner) lost() error {
	return fmt.Errorf("line %d is in a form that eddy does not edit", s.line+1)
}

// value passes over a value.
func (s *scanner) value() error {
	for depth := 0; ; {
		switch c := s.peek(); c {
		case 0:
			return s.lost()
		case '"', '\'':
			if err := s.quoted(c); err != nil {
				return err
			}
		case '[', '{':
			depth++
			s.pos++
		case ']', '}':
			depth--
			s.pos++
		case '#', '\n', ',', ' ', '\t', '\r':
			if depth == 0 {
				return s.lost()
			}
			if c == '#' {
				s.toLineEnd()
				continue
			}
			if c == '\n' {
				s.line++
			}
			s.pos++
			continue
		default:
			from := s.pos
			for c := s.peek(); c != 0 && c != '\n' && c != '#' && (depth == 0 || !strings.ContainsRune(",]}", rune(c))); c = s.peek() {
				s.pos++
			}
			s.pos = from + len(strings.TrimRight(s.text[from:s.pos], " \t\r"))
		}
		if depth == 0 {
			return nil
		}
		if depth < 0 {
			return s.lost()
		}
	}
}

// quoted passes over a string, of one line or of several.
func (s *scanner) quoted(q byte) error {
	long := strings.Repeat(string(q), 3)
	if !strings.HasPrefix(s.text[s.pos:], long) {
		for s.pos++; ; s.pos++ {
			switch c := s.peek(); {
			case c == 0 || c == '\n':
				return s.lost()
			case c == '\\' && q == '"':
				s.pos++
			case c == q:
				s.pos++
				return nil
			}
		}
	}
	for s.pos += 3; ; s.pos++ {
		switch c := s.peek(); {
		case c == 0:
			return s.lost()
		case c == '\n':
			s.line++
		case c == '\\' && q == '"':
			if s.pos++; s.peek() == '\n' {
				s.line++
			}
		case strings.HasPrefix(s.text[s.pos:], long):
			// Up to two quotes more belong to the string itself.
			for s.pos += 3; s.peek() == q; s.pos++ {
			}
			return nil
		}
	}
}
