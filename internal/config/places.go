package config

import (
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
)

// absolute refuses a path that depends on where eddy was started.
func (l *loader) absolute(key, p string) {
	if p == "" || l.bad[key] {
		return
	}
	switch {
	case strings.HasPrefix(p, "~"):
		l.problem(key, quote(p)+" needs a shell", "write the directory from the root")
	case !filepath.IsAbs(p):
		l.problem(key, quote(p)+" is a relative path", "write it from the root: the daemon starts elsewhere than you do")
	}
}

// checkPlaces refuses directories that lie where a backup would pick them up, or
// pick up itself.
func (l *loader) checkPlaces() {
	c := l.c
	l.absolute("workdir", c.Workdir)
	home := ""
	if c.Replica.Home != "" && !l.bad["replica.home"] {
		home = resolved(c.Replica.Home)
	}
	type place struct{ dir, what string }
	var taken []place
	if home != "" {
		taken = []place{
			{resolved(filepath.Join(c.Replica.Home, "data")), "the node's data"},
			{filepath.Join(home, ".eddy"), "the stage"},
		}
	}
	roots := c.Roots
	if l.bad["roots"] {
		roots = nil
	}
	for _, name := range slices.Sorted(maps.Keys(roots)) {
		dir, key := roots[name], "roots."+keyText(name)
		if !nameText.MatchString(name) || strings.Trim(name, ".") == "" {
			l.problem(key, "no possible name", "use 1 to 63 of letters, digits, _ . -")
			continue
		}
		if dir == "" {
			l.problem(key, "names no directory", "write name: /dir")
			continue
		}
		l.absolute(key, dir)
		if l.bad[key] {
			continue
		}
		r := resolved(dir)
		switch {
		case home != "" && within(r, home):
			l.problem(key, "lies in the home", "remove it: what is below the home is found by itself; add files with include")
		case home != "" && within(home, r):
			l.problem(key, "holds the home", "name a directory beside it")
		default:
			for _, t := range taken {
				if strings.HasPrefix(t.what, "root ") && (within(r, t.dir) || within(t.dir, r)) {
					l.problem(key, "overlaps with "+t.what, "remove one of the two")
					break
				}
			}
		}
		taken = append(taken, place{r, "root " + keyText(name)})
	}
	keep := []place{{c.Workdir, "workdir"}, {c.Drill.Dir, "drill.dir"}, {c.Verify.Dir, "verify.dir"}}
	if u, err := url.Parse(c.Store.URL); err == nil && u.Scheme == "file" {
		keep = append(keep, place{u.Path, "store.url"})
	}
	for _, k := range keep {
		if k.dir == "" || l.bad[k.what] {
			continue
		}
		for _, t := range taken {
			if within(resolved(k.dir), t.dir) {
				l.problem(k.what, "lies in "+t.what+", "+quote(t.dir), "name a directory outside: a backup must not back itself up")
				break
			}
		}
	}
}

// resolved follows the symlinks of the part of p that exists.
func resolved(p string) string {
	p = filepath.Clean(p)
	for head, tail := p, ""; ; {
		if r, err := filepath.EvalSymlinks(head); err == nil {
			return filepath.Join(r, tail)
		}
		parent := filepath.Dir(head)
		if parent == head {
			return p
		}
		head, tail = parent, filepath.Join(filepath.Base(head), tail)
	}
}

// within tells whether p is dir or lies below it. Both are clean.
func within(p, dir string) bool {
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}
