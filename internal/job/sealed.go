package job

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

// Sealing encrypts archives: what they hold must lie nowhere in the clear.
type Sealing struct {
	Scheme     string   // "age"
	Recipients []string // public keys, for the manifest
	// Seal encrypts what is written to it into w; Close ends it, and not w.
	Seal func(w io.Writer) (io.WriteCloser, error)
}

// Unseal decrypts size bytes. The error says what is lacking, with a hint.
type Unseal func(r io.ReaderAt, size int64) (plain io.ReaderAt, n int64, err error)

// sealedName is the encrypted archive in the workdir, from before the plain stage
// goes until it is stored.
const sealedName = "sealed.age"

// sealed is an archive that was encrypted before it is sent: what a later run
// needs to send it. Its bytes cannot be made again, nor do they need to be: the
// file is the archive.
type sealed struct {
	Size   int64  `json:"size"`   // bytes
	SHA256 string `json:"sha256"` // of them, hex
	Source int64  `json:"source"` // bytes of content in it
	Read   int64  `json:"read"`
}

// sealedPiece is how much of the file is one piece.
const sealedPiece = 1 << 20

func (x *sealed) there(w Workdir) error {
	st, err := os.Stat(w.path(sealedName))
	if err == nil && st.Size() != x.Size {
		err = fmt.Errorf("%s has %d bytes, %d were written", st.Name(), st.Size(), x.Size)
	}
	return err
}

// removeStage removes what lies in the plain, where anything does.
func (s *sender) removeStage() error {
	if s.stage == nil {
		return nil
	}
	return s.stage.Remove()
}

// seal makes the archive of the stage, encrypted, in the workdir, begins the
// attempt, and removes the stage: from here on nothing lies in the plain.
func (s *sender) seal(ctx context.Context) (err error) {
	b := s.b
	s.a.VolumeSize, s.a.Roots, s.a.Stage = math.MaxInt64, nil, ""
	plan, err := s.plan(io.Discard)
	if err != nil {
		return err
	}
	defer plan.Close()
	bytes, files := plan.Totals()
	if err := b.shrunk(ctx, &s.a.Manifest, bytes); err != nil {
		return err
	}
	if err := b.roomForSealed(bytes); err != nil {
		return err
	}
	s.a.Volumes, s.a.Manifest.Sizes.Files = 1, files
	v, err := plan.Next(ctx)
	if err != nil {
		return mark(ErrStage, fmt.Errorf("plan: %w", err))
	}
	if err := b.Workdir.remove(sealedName); err != nil { // of a run that died
		return err
	}
	f, err := b.Workdir.FS.OpenFile(b.Workdir.path(sealedName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	err = b.writeSealed(ctx, io.MultiWriter(f, sum), v)
	if err == nil {
		err = f.Sync()
	}
	var st os.FileInfo
	if err == nil {
		st, err = f.OS().Stat()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = b.Workdir.FS.SyncDir(b.Workdir.Dir)
	}
	if err != nil {
		return errors.Join(mark(ErrStage, fmt.Errorf("encrypt the dump: %w", err)), b.Workdir.remove(sealedName))
	}
	r := v.Result()
	s.a.Sealed = &sealed{Size: st.Size(), SHA256: hex.EncodeToString(sum.Sum(nil)), Source: r.SourceBytes, Read: r.ReadBytes}
	s.a.Manifest.Encryption = &uploader.Encryption{Scheme: b.Sealing.Scheme, Recipients: b.Sealing.Recipients}
	s.a.Manifest.Sizes.Source = r.SourceBytes
	s.a.Manifest.Roots, s.a.Manifest.LeftOut = nil, nil // names are for those who hold the key
	if err := b.Workdir.keep(s.a); err != nil {
		return err
	}
	stage := s.stage
	s.stage = nil
	b.phase(s.st.ID, "encrypted", "the dump is encrypted to %d recipient(s): %s; nothing of it is left in the plain", len(b.Sealing.Recipients), ui.Bytes(s.a.Sealed.Size))
	return stage.Remove()
}

func (b *Backup) writeSealed(ctx context.Context, w io.Writer, v *snapshot.Volume) error {
	enc, err := b.Sealing.Seal(w)
	if err != nil {
		return err
	}
	for f, err := range v.Frames(ctx, nil) {
		if err == nil {
			_, err = enc.Write(f.Data)
		}
		if err != nil {
			return err // what was written is of no use
		}
	}
	return enc.Close()
}

// roomForSealed refuses a dump that may not find room beside itself.
func (b *Backup) roomForSealed(plain int64) error {
	free, size, err := b.room(b.Workdir.Dir)
	if err != nil {
		return err
	}
	if want := plain + need(size); free < want {
		return hint.Add(mark(ErrStage, fmt.Errorf("%s free on the filesystem of the workdir, the encrypted dump may need %s", ui.Bytes(free), ui.Bytes(want))),
			"make room there, or set `workdir: DIR` to a directory elsewhere")
	}
	return nil
}

// sendSealed sends the encrypted archive.
func (s *sender) sendSealed(ctx context.Context) (err error) {
	b, m := s.b, &s.a.Manifest
	if s.total.Store(s.a.Sealed.Size); len(m.Volumes) > 0 {
		return nil // by an earlier run
	}
	f, err := os.Open(b.Workdir.path(sealedName))
	if err != nil {
		return mark(ErrStage, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	name := uploader.SealedName
	b.phase(m.ID, "upload", "sending %s to %s", name, b.Store.URL())
	var moved atomic.Value
	_, err = b.Store.Put(ctx, uploader.PutRequest{
		Key: b.Catalog.ObjectKey(m.ID, name), Upper: s.a.Sealed.Size,
		Pieces: func(sent iter.Seq2[uploader.Sent, error]) iter.Seq2[uploader.Piece, error] {
			return s.sealedPieces(f, sent)
		},
		Journal:  b.Workdir.path("upload-0000.journal"),
		Identity: map[string]string{"backup": m.ID, "cluster": b.Cluster, "volume": name, "sha256": s.a.Sealed.SHA256},
		Moved:    func(m uploader.Moved) { moved.Store(m) },
		Stored: func(o uploader.Object) error {
			if err := s.proveSealed(ctx, &o); err != nil {
				return err
			}
			by, _ := moved.Load().(uploader.Moved)
			m.Volumes = append(m.Volumes, uploader.Volume{
				Name: name, Size: o.Size, ETag: o.ETag, CRC64NVME: o.CRC64NVME, SHA256: s.a.Sealed.SHA256, Checked: o.Checked,
			})
			m.Sizes.Stored, m.Stored = o.Size, o.Checked
			run := &m.Runs[len(m.Runs)-1]
			run.Sent += by.Sent
			if n := len(m.Runs); n > 1 {
				m.Runs[n-2].Sent += by.Kept
			}
			m.Runs[0].Read = s.a.Sealed.Read
			return b.Workdir.keep(s.a)
		},
	})
	if err != nil {
		return fmt.Errorf("upload %s: %w", name, err)
	}
	return nil
}

// proveSealed compares what is stored with what was sent: by the store's checksum
// where it keeps one, else by reading it back.
func (s *sender) proveSealed(ctx context.Context, o *uploader.Object) error {
	if o.Size != s.a.Sealed.Size {
		return fmt.Errorf("%w: the store has %d bytes, %d were sent", uploader.ErrDamaged, o.Size, s.a.Sealed.Size)
	}
	if o.Checked == "checksum" {
		return nil
	}
	if err := sameSum(ctx, s.b.Store, o.Key, o.ETag, o.Size, s.a.Sealed.SHA256); err != nil {
		return err
	}
	o.Checked = "read-back"
	return nil
}

// sameSum reads an object whole and compares its sha256.
func sameSum(ctx context.Context, store uploader.Store, key, etag string, size int64, want string) error {
	r, err := store.Open(ctx, key, etag, 0, size)
	if err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); n != size || got != want {
		return fmt.Errorf("%w: %s: %d bytes with sha256 %s were read back, the manifest says %d with %s", uploader.ErrDamaged, key, n, got, size, want)
	}
	return nil
}

// sealedPieces cuts the file; what an earlier run has sent is cut as it was.
func (s *sender) sealedPieces(f *os.File, sent iter.Seq2[uploader.Sent, error]) iter.Seq2[uploader.Piece, error] {
	return func(yield func(uploader.Piece, error) bool) {
		off := int64(0)
		piece := func(n int64, sum uint64) uploader.Piece {
			at := off
			off += n
			return uploader.Piece{ID: fmt.Sprintf("%s@%d", s.a.Sealed.SHA256, at), Len: n, CRC: sum, Bytes: func(context.Context) ([]byte, error) {
				b := make([]byte, n)
				_, err := f.ReadAt(b, at)
				return b, err
			}}
		}
		for p, err := range sent {
			if !yield(piece(p.Len, p.CRC), err) || err != nil {
				return
			}
		}
		buf := make([]byte, sealedPiece)
		for off < s.a.Sealed.Size {
			n, err := f.ReadAt(buf[:min(sealedPiece, s.a.Sealed.Size-off)], off)
			if err != nil && (n == 0 || !errors.Is(err, io.EOF)) {
				yield(uploader.Piece{}, mark(ErrStage, err))
				return
			}
			if !yield(piece(int64(n), crc.NVME(buf[:n])), nil) {
				return
			}
			s.b.Events.Emit(ui.Progress{What: "upload", Done: off, Total: s.a.Sealed.Size})
		}
	}
}

// unsealed fetches an encrypted archive into file, unless it is there already, and
// opens it. close ends that, and removes nothing.
func unsealed(ctx context.Context, fsys fsx.FS, c *uploader.Catalog, m *uploader.Manifest, file string, open Unseal) (_ []snapshot.VolumeSource, closing func() error, err error) {
	if open == nil {
		return nil, nil, hint.Add(fmt.Errorf("%w: %s is encrypted (%s), to %s", bundle.ErrIdentity, m.ID, m.Encryption.Scheme, strings.Join(m.Encryption.Recipients, ", ")), "name the identity that opens it: -i FILE")
	}
	v := m.Volumes[0]
	if fileSum(file) != v.SHA256 {
		if err := fetch(ctx, fsys, c, m, file); err != nil {
			return nil, nil, err
		}
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, nil, err
	}
	plain, size, err := open(f, v.Size)
	if err != nil {
		return nil, nil, errors.Join(err, f.Close())
	}
	return []snapshot.VolumeSource{{
		Name: v.Name, Size: size,
		Open: func(_ context.Context, off, n int64) (io.ReadCloser, error) {
			return io.NopCloser(io.NewSectionReader(plain, off, n)), nil
		},
	}}, f.Close, nil
}

// fileSum is the sha256 of a file, "" where it cannot be read.
func fileSum(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return ""
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func fetch(ctx context.Context, fsys fsx.FS, c *uploader.Catalog, m *uploader.Manifest, file string) (err error) {
	v := m.Volumes[0]
	free, _, err := fsx.FreeBytes(filepath.Dir(file))
	if err != nil {
		return err
	}
	if free < v.Size {
		return hint.Add(fmt.Errorf("%s free on the filesystem of %s, the encrypted archive has %s", ui.Bytes(free), filepath.Dir(file), ui.Bytes(v.Size)), "make room there, or name another directory")
	}
	r, err := c.Store().Open(ctx, c.ObjectKey(m.ID, v.Name), "", 0, v.Size)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	f, err := fsys.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), r)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != v.SHA256 {
		return hint.Add(fmt.Errorf("%w: %s has sha256 %s, its manifest says %s", snapshot.ErrCorrupt, v.Name, got, v.SHA256), "what is stored is not what was sent; restore another backup")
	}
	return nil
}
