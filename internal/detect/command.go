package detect

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// command is one way in which a node is started, or would be.
type command struct {
	argv []string
	env  map[string]string
	dir  string // working directory, "" for none
	home string // the user's, "" where it is not known
	what string // whose command it is, for people: "gaiad.service"
}

// guess is a directory that may be a node's home.
type guess struct {
	dir  string
	from string
	sure bool // somebody wrote it down; else it is where such programs usually are
}

// unwrapped is a command without what stands before the node's own.
type unwrapped struct {
	node   []string
	socket string // of `eddy supervise`
	home   string // that `eddy supervise` was given
	other  bool   // a verb of eddy that runs no node
}

func unwrap(argv []string) (u unwrapped) {
	u.node = argv
	for range 4 { // a shell that runs env that runs eddy that runs a shell
		if len(u.node) == 0 {
			return u
		}
		switch base := filepath.Base(u.node[0]); base {
		case "eddy":
			i := slices.Index(u.node, "--")
			switch {
			case i > 0 && slices.Contains(u.node[:i], "supervise"):
				u.socket, _ = flag(u.node[:i], "socket")
				u.home, _ = flag(u.node[:i], "home")
				u.node = u.node[i+1:]
				continue
			case !slices.Contains(u.node, "node"):
				u.other = true
			}
			return u
		case "sh", "bash", "dash", "ash":
			if len(u.node) < 3 || !strings.HasPrefix(u.node[1], "-") || !strings.HasSuffix(u.node[1], "c") {
				return u
			}
			// systemctl has taken the quotes away, so the script may be in several words.
			words := strings.Fields(strings.Join(u.node[2:], " "))
			for i := range words {
				words[i] = strings.Trim(words[i], `"';&`)
			}
			u.node = slices.DeleteFunc(words, func(w string) bool { return w == "exec" || w == "" })
		case "env":
			u.node = u.node[1:]
			for len(u.node) > 0 && strings.Contains(u.node[0], "=") {
				u.node = u.node[1:]
			}
		default:
			return u
		}
	}
	return u
}

// flag reads the last --name VALUE or --name=VALUE.
func flag(argv []string, names ...string) (value string, ok bool) {
	for i, a := range argv {
		name, v, joined := strings.Cut(a, "=")
		if !strings.HasPrefix(a, "-") || !slices.Contains(names, strings.TrimLeft(name, "-")) {
			continue
		}
		switch {
		case joined:
			value, ok = v, true
		case i+1 < len(argv) && !strings.HasPrefix(argv[i+1], "--"):
			value, ok = argv[i+1], true
		default: // a switch
			value, ok = "true", true
		}
	}
	return strings.Trim(value, `"'`), ok
}

// program is the name of the node's binary, "" where a script hides it.
func (c command) program(node []string) string {
	if len(node) == 0 {
		return ""
	}
	base := filepath.Base(node[0])
	switch {
	case strings.HasPrefix(base, "cosmovisor"):
		return c.env["DAEMON_NAME"]
	case filepath.Ext(base) == ".sh":
		return ""
	}
	return base
}

// runsNode tells whether the words are those that start a node: `gaiad start`,
// `cosmovisor run start`, `cometbft node`, `loom run`. Others that name a home,
// `gaiad keys list` for instance, run none.
func runsNode(node []string) bool {
	for _, w := range node[min(1, len(node)):] {
		switch w {
		case "start", "run", "node", "run_node":
			return true
		}
	}
	return false
}

// variable is what programs of that name read their settings from: GAIAD for
// gaiad.
func variable(app string) string {
	return strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(app))
}

// guesses lists where the node's home may be, the best first: what the command
// says, then the place where such a program looks by itself, then what only
// cosmovisor was told.
func (c command) guesses() (all []guess) {
	u := unwrap(c.argv)
	if u.other {
		return nil
	}
	add := func(dir, from string, sure bool) {
		if dir = c.expand(dir); dir != "" {
			all = append(all, guess{dir, from, sure})
		}
	}
	if v, ok := flag(u.node, "home"); ok {
		add(v, "--home of "+c.what, true)
	}
	app := c.program(u.node)
	for _, name := range []string{variable(app) + "_HOME", variable(strings.TrimSuffix(app, "d")) + "_HOME"} {
		if v := c.env[name]; v != "" && app != "" && name != "DAEMON_HOME" {
			add(v, name+" of "+c.what, true)
		}
	}
	if app == "cometbft" || app == "tendermint" {
		add(c.env["CMTHOME"], "CMTHOME of "+c.what, true)
		add(c.env["TMHOME"], "TMHOME of "+c.what, true)
	}
	add(u.home, "--home of eddy supervise in "+c.what, true)
	if c.dir != "" && (strings.Contains(app, "loom") || exists(filepath.Join(c.expand(c.dir), "loom.yml"))) {
		add(c.dir, "the working directory of "+c.what, true)
	}
	if home := c.userHome(); home != "" && app != "" {
		short := strings.TrimSuffix(app, "d")
		names := []string{app, short, strings.ReplaceAll(app, "-", ""), strings.ReplaceAll(short, "-", "")}
		if app == "cometbft" {
			names = append(names, "tendermint")
		}
		for _, n := range slices.Compact(names) {
			add(filepath.Join(home, "."+n), "where "+app+" of "+c.what+" keeps it by itself", false)
		}
	}
	add(c.env["DAEMON_HOME"], "DAEMON_HOME of "+c.what, true)
	return all
}

func (c command) userHome() string {
	if h := c.env["HOME"]; h != "" {
		return h
	}
	return c.home
}

// expand makes a directory absolute as the shell or systemd would; "" where a
// variable is not known or nothing says what it is relative to.
func (c command) expand(dir string) string {
	if dir == "" {
		return ""
	}
	if rest, ok := strings.CutPrefix(dir, "~/"); ok {
		dir = "$HOME/" + rest
	}
	unknown := false
	dir = os.Expand(dir, func(name string) string {
		v := c.env[name]
		if name == "HOME" {
			v = c.userHome()
		}
		unknown = unknown || v == ""
		return v
	})
	if !filepath.IsAbs(dir) {
		if !filepath.IsAbs(c.dir) {
			return ""
		}
		dir = filepath.Join(c.dir, dir)
	}
	if unknown {
		return ""
	}
	return filepath.Clean(dir)
}

// said reads a setting as the node does: its flag, then its variable.
func (c command) said(key string) (value, from string) {
	u := unwrap(c.argv)
	if v, ok := flag(u.node, key, strings.ReplaceAll(key, "_", "-")); ok {
		return v, "--" + key + " of " + c.what
	}
	if app := c.program(u.node); app != "" {
		name := variable(app) + "_" + strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(key))
		if v := c.env[name]; v != "" {
			return v, name + " of " + c.what
		}
	}
	return "", ""
}
