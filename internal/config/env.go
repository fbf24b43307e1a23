package config

import (
	"errors"
	"regexp"
	"slices"
	"strings"
)

// maxSecret bounds what a _FILE variable may name, in bytes.
const maxSecret = 64 << 10

// environ makes a map of os.Environ. An empty variable counts as unset: compose
// files and units pass on empty ones.
func environ(env []string) map[string]string {
	vars := make(map[string]string, len(env))
	for _, kv := range env {
		if name, text, ok := strings.Cut(kv, "="); ok && strings.HasPrefix(name, "EDDY_") && text != "" {
			vars[name] = text
		}
	}
	return vars
}

// environment sets the keys that variables name.
func (l *loader) environment(vars map[string]string) {
	known := map[string]bool{}
	for _, f := range l.fields {
		name := f.env()
		known[name], known[name+"_FILE"] = true, f.secret
		text, isSet := vars[name]
		file, isFile := vars[name+"_FILE"]
		switch {
		case isSet:
			if isFile && f.secret {
				l.problems = append(l.problems, Problem{Name: name + "_FILE", Key: f.key, What: "set beside " + name, Hint: "set one of the two"})
			}
			l.set(f, Origin{Source: FromEnv, Name: name}, text)
		case isFile && f.secret:
			l.secretFile(f, name+"_FILE", file)
		}
	}
	for name := range vars {
		if !known[name] {
			l.unknownVar(name)
		}
	}
	slices.SortStableFunc(l.problems, func(a, b Problem) int { return strings.Compare(a.Name, b.Name) })
}

func (l *loader) secretFile(f field, name, path string) {
	data, err := readBounded(path, maxSecret)
	if err != nil {
		l.bad[f.key] = true
		l.problems = append(l.problems, Problem{Name: name, Key: f.key, What: quote(path) + ": " + plainIO(err), Hint: "name a file that eddy's user may read"})
		return
	}
	l.fromFile[f.key] = true
	l.set(f, Origin{Source: FromEnv, Name: name}, strings.TrimSpace(string(data)))
}

// set gives a key the text of a variable or a flag. What a file or a variable
// gave before is forgotten, its mistakes are not.
func (l *loader) set(f field, o Origin, text string) {
	l.c.origins[f.key] = o
	delete(l.bad, f.key)
	err := f.setText(text)
	if err == nil {
		return
	}
	var v *valueError
	if !errors.As(err, &v) {
		panic("config: " + err.Error())
	}
	l.problem(f.key, v.what, v.hint)
}

// Kubernetes gives every pod variables for every service: one called
// "eddy-store" must not look like a mistake.
var serviceVar = regexp.MustCompile(`_(SERVICE_(HOST|PORT(_.*)?)|PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?)$`)

// unknownVar reports a variable that looks like a key's and is none. Others that
// begin with EDDY_ are somebody else's.
func (l *loader) unknownVar(name string) {
	if serviceVar.MatchString(name) {
		return
	}
	p := Problem{Name: name, What: "unknown variable"}
	least := 3
	for _, f := range l.fields {
		switch d := distance(name, f.env()); {
		case name == f.env()+"_FILE":
			p.Hint, least = "only what may hold a secret is read from a file: set "+f.env(), 0
		case len(name) >= 10 && d < least:
			p.Hint, least = "did you mean "+f.env()+"?", d
			l.bad[f.key] = true
		}
	}
	section := slices.ContainsFunc(l.children[""], func(top string) bool {
		_, isSection := l.children[top]
		up := "EDDY_" + strings.ToUpper(top)
		return isSection && (name == up || strings.HasPrefix(name, up+"_"))
	})
	switch {
	case p.Hint != "":
	case name == "EDDY_STORE":
		p.Hint = "did you mean EDDY_STORE_URL?"
		l.bad["store.url"] = true
	case section:
		p.Hint = "docs/config.md lists them all"
	default:
		return
	}
	l.problems = append(l.problems, p)
}

// flags sets the keys that flags name.
func (l *loader) flags(o Overrides) {
	for _, x := range o.flags() {
		if x.text != "" {
			l.set(l.byKey[x.key], Origin{Source: FromFlag, Name: x.flag}, x.text)
		}
	}
}
