package uploader

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// BundleName is the object with a bundle's sealed bytes.
const BundleName = "bundle.tar.zst.age"

// MaxBundle is how large it may be, in bytes.
const MaxBundle = 64 << 20

// BundleManifest describes a bundle of keys and configuration to those who cannot
// open it. Nothing in it is made from what is inside but names, sizes and modes: no
// hash of a file, by which a password could be guessed.
type BundleManifest struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`
	Cluster   string    `json:"cluster"`
	Node      string    `json:"node"`              // as the key has it
	NodeID    string    `json:"node_id,omitempty"` // of its node key
	Host      string    `json:"host"`
	Preset    string    `json:"preset"` // what kind of node it is
	Eddy      string    `json:"eddy"`
	Created   time.Time `json:"created"`
	// Recipients are fingerprints of those who can open it, each alone.
	Recipients []string `json:"recipients"`
	// Size and SHA256 (hex) are of the sealed bytes.
	Size   int64        `json:"size"`
	SHA256 string       `json:"sha256"`
	Files  []BundleFile `json:"files"`
	// Signs tells that a validator key is among the files.
	Signs   bool      `json:"validator_key"`
	LeftOut []LeftOut `json:"left_out,omitempty"`
	// Signer is the public key whose signature of these bytes is in manifest.sig.
	Signer string `json:"signer,omitempty"`
}

// BundleFile is one file of a bundle.
type BundleFile struct {
	Name  string `json:"name"`
	Class string `json:"class"`
	Size  int64  `json:"size"`
	Mode  string `json:"mode"` // octal
}

// Bundle is one of a node's bundles.
type Bundle struct {
	ID, Node string
	Status   Status // READY, INCOMPLETE, DAMAGED or NEWER
	Latest   bool
	Created  time.Time
	Size     int64           // stored bytes
	Text     string          // why it is not READY
	Manifest *BundleManifest // nil where there is none

	body []byte
}

func (c *Catalog) keysPrefix() string { return c.cluster + "/keys/" }
func (c *Catalog) bundleKey(node, id, n string) string {
	return path.Join(c.cluster, "keys", node, id, n)
}

func (c *Catalog) bundleLatestKey(node string) string {
	return path.Join(c.cluster, "keys", node, latestName)
}

// BundleKey is the key of a bundle's sealed bytes.
func (c *Catalog) BundleKey(node, id string) string { return c.bundleKey(node, id, BundleName) }

// DecodeBundleManifest reads the manifest of a bundle; errors as of DecodeManifest.
func DecodeBundleManifest(b []byte) (*BundleManifest, error) {
	if len(b) > maxManifest {
		return nil, fmt.Errorf("%w: a manifest has at most %d bytes, this has %d", ErrDamaged, maxManifest, len(b))
	}
	if err := readable("manifest", b); err != nil {
		return nil, err
	}
	var m BundleManifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("%w: manifest: %w", ErrDamaged, err)
	}
	what := ""
	switch {
	case !validID(m.ID):
		what = "impossible id"
	case CheckName(m.Cluster) != nil, CheckName(m.Node) != nil:
		what = "impossible name of a cluster or a node"
	case m.Size <= 0 || m.Size > MaxBundle:
		what = fmt.Sprintf("impossible size %d", m.Size)
	case len(m.SHA256) != 2*sha256.Size:
		what = "no hash"
	case len(m.Files) == 0:
		what = "no files"
	}
	if what != "" {
		return nil, fmt.Errorf("%w: manifest %.80q: %s", ErrDamaged, m.ID, what)
	}
	return &m, nil
}

// Nodes lists the nodes that have bundles.
func (c *Catalog) Nodes(ctx context.Context) ([]string, error) {
	var out []string
	for o, err := range c.store.List(ctx, c.keysPrefix(), "/") {
		if err != nil {
			return nil, err
		}
		name, ok := strings.CutSuffix(strings.TrimPrefix(o.Key, c.keysPrefix()), "/")
		if ok && CheckName(name) == nil {
			out = append(out, name)
		}
	}
	return out, nil
}

// Bundles lists the bundles of a node, newest first.
func (c *Catalog) Bundles(ctx context.Context, node string) ([]Bundle, error) {
	if err := CheckName(node); err != nil {
		return nil, err
	}
	found := map[string]map[string]int64{} // id to names and sizes
	prefix := c.keysPrefix() + node + "/"
	for o, err := range c.store.List(ctx, prefix, "") {
		if err != nil {
			return nil, err
		}
		id, name, ok := splitKey(strings.TrimPrefix(o.Key, prefix))
		if !ok {
			continue
		}
		if found[id] == nil {
			found[id] = map[string]int64{}
		}
		found[id][name] = o.Size
	}
	latest, err := c.latestBundle(ctx, node)
	if err != nil {
		return nil, err
	}
	var out []Bundle
	for id, sizes := range found {
		b, err := c.judgeBundle(ctx, node, id, sizes)
		if err != nil {
			return nil, err
		}
		b.Latest = id == latest
		out = append(out, b)
	}
	slices.SortFunc(out, func(a, b Bundle) int { return cmp.Compare(b.ID, a.ID) })
	return out, nil
}

// judgeBundle reads the manifest, if there is one, and compares it with what is listed.
func (c *Catalog) judgeBundle(ctx context.Context, node, id string, sizes map[string]int64) (Bundle, error) {
	when, _, _ := ParseID(id)
	b := Bundle{ID: id, Node: node, Status: StatusIncomplete, Created: when, Size: sizes[BundleName]}
	body, _, err := c.store.GetSmall(ctx, c.bundleKey(node, id, manifestName), maxManifest)
	if errors.Is(err, ErrNotFound) {
		b.Text = "it has no manifest"
		return b, nil
	}
	var m *BundleManifest
	if err == nil {
		m, err = DecodeBundleManifest(body)
	}
	if err == nil && (m.ID != id || m.Cluster != c.cluster || m.Node != node) {
		err = fmt.Errorf("%w: it is the manifest of %s, of %s of %s", ErrDamaged, m.ID, m.Node, m.Cluster)
	}
	if err != nil {
		b.Status, b.Text, err = unreadable(b.Status, err)
		return b, err
	}
	size, there := sizes[BundleName]
	switch {
	case !there:
		b.Status, b.Text = StatusDamaged, BundleName+" is missing"
	case size != m.Size:
		b.Status, b.Text = StatusDamaged, fmt.Sprintf("%s has %d bytes, its manifest says %d", BundleName, size, m.Size)
	default:
		b.Status = StatusReady
	}
	b.Manifest, b.body, b.Created = m, body, m.Created
	return b, nil
}

// bundlePointer is keys/<node>/latest.json. For shells each field has a line.
type bundlePointer struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"`
	NodeID    string    `json:"node_id,omitempty"`
	Created   time.Time `json:"created"`
	Size      int64     `json:"size"`
	SHA256    string    `json:"sha256"`
}

// latestBundle is what a node's latest.json names, "" where it names nothing.
func (c *Catalog) latestBundle(ctx context.Context, node string) (string, error) {
	b, _, err := c.store.GetSmall(ctx, c.bundleLatestKey(node), maxPointer)
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrDamaged) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var p bundlePointer
	if readable(latestName, b) != nil || json.Unmarshal(b, &p) != nil || !validID(p.ID) {
		return "", nil
	}
	return p.ID, nil
}

// SelectBundle finds one bundle of a node by id, unique beginning of an id, latest
// (what latest.json names, else the newest that is READY) or before:TIME. Errors as
// of Select.
func (c *Catalog) SelectBundle(ctx context.Context, node, sel string) (Bundle, error) {
	all, err := c.Bundles(ctx, node)
	if err != nil {
		return Bundle{}, err
	}
	none := func(why string) error {
		return hint.Add(fmt.Errorf("%w: bundle of %s: %s", ErrNoSuchBackup, node, why), "`eddy keys list` shows what "+c.cluster+" has in "+c.store.URL())
	}
	if len(all) == 0 {
		return Bundle{}, none("it has none")
	}
	ready := func(b Bundle) bool { return b.Status == StatusReady }
	i := -1
	kind, arg, _ := strings.Cut(sel, ":")
	switch {
	case sel == "latest":
		if i = slices.IndexFunc(all, func(b Bundle) bool { return b.Latest && ready(b) }); i < 0 {
			i = slices.IndexFunc(all, ready)
		}
	case kind == "before" && arg != "":
		t, err := parseTime(arg)
		if err != nil {
			return Bundle{}, none(fmt.Sprintf("%q is no time; write 2026-11-20 or 2026-11-20T23:55:00Z", arg))
		}
		i = slices.IndexFunc(all, func(b Bundle) bool { return ready(b) && b.Created.Before(t) })
	case sel != "":
		fits := func(b Bundle) bool { return strings.HasPrefix(b.ID, sel) }
		if i = slices.IndexFunc(all, fits); i >= 0 && slices.ContainsFunc(all[i+1:], fits) {
			return Bundle{}, none(fmt.Sprintf("%q begins more ids than one", sel))
		}
	}
	if i < 0 {
		if j := slices.IndexFunc(all, func(b Bundle) bool { return b.Status == StatusDamaged }); j >= 0 && sel == "latest" {
			return all[j], fmt.Errorf("%w: bundle %s of %s: %s", ErrDamaged, all[j].ID, node, all[j].Text)
		}
		return Bundle{}, none(fmt.Sprintf("%q", sel))
	}
	switch b := all[i]; b.Status {
	case StatusReady:
		return b, nil
	case StatusDamaged:
		return b, hint.Add(fmt.Errorf("%w: bundle %s of %s: %s", ErrDamaged, b.ID, node, b.Text), "take another one; `eddy keys list` shows them")
	case StatusNewer:
		return b, hint.Add(fmt.Errorf("bundle %s of %s: %w", b.ID, node, ErrNewer), "use a newer eddy, or age, zstd and tar: README.txt in the store has the commands")
	default:
		return b, none(fmt.Sprintf("%s is %s", b.ID, b.Status))
	}
}

// BundleSignature checks who made a bundle; errors as of Signature.
func (c *Catalog) BundleSignature(ctx context.Context, b Bundle) (Signature, error) {
	if b.Manifest == nil {
		return Signature{}, fmt.Errorf("signature of bundle %s: its manifest was not read", b.ID)
	}
	return c.signature(ctx, signed{"bundle " + b.ID, "take another bundle", c.bundleKey(b.Node, b.ID, signatureName), b.Manifest.Signer, b.body})
}

// GetBundle reads the sealed bytes of a bundle, which are those that its manifest
// names: any other are ErrDamaged.
func (c *Catalog) GetBundle(ctx context.Context, b Bundle) ([]byte, error) {
	if b.Manifest == nil {
		return nil, fmt.Errorf("bundle %s has no manifest", b.ID)
	}
	sealed, _, err := c.store.GetSmall(ctx, c.BundleKey(b.Node, b.ID), MaxBundle)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(sealed); int64(len(sealed)) != b.Manifest.Size || hex.EncodeToString(sum[:]) != b.Manifest.SHA256 {
		return nil, hint.Add(fmt.Errorf("%w: bundle %s of %s is not what its manifest names", ErrDamaged, b.ID, b.Node), "take another one; `eddy keys list` shows them")
	}
	return sealed, nil
}

// PutBundle stores a bundle and makes it the node's latest: the sealed bytes, which are
// read back and compared, then signature and manifest, then latest.json. It fills in
// Format, MinReader, Size, SHA256 and Signer. The id must be new.
func (c *Catalog) PutBundle(ctx context.Context, m BundleManifest, sealed []byte) (BundleManifest, error) {
	sum := sha256.Sum256(sealed)
	m.Format, m.MinReader = manifestFormat, manifestMinReader
	m.Size, m.SHA256, m.Signer = int64(len(sealed)), hex.EncodeToString(sum[:]), ""
	if c.keys.Sign != nil {
		m.Signer = c.keys.Sign.Signer().String()
	}
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, fmt.Errorf("manifest of bundle %s: %w", m.ID, err)
	}
	body = append(body, '\n')
	if _, err := DecodeBundleManifest(body); err != nil || m.Cluster != c.cluster {
		return m, fmt.Errorf("a manifest that no reader would accept: %w", err)
	}
	key := c.BundleKey(m.Node, m.ID)
	if _, err := c.store.PutSmall(ctx, key, sealed, "application/octet-stream", Condition{IfAbsent: true}); err != nil {
		return m, err
	}
	if err := c.sameStored(ctx, key, m); err != nil {
		return m, err
	}
	if c.keys.Sign != nil {
		if _, err := c.store.PutSmall(ctx, c.bundleKey(m.Node, m.ID, signatureName), c.keys.Sign.sign(body), "application/octet-stream", Condition{IfAbsent: true}); err != nil {
			return m, fmt.Errorf("sign the manifest: %w", err)
		}
	}
	if _, err := c.store.PutSmall(ctx, c.bundleKey(m.Node, m.ID, manifestName), body, "application/json", Condition{IfAbsent: true}); err != nil {
		return m, err
	}
	pointer, err := json.MarshalIndent(bundlePointer{
		Format: manifestFormat, MinReader: manifestMinReader, ID: m.ID, NodeID: m.NodeID, Created: m.Created, Size: m.Size, SHA256: m.SHA256,
	}, "", "  ")
	if err == nil {
		_, err = c.store.PutSmall(ctx, c.bundleLatestKey(m.Node), append(pointer, '\n'), "application/json", Condition{})
	}
	if err != nil {
		return m, err
	}
	// The rights of a live node may end at its own keys: then the observer, or whoever
	// may, explains.
	if err := c.putReadme(ctx); err != nil && !errors.Is(err, ErrRefused) {
		return m, err
	}
	return m, nil
}

// sameStored reads an object back and compares it with what was sent.
func (c *Catalog) sameStored(ctx context.Context, key string, m BundleManifest) error {
	r, err := c.store.Open(ctx, key, "", 0, -1)
	if err != nil {
		return fmt.Errorf("read back: %w", err)
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(h, io.LimitReader(r, m.Size+1))
	if err != nil {
		return fmt.Errorf("read back %s: %w", key, err)
	}
	if n != m.Size || hex.EncodeToString(h.Sum(nil)) != m.SHA256 {
		return fmt.Errorf("%w: %s is not what was sent", ErrDamaged, key)
	}
	return nil
}

// BundleExpiry is a bundle that retention no longer keeps.
type BundleExpiry struct {
	Node, ID, Reason string
	Size             int64
}

// PlanExpireBundles tells which bundles retention would delete now. Of each node it
// keeps the newest keep that are READY, the one that latest.json names, the newest
// with a validator key, whatever was followed by a newer one less than 72 hours ago,
// and all that it cannot judge. What has no manifest goes after 7 days.
func (c *Catalog) PlanExpireBundles(ctx context.Context, keep int, now time.Time) ([]BundleExpiry, error) {
	nodes, err := c.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	var out []BundleExpiry
	for _, node := range nodes {
		all, err := c.Bundles(ctx, node)
		if err != nil {
			return nil, err
		}
		out = append(out, planBundles(all, keep, now)...)
	}
	return out, nil
}

func planBundles(all []Bundle, keep int, now time.Time) []BundleExpiry {
	var out []BundleExpiry
	ready, signs := 0, 0
	var successor time.Time
	for _, b := range all {
		switch b.Status {
		case StatusReady:
			kept := ready < max(1, keep) || b.Latest || now.Sub(successor) < graceOfReady || now.Sub(b.Created) < graceOfReady
			ready++
			successor = b.Created
			if b.Manifest.Signs {
				signs++
				kept = kept || signs == 1
			}
			if !kept {
				out = append(out, BundleExpiry{b.Node, b.ID, "older than the last that are kept", b.Size})
			}
		case StatusIncomplete:
			if now.Sub(b.Created) > graceOfFailed {
				out = append(out, BundleExpiry{b.Node, b.ID, "left by an attempt that failed", b.Size})
			}
		}
	}
	return out
}

// ApplyBundles deletes what a plan names and retention, asked again, still lets go. may
// is asked before each; deleted, where set, is called after each.
func (c *Catalog) ApplyBundles(ctx context.Context, plan []BundleExpiry, keep int, now time.Time, may func(context.Context) error, deleted func(BundleExpiry)) error {
	again, err := c.PlanExpireBundles(ctx, keep, now)
	if err != nil {
		return err
	}
	for _, x := range again {
		if !slices.ContainsFunc(plan, func(y BundleExpiry) bool { return y.Node == x.Node && y.ID == x.ID }) {
			continue
		}
		if err := may(ctx); err != nil {
			return err
		}
		// The manifest first: nothing half-deleted looks whole.
		if err := c.store.Delete(ctx, c.bundleKey(x.Node, x.ID, manifestName)); err != nil {
			return err
		}
		if err := c.store.Delete(ctx, c.BundleKey(x.Node, x.ID), c.bundleKey(x.Node, x.ID, signatureName)); err != nil {
			return err
		}
		if deleted != nil {
			deleted(x)
		}
	}
	return nil
}
