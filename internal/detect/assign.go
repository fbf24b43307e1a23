package detect

import "strings"

// assignment is the value of a NAME=value line.
type assignment struct {
	text string
	// computed: a shell would make something else of it (a variable, a command),
	// so that text is not the value.
	computed bool
}

// assignments reads the NAME=value lines of a shell script or of an environment
// file, and nothing else of it: no line is run. The last line of a name counts.
func assignments(text string) map[string]assignment {
	m := map[string]assignment{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		line = strings.TrimPrefix(line, "export ")
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && isName(name) {
			m[name] = unquote(value)
		}
	}
	return m
}

func isName(s string) bool {
	return s != "" && (s[0] < '0' || s[0] > '9') && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") == ""
}

// unquote reads one word as a shell does, up to a space, a semicolon or a comment.
func unquote(s string) assignment {
	var b strings.Builder
	computed := false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '\'':
			end := strings.IndexByte(s[i+1:], '\'')
			if end < 0 {
				return assignment{b.String(), true}
			}
			b.WriteString(s[i+1 : i+1+end])
			i += end + 1
		case '"':
			for i++; ; i++ {
				if i >= len(s) {
					return assignment{b.String(), true} // goes on in the next line
				}
				if s[i] == '"' {
					break
				}
				if s[i] == '\\' && i+1 < len(s) && strings.IndexByte("\\\"$`", s[i+1]) >= 0 {
					i++
				} else if s[i] == '$' || s[i] == '`' {
					computed = true
				}
				b.WriteByte(s[i])
			}
		case '\\':
			if i++; i >= len(s) {
				return assignment{b.String(), true}
			}
			b.WriteByte(s[i])
		case ' ', '\t', ';', '\r', '&', '|':
			return assignment{b.String(), computed}
		case '$', '`', '*', '?', '(', '~':
			computed = true
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return assignment{b.String(), computed}
}
