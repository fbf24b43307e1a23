package config

import (
	"bytes"
	_ "embed"
	"fmt"
	"text/template"
)

//go:embed eddy.yaml.tmpl
var templateText string

// TemplateValues fill the template. What is "" is left as a placeholder that
// Load refuses, or as a commented line where the key may be left out.
type TemplateValues struct {
	Cluster, Home, RPC, Store, Region, Endpoint, Workdir string
	Witnesses                                            []string
	// Supervise is the socket of `eddy supervise`. Container is written instead, or
	// with Exec the three commands, to be filled in.
	Supervise, Container string
	Exec                 bool
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
		{&v.Supervise, "/run/eddy/node.sock"},
	} {
		if *p.to == "" {
			*p.to = p.preset
		}
	}
	if v.Witnesses == nil {
		v.Witnesses = []string{"http://CHANGE-ME:26657"}
	}
	t, err := template.New("eddy.yaml").Funcs(template.FuncMap{"q": plainOrQuoted}).Parse(templateText)
	if err != nil {
		return nil, fmt.Errorf("template of eddy.yaml: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return nil, fmt.Errorf("template of eddy.yaml: %w", err)
	}
	return b.Bytes(), nil
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
