package detect

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// ofContainer finds the home of a container's node on this machine: where the
// container says it is, seen through its mounts, or at one of the mounts.
func (h Host) ofContainer(k *Container, home Fact) (c *Candidate, why error) {
	who := "container " + k.Name
	c = &Candidate{Container: k, Running: k.Running, uid: -1}
	inside := command{k.Argv, k.Env, k.Dir, "", who}
	if inside.userHome() == "" && (k.User == "" || strings.HasPrefix(k.User, "0") || strings.HasPrefix(k.User, "root")) {
		inside.home = "/root"
	}
	c.cmds = []command{inside}
	for i := range h.Units {
		if u := &h.Units[i]; u.runsContainer(k.Name) {
			c.Unit = u
			c.Notes = append(c.Notes, fmt.Sprintf("%s runs container %s: it is the unit that is stopped and started", u.Name, k.Name))
		}
	}
	if u := unwrap(k.Argv); u.socket != "" {
		if s, ok := k.outside(u.socket); ok {
			c.Supervise = Fact{s, "--socket of eddy supervise in " + who}
		}
	}
	if home.Value != "" {
		c.Home = home
		return c, nil
	}
	for _, g := range inside.guesses() {
		dir, ok := k.outside(g.dir)
		at, err := isHome(dir)
		apart := k.below(g.dir)
		switch {
		case len(apart) > 0 && (at || g.sure):
			return nil, fmt.Errorf("the home of %s, %s, is spread over mounts (%s): mount the whole home as one directory", who, g.dir, strings.Join(apart, ", "))
		case ok && at:
			c.Home = Fact{dir, g.from + ", which is " + g.dir + " there"}
			return c, nil
		case !g.sure || why != nil:
		case !ok && runsNode(unwrap(k.Argv).node):
			why = fmt.Errorf("the home of %s, %s, is in the container itself and not on a volume", who, g.dir)
		case ok && err != nil:
			why = fmt.Errorf("the home of %s is %s, which cannot be read: %w", who, dir, bareError(err))
		}
	}
	for _, m := range k.Mounts {
		if is, _ := isHome(m.Source); is && len(k.below(m.Target)) == 0 {
			c.Home = Fact{m.Source, "the mount " + m.Target + " of " + who}
			return c, nil
		}
	}
	return nil, why
}

// outside is a path of the container on this machine.
func (k *Container) outside(path string) (string, bool) {
	best := Mount{}
	for _, m := range k.Mounts {
		if within(path, m.Target) && len(m.Target) >= len(best.Target) {
			best = m
		}
	}
	if best.Source == "" {
		return "", false
	}
	return filepath.Join(best.Source, strings.TrimPrefix(path, best.Target)), true
}

// below lists what is mounted over the parts of a directory that hold a node's
// state or its configuration.
func (k *Container) below(dir string) (targets []string) {
	for _, m := range k.Mounts {
		for _, part := range []string{"data", "config", "wasm", "chaindata"} {
			if m.Target != dir && within(m.Target, filepath.Join(dir, part)) && isDir(m.Source) {
				targets = append(targets, m.Target)
			}
		}
	}
	slices.Sort(targets)
	return slices.Compact(targets)
}

// runsContainer tells whether a unit's command is the engine's client and names
// the container.
func (u *Unit) runsContainer(name string) bool {
	if len(u.Argv) == 0 || u.Load != "loaded" {
		return false
	}
	if base := filepath.Base(u.Argv[0]); base != "docker" && base != "podman" {
		return false
	}
	return slices.Contains(u.Argv, name) || slices.Contains(u.Argv, "--name="+name)
}

// within tells whether a clean path is dir or lies below it.
func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
