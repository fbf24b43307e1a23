package config

import (
	"bytes"
	_ "embed"
	"fmt"
	"strings"
	"text/template"
	"unicode"
)

//go:embed eddy.yaml.tmpl
var templateText string

// TemplateValues fill the template. What is "" is left as a placeholder that
// Load refuses, or as a commented line where the key may be left out.
type TemplateValues struct {
	Cluster, Home, RPC, Store, Region, Endpoint, Workdir string
	ChainID, Timeout, Deadline                           string
	SignKey                                              string
	Witnesses                                            []string
	// One of these says how the node is controlled; where none does, it is the
	// socket of `eddy supervise` at its usual place. Exec writes three commands to
	// be filled in.
	Supervise, Unit, Container string
	Exec                       bool
	// From says of a key, or of an element ("replica.witnesses[0]"), where its value
	// was found. It stands behind the value as a comment.
	From map[string]string
	// Found are lines of comment that tell what else was found of the node.
	Found []string
}

// Template is a whole eddy.yaml with every key, explained. Keys that may be left
// out are commented out with their defaults.
func Template(v TemplateValues) ([]byte, error) {
	for _, p := range []struct {
		to     *string
		preset string
	}{
		{&v.Cluster, "CHANGE-ME"},
		{&v.Home, "/CHANGE-ME"},
		{&v.RPC, "http://127.0.0.1:26657"},
		{&v.Store, "s3://CHANGE-ME/eddy"},
		{&v.Workdir, "/var/lib/eddy"},
	} {
		if *p.to == "" {
			*p.to = p.preset
		}
	}
	if v.Supervise+v.Unit+v.Container == "" && !v.Exec {
		v.Supervise = "/run/eddy/node.sock"
	}
	if v.Witnesses == nil {
		v.Witnesses = []string{"http://CHANGE-ME:26657"}
	}
	t, err := template.New("eddy.yaml").Funcs(template.FuncMap{
		"q": plainOrQuoted, "line": oneLine,
		"from": func(key string) string {
			if v.From[key] == "" {
				return ""
			}
			return "  # " + oneLine(v.From[key])
		},
	}).Parse(templateText)
	if err != nil {
		return nil, fmt.Errorf("template of eddy.yaml: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return nil, fmt.Errorf("template of eddy.yaml: %w", err)
	}
	return b.Bytes(), nil
}

// oneLine makes a comment of a text that may come from a node's own files: one
// that ended its line would write keys into ours.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// CheckTemplate says what is wrong with a filled template apart from the
// placeholders that are left in it. The error is an *Error.
func CheckTemplate(path string, data []byte) error {
	l := newLoader(path)
	l.exists = true
	l.file(data)
	l.check(NeedRun)
	e := &Error{}
	for _, p := range l.sorted() {
		if p.What != placeholderLeft {
			e.Problems = append(e.Problems, p)
		}
	}
	if len(e.Problems) > 0 {
		return e
	}
	return nil
}
