package uploader

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
)

var (
	// ErrBackwards: the backup stands before what latest points to, or belongs to
	// another history.
	ErrBackwards = errors.New("latest does not go back")
	// ErrReadyBut: the backup is READY, yet latest or what people read of it could
	// not be brought up to date. The next commit does.
	ErrReadyBut = errors.New("the backup is READY, but")
)

// pointer is latest.json. It alone says what the latest is; latest.txt follows.
type pointer struct {
	Format      int      `json:"format"`
	MinReader   int      `json:"min_reader"`
	Seq         uint64   `json:"seq"` // the previous one + 1
	Incarnation string   `json:"incarnation"`
	ID          string   `json:"id"`
	Volumes     []Volume `json:"volumes"`
	Sizes       Sizes    `json:"sizes"`
	Position    Position `json:"position"`
}

const maxPointer = 4 << 20 // bytes

func decodePointer(b []byte) (p pointer, err error) {
	if err := readable(latestName, b); err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return pointer{}, fmt.Errorf("%w: %s: %w", ErrDamaged, latestName, err)
	}
	if !validID(p.ID) || p.Seq == 0 {
		return pointer{}, fmt.Errorf("%w: %s names no backup", ErrDamaged, latestName)
	}
	return p, nil
}

// latest reads latest.json; the error has ErrNotFound where there is none.
func (c *Catalog) latest(ctx context.Context) (pointer, Object, error) {
	b, o, err := c.store.GetSmall(ctx, c.latestKey(), maxPointer)
	if err != nil {
		return pointer{}, o, err
	}
	p, err := decodePointer(b)
	return p, o, err
}

// latestIfAny is latest for readers: they can do without it, because the listing
// tells as much. Where signers are named it counts only when one of them has signed
// it; why is there to be said when none has.
func (c *Catalog) latestIfAny(ctx context.Context) (p pointer, why string, err error) {
	if len(c.keys.Signers) > 0 {
		p, why, err = c.signedLatest(ctx)
	} else {
		p, _, err = c.latest(ctx)
	}
	if errors.Is(err, ErrNotFound) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrNewer) {
		return pointer{}, why, nil
	}
	return p, why, err
}

// shortIncarnation is one for people: the beginning of its hash, and the positions to
// which the cluster was taken back since.
func shortIncarnation(s string) string {
	hash, back, taken := strings.Cut(s, "@")
	s = fmt.Sprintf("%.12s", hash)
	if taken {
		s += "@" + back
	}
	return fmt.Sprintf("%.100s", s)
}

// accepts tells whether latest may move from p to m: inside one incarnation the
// position never goes down; another incarnation must have been said.
func (p pointer) accepts(m *Manifest, newIncarnation bool) error {
	switch {
	case p.Incarnation != m.Incarnation && !newIncarnation:
		return hint.Add(fmt.Errorf("%w: %s holds another history (incarnation %s, latest has %s)", ErrBackwards, m.ID, shortIncarnation(m.Incarnation), shortIncarnation(p.Incarnation)),
			"if the chain really began anew under this name, or was taken back, say --new-incarnation; else this node follows the wrong chain")
	case p.Incarnation == m.Incarnation && m.Position.Index < p.Position.Index:
		return hint.Add(fmt.Errorf("%w: %s is at %d, latest at %d", ErrBackwards, m.ID, m.Position.Index, p.Position.Index),
			"another observer is ahead, or this node was set back")
	}
	return nil
}

// Commit makes a backup READY: every object that the manifest names is looked at,
// the manifest is written, once, and then latest is moved forward. It fills in
// Format and MinReader and may be called again with the same manifest after an
// error or a crash.
//
// An error with ErrReadyBut in its chain came after the manifest: the backup
// counts. ErrBackwards without it means that nothing was written. A backup that
// another one of the same history overtook meanwhile is READY and no error;
// latest stays with the further one.
func (c *Catalog) Commit(ctx context.Context, m Manifest, newIncarnation bool) error {
	if err := c.CommitAside(ctx, m, newIncarnation); err != nil {
		return err
	}
	if err := c.advance(ctx, &m, newIncarnation); err != nil {
		return fmt.Errorf("%w %w", ErrReadyBut, err)
	}
	return nil
}

// CommitAside is Commit for a backup that is not proven enough to be the latest:
// it becomes READY where it could have been that, and latest stays.
func (c *Catalog) CommitAside(ctx context.Context, m Manifest, newIncarnation bool) error {
	m.Format, m.MinReader = manifestFormat, manifestMinReader
	m.trim()
	m.Signer = ""
	if c.keys.Sign != nil {
		m.Signer = c.keys.Sign.Signer().String()
	}
	body, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return fmt.Errorf("manifest of %s: %w", m.ID, err)
	}
	body = append(body, '\n')
	if _, err := DecodeManifest(body); err != nil {
		return fmt.Errorf("a manifest that no reader would accept: %w", err)
	}
	if m.Cluster != c.cluster {
		return fmt.Errorf("manifest of %s is one of cluster %s, the catalog is that of %s", m.ID, m.Cluster, c.cluster)
	}
	if err := c.complete(ctx, &m); err != nil {
		return err
	}
	if m.Class == ClassSalvage { // it is no part of the history that latest tells
		return c.putSigned(ctx, m.ID, body)
	}
	// Whether latest may move is asked first: a history that began anew without
	// anybody saying so must not become a READY backup.
	old, _, err := c.latest(ctx)
	switch {
	case err == nil:
		if err := old.accepts(&m, newIncarnation); err != nil {
			return err
		}
	case errors.Is(err, ErrDamaged):
		return hint.Add(err, "look at "+c.latestKey()+"; once it is deleted the next backup writes it anew")
	case !errors.Is(err, ErrNotFound):
		return err
	}
	return c.putSigned(ctx, m.ID, body)
}

func (c *Catalog) putSigned(ctx context.Context, id string, body []byte) error {
	if err := c.putSignature(ctx, id, body); err != nil {
		return fmt.Errorf("sign the manifest: %w", err)
	}
	return c.putManifest(ctx, id, body)
}

// complete compares what the store has with what the manifest says.
func (c *Catalog) complete(ctx context.Context, m *Manifest) error {
	want := m.Volumes
	if m.Sums != nil {
		want = append(want[:len(want):len(want)], Volume{Name: m.Sums.Name, Size: m.Sums.Size})
	}
	for _, v := range want {
		o, err := c.store.Stat(ctx, c.ObjectKey(m.ID, v.Name))
		if errors.Is(err, ErrNotFound) {
			return hint.Add(fmt.Errorf("%w: %s of %s is gone from the store: %w", ErrDamaged, v.Name, m.ID, err), "somebody deleted it, or a lifecycle rule of the bucket did; back up again")
		}
		if err != nil {
			return err
		}
		if o.Size != v.Size {
			return fmt.Errorf("%w: %s of %s has %d bytes in the store, %d were sent", ErrDamaged, v.Name, m.ID, o.Size, v.Size)
		}
	}
	return nil
}

// putManifest writes the manifest where there is none. One that is there already
// with the very same bytes is ours: its answer was lost, or we died behind it.
func (c *Catalog) putManifest(ctx context.Context, id string, body []byte) error {
	key := c.ObjectKey(id, manifestName)
	_, err := c.store.PutSmall(ctx, key, body, "application/json", Condition{IfAbsent: true})
	if errors.Is(err, ErrPrecondition) {
		if have, _, gerr := c.store.GetSmall(ctx, key, maxManifest); gerr == nil && bytes.Equal(have, body) {
			return nil
		}
	}
	return err
}

// advance moves latest to m by a conditional write; whoever loses the race looks
// again, so every backup that moves it has a seq of its own.
func (c *Catalog) advance(ctx context.Context, m *Manifest, newIncarnation bool) error {
	for range 20 {
		old, o, err := c.latest(ctx)
		cond := Condition{IfMatch: o.ETag}
		switch {
		case errors.Is(err, ErrNotFound):
			cond = Condition{IfAbsent: true}
		case err != nil:
			return err
		case old.ID == m.ID: // we were here before
			body, err := pointerTo(m, old.Seq)
			if have, _, gerr := c.store.GetSmall(ctx, c.latestKey(), maxPointer); err == nil && gerr == nil && bytes.Equal(have, body) {
				err = c.signLatest(ctx, body) // and nothing that somebody else has made
			}
			if err != nil {
				return err
			}
			return c.explain(ctx, old)
		case old.Incarnation == m.Incarnation && old.Position.Index > m.Position.Index:
			return nil // overtaken; who did it explains
		default:
			if err := old.accepts(m, newIncarnation); err != nil {
				return err
			}
		}
		body, err := pointerTo(m, old.Seq+1)
		if err != nil {
			return err
		}
		_, err = c.store.PutSmall(ctx, c.latestKey(), body, "application/json", cond)
		if errors.Is(err, ErrPrecondition) {
			continue
		}
		if err == nil {
			err = c.signLatest(ctx, body)
		}
		if err != nil {
			return err
		}
		p, err := decodePointer(body)
		if err != nil {
			return err
		}
		return c.explain(ctx, p)
	}
	return fmt.Errorf("move latest to %s: %w", m.ID, ErrPrecondition)
}

// pointerTo is latest.json for a backup.
func pointerTo(m *Manifest, seq uint64) ([]byte, error) {
	body, err := json.MarshalIndent(pointer{
		Format: manifestFormat, MinReader: manifestMinReader, Seq: seq, Incarnation: m.Incarnation, ID: m.ID,
		Volumes: m.Volumes, Sizes: m.Sizes, Position: m.Position,
	}, "", "  ")
	return append(body, '\n'), err
}

// explain writes what people and shells read: latest.txt, README.txt, and
// snapshot.json where it is wanted. All follow latest.json. A reader of a lagging latest.txt gets the backup before,
// whole; the next commit writes it again. Of two commits at once the later must
// also have the last word here, so latest.json is read once more behind it.
func (c *Catalog) explain(ctx context.Context, p pointer) error {
	for range 20 {
		if _, err := c.store.PutSmall(ctx, c.textKey(), c.latestText(p), "text/plain", Condition{}); err != nil {
			return err
		}
		now, _, err := c.latest(ctx)
		if err != nil {
			return err
		}
		if now.ID == p.ID {
			break
		}
		p = now
	}
	return errors.Join(c.putOmnibus(ctx, p), c.putReadme(ctx))
}

// latestText is latest.txt: "id ID", a line "size key" for each volume, and
// "sha256 HEX" of all bytes before that line.
func (c *Catalog) latestText(p pointer) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "id %s\n", p.ID)
	for _, v := range p.Volumes {
		fmt.Fprintf(&b, "%d %s\n", v.Size, c.ObjectKey(p.ID, v.Name))
	}
	fmt.Fprintf(&b, "sha256 %x\n", sha256.Sum256(b.Bytes()))
	return b.Bytes()
}
