package job

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// Verify proves a backup from what the store has of it. It needs no live replica
// and changes nothing but to write a grade beside the backup.
type Verify struct {
	Catalog  *uploader.Catalog
	Selector string
	By       string  // uploader.ByQuick, BySample or ByReadData
	Share    float64 // of the frames, above 0 and below 1; with BySample
	Seed     uint64  // of the sample: the same one chooses the same frames
	NoGrade  bool    // write none, for credentials that may only read
	// Lookers look into what was read back, by the kind of its position; with
	// ByReadData, unless NoOpen is set. What they read goes to Scratch meanwhile.
	Lookers map[string]observer.Looker
	NoOpen  bool
	Scratch Scratch
	// Attester, where set, is asked again about a backup with which no witness has
	// agreed yet.
	Attester observer.Attester
	Version  string // eddy's
	Host     string
	Events   ui.Sink
	Now      func() time.Time

	findings []uploader.Finding
	warned   bool
}

// The stages of a proof, in order; the first that can see a damage tells of it.
const (
	stageListing  = "listing"
	stageManifest = "manifest"
	stageSigned   = "signature"
	stageIndex    = "index"
	stageSums     = "sums"
	stageFrames   = "frames"
	stageOpened   = "opened"
)

// verifyWorkers bounds how many frames are held in memory at once.
const verifyWorkers = 4

// VerifyReport says how far a proof went.
type VerifyReport struct {
	Volumes    int    `json:"volumes"`
	Files      int64  `json:"files"`
	Signed     string `json:"signature,omitempty"` // none, unknown (a key that was not named), known
	Signer     string `json:"signer,omitempty"`    // public key
	Compared   string `json:"compared,omitempty"`  // by what the store knew the volumes: checksum, etag, size; the weakest
	Frames     int64  `json:"frames"`
	FramesRead int64  `json:"frames_read"`
	Damaged    int    `json:"frames_damaged,omitempty"`
	Bytes      int64  `json:"stored_bytes"`
	BytesRead  int64  `json:"read_bytes"` // of frames
	Share      string `json:"share,omitempty"`
	Seed       uint64 `json:"seed,omitempty"`
	// Opened is how much of what was read back was looked into: all, part, none; skipped.
	Opened string          `json:"opened,omitempty"`
	Check  *uploader.Check `json:"check,omitempty"`
}

// openedSkipped: nobody was to look into it.
const openedSkipped = "skipped"

// Run returns when the proof is done. What it says of the backup stands in the
// result, which has an ID as soon as there is a backup: with an error as well, for
// it may be that the backup failed. Then the error has uploader.ErrDamaged in its
// chain. Any other error says that the proof could not be made: no grade is given.
func (v *Verify) Run(ctx context.Context) (Verified, error) {
	begun := v.Now()
	b, err := v.Catalog.Select(ctx, v.Selector)
	if err != nil {
		return Verified{}, err
	}
	if b.Warning != "" {
		v.warn(b.Warning, "look at latest.json; the next backup writes it anew")
	}
	switch {
	case b.Status == uploader.StatusNewer:
		return Verified{}, hint.Add(fmt.Errorf("%s: %w", b.ID, uploader.ErrNewer), "use a newer eddy")
	case b.Status != uploader.StatusReady && b.Status != uploader.StatusSalvage && b.Status != uploader.StatusDamaged:
		return Verified{}, hint.Add(fmt.Errorf("%w: %s is %s", uploader.ErrNoSuchBackup, b.ID, b.Status), "only a READY backup can be verified; `eddy list` shows them")
	}
	out := Verified{ID: b.ID, Cluster: v.Catalog.Cluster(), By: v.By}
	if b.Status == uploader.StatusDamaged && b.Manifest == nil {
		v.found(stageManifest, "manifest.json", b.Text)
	} else if err := v.prove(ctx, b, &out); err != nil {
		return Verified{}, err
	}
	denied, err := v.attest(ctx, b, &out)
	if err != nil {
		return Verified{}, err
	}
	out.Seconds = v.Now().Sub(begun).Seconds()
	out.Findings = v.findings
	err = v.conclude(ctx, b, &out)
	out.Warnings = v.warned
	if denied != nil && (err == nil || errors.Is(err, ErrWarnings)) {
		err = denied
	}
	return out, err
}

// prove goes through the stages. Its error is of the store, or of ctx; what is
// wrong with the backup becomes a finding.
func (v *Verify) prove(ctx context.Context, b uploader.Backup, out *Verified) error {
	m := b.Manifest
	out.Position, out.At, out.Hash = m.Position.Index, PositionOf(m).String(), m.Position.Hash
	out.Volumes, out.Files, out.Bytes = len(m.Volumes), m.Sizes.Files, m.Sizes.Stored
	v.phase(m.ID, "verify", "%s: %s at %s, %d volume(s), %s", m.ID, m.Cluster, PositionOf(m), len(m.Volumes), ui.Bytes(m.Sizes.Stored))
	// Whether a signer is the right one depends on who asks: it makes no grade.
	signature, err := v.Catalog.Signature(ctx, b)
	if err := v.blame(stageSigned, "manifest.sig", err); err != nil {
		return err
	}
	out.Signer, out.Signed = signature.Signer, signature.String()
	if text := unknownSigner(m.ID, signature); text != "" && err == nil {
		v.Events.Emit(Warning{Text: text, Hint: "--signer KEY says which one it should be"})
	}
	if err := v.listing(ctx, m, out); err != nil {
		return err
	}
	if m.Encryption != nil {
		return v.sealed(ctx, m, out)
	}
	vols := volumesOf(v.Catalog, m)
	indexes, err := v.indexes(ctx, m, vols)
	if err != nil || len(indexes) < len(vols) { // which frames there should be is not known
		return err
	}
	if err := v.sums(ctx, m, indexes); err != nil {
		return err
	}
	if v.By == uploader.ByQuick {
		return nil
	}
	return v.frames(ctx, m, indexes, out)
}

// listing compares what the store lists with what the manifest names.
func (v *Verify) listing(ctx context.Context, m *uploader.Manifest, out *Verified) error {
	for _, vol := range m.Volumes {
		by, doubt, err := v.Catalog.Compare(ctx, m.ID, vol)
		if err := v.blame(stageListing, vol.Name, err); err != nil {
			return err
		}
		if doubt != "" && v.By != uploader.ByReadData {
			v.warn(vol.Name+": "+doubt, "the store keeps no checksum of it, so only its bytes can tell: `eddy verify "+m.ID+" --read-data`")
		}
		out.Compared = leastOf(out.Compared, by)
	}
	strange, err := v.Catalog.Strangers(ctx, m)
	for _, name := range strange {
		v.found(stageListing, name, "the manifest does not know it: somebody else put it there")
	}
	return err
}

// leastOf is the weaker of two means of comparing; "" is none yet.
func leastOf(a, b string) string {
	order := []string{uploader.EqualSize, uploader.EqualETag, uploader.EqualChecksum}
	if slices.Index(order, a) < 0 || b != "" && slices.Index(order, b) < slices.Index(order, a) {
		return b
	}
	return a
}

// sealed compares an encrypted archive with the manifest: whole or not at all. What
// is in it only its key can tell.
func (v *Verify) sealed(ctx context.Context, m *uploader.Manifest, out *Verified) error {
	if v.By == uploader.ByQuick {
		return nil
	}
	vol := m.Volumes[0]
	out.BytesRead = vol.Size
	err := sameSum(ctx, v.Catalog.Store(), v.Catalog.ObjectKey(m.ID, vol.Name), "", vol.Size, vol.SHA256)
	return v.blame(stageFrames, vol.Name, err)
}

// indexes reads all indexes and compares them with the manifest.
func (v *Verify) indexes(ctx context.Context, m *uploader.Manifest, vols []snapshot.VolumeSource) ([]*snapshot.Index, error) {
	var all []*snapshot.Index
	var files, bytes int64
	for i, vol := range m.Volumes {
		x, err := snapshot.ReadIndex(ctx, vols[i])
		if err == nil {
			err = x.Check(ctx, vol.IndexSHA256)
		}
		if err != nil {
			if err := v.blame(stageIndex, vol.Name, err); err != nil {
				return nil, err
			}
			continue
		}
		all = append(all, x)
		if h := x.Header; h.Archive != m.ID || h.Volume != i || h.Last != (i == len(vols)-1) {
			v.found(stageIndex, vol.Name, fmt.Sprintf("it is volume %d of %q (last: %t), and stands as number %d of %d", h.Volume, h.Archive, h.Last, i, len(vols)))
		}
		sum, err := x.CRC()
		if err := v.blame(stageIndex, vol.Name, err); err != nil {
			return nil, err
		}
		if !sameCRC(sum, vol.CRC64NVME) {
			v.found(stageIndex, vol.Name, "the checksums of its frames make another one than the manifest has: the manifest was changed")
		}
		frames := int64(0)
		for f, err := range x.Frames() {
			if err := v.blame(stageIndex, vol.Name, err); err != nil {
				return nil, err
			}
			frames++
			for _, e := range f.Entries {
				bytes += e.Len
				if e.Type == snapshot.TypeFile && e.Off+e.Len == e.Size {
					files++
				}
			}
		}
		if frames != vol.Frames {
			v.found(stageIndex, vol.Name, fmt.Sprintf("it has %d frames, the manifest says %d", frames, vol.Frames))
		}
	}
	if len(all) == len(vols) && (files != m.Sizes.Files || bytes != m.Sizes.Source) {
		v.found(stageManifest, "manifest.json", fmt.Sprintf("it says %d files of %d bytes, the archive's index %d of %d", m.Sizes.Files, m.Sizes.Source, files, bytes))
	}
	return all, nil
}

// sums compares the list of hashes with the index, line by line.
func (v *Verify) sums(ctx context.Context, m *uploader.Manifest, indexes []*snapshot.Index) error {
	if m.Sums == nil {
		return nil
	}
	key := v.Catalog.ObjectKey(m.ID, m.Sums.Name)
	o, err := v.Catalog.Store().Stat(ctx, key)
	if err != nil {
		return v.blame(stageListing, m.Sums.Name, err)
	}
	if o.Size != m.Sums.Size {
		v.found(stageListing, m.Sums.Name, fmt.Sprintf("the store has %d bytes, the manifest says %d", o.Size, m.Sums.Size))
		return nil
	}
	stored, err := v.Catalog.Store().Open(ctx, key, "", 0, o.Size)
	if err != nil {
		return v.blame(stageSums, m.Sums.Name, err)
	}
	defer stored.Close()
	hash := sha256.New()
	told := &toldApart{Reader: io.TeeReader(stored, hash)}
	list, err := zstd.NewReader(told, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer list.Close()
	what, err := snapshot.SumsDiffer(indexes, list)
	switch {
	case told.err != nil: // of the store, not of what it has
		return v.blame(stageSums, m.Sums.Name, told.err)
	case err != nil:
		v.found(stageSums, m.Sums.Name, "it cannot be decoded: "+err.Error())
	case what != "":
		v.found(stageSums, m.Sums.Name, what)
	case m.Sums.SHA256 != "" && m.Sums.SHA256 != hex.EncodeToString(hash.Sum(nil)):
		v.found(stageSums, m.Sums.Name, "its sha256 is not the one that the manifest names")
	}
	return nil
}

// toldApart keeps an error of what is read, which a decoder's own would hide.
type toldApart struct {
	io.Reader
	err error
}

func (t *toldApart) Read(b []byte) (int, error) {
	n, err := t.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		t.err = err
	}
	return n, err
}

// sameCRC compares a checksum with the manifest's, which may have none.
func sameCRC(sum uint64, manifest string) bool { return manifest == "" || crc.Base64(sum) == manifest }

// frames reads frames back.
func (v *Verify) frames(ctx context.Context, m *uploader.Manifest, indexes []*snapshot.Index, out *Verified) error {
	o := snapshot.VerifyOptions{
		Indexes: indexes, Share: 1, Workers: min(verifyWorkers, runtime.GOMAXPROCS(0)),
		Progress: func(done, total int64) {
			v.Events.Emit(ui.Progress{What: "verify", Done: done, Total: total})
		},
		Damaged: func(d snapshot.FrameDamage) {
			text := d.Err.Error()
			if len(d.Files) > 0 {
				text += fmt.Sprintf("; it holds of %q", d.Files)
				if d.More > 0 {
					text += fmt.Sprintf(" and %d more", d.More)
				}
			}
			v.found(stageFrames, d.Volume, text)
		},
	}
	look, done, err := v.opens(m, &o, out)
	if err != nil {
		return err
	}
	defer func() {
		if err := done(); err != nil {
			v.warn(err.Error(), "remove it by hand")
		}
	}()
	if v.By == uploader.BySample {
		o.Share, o.Seed = v.Share, v.Seed
		out.Share, out.Seed = fmt.Sprintf("%g%%", 100*v.Share), v.Seed
		v.phase(m.ID, "sample", "reading %s of the frames, chosen by seed %d", out.Share, v.Seed)
	}
	rep, err := snapshot.Verify(ctx, o)
	out.Frames, out.FramesRead, out.BytesRead, out.Damaged = rep.Frames, rep.FramesRead, rep.BytesRead, rep.Damaged
	switch {
	case rep.Damaged > 0 && errors.Is(err, snapshot.ErrCorrupt):
		return nil // told of, one by one
	case errors.Is(err, snapshot.ErrNoRoom):
		return hint.Add(fmt.Errorf("for the look into what is read back: %w", err),
			fmt.Sprintf("`eddy verify %s --read-data --scratch DIR` takes a larger filesystem, as `verify.dir: DIR` does; `eddy verify %s --read-data --no-open` looks at the bytes alone", m.ID, m.ID))
	case err != nil || len(v.findings) > 0:
		return v.blame(stageFrames, "", err)
	}
	return look(ctx)
}

// conclude gives the grade, and returns what the verb ends with.
func (v *Verify) conclude(ctx context.Context, b uploader.Backup, out *Verified) error {
	var failed error
	switch {
	case len(v.findings) > 0:
		out.Grade = uploader.GradeFailed
		g := uploader.Grade{Findings: v.findings}
		if v.findings[0].Stage == stageOpened { // then all are: it was looked into because nothing else was wrong
			failed = mark(ErrProof, hint.Add(fmt.Errorf("%w: %s: %s", observer.ErrUnsound, b.ID, g.Why()),
				"restore another backup, and look at the node that this one was made of: what it had read was damaged already, and the store has kept it as it was"))
			break
		}
		failed = hint.Add(fmt.Errorf("%w: %s: %s", uploader.ErrDamaged, b.ID, g.Why()),
			"restore another backup, `eddy restore verified`, and make a new one; what lies below is the store's: look at its disks, its versions, and who may write to it")
	case v.By == uploader.ByReadData:
		out.Grade = uploader.GradeVerified
	case v.By == uploader.BySample:
		out.Grade = uploader.GradeSampled
	}
	if out.Grade == "" || v.NoGrade {
		return cmp.Or(failed, v.warnings())
	}
	report, err := json.Marshal(out.VerifyReport)
	if err != nil {
		return errors.Join(failed, err)
	}
	out.Key, err = v.Catalog.PutGrade(ctx, uploader.Grade{
		ID: b.ID, Kind: out.Grade, By: v.By, Given: v.Now(), Seconds: out.Seconds, Eddy: v.Version, Host: v.Host,
		ManifestSHA256: b.ManifestSHA256(), Findings: v.findings, Report: report,
	})
	if err != nil {
		v.warn("the grade could not be written: "+err.Error(), "credentials that may only read cannot: `--no-grade` writes none")
	}
	return cmp.Or(failed, v.warnings())
}

func (v *Verify) warnings() error {
	if v.warned {
		return ErrWarnings
	}
	return nil
}

// blame makes a finding of an error that the backup is to blame for, and returns
// all others.
func (v *Verify) blame(stage, object string, err error) error {
	if errors.Is(err, snapshot.ErrCorrupt) || errors.Is(err, uploader.ErrDamaged) || errors.Is(err, uploader.ErrNotFound) {
		v.found(stage, object, err.Error())
		return nil
	}
	return err
}

func (v *Verify) found(stage, object, text string) {
	v.findings = append(v.findings, uploader.Finding{Stage: stage, Object: object, Text: text})
}

func (v *Verify) warn(text, advice string) {
	v.warned = true
	v.Events.Emit(Warning{Text: text, Hint: advice})
}

func (v *Verify) phase(id, phase, format string, args ...any) {
	v.Events.Emit(Phase{ID: id, Phase: phase, Text: fmt.Sprintf(format, args...)})
}
