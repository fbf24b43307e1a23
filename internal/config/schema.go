package config

import (
	"encoding"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// field is one key with the place of its value in a Config.
type field struct {
	key    string // "replica.control.timeout"
	value  reflect.Value
	preset string   // the default's text
	enum   []string // nil: not restricted to words
	secret bool
}

// walk lists the keys of c in the order of its fields.
func walk(c *Config) []field { return walkStruct(reflect.ValueOf(c).Elem(), "") }

func walkStruct(v reflect.Value, prefix string) []field {
	var out []field
	for i := range v.NumField() {
		t := v.Type().Field(i)
		name, ok := t.Tag.Lookup("yaml")
		if !ok {
			continue
		}
		f := v.Field(i)
		if name == ",inline" { // its keys stand beside its neighbours
			out = append(out, walkStruct(f, prefix)...)
			continue
		}
		if _, leaf := f.Addr().Interface().(encoding.TextUnmarshaler); f.Kind() == reflect.Struct && !leaf {
			out = append(out, walkStruct(f, prefix+name+".")...)
			continue
		}
		fl := field{key: prefix + name, value: f, preset: t.Tag.Get("default"), secret: t.Tag.Get("secret") == "true"}
		if words, ok := t.Tag.Lookup("enum"); ok {
			fl.enum = strings.Split(words, ",")
		}
		out = append(out, fl)
	}
	return out
}

// env is the variable that sets the key.
func (f field) env() string { return "EDDY_" + strings.ToUpper(strings.ReplaceAll(f.key, ".", "_")) }

// setScalar sets a key that takes one word.
func (f field) setScalar(text string) error {
	switch p := f.value.Addr().Interface().(type) {
	case encoding.TextUnmarshaler:
		return p.UnmarshalText([]byte(text))
	case *string:
		if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\uFFFD' }) {
			return &valueError{"holds a control character or a broken one", "write plain text on one line"}
		}
		*p = text
		return nil
	case *int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return &valueError{fmt.Sprintf("%s is not a whole number", quote(text)), "write it in digits"}
		}
		*p = n
		return nil
	}
	panic("config: no scalar: " + f.key)
}

// equal tells whether two fields hold the same.
func (f field) equal(o field) bool {
	if f.isList() || f.isMap() {
		return f.value.Len() == 0 && o.value.Len() == 0
	}
	return reflect.DeepEqual(f.value.Interface(), o.value.Interface())
}

// isList and isMap tell keys that take more than one word.
func (f field) isList() bool { return f.value.Kind() == reflect.Slice }
func (f field) isMap() bool  { return f.value.Kind() == reflect.Map }

// setText sets the key from a variable or a flag: lists by comma or as a YAML
// list in brackets, maps as name=dir by comma.
func (f field) setText(text string) error {
	switch {
	case f.isList():
		if strings.HasPrefix(text, "[") {
			var list []string
			if err := yaml.Unmarshal([]byte(text), &list); err != nil {
				return &valueError{"begins with [ but is no list", "write a,b or [\"a\", \"b\"]"}
			}
			f.value.Set(reflect.ValueOf(list))
			return nil
		}
		list := strings.Split(text, ",")
		for i := range list {
			list[i] = strings.TrimSpace(list[i])
		}
		f.value.Set(reflect.ValueOf(list))
		return nil
	case f.isMap():
		m := map[string]string{}
		for pair := range strings.SplitSeq(text, ",") {
			name, dir, ok := strings.Cut(strings.TrimSpace(pair), "=")
			if !ok {
				return &valueError{fmt.Sprintf("%s is not name=directory", quote(pair)), "write name=/dir,other=/dir2"}
			}
			if _, twice := m[name]; twice {
				return &valueError{fmt.Sprintf("%s is there twice", quote(name)), "give each directory a name of its own"}
			}
			m[name] = dir
		}
		f.value.Set(reflect.ValueOf(m))
		return nil
	}
	return f.setScalar(text)
}

// element is one word of a key, for checks that look at every word.
type element struct{ key, text string }

// elements are the words that the key holds: "witnesses[1]" and "roots.name"
// are elements, and a scalar is its only one.
func (f field) elements() []element {
	switch v := f.value.Interface().(type) {
	case []string:
		out := make([]element, len(v))
		for i, s := range v {
			out[i] = element{fmt.Sprintf("%s[%d]", f.key, i), s}
		}
		return out
	case map[string]string:
		out := make([]element, 0, len(v))
		for name, s := range v {
			out = append(out, element{f.key + "." + keyText(name), s})
		}
		sort.Slice(out, func(i, j int) bool { return out[i].key < out[j].key })
		return out
	case string:
		return []element{{f.key, v}}
	case fmt.Stringer:
		return []element{{f.key, v.String()}}
	default:
		return []element{{f.key, fmt.Sprint(v)}}
	}
}

// text is the value as YAML would have it, secrets left out.
func (f field) text() string {
	words := f.elements()
	for i := range words {
		if f.secret {
			words[i].text = redactURL(words[i].text)
		}
		words[i].text = plainOrQuoted(words[i].text)
		if f.isMap() {
			words[i].text = strings.TrimPrefix(words[i].key, f.key+".") + ": " + words[i].text
		}
	}
	if !f.isList() && !f.isMap() {
		return words[0].text
	}
	all := make([]string, len(words))
	for i, w := range words {
		all[i] = w.text
	}
	if f.isMap() {
		return "{" + strings.Join(all, ", ") + "}"
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// plainOrQuoted writes a word so that YAML reads the same word, in a list too.
func plainOrQuoted(s string) string {
	plain := s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r < '!' && r != ' ' || r > '~' || strings.ContainsRune(`,[]{}#&*!|>'"%@`+"`", r)
	}) && !strings.Contains(s, ": ") && !strings.HasSuffix(s, ":") && strings.TrimSpace(s) == s && !strings.EqualFold(s, "null") && !strings.ContainsAny(s[:1], "-?:=<~")
	if plain {
		return s
	}
	return strconv.Quote(s)
}
