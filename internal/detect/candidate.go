package detect

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Candidate is a node of a Host: a home, and what runs it.
type Candidate struct {
	Home Fact
	// Unit is the service that runs it, Container the container; nil where none does.
	// A container that a unit runs has both: the unit is in charge.
	Unit      *Unit
	Container *Container
	// Supervise is the socket of the `eddy supervise` that is the node's parent.
	Supervise Fact
	// Running tells whether the node runs.
	Running bool
	// Notes are what the operator should know of how it was found.
	Notes []string

	cmds []command
	uid  int // of the process, -1 where none is known
}

// Fact is a value with the place where it was found; both are "" for none.
type Fact struct{ Value, From string }

// Choice is what the operator says of the node that is meant.
type Choice struct {
	Unit, Container string
	Home            Fact
}

var (
	// ErrSeveral: more than one node was found.
	ErrSeveral = errors.New("several nodes were found")
	// ErrNoNode: no node was found, or not the one that was named.
	ErrNoNode = errors.New("no node was found")
)

// manages are services under which nodes may run that are not theirs.
var manages = []string{"cron.service", "crond.service", "atd.service", "ssh.service", "sshd.service", "docker.service", "containerd.service", "podman.service"}

// Find lists the nodes of a host, by home. notes tell of what looked like a node
// and cannot be one.
func (h Host) Find() (found []Candidate, notes []string) {
	add := func(c *Candidate, why error) {
		if why != nil {
			notes = append(notes, why.Error())
		}
		if c != nil {
			found = append(found, *c)
		}
	}
	for i := range h.Units {
		if u := &h.Units[i]; u.Load == "loaded" && !slices.Contains(manages, u.Name) {
			add(h.ofUnit(u, Fact{}))
		}
	}
	for i := range h.Containers {
		add(h.ofContainer(&h.Containers[i], Fact{}))
	}
	for i := range h.Processes {
		p := &h.Processes[i]
		if !slices.ContainsFunc(found, func(c Candidate) bool { return c.Unit != nil && c.Unit.Name == p.Unit }) {
			add(h.ofProcess(p), nil)
		}
	}
	slices.SortStableFunc(found, func(a, b Candidate) int { return strings.Compare(a.Home.Value, b.Home.Value) })
	return merge(found), notes
}

// merge joins what runs the same home. Two units with one home stay two: which of
// them is the node's is not to be guessed, unless only one is in use.
func merge(all []Candidate) (out []Candidate) {
	for _, c := range all {
		i := slices.IndexFunc(out, func(o Candidate) bool { return resolved(o.Home.Value) == resolved(c.Home.Value) })
		if i < 0 {
			out = append(out, c)
			continue
		}
		o := &out[i]
		switch {
		case o.Unit != nil && c.Unit != nil && o.rank() == c.rank():
			out = append(out, c)
		case c.rank() > o.rank():
			out[i] = c
		}
	}
	return out
}

// rank orders what may run a home by how likely it does.
func (c Candidate) rank() int {
	n := 0
	if c.Running {
		n += 8
	}
	if c.Unit != nil || c.Container != nil {
		n += 4
	}
	if c.Supervise.Value != "" { // the node's parent tells more than the node
		n += 2
	}
	if c.Unit != nil && strings.HasPrefix(c.Unit.File, "enabled") {
		n++
	}
	return n
}

// Choose returns the one node that is meant. With ErrSeveral it returns all that
// might be.
func (h Host) Choose(want Choice) (Candidate, []Candidate, error) {
	if want.Unit != "" || want.Container != "" {
		c, err := h.named(want)
		return c, nil, err
	}
	found, notes := h.Find()
	if want.Home.Value != "" {
		found = slices.DeleteFunc(found, func(c Candidate) bool { return resolved(c.Home.Value) != resolved(want.Home.Value) })
		notes = nil
	}
	switch {
	case len(found) == 1:
		c := found[0]
		if want.Home.Value != "" {
			c.Home = want.Home
		}
		return c, nil, nil
	case len(found) > 1:
		return Candidate{}, found, hint.Add(fmt.Errorf("%w: %d", ErrSeveral, len(found)), "say which one is the observer: --unit, --container or --home")
	case want.Home.Value != "":
		return Candidate{Home: want.Home, uid: -1}, nil, nil
	}
	err := ErrNoNode
	if len(notes) > 0 {
		err = fmt.Errorf("%w: %s", err, strings.Join(notes, "; "))
	}
	advice := "name its home with --home, or run this on the observer's machine"
	if len(h.Blind) > 0 {
		advice = "not all could be looked at (" + strings.Join(h.Blind, "; ") + "): run it as root, or name the home with --home"
	}
	return Candidate{}, nil, hint.Add(err, advice)
}

// named returns the node of a unit or of a container.
func (h Host) named(want Choice) (Candidate, error) {
	var c *Candidate
	var why error
	switch {
	case want.Unit != "" && want.Container != "":
		return Candidate{}, hint.Add(fmt.Errorf("--unit and --container: a node is run by one"), "leave out one of the two")
	case want.Unit != "":
		name := serviceName(want.Unit)
		i := h.unit(name)
		if i < 0 {
			return Candidate{}, hint.Add(fmt.Errorf("%w: systemd has no %s", ErrNoNode, name), "`systemctl list-unit-files --type=service` lists what it has"+h.blind())
		}
		c, why = h.ofUnit(&h.Units[i], want.Home)
	default:
		i := slices.IndexFunc(h.Containers, func(c Container) bool { return c.Name == want.Container })
		if i < 0 {
			return Candidate{}, hint.Add(fmt.Errorf("%w: the engine has no container %s", ErrNoNode, want.Container), "`docker ps -a` lists what it has"+h.blind())
		}
		c, why = h.ofContainer(&h.Containers[i], want.Home)
	}
	if c == nil {
		if why == nil {
			why = fmt.Errorf("nothing says where the home of %s%s is", want.Unit, want.Container)
		}
		advice := "name the home with --home"
		if errors.Is(why, fs.ErrPermission) {
			advice = "run it as root, or as the node's user"
		}
		return Candidate{}, hint.Add(fmt.Errorf("%w: %w", ErrNoNode, why), advice)
	}
	return *c, nil
}

// unit finds a unit by its full name, -1 where there is none.
func (h Host) unit(name string) int {
	return slices.IndexFunc(h.Units, func(u Unit) bool { return u.Name == name && u.Load != "not-found" })
}

func serviceName(name string) string {
	if strings.HasSuffix(name, ".service") {
		return name
	}
	return name + ".service"
}

func (h Host) blind() string {
	if len(h.Blind) == 0 {
		return ""
	}
	return " (" + strings.Join(h.Blind, "; ") + ")"
}

func (h Host) ofUnit(u *Unit, home Fact) (c *Candidate, why error) {
	c = &Candidate{Unit: u, Running: u.PID > 0, uid: -1}
	who, err := h.User(cmpUser(u.User))
	if err == nil {
		c.uid = who.UID
	}
	for _, p := range h.Processes {
		if p.Unit == u.Name {
			// What it was really started with, of the main process first.
			cmd := command{p.Argv, p.Env, p.Dir, who.Home, u.Name}
			if at := 0; p.PID == u.PID {
				c.cmds = slices.Insert(c.cmds, at, cmd)
			} else if runsNode(unwrap(p.Argv).node) {
				c.cmds = append(c.cmds, cmd)
			}
		}
	}
	c.cmds = append(c.cmds, command{u.Argv, u.Env, u.Dir, who.Home, u.Name})
	return h.settle(c, home, u.Name)
}

func cmpUser(name string) string {
	if name == "" {
		return "root"
	}
	return name
}

func (h Host) ofProcess(p *Process) *Candidate {
	if !runsNode(unwrap(p.Argv).node) {
		return nil
	}
	c := &Candidate{Running: true, uid: p.UID}
	who, err := h.User(fmt.Sprint(p.UID))
	if err != nil {
		who = User{}
	}
	c.cmds = []command{{p.Argv, p.Env, p.Dir, who.Home, fmt.Sprintf("process %d", p.PID)}}
	c, _ = h.settle(c, Fact{}, "")
	return c
}

// settle finds the home among the guesses. A home that somebody wrote down and
// that cannot be read is the reason why there is none.
func (h Host) settle(c *Candidate, home Fact, who string) (*Candidate, error) {
	for _, cmd := range c.cmds {
		if u := unwrap(cmd.argv); u.socket != "" && c.Supervise.Value == "" {
			c.Supervise = Fact{u.socket, "--socket of eddy supervise in " + cmd.what}
		}
	}
	if home.Value != "" {
		c.Home = home
		return c, nil
	}
	var why error
	for _, cmd := range c.cmds {
		for _, g := range cmd.guesses() {
			is, err := isHome(g.dir)
			switch {
			case is:
				c.Home = Fact{g.dir, g.from}
				c.noteDaemonHome()
				return c, nil
			case err != nil && g.sure && why == nil && who != "":
				why = fmt.Errorf("%s says that its home is %s, which cannot be read: %w", who, g.dir, bareError(err))
			}
		}
	}
	return nil, why
}

// noteDaemonHome tells of a cosmovisor that was told another home than the node.
func (c *Candidate) noteDaemonHome() {
	for _, cmd := range c.cmds {
		if d := cmd.expand(cmd.env["DAEMON_HOME"]); d != "" && resolved(d) != resolved(c.Home.Value) {
			c.Notes = append(c.Notes, fmt.Sprintf("DAEMON_HOME is %s; only cosmovisor uses it, the node's home is the one below", d))
			return
		}
	}
}

// isHome tells whether a directory is the home of a CometBFT node, or of a Loom
// node, which has it one level deeper.
func isHome(dir string) (bool, error) {
	var denied error
	for _, p := range []string{"config/config.toml", "chaindata/config/config.toml", "chaindata/config/genesis.json"} {
		_, err := os.Stat(filepath.Join(dir, p))
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, fs.ErrPermission):
			denied = err
		}
	}
	return false, denied
}

// bareError is an error without the path that the sentence has already.
func bareError(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// resolved follows the symlinks of a path that exists.
func resolved(p string) string {
	if r, err := filepath.EvalSymlinks(p); err == nil {
		return r
	}
	return filepath.Clean(p)
}
