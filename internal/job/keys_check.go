package job

import (
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

// KeysCheck compares a node's home with its bundle, with those of the other nodes, and
// with the dump that its data are of. It changes nothing, and asks no node.
type KeysCheck struct {
	Catalog *uploader.Catalog
	Node    string // its name in the store; "": the node whose id the home has
	Home    string
	// Keys and Data are selectors: the bundle and the dump that the home was made of.
	Keys, Data string
	// Identities open the bundles of the nodes; without any, what only stands inside is
	// not compared.
	Identities bundle.Identities
	// Genesis says which chain the home is of: its id, and that of its history.
	Genesis func() (chainID, incarnation string, err error)
	// Program is what would start; "": what cosmovisor's link leads to.
	Program string
	Events  ui.Sink
}

// Run looks at one thing after the other.
func (k *KeysCheck) Run(ctx context.Context, show func(check.Finding)) {
	id, file, err := bundle.NodeAt(k.Home)
	switch {
	case err != nil:
		show(failed("node key", err, "bring it back: `eddy keys restore latest --node NAME --only node_key.json`"))
	case id == "":
		show(failed("node key", errors.New("the home has none: at its first start the node would make one, with an id that nobody knows"), "bring it back: `eddy keys restore latest --node NAME`"))
	}
	show(k.modes(ctx))
	all, err := k.newest(ctx)
	if err != nil {
		show(failed("bundles", err, "look at the store's settings"))
	} else {
		if own := k.own(ctx, id, file, all); own.Name != "" {
			show(own)
		}
		show(k.twice(ctx, all))
	}
	dump, err := k.Catalog.Select(ctx, k.Data)
	if err != nil {
		show(check.Finding{Name: "dump", Level: check.Warn, Said: fmt.Sprintf("there is none to compare the home with: %v", err), Hint: "say with --data which backup its data are of"})
		dump.Manifest = nil
	}
	show(k.chain(dump.Manifest))
	if dump.Manifest != nil {
		show(k.order(ctx, id, all, dump.Manifest))
		show(k.program(dump.Manifest))
	}
}

func failed(name string, err error, todo string) check.Finding {
	if h := hint.Of(err); h != "" {
		todo = h
	}
	return check.Finding{Name: name, Level: check.Fail, Said: err.Error(), Hint: todo}
}

// newest are the latest bundles of all nodes.
func (k *KeysCheck) newest(ctx context.Context) (all []uploader.Bundle, err error) {
	nodes, err := k.Catalog.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	for _, n := range nodes {
		b, err := k.Catalog.SelectBundle(ctx, n, "latest")
		if errors.Is(err, uploader.ErrNoSuchBackup) {
			continue // a first one that is on its way
		}
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// own compares the node key of the home with that of its bundle.
func (k *KeysCheck) own(ctx context.Context, id, file string, all []uploader.Bundle) check.Finding {
	const name = "node key"
	if id == "" {
		return check.Finding{} // said already
	}
	if k.Node == "" {
		for _, b := range all {
			if b.Manifest.NodeID == id {
				return check.Good(name, fmt.Sprintf("%s, as in the bundles of %s", id, b.Node))
			}
		}
		return check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("no bundle is of node %s, whose key is %s", id, file), Hint: "restore the node key of the node that this is to be, or `eddy keys backup` where it is a new one"}
	}
	b, err := k.Catalog.SelectBundle(ctx, k.Node, k.Keys)
	if err != nil {
		return failed(name, err, "name the node's bundle with --node")
	}
	if b.Manifest.NodeID != id {
		return check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("%s is the key of node %s, bundle %s of %s is of node %s", file, id, b.ID, k.Node, b.Manifest.NodeID), Hint: "peers know the node by the bundle's: `eddy keys restore " + b.ID + " --node " + k.Node + " --other-node --only node_key.json`"}
	}
	return check.Good(name, fmt.Sprintf("%s, as in bundle %s of %s", id, b.ID, b.Node))
}

// twice looks for two nodes that are one: to their peers, or to the chain.
func (k *KeysCheck) twice(ctx context.Context, all []uploader.Bundle) check.Finding {
	const name = "duplicates"
	ids, keys := map[string]string{}, map[string]string{}
	signs := 0
	for _, b := range all {
		if other := ids[b.Manifest.NodeID]; b.Manifest.NodeID != "" && other != "" {
			return check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("%s and %s have the same node id, %s", other, b.Node, b.Manifest.NodeID), Hint: "peers let in only one of two: give one of them a node key of its own"}
		}
		ids[b.Manifest.NodeID] = b.Node
		if !b.Manifest.Signs {
			continue
		}
		if signs++; len(k.Identities) == 0 {
			continue
		}
		key, err := k.validator(ctx, b)
		if err != nil {
			return failed(name, fmt.Errorf("bundle %s of %s: %w", b.ID, b.Node, err), "`eddy keys show latest --node NODE` tells whom it was sealed for")
		}
		if other := keys[key]; other != "" {
			return check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("%s and %s have the same validator key", other, b.Node), Hint: "never start both: a key that signs twice costs its stake; find out whose it is, and remove it from the other"}
		}
		keys[key] = b.Node
	}
	if signs > 1 && len(k.Identities) == 0 {
		return check.Finding{Name: name, Level: check.Warn, Said: fmt.Sprintf("%d nodes, no node id twice; %d bundles hold validator keys, which were not compared", len(all), signs), Hint: "say -i FILE to open them"}
	}
	return check.Good(name, fmt.Sprintf("%d nodes, no node id and no validator key twice", len(all)))
}

// validator is the public half of a bundle's validator key.
func (k *KeysCheck) validator(ctx context.Context, b uploader.Bundle) (key string, err error) {
	r := KeysRestore{Catalog: k.Catalog, Node: b.Node, Selector: b.ID, Identities: k.Identities, Events: k.Events, Now: time.Now}
	opened, err := r.Look(ctx)
	if err != nil {
		return "", err
	}
	err = opened.Each(func(e bundle.Entry, in io.Reader) error {
		if e.Class != bundle.ValidatorKey || key != "" {
			return nil
		}
		var f struct {
			Pub struct {
				Value string `json:"value"`
			} `json:"pub_key"`
		}
		text, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		if json.Unmarshal(text, &f) == nil { // another kind of key, a password: by its content
			key = f.Pub.Value
		}
		if key == "" {
			key = hashOf(text)
		}
		return nil
	})
	return key, err
}

// modes looks who may read what nobody else should.
func (k *KeysCheck) modes(ctx context.Context) check.Finding {
	const name = "modes"
	found, err := bundle.Find(ctx, bundle.Want{Home: k.Home, ValidatorKey: true})
	if err != nil {
		return failed(name, err, "run eddy as root, or as the node's user")
	}
	home, err := os.Stat(k.Home)
	if err != nil {
		return failed(name, err, "run eddy as root, or as the node's user")
	}
	var wrong []string
	secrets := 0
	for _, f := range found.Files {
		if f.Class != bundle.NodeKey && !f.Class.Signs() {
			continue
		}
		fi, err := os.Stat(f.Path)
		if err != nil {
			continue // gone since
		}
		secrets++
		if fi.Mode().Perm()&0o077 != 0 {
			wrong = append(wrong, fmt.Sprintf("%s is %04o: chmod 600", f.Path, fi.Mode().Perm()))
		}
		if is, of := fi.Sys().(*syscall.Stat_t), home.Sys().(*syscall.Stat_t); is.Uid != of.Uid {
			wrong = append(wrong, fmt.Sprintf("%s belongs to %s, the home to %s", f.Path, ownerName(int(is.Uid), int(is.Gid)), ownerName(int(of.Uid), int(of.Gid))))
		}
	}
	if len(wrong) > 0 {
		return check.Finding{Name: name, Level: check.Warn, Said: strings.Join(wrong, "; "), Hint: "keys are 0600, and their node's user's"}
	}
	return check.Good(name, fmt.Sprintf("%d files with keys, readable by their owner alone", secrets))
}

// chain compares the genesis file with the dump.
func (k *KeysCheck) chain(m *uploader.Manifest) check.Finding {
	const name = "chain"
	id, incarnation, err := k.Genesis()
	switch {
	case err != nil:
		return failed(name, err, "bring it back: `eddy keys restore latest --node NAME --only genesis.json`")
	case m == nil:
		return check.Good(name, id)
	case m.Incarnation != incarnation:
		return check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("genesis.json is of %s, history %.12s; backup %s is of history %.12s", id, incarnation, m.ID, m.Incarnation), Hint: "the data and the genesis file are of two chains, or of two beginnings of one: take the bundle and the backup of one cluster"}
	}
	return check.Good(name, fmt.Sprintf("%s, and backup %s is of its history", id, m.ID))
}

// order holds to the rule that data are newer than the configuration they come back
// with: what was changed in between may be nothing that the data know of.
func (k *KeysCheck) order(ctx context.Context, id string, all []uploader.Bundle, m *uploader.Manifest) check.Finding {
	const name = "order"
	i := slices.IndexFunc(all, func(b uploader.Bundle) bool {
		return b.Node == k.Node || k.Node == "" && id != "" && b.Manifest.NodeID == id
	})
	if i < 0 {
		return check.Finding{Name: name, Level: check.Warn, Said: "no bundle of this node is known, to compare its age with that of the data", Hint: "say --node NAME"}
	}
	b := all[i]
	if k.Keys != "latest" {
		var err error
		if b, err = k.Catalog.SelectBundle(ctx, b.Node, k.Keys); err != nil {
			return failed(name, err, "`eddy keys list` shows them")
		}
	}
	if b.Created.After(m.Created) {
		return check.Finding{Name: name, Level: check.Warn, Said: fmt.Sprintf("bundle %s was made %s after backup %s: the configuration is newer than the data", b.ID, b.Created.Sub(m.Created).Round(time.Minute), m.ID), Hint: "look what has changed in between, an upgrade for instance; or take the bundle of before: `eddy keys restore before:" + m.Created.UTC().Format(time.RFC3339) + "`"}
	}
	return check.Good(name, fmt.Sprintf("backup %s is newer than bundle %s", m.ID, b.ID))
}

// appVersion is what programs of the Cosmos SDK are told of themselves when built.
var appVersion = regexp.MustCompile(`cosmos-sdk/version\.Version=([^\s'"]+)`)

// program compares what would start with what made the dump, as far as files tell.
func (k *KeysCheck) program(m *uploader.Manifest) check.Finding {
	const name = "program"
	file := k.Program
	link, _ := os.Readlink(filepath.Join(k.Home, "cosmovisor", "current"))
	if file == "" && link != "" {
		bins, err := filepath.Glob(filepath.Join(k.Home, "cosmovisor", "current", "bin", "*")) // a home with * in it: said below
		if err != nil || len(bins) == 0 {
			return check.Finding{Name: name, Level: check.Fail, Said: "cosmovisor/current leads to no program", Hint: "put the program that made the backup into " + link + "/bin: " + madeBy(m).Program()}
		}
		file = bins[0]
	}
	if file == "" {
		return check.Good(name, "not looked at: there is no cosmovisor; --program FILE compares one with "+madeBy(m).Program())
	}
	var plan struct {
		Name   string      `json:"name"`
		Height json.Number `json:"height"`
	}
	if text, err := os.ReadFile(filepath.Join(k.Home, "data", "upgrade-info.json")); err == nil && json.Unmarshal(text, &plan) == nil {
		height, err := plan.Height.Int64()
		if err == nil && height > 0 && m.Position.Index+1 < uint64(height) && k.Program == "" && strings.EqualFold(filepath.Base(link), plan.Name) {
			return wrongProgram(m, fmt.Sprintf("cosmovisor/current is that of the upgrade %q at height %d, backup %s is of height %d: it cannot go on from there", plan.Name, height, m.ID, m.Position.Index))
		}
	}
	info, err := buildinfo.ReadFile(file)
	if err != nil {
		return check.Finding{Name: name, Level: check.Warn, Said: fmt.Sprintf("%s does not say what it is: %v", file, err), Hint: "see for yourself whether it is " + madeBy(m).Program()}
	}
	return built(info, file, m)
}

func wrongProgram(m *uploader.Manifest, said string) check.Finding {
	return check.Finding{Name: "program", Level: check.Fail, Said: said, Hint: "put the program in place that made the backup, " + madeBy(m).Program() + ", before the node starts"}
}

// built compares what a program was built of with what made a dump.
func built(info *buildinfo.BuildInfo, file string, m *uploader.Manifest) check.Finding {
	for _, s := range info.Settings {
		v := appVersion.FindStringSubmatch(s.Value)
		if s.Key == "-ldflags" && v != nil && m.Versions.App != "" && !slices.Contains(strings.Fields(m.Versions.App), v[1]) {
			return wrongProgram(m, fmt.Sprintf("%s is version %s, backup %s was made by %s", file, v[1], m.ID, m.Versions.App))
		}
	}
	for _, d := range info.Deps {
		if d.Path != "github.com/cometbft/cometbft" && d.Path != "github.com/tendermint/tendermint" {
			continue
		}
		if d.Replace != nil {
			d = d.Replace
		}
		is, was := strings.TrimPrefix(d.Version, "v"), strings.TrimPrefix(m.Versions.System, "v")
		switch {
		case !strings.Contains(is, ".") || was == "": // built from a directory
		case series(is) != series(was):
			return wrongProgram(m, fmt.Sprintf("%s is built with %s %s, backup %s was made with %s", file, d.Path, d.Version, m.ID, m.Versions.System))
		case is != was && !strings.HasPrefix(is, was+"-"): // a fork names the release that it comes from
			return check.Finding{Name: "program", Level: check.Warn, Said: fmt.Sprintf("%s is built with %s %s, backup %s was made with %s", file, d.Path, d.Version, m.ID, m.Versions.System), Hint: "where their release notes do not say that both read the same data: put the program in place that made the backup"}
		}
	}
	return check.Good("program", fmt.Sprintf("nothing in %s speaks against %s", file, madeBy(m).Program()))
}

// series is the part of a version that says whether data are read alike: 0.38 of 0.38.26.
func series(version string) string {
	p := strings.SplitN(version, ".", 3)
	return strings.Join(p[:min(2, len(p))], ".")
}
