package uploader

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/eddy-backup/eddy/internal/hint"
)

// pointer is latest.json.
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

const maxPointer = 4 << 20

func (c *Catalog) latest(ctx context.Context) (pointer, Object, error) {
	var p pointer
	b, o, err := c.store.GetSmall(ctx, c.latestKey(), maxPointer)
	if err != nil {
		return p, o, err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, o, fmt.Errorf("%w: latest.json: %w", ErrDamaged, err)
	}
	if p.MinReader > manifestFormat {
		return p, o, hint.Add(fmt.Errorf("latest.json needs a reader of format %d", p.MinReader), "use a newer eddy")
	}
	return p, o, nil
}

// accepts tells whether latest may move from p to m: inside one incarnation the
// position never goes down; another incarnation must have been said.
func (p pointer) accepts(m *Manifest, newIncarnation bool) error {
	switch {
	case p.Incarnation != m.Incarnation && !newIncarnation:
		return hint.Add(fmt.Errorf("%w: %s holds another history (incarnation %.12s, latest has %.12s)", ErrBackwards, m.ID, m.Incarnation, p.Incarnation),
			"if the chain really began anew under this name, say --new-incarnation; else this node follows the wrong chain")
	case p.Incarnation == m.Incarnation && m.Position.Index < p.Position.Index:
		return hint.Add(fmt.Errorf("%w: %s is at %d, latest at %d", ErrBackwards, m.ID, m.Position.Index, p.Position.Index),
			"another observer is ahead, or this node was set back")
	}
	return nil
}

// advance moves latest to m. Whoever loses the race looks again.
func (c *Catalog) advance(ctx context.Context, m *Manifest, newIncarnation bool) error {
	for range 10 {
		old, o, err := c.latest(ctx)
		cond := Condition{IfMatch: o.ETag}
		if errors.Is(err, ErrNotFound) {
			cond = Condition{IfAbsent: true}
		} else if err != nil {
			return err
		} else if err := old.accepts(m, newIncarnation); err != nil {
			return err
		}
		p := pointer{
			Format: manifestFormat, MinReader: manifestMinReader, Seq: old.Seq + 1, Incarnation: m.Incarnation, ID: m.ID,
			Volumes: m.Volumes, Sizes: m.Sizes, Position: m.Position,
		}
		body, err := json.MarshalIndent(p, "", "  ")
		if err != nil {
			return err
		}
		_, err = c.store.PutSmall(ctx, c.latestKey(), append(body, '\n'), "application/json", cond)
		if errors.Is(err, ErrPrecondition) {
			continue
		}
		if err != nil {
			return err
		}
		return c.explain(ctx, m)
	}
	return fmt.Errorf("move latest to %s: %w", m.ID, ErrPrecondition)
}

// explain writes what people and shells read: latest.txt and README.txt. Both
// follow latest.json and are written again by the next commit; a reader of a
// lagging latest.txt gets the backup before, whole.
func (c *Catalog) explain(ctx context.Context, m *Manifest) error {
	if _, err := c.store.PutSmall(ctx, c.cluster+"/latest.txt", c.latestText(m), "text/plain", Condition{}); err != nil {
		return err
	}
	key, want := c.cluster+"/README.txt", []byte(c.readme())
	if have, _, err := c.store.GetSmall(ctx, key, 1<<20); err == nil && bytes.Equal(have, want) {
		return nil
	}
	_, err := c.store.PutSmall(ctx, key, want, "text/plain", Condition{})
	return err
}

// latestText is latest.txt: "id ID", a line "size key" for each volume, and
// "sha256 HEX" of all bytes before that line.
func (c *Catalog) latestText(m *Manifest) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "id %s\n", m.ID)
	for _, v := range m.Volumes {
		fmt.Fprintf(&b, "%d %s\n", v.Size, c.ObjectKey(m.ID, v.Name))
	}
	fmt.Fprintf(&b, "sha256 %x\n", sha256.Sum256(b.Bytes()))
	return b.Bytes()
}

func (c *Catalog) readme() string {
	url := c.store.URL()
	return fmt.Sprintf(`Backups of %[1]s, made by eddy.

With eddy, into an empty directory:

  eddy list    --store %[2]s --cluster %[1]s
  eddy restore latest --into DIR --store %[2]s --cluster %[1]s

(an S3 store that is not AWS needs --endpoint URL as well)

With stock tools alone. latest.txt names the newest backup: its id, then a line
"size key" for each volume. Every archive is whole in itself: its volumes, joined
in order, are one zstd stream of a tar.

  stop the node
  mv HOME/data HOME/data.before        # two databases must never be mixed
  set -o pipefail
  for each volume in order: fetch it    (aws s3 cp %[2]s/KEY - , or curl, or cat)
    | zstd -dc | tar -x -C HOME
  (cd HOME && fetch data/ID/SHA256SUMS.zst | zstd -dc | sha256sum --quiet -c)

scripts/restore-latest.sh of eddy does just this, with all checks.

Keys, config and sign states are in no archive. Keep the node's own config/. Keep
its data/priv_validator_state.json: move it back from HOME/data.before/. Never
write one by hand, and never take an older one: a validator that signs a height
twice is punished. A state of height 0 belongs only beside a freshly made key.
`, c.cluster, url)
}
