package job

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

// Keys makes a bundle of a node's keys and configuration: live, without a stop.
// Construct it with all fields set but those that may be nil.
type Keys struct {
	Catalog *uploader.Catalog
	Workdir Workdir
	Cluster string
	Node    string // its name in the store
	Host    string
	Version string
	Want    bundle.Want
	To      bundle.Recipients
	// Identities, where there are any, open what was stored, to prove that it opens.
	Identities bundle.Identities
	// NewNodeKey accepts that the node of this name has another node key since.
	NewNodeKey bool
	Events     ui.Sink
	Now        func() time.Time
}

// keysFile in the workdir says what was stored last. Its digest is made from the files
// themselves: it lies where they do, and never in the store.
const keysFile = "keys.json"

type keysNote struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	Store     string    `json:"store"`
	Cluster   string    `json:"cluster"`
	Node      string    `json:"node"`
	ID        string    `json:"id"`
	Digest    string    `json:"digest"`
	Made      time.Time `json:"made"`
}

// keysRewritten is how old the newest bundle of a node may become that does not change:
// rules of the bucket that delete by age must not find the only one.
const keysRewritten = 30 * 24 * time.Hour

// KeysSaved is what became of a bundle.
type KeysSaved struct {
	Outcome    string    `json:"outcome"` // ready, unchanged
	ID         string    `json:"id"`
	Cluster    string    `json:"cluster"`
	Node       string    `json:"node"`
	NodeID     string    `json:"node_id,omitempty"`
	Preset     string    `json:"preset"`
	Files      int       `json:"files"`
	Stored     int64     `json:"stored_bytes"`
	Made       time.Time `json:"made"`
	Recipients []string  `json:"recipients"`
	Signs      bool      `json:"validator_key"`
	// Opened tells that what was stored was decrypted again, with an identity at hand.
	Opened   bool     `json:"opened"`
	Warnings []string `json:"warnings,omitempty"`
}

// MessageType implements ui.Event.
func (KeysSaved) MessageType() string { return "keys_saved" }

// Line implements ui.Event.
func (k KeysSaved) Line() string {
	if k.Outcome == "unchanged" {
		return fmt.Sprintf("unchanged: %s of %s, made %s, holds the same %d files", k.ID, k.Node, k.Made.UTC().Format(time.RFC3339), k.Files)
	}
	s := fmt.Sprintf("READY %s: %d files of %s (%s), %s, for %d recipients; read back and equal", k.ID, k.Files, k.Node, k.Preset, ui.Bytes(k.Stored), len(k.Recipients))
	if k.Opened {
		s += ", and opened"
	}
	if k.Signs {
		s += "; it holds the validator key"
	}
	return s
}

// Run collects, seals and stores a bundle, unless the newest one holds the same. With
// ErrWarnings it is stored, and a file that was named is not in it.
func (k *Keys) Run(ctx context.Context) (out KeysSaved, err error) {
	if err := k.Workdir.Prepare(); err != nil {
		return out, err
	}
	lock, err := fsx.LockSoon(ctx, k.Workdir.path("keys.lock"))
	if err != nil {
		return out, hint.Add(fmt.Errorf("another eddy makes a bundle here: %w", err), "wait until it has ended")
	}
	defer func() { err = errors.Join(err, lock.Unlock()) }()
	if err := k.Workdir.FS.SweepTemp(k.Workdir.path(keysFile)); err != nil {
		return out, err
	}
	found, err := bundle.Find(ctx, k.Want)
	if err != nil {
		return out, err
	}
	last, err := k.last(ctx, found.NodeID)
	if err != nil {
		return out, err
	}
	now := k.Now().UTC().Truncate(time.Second)
	id := uploader.NewID(now, "keys")
	sealed, err := bundle.Seal(ctx, k.To, bundle.Contents{ID: id, Cluster: k.Cluster, Node: k.Node, Host: k.Host, Eddy: k.Version, Made: now}, found)
	if err != nil {
		return out, err
	}
	c := sealed.Contents
	out = KeysSaved{
		Outcome: "ready", ID: id, Cluster: k.Cluster, Node: k.Node, NodeID: c.NodeID, Preset: c.Preset, Files: len(c.Files),
		Stored: int64(len(sealed.Bytes)), Made: now, Recipients: k.To.Fingerprints(), Signs: c.Held(bundle.ValidatorKey),
	}
	k.warn(&out, c)
	same, err := k.unchanged(last, sealed.Digest, now)
	if err != nil {
		return out, err
	}
	if same {
		out.Outcome, out.ID, out.Made, out.Stored = "unchanged", last.ID, last.Created, last.Size
		return out, k.verdict(out)
	}
	if err := k.store(ctx, sealed); err != nil {
		return out, err
	}
	out.Opened = len(k.Identities) > 0
	note := keysNote{
		Format: stateFormat, MinReader: stateMinReader, Store: k.Catalog.Store().URL(), Cluster: k.Cluster, Node: k.Node,
		ID: id, Digest: sealed.Digest, Made: now,
	}
	if err := k.Workdir.write(keysFile, note); err != nil {
		return out, fmt.Errorf("note what was stored: %w", err)
	}
	return out, k.verdict(out)
}

func (k *Keys) verdict(out KeysSaved) error {
	if len(out.Warnings) > 0 {
		return ErrWarnings
	}
	return nil
}

// warn says what the operator should know of what is in it, and of what is not.
func (k *Keys) warn(out *KeysSaved, c *bundle.Contents) {
	if out.Signs {
		// Not counted: it was asked for, and is said every time.
		k.Events.Emit(Warning{
			Text: "THE VALIDATOR KEY of " + k.Node + " goes into the bundle, because keys.validator_key says so: whoever opens it can sign for this validator",
			Hint: "keep the identity where nobody gets by with this host; never start two nodes with one key",
		})
	}
	for _, l := range c.LeftOut {
		if !l.Expected {
			out.Warnings = append(out.Warnings, fmt.Sprintf("%s is not in the bundle: %s", l.Path, l.Reason))
		}
	}
	if c.NodeID == "" && !c.Held(bundle.NodeKey) {
		out.Warnings = append(out.Warnings, "no node key was found: the bundle does not say who the node is")
	}
	for _, w := range out.Warnings {
		k.Events.Emit(Warning{Text: w, Hint: "run eddy as root or as the node's user, or leave the file out with `keys.exclude: [GLOB]`"})
	}
}

// last is the newest READY bundle of the node, without an id where there is none. One
// of another node is refused: two nodes of one name would take each other's place.
func (k *Keys) last(ctx context.Context, nodeID string) (uploader.Bundle, error) {
	b, err := k.Catalog.SelectBundle(ctx, k.Node, "latest")
	switch {
	case errors.Is(err, uploader.ErrNoSuchBackup), errors.Is(err, uploader.ErrDamaged), errors.Is(err, uploader.ErrNewer):
		return uploader.Bundle{}, nil
	case err != nil:
		return b, err
	}
	if theirs := b.Manifest.NodeID; theirs != "" && nodeID != "" && theirs != nodeID && !k.NewNodeKey {
		return b, hint.Add(fmt.Errorf("%w: the bundles of %s are those of node %s on %s, this is node %s", observer.ErrNotFit, k.Node, theirs, b.Manifest.Host, nodeID),
			"give each node a name of its own, `keys.node: NAME`; where this one really has a new node key say --new-node-key, once")
	}
	return b, nil
}

// unchanged tells whether the newest bundle holds what this one would, and is young.
func (k *Keys) unchanged(last uploader.Bundle, digest string, now time.Time) (bool, error) {
	var n keysNote
	if ok, err := k.Workdir.read(keysFile, &n); err != nil || !ok {
		return false, err
	}
	if n.Store != k.Catalog.Store().URL() || n.Cluster != k.Cluster || n.Node != k.Node || n.ID != last.ID || n.Digest != digest {
		return false, nil
	}
	age := now.Sub(n.Made)
	return last.Status == uploader.StatusReady && age >= 0 && age < keysRewritten, nil
}

// store puts a bundle into the store and proves that what lies there is ciphertext,
// and all of it.
func (k *Keys) store(ctx context.Context, s *bundle.Sealed) error {
	if !bundle.Encrypted(s.Bytes) {
		return mark(ErrProof, errors.New("what was sealed does not begin as age files do"))
	}
	c := s.Contents
	m := uploader.BundleManifest{
		ID: c.ID, Cluster: c.Cluster, Node: c.Node, NodeID: c.NodeID, Host: c.Host, Preset: c.Preset, Eddy: c.Eddy, Created: c.Made,
		Recipients: k.To.Fingerprints(), Signs: c.Held(bundle.ValidatorKey),
	}
	for _, f := range c.Files {
		m.Files = append(m.Files, uploader.BundleFile{Name: f.Name, Class: string(f.Class), Size: f.Size, Mode: f.Mode})
	}
	for _, l := range c.LeftOut {
		m.LeftOut = append(m.LeftOut, uploader.LeftOut{Name: l.Path, Reason: l.Reason})
	}
	m, err := k.Catalog.PutBundle(ctx, m, s.Bytes)
	if err != nil || len(k.Identities) == 0 {
		return err
	}
	b := uploader.Bundle{ID: m.ID, Node: m.Node, Manifest: &m}
	stored, err := k.Catalog.GetBundle(ctx, b)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	opened, err := bundle.Open(stored, k.Identities)
	if err == nil {
		err = agree(&m, opened.Contents)
	}
	if err != nil {
		return fmt.Errorf("open what was stored: %w", err)
	}
	return nil
}
