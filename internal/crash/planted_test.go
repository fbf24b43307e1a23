//go:build crash

package crash

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// planted is a bug: a wrapper of one of the interfaces through which the engine
// speaks to the world. The harness must find each of them.
type planted struct {
	name        string
	verb        string         // the scenario that shows it
	at          *regexp.Regexp // the effects at which it shows; nil: undisturbed
	how         variant
	breaks      string // an invariant
	effect      func(w *world, name string, do func() error) func() error
	store       func(*world, uploader.Store) uploader.Store
	replica     func(*world, *image, held) held
	replaceable func(job.Replaceable) job.Replaceable
}

func nothing() error { return nil }

var bugs = []planted{
	{
		name: "the journal is three parts behind", verb: "backup", how: before, breaks: "I7",
		at: regexp.MustCompile(`UploadPart .*vol-0000.* part [56] 1$`),
		effect: func(w *world, name string, do func() error) func() error {
			if strings.HasPrefix(name, "write work/upload-") && w.parts > 0 && w.parts < 6 {
				return nothing
			}
			if strings.HasPrefix(name, "request UploadPart ") && strings.Contains(name, "id2/") {
				w.parts++
			}
			return do
		},
	},
	{
		name: "job.json is not synced", verb: "backup", how: power, breaks: "I6", at: regexp.MustCompile(`^(mkdir home|copy)`),
		effect: skip("sync work/.job.json"),
	},
	{
		name: "directories are not synced", verb: "backup", how: power, breaks: "I6", at: regexp.MustCompile(`^copy .*CURRENT 1$`),
		effect: skip("syncdir work"),
	},
	{
		name: "the hold journal is written after the stop", verb: "backup", how: before, breaks: "I6", at: regexp.MustCompile(`^copy .*CURRENT 1$`),
		effect: skip("rename work/.hold.json"),
	},
	{
		name: "the start is skipped on an error path", verb: "backup", how: refused, breaks: "I1", at: regexp.MustCompile(`^copy .*CURRENT 1$`),
		replica: func(w *world, _ *image, r held) held { return &lazy{held: r, w: w} },
	},
	{
		name: "a key gets into the stage", verb: "backup", breaks: "I5",
		replica: func(_ *world, _ *image, r held) held { return greedy{r} },
	},
	{
		name: "the stage is swept while the upload goes on", verb: "backup", breaks: "I6",
		effect: func(w *world, name string, do func() error) func() error {
			if strings.HasPrefix(name, "request CreateMultipartUpload eddy/sim/data/") {
				must(os.RemoveAll(filepath.Join(w.home, ".eddy")))
			}
			return do
		},
	},
	{
		name: "the manifest is written before the last volume", verb: "backup", how: after, breaks: "I2", at: regexp.MustCompile(`manifest.json 1$`),
		store: func(_ *world, s uploader.Store) uploader.Store { return &hasty{Store: s} },
	},
	{
		name: "latest moves back", verb: "backup", breaks: "I3",
		store: func(_ *world, s uploader.Store) uploader.Store { return &backwards{Store: s} },
	},
	{
		name: "the sign state is not carried over a swap", verb: "restore in place", breaks: "I5",
		replaceable: func(r job.Replaceable) job.Replaceable { return forgetful{r} },
	},
	{
		name: "a swap has no journal", verb: "restore in place", how: before, breaks: "I5", at: regexp.MustCompile(`^rename home/.eddy/restore-.* -> home/data`),
		effect: skip("rename home/.eddy/.swap.json"),
	},
	{
		name: "expire deletes manifests last", verb: "expire", how: after, breaks: "I2", at: regexp.MustCompile(`DeleteObjects .*/data/`),
		store: func(_ *world, s uploader.Store) uploader.Store { return &careless{Store: s} },
	},
}

// skip leaves effects out, and says that they were done.
func skip(prefix string) func(*world, string, func() error) func() error {
	return func(_ *world, name string, do func() error) func() error {
		if strings.HasPrefix(name, prefix) {
			return nothing
		}
		return do
	}
}

// lazy does not start the node where the capture failed, and closes the journal.
type lazy struct {
	held
	w      *world
	failed bool
}

func (l *lazy) Capture(ctx context.Context, st *snapshot.Stage) error {
	err := l.held.Capture(ctx, st)
	l.failed = err != nil
	return err
}

func (l *lazy) Hold(ctx context.Context, st *snapshot.Stage) (func(context.Context) error, error) {
	release, err := l.held.Hold(ctx, st)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		if !l.failed {
			return release(ctx)
		}
		l.w.node.hold.guard.Stop()
		l.w.node.hold = nil
		return fsx.FS{}.Remove(filepath.Join(l.w.work, holdFile))
	}, nil
}

// forgetful loses the sign state.
type forgetful struct{ job.Replaceable }

func (forgetful) CarrySigns(context.Context, []string) error { return nil }

// greedy takes the node's key along.
type greedy struct{ held }

func (g greedy) Capture(ctx context.Context, st *snapshot.Stage) error {
	if err := st.Copy(ctx, "", "config/priv_validator_key.json"); err != nil {
		return err
	}
	return g.held.Capture(ctx, st)
}

// hasty says that the last volume is stored, and stores it behind the manifest.
type hasty struct {
	uploader.Store
	key  string
	body []byte
}

func (h *hasty) Put(ctx context.Context, r uploader.PutRequest) (uploader.Object, error) {
	if !strings.Contains(r.Key, "vol-0001") {
		return h.Store.Put(ctx, r)
	}
	for p, err := range r.Pieces(func(func(uploader.Sent, error) bool) {}) {
		if err != nil {
			return uploader.Object{}, err
		}
		b, err := p.Bytes(ctx)
		if err != nil {
			return uploader.Object{}, err
		}
		h.body = append(h.body, b...)
	}
	h.key = r.Key
	o, err := h.Stat(ctx, r.Key)
	if err == nil {
		err = r.Stored(o)
	}
	return o, err
}

func (h *hasty) Stat(ctx context.Context, key string) (uploader.Object, error) {
	if key != h.key {
		return h.Store.Stat(ctx, key)
	}
	return uploader.Object{Key: key, Size: int64(len(h.body)), ETag: "x", CRC64NVME: crc.Base64(crc.NVME(h.body)), Checked: "checksum"}, nil
}

func (h *hasty) Open(ctx context.Context, key, etag string, off, n int64) (io.ReadCloser, error) {
	if key != h.key {
		return h.Store.Open(ctx, key, etag, off, n)
	}
	return io.NopCloser(io.NewSectionReader(bytes.NewReader(h.body), off, n)), nil
}

func (h *hasty) PutSmall(ctx context.Context, key string, b []byte, mime string, c uploader.Condition) (uploader.Object, error) {
	o, err := h.Store.PutSmall(ctx, key, b, mime, c)
	if err == nil && h.key != "" && strings.HasSuffix(key, "manifest.json") {
		_, err = h.Store.PutSmall(ctx, h.key, h.body, "", uploader.Condition{})
	}
	return o, err
}

// backwards writes the latest.json once more that was there before.
type backwards struct {
	uploader.Store
	old []byte
}

func (b *backwards) PutSmall(ctx context.Context, key string, body []byte, mime string, c uploader.Condition) (uploader.Object, error) {
	if strings.HasSuffix(key, "latest.json") {
		b.old, _, _ = b.Store.GetSmall(ctx, key, 1<<20)
	}
	o, err := b.Store.PutSmall(ctx, key, body, mime, c)
	if err == nil && strings.HasSuffix(key, "README.txt") && b.old != nil {
		_, err = b.Store.PutSmall(ctx, strings.TrimSuffix(key, "README.txt")+"latest.json", b.old, mime, uploader.Condition{})
	}
	return o, err
}

// careless deletes a manifest behind all else.
type careless struct {
	uploader.Store
	last []string
}

func (c *careless) Delete(ctx context.Context, keys ...string) error {
	if len(keys) == 1 && strings.HasSuffix(keys[0], "manifest.json") {
		c.last = keys
		return nil
	}
	for _, k := range keys {
		if strings.HasSuffix(k, "manifest.json") {
			continue
		}
		if err := c.Store.Delete(ctx, k); err != nil {
			return err
		}
	}
	if c.last == nil {
		return nil
	}
	last := c.last
	c.last = nil
	return c.Store.Delete(ctx, last...)
}

// Each planted bug is found: a harness that finds nothing has shown nothing.
func TestPlantedBugsAreFound(t *testing.T) {
	found := 0
	defer func() { fmt.Printf("crash: %d of %d planted bugs found\n", found, len(bugs)) }()
	for _, p := range bugs {
		t.Run(p.name, func(t *testing.T) {
			var sc scenario
			for _, s := range scenarios {
				if s.name == p.verb {
					sc = s
				}
			}
			names, violations := sc.effects(t, p)
			for _, name := range names {
				if p.at == nil || !p.at.MatchString(name) {
					continue
				}
				t.Log(name)
				w := within(t, p, func(t *testing.T, w *world) { sc.play(t, w, stop{name, p.how}) })
				violations = append(violations, w.found...)
			}
			for _, v := range violations {
				if strings.Contains(v, p.breaks) {
					found++
					return
				}
			}
			t.Errorf("not found; what was: %q", violations)
		})
	}
}
