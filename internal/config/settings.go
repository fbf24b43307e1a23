package config

import (
	"net/url"
	"strconv"
)

// Source is where a value came from.
type Source string

// The sources, weakest first.
const (
	FromDefault Source = ""
	FromFile    Source = "file"
	FromEnv     Source = "env"
	FromFlag    Source = "flag"
)

// Origin is where the value of a key came from.
type Origin struct {
	Source Source
	File   string // FromFile
	Line   int    // FromFile
	Name   string // the variable or the flag
}

// String names the place as a problem would.
func (o Origin) String() string {
	switch o.Source {
	case FromFile:
		return o.File + ":" + strconv.Itoa(o.Line)
	case FromEnv, FromFlag:
		return o.Name
	case FromDefault:
	}
	return "default"
}

// Setting is one key with the value in force, for people to read.
type Setting struct {
	Key    string
	Value  string // YAML on one line; of URLs that may hold secrets only scheme and host
	Origin Origin
}

// Origin is where the value of a key came from.
func (c *Config) Origin(key string) Origin { return c.origins[key] }

// Settings lists every key in the order of the template. No secret is in it.
func (c *Config) Settings() []Setting {
	fields := walk(c)
	out := make([]Setting, len(fields))
	for i, f := range fields {
		out[i] = Setting{Key: f.key, Value: f.text(), Origin: c.origins[f.key]}
	}
	return out
}

// redactURL keeps scheme and host: user, password, and the path, in which
// providers put their tokens, are cut out.
func redactURL(s string) string {
	u, err := url.Parse(s)
	if s == "" || err != nil {
		return ""
	}
	out := u.Scheme + "://" + u.Host
	if u.User != nil || u.Path != "" && u.Path != "/" || u.RawQuery != "" {
		out += "/..."
	}
	return out
}
