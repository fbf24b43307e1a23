package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/detect"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/nodeconfig"
)

// nodeChange is `eddy config init --node-config`.
type nodeChange struct {
	File    string `json:"file"`
	Diff    string `json:"diff"`              // unified; "" where nothing is to change
	Written bool   `json:"written"`           // false: only shown
	Kept    string `json:"kept,omitempty"`    // where the old file is
	Restart string `json:"restart,omitempty"` // what makes the node read it
}

func (nodeChange) MessageType() string { return "node_config" }

func (n nodeChange) Line() string {
	switch {
	case n.Diff == "":
		return n.File + ": it hides the node already"
	case !n.Written:
		return strings.TrimSuffix(n.Diff, "\n")
	}
	return n.Diff + "wrote " + n.File + ", the old one is " + n.Kept + "; it counts when the node has been restarted: " + n.Restart
}

// hideNode shows, and with --write makes, the change of config.toml that keeps
// other nodes from listing this one.
func (a *app) hideNode(ctx context.Context, o initFlags) error {
	f, err := a.lookAt(ctx, o, detect.Script{})
	if err != nil {
		return err
	}
	text, err := nodeconfig.Read(f.ConfigFile)
	if err != nil {
		return hint.Add(err, "name the node's home: `eddy config init --node-config HOME`")
	}
	// Peers that the command names stay where they are; those of config.toml are
	// there already.
	peers := o.peers
	settings, err := nodeconfig.Parse(text)
	if err == nil && len(settings.Peers)+len(peers) == 0 && !f.PeersSaid {
		peers = f.Peers
		for _, p := range peers {
			a.ui.Emit(foundValue{"peer", p, "dialled by the node, in /net_info"})
		}
	}
	changes, err := nodeconfig.Hide(text, peers)
	alone := errors.Is(err, nodeconfig.ErrNoPeers) && !f.PeersSaid
	if err != nil && !errors.Is(err, nodeconfig.ErrNoPeers) {
		return err
	}
	edited, eerr := nodeconfig.Edit(text, changes)
	if eerr != nil {
		return eerr
	}
	for _, w := range f.Wins {
		a.ui.Emit(job.Warning{Text: w + ", which wins over config.toml", Hint: "take it out of the command, and restart the node"})
	}
	n := nodeChange{File: f.ConfigFile, Diff: edited.Diff(f.ConfigFile), Restart: restart(f)}
	if !o.write || n.Diff == "" || alone {
		if rerr := a.result(n); rerr != nil || !alone {
			return rerr
		}
		return err // without peers it would lose its chain: shown, never written
	}
	if f.Signed && !a.yes {
		return hint.Add(fmt.Errorf("the node's key has signed, or a remote signer may connect: %w", job.ErrNotConfirmed),
			"an observer is a node of its own, beside the validators; say --yes if this is one")
	}
	if n.Kept, err = nodeconfig.Replace(f.ConfigFile, text, edited.String(), time.Now()); err != nil {
		return err
	}
	n.Written = true
	return a.result(n)
}

func restart(f detect.Found) string {
	switch {
	case f.Unit != nil:
		return "systemctl restart " + f.Unit.Name
	case f.Container != nil:
		return "docker restart " + f.Container.Name
	}
	return "stop it and start it again"
}
