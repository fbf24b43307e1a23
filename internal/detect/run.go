package detect

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
)

// homeWord stands for the home of another node in a command.
const homeWord = "{home}"

// ofThisNode are flags that belong to one node and would make another one use its
// files, its addresses or its keys, or stop.
var ofThisNode = regexp.MustCompile(`(?i)addr|listen|port|host|url|home|dir|file|path|peer|seed|pex|genesis|key|signer|snapshot|sync|external|proxy|abci|transport|halt|profile|trace|with-|only|enable|moniker|psql|indexer|telemetry|instrumentation|node-?id`)

const sayCommand = "set `drill.command: [PROGRAM, start, --home, \"{home}\"]`"

// NodeCommand is an argv that runs a node as that of home is run, on another home:
// "{home}" stands for it. from says where it was found.
func (h Host) NodeCommand(home string) (argv []string, from string, err error) {
	c, several, err := h.Choose(Choice{Home: Fact{Value: home}})
	if err != nil && len(several) == 0 {
		return nil, "", hint.Add(err, sayCommand)
	}
	for _, c := range append([]Candidate{c}, several...) {
		if c.Container != nil && c.Unit == nil {
			return nil, "", hint.Add(fmt.Errorf("the node runs in container %s, whose program is not this machine's", c.Container.Name), sayCommand+" with a copy of the program")
		}
		for _, cmd := range c.cmds {
			argv, err := cmd.elsewhere()
			if err != nil {
				return nil, "", hint.Add(fmt.Errorf("%s: %w", cmd.what, err), sayCommand)
			}
			if argv != nil {
				return argv, cmd.what, nil
			}
		}
	}
	if bins, err := filepath.Glob(filepath.Join(home, "cosmovisor", "current", "bin", "*")); err == nil && len(bins) == 1 {
		return []string{bins[0], "start", "--home", homeWord}, "cosmovisor's current program", nil
	}
	return nil, "", hint.Add(fmt.Errorf("nothing on this machine says how the node of %s is run", home), sayCommand)
}

// elsewhere is the command for another home, nil where it runs no node.
func (c command) elsewhere() ([]string, error) {
	u := unwrap(c.argv)
	if u.other || len(u.node) == 0 || !runsNode(u.node) {
		return nil, nil
	}
	if _, ok := flag(u.node, "proxy-app", "proxy_app"); ok {
		return nil, fmt.Errorf("its app is a process of its own: a drill needs a command that runs both")
	}
	program, words := u.node[0], u.node[1:]
	if strings.HasPrefix(filepath.Base(program), "cosmovisor") {
		name, dir := c.env["DAEMON_NAME"], c.expand(c.env["DAEMON_HOME"])
		if name == "" || dir == "" {
			return nil, nil
		}
		program = filepath.Join(dir, "cosmovisor", "current", "bin", name)
		if len(words) > 0 && words[0] == "run" {
			words = words[1:]
		}
	}
	if filepath.Ext(program) == ".sh" {
		return nil, nil
	}
	if !filepath.IsAbs(program) {
		found, err := exec.LookPath(program)
		if err != nil && c.dir != "" {
			found = filepath.Join(c.dir, program)
			_, err = os.Stat(found)
		}
		if err != nil {
			return nil, err
		}
		program = found
	}
	return append(append([]string{program}, general(words)...), "--home", homeWord), nil
}

// general are the words of a command less the flags that are of one node only.
func general(words []string) (out []string) {
	for i := 0; i < len(words); i++ {
		w := words[i]
		value := i+1 < len(words) && strings.HasPrefix(w, "-") && !strings.Contains(w, "=") && !strings.HasPrefix(words[i+1], "-")
		if !strings.HasPrefix(w, "-") || !ofThisNode.MatchString(strings.SplitN(w, "=", 2)[0]) {
			out = append(out, w)
			if value {
				out = append(out, words[i+1])
			}
		}
		if value {
			i++
		}
	}
	return slices.Clip(out)
}
