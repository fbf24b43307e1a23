package config

import (
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Chain tells whether the replica is a chain's node.
func (r Replica) Chain() bool { return r.Kind == "cometbft" }

// Controlled tells whether the replica is stopped for a backup.
func (r Replica) Controlled() bool { return slices.Contains(sections["control"], r.Kind) }

// Command is a program whose stdout is the dump.
type Command struct {
	// Argv prints the dump. No shell.
	Argv []string `yaml:"argv"`
	// Precheck must exit with 0 before a dump is taken.
	Precheck []string `yaml:"precheck"`
	// Version prints the system's version.
	Version []string `yaml:"version"`
	// Restore reads a dump from stdin and brings it back.
	Restore []string `yaml:"restore"`
	// EnvFiles are variables of all these programs, and the files, of mode 0600, that
	// hold their values: name to absolute path.
	EnvFiles map[string]string `yaml:"env_files"`
	// Timeout is how long argv and restore may take, each.
	Timeout Duration      `yaml:"timeout" default:"1h"`
	Expect  CommandExpect `yaml:"expect"`
	// Preset fills in what is not set, for a product that is known.
	Preset string `yaml:"preset" enum:",ucp,dtr"`
	// Image is the product's, with its version; beside a preset.
	Image string `yaml:"image"`
	// Args are what the preset's commands get beside their own.
	Args []string `yaml:"args"`
}

// CommandExpect is what the dump must be.
type CommandExpect struct {
	Form string `yaml:"form" default:"any" enum:"any,tar,tar.gz,pgp"`
	// Contains are names that a tar must have.
	Contains []string `yaml:"contains"`
	// Members is how many a tar must have at least.
	Members int `yaml:"members"`
}

// sections are the keys of Replica that are of one kind only, and the kinds that
// they are of.
var sections = map[string][]string{
	"home": {"cometbft"}, "rpc": {"cometbft"}, "witnesses": {"cometbft"}, "chain_id": {"cometbft"}, "app": {"cometbft"},
	"control": {"cometbft", "swarm", "zookeeper"}, "command": {"command"}, "swarm": {"swarm"},
	"zookeeper": {"zookeeper"},
	"consul":    {"consul"}, "etcd": {"etcd"}, "nomad": {"nomad"}, "vault": {"vault"},
}

// checkKind refuses what is set and means nothing for the kind.
func (l *loader) checkKind() {
	r := l.c.Replica
	if l.bad["replica.kind"] {
		return
	}
	presets := newLoader("").byKey
	for _, f := range l.fields {
		rest, ok := strings.CutPrefix(f.key, "replica.")
		section, _, _ := strings.Cut(rest, ".")
		kinds := sections[section]
		if !ok || kinds == nil || slices.Contains(kinds, r.Kind) || f.equal(presets[f.key]) || l.bad[f.key] {
			continue
		}
		if f.key == "replica.home" && l.c.origins[f.key].Source == FromFlag {
			continue // of a verb that knows several kinds
		}
		l.problem(f.key, "means nothing for a replica of kind "+r.Kind, "remove it, or set replica.kind: "+strings.Join(kinds, " or "))
	}
	switch r.Kind {
	case "command":
		l.checkCommand()
	case "zookeeper":
		l.checkZookeeper()
	case "etcd":
		l.checkEtcd()
	case "swarm":
		l.checkSwarm()
	}
	l.checkConsul()
}

// varText are names of variables that a shell could set.
var varText = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

const maxCommand = 7 * 24 * time.Hour

func (l *loader) checkCommand() {
	const section = "replica.command"
	c := l.c.Replica.Command
	for _, a := range []struct {
		key  string
		argv []string
	}{{"argv", c.Argv}, {"precheck", c.Precheck}, {"version", c.Version}, {"restore", c.Restore}} {
		if key := section + "." + a.key; len(a.argv) > 0 && !l.bad[key] {
			l.argv(key, a.argv)
		}
	}
	unread := l.bad[section+".env_files"]
	for _, name := range slices.Sorted(maps.Keys(c.EnvFiles)) {
		key := section + ".env_files." + keyText(name)
		switch {
		case unread:
		case !varText.MatchString(name):
			l.problem(key, "no possible name of a variable", "write NAME: /file")
		default:
			l.absolute(key, c.EnvFiles[name])
		}
	}
	if t := c.Timeout.D(); !l.bad[section+".timeout"] && (t < minTimeout || t > maxCommand) {
		l.problem(section+".timeout", c.Timeout.String()+" is out of range", "write what the command needs at most, 1h for instance")
	}
	e := c.Expect
	tar := e.Form == "tar" || e.Form == "tar.gz" || c.Preset != ""
	switch {
	case l.badBelow(section + ".expect"):
	case len(e.Contains) > 0 && !tar:
		l.problem(section+".expect.contains", "set without form: tar", "only of a tar names are known: write form: tar or tar.gz")
	case e.Members != 0 && !tar:
		l.problem(section+".expect.members", "set without form: tar", "only of a tar members are counted: write form: tar or tar.gz")
	case e.Members < 0:
		l.problem(section+".expect.members", "less than none", "write how many members a dump has at least")
	}
	switch {
	case c.Preset != "" && c.Image == "" && !l.bad[section+".image"]:
		l.problem(section+".image", "missing beside a preset", "write the product's image with its version, docker/"+c.Preset+":VERSION: dumps are restored by the same version")
	case c.Preset == "" && c.Image != "":
		l.problem(section+".image", "set without a preset", "write preset: ucp or dtr, or the whole command in argv")
	case c.Preset == "" && len(c.Args) > 0:
		l.problem(section+".args", "set without a preset", "write them into argv")
	}
}
