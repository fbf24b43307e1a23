package drill

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// maxSettings bounds a configuration file, bytes.
const maxSettings = 4 << 20

// table is a TOML file. It is written anew, not edited: its only reader is the
// drilled node, which reads names without regard to case.
type table map[string]any

func readTable(file string) (table, error) {
	fi, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && fi.Size() > maxSettings {
		err = errors.New("it is too large")
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(file)
	}
	t := table{}
	if err == nil {
		err = toml.Unmarshal(b, &t)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return t, nil
}

func (t table) write(file string) error {
	var b bytes.Buffer
	if err := toml.NewEncoder(&b).Encode(map[string]any(t)); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return os.WriteFile(file, b.Bytes(), 0o600)
}

// find returns the key under which a name stands.
func (t table) find(name string) (string, bool) {
	for _, k := range slices.Sorted(maps.Keys(t)) {
		if strings.EqualFold(k, name) {
			return k, true
		}
	}
	return name, false
}

// set sets a dotted key, whatever its case there.
func (t table) set(key string, value any) {
	head, rest, nested := strings.Cut(key, ".")
	at, _ := t.find(head)
	for k := range t {
		if k != at && strings.EqualFold(k, head) {
			delete(t, k)
		}
	}
	if !nested {
		t[at] = value
		return
	}
	below, ok := t[at].(map[string]any)
	if !ok {
		below = map[string]any{}
		t[at] = below
	}
	table(below).set(rest, value)
}

// setIf sets a key that is there.
func (t table) setIf(key string, value any) {
	if _, ok := t.get(key); ok {
		t.set(key, value)
	}
}

func (t table) get(key string) (any, bool) {
	head, rest, nested := strings.Cut(key, ".")
	at, ok := t.find(head)
	if !nested || !ok {
		return t[at], ok
	}
	below, ok := t[at].(map[string]any)
	if !ok {
		return nil, false
	}
	return table(below).get(rest)
}

func (t table) text(key string) string {
	v, _ := t.get(key)
	s, _ := v.(string)
	return s
}

// each calls f for every value that is no table, with what it may be replaced by.
func (t table) each(prefix string, f func(key string, v any) (any, error)) error {
	for _, k := range slices.Sorted(maps.Keys(t)) {
		var err error
		switch v := t[k].(type) {
		case map[string]any:
			err = table(v).each(prefix+k+".", f)
		case []map[string]any:
			for _, m := range v {
				err = errors.Join(err, table(m).each(prefix+k+".", f))
			}
		default:
			t[k], err = f(prefix+k, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var (
	// addressKey are keys whose value is where something listens, or is spoken to.
	addressKey = regexp.MustCompile(`(?i)(^|[._-])(l?addr|laddr|address|listen|endpoint|host)$`)
	portKey    = regexp.MustCompile(`(?i)(^|[._-])port$`)
)

// ports hands out ports of 127.0.0.1 that nobody uses now.
type ports func() (int, error)

// localise puts every address of a file on loopback, each at a port of its own:
// what listens does not get in the way of the live node, what calls finds nobody.
func (t table) localise(free ports) error {
	return t.each("", func(key string, v any) (any, error) {
		switch v := v.(type) {
		case string:
			scheme, rest, ok := strings.Cut(v, "://")
			if !ok {
				scheme, rest = "", v
			}
			if _, _, err := net.SplitHostPort(rest); !addressKey.MatchString(key) || err != nil && scheme != "unix" {
				return v, nil
			}
			p, err := free()
			if err != nil {
				return nil, err
			}
			local := fmt.Sprintf("127.0.0.1:%d", p)
			switch scheme {
			case "":
				return local, nil
			case "unix":
				scheme = "tcp"
			}
			return scheme + "://" + local, nil
		case int64:
			if !portKey.MatchString(key) || v <= 0 {
				return v, nil
			}
			p, err := free()
			return int64(p), err
		}
		return v, nil
	})
}

// confine turns every path of a file that lies in a root into the one below home,
// where that root was restored. A path elsewhere that the node might write to is
// refused.
func (t table) confine(file, home string, roots []place) error {
	return t.each("", func(key string, v any) (any, error) {
		s, ok := v.(string)
		if !ok || !filepath.IsAbs(s) {
			return v, nil
		}
		for _, r := range roots {
			if rel, ok := below(r.was, s); ok {
				return filepath.Join(home, r.prefix, rel), nil
			}
		}
		if _, err := os.Lstat(s); errors.Is(err, fs.ErrNotExist) {
			parent := filepath.Dir(s)
			if _, err := os.Lstat(parent); parent == "/" || errors.Is(err, fs.ErrNotExist) {
				return v, nil // no file: /metrics, for instance
			}
		}
		return nil, notPossible("make it relative to the home, or name the directory under roots, so that it is backed up", "%s of %s is %s, which is no part of the backup: a drilled node might write there", key, file, s)
	})
}

// place is a root: where it was, and where its files are in a restored home.
type place struct{ was, prefix string }

// below tells whether p lies in dir, and where.
func below(dir, p string) (string, bool) {
	rel, err := filepath.Rel(dir, p)
	return rel, err == nil && filepath.IsLocal(rel)
}

// impossible is the reason why a drill cannot be.
type impossible struct{ error }

func (i impossible) Unwrap() error { return i.error }

func (impossible) Is(target error) bool { return target == observer.ErrNotPossible }

func notPossible(advice, format string, args ...any) error {
	return hint.Add(impossible{fmt.Errorf(format, args...)}, advice)
}
