package config

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Whatever a file holds, Load ends with values or with problems, each on one
// line; and what stands before an @ in a URL is in none of them.
func FuzzLoad(f *testing.F) {
	f.Add(good, "")
	f.Add("store: {url: \"s3://user:CANARY@bucket\", endpoint: \"https://CANARY@x\"}\n", "http://u:CANARY@h")
	f.Add("replica: {rpc: \"http://u:CANARY%zz@h\", witnesses: [\"http://:CANARY@\", \"CANARY@:x\"]}\n", "[a, b]")
	f.Add("\"s3://u:CANARY@h\": x\nroots: {\"s3://u:CANARY@h\": /a}\n", "a=/x")
	f.Add("schedule: \"s3://u:CANARY@h\"\ncluster: \"s3://u:CANARY@h\"\nworkdir: \"s3://u:CANARY@h\"\n", "64MiB")
	f.Add("a: &a [*a]\n<<: *a\n? [x]\n: y\n--- !!binary x\n", "wait 15m")
	if files, err := filepath.Glob("testdata/bad/*.yaml"); err == nil {
		for _, file := range files {
			if data, err := os.ReadFile(file); err == nil {
				f.Add(string(data), "x")
			}
		}
	}
	f.Fuzz(func(t *testing.T, text, variable string) {
		l := newLoader("eddy.yaml")
		l.exists = true
		l.file([]byte(text))
		vars := map[string]string{}
		for _, fl := range l.fields {
			if variable != "" && len(fl.key)%3 == len(variable)%3 {
				vars[fl.env()] = variable
			}
		}
		l.environment(vars)
		l.check(NeedRun)
		for _, p := range l.sorted() {
			s := p.String()
			if strings.ContainsAny(s, "\n\r\x00") {
				t.Errorf("not one line: %q", s)
			}
			if p.What == "" {
				t.Errorf("says nothing: %+v", p)
			}
			if strings.Contains(s, ":CANARY") && strings.Contains(text+variable, "://u:CANARY") {
				t.Errorf("a password is shown: %s", s)
			}
		}
		if len(l.problems) == 0 && (l.c.Cluster == "" || l.c.Store.URL == "" || l.c.Replica.Home == "") {
			t.Errorf("passes without what is needed:\n%s", text)
		}
	})
}

func FuzzUnits(f *testing.F) {
	for _, s := range []string{"64MiB", "0 ", "1 TiB", "15m", "7d", "wait 15m", "skip", "", "9223372036854775807B", "-1s"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var s Size
		var d Duration
		var w WhenBehind
		for _, err := range []error{s.UnmarshalText([]byte(text)), d.UnmarshalText([]byte(text)), w.UnmarshalText([]byte(text))} {
			var v *valueError
			if err != nil && (!errors.As(err, &v) || v.what == "" || v.hint == "") {
				t.Errorf("%q: %v", text, err)
			}
		}
		if s < 0 {
			t.Errorf("%q is %d bytes", text, int64(s))
		}
		if w.Wait() > 0 != (w.Action == "wait") {
			t.Errorf("%q is %+v", text, w)
		}
	})
}
