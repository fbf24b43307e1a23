package bundle

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/internal/hint"
)

// intro is the first line of every age file.
const intro = "age-encryption.org/v1\n"

// Encrypted tells whether bytes begin as an age file does.
func Encrypted(b []byte) bool { return bytes.HasPrefix(b, []byte(intro)) }

var (
	// ErrTooLarge: what was collected does not fit into a bundle.
	ErrTooLarge = errors.New("the bundle is too large")
	// ErrChanging: a file changed whenever it was read.
	ErrChanging = errors.New("it changes while it is read")
)

// Sealed is a bundle as it is stored.
type Sealed struct {
	Bytes    []byte
	SHA256   string // hex
	Contents *Contents
	// Digest tells whether two bundles hold the same for the same recipients. It is
	// made from what is inside: it stays where the files are.
	Digest string
}

// How often a bundle is begun anew because a file changed while it was read, and
// after which pause.
const (
	sealTries = 8
	sealPause = 250 * time.Millisecond
)

// Seal reads what was found and seals it. c says whose it is; its lists are filled
// in. It begins anew when a file changes while it is read; one that never holds still
// is ErrChanging. Only the sealed bytes are held in memory.
func Seal(ctx context.Context, to Recipients, c Contents, found Found) (*Sealed, error) {
	var err error
	for i := range sealTries {
		if i > 0 {
			select {
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-time.After(sealPause):
			}
		}
		var s *Sealed
		if s, err = sealOnce(ctx, to, c, found, MaxSealed); !errors.Is(err, ErrChanging) {
			return s, err
		}
	}
	return nil, hint.Add(err, "try again; what is never still does not belong into a bundle")
}

// sealOnce seals into at most limit bytes.
func sealOnce(ctx context.Context, to Recipients, c Contents, found Found, limit int) (*Sealed, error) {
	out := &bounded{left: limit, sum: sha256.New()}
	enc, err := to.Encrypt(out)
	if err != nil {
		return nil, err
	}
	// One goroutine: the bytes are few, and the memory is bounded.
	z, err := zstd.NewWriter(enc, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	t := tar.NewWriter(z)
	c.Format, c.MinReader = format, minReader
	c.Preset, c.NodeID, c.Home, c.Cosmovisor = found.Preset, found.NodeID, found.Home, found.Cosmovisor
	c.Files, c.LeftOut = nil, found.LeftOut
	for _, s := range found.Files {
		e, err := pack(ctx, t, s)
		if err != nil {
			return nil, tooLarge(err, c.Files, s)
		}
		c.Files = append(c.Files, e)
	}
	list, err := json.MarshalIndent(c, "", "  ")
	if err == nil && len(list) > maxContents {
		err = fmt.Errorf("%w: its list alone has %d bytes", ErrTooLarge, len(list))
	}
	if err == nil {
		err = t.WriteHeader(&tar.Header{Name: ContentsName, Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(list)), ModTime: c.Made.Truncate(time.Second), Format: tar.FormatPAX})
	}
	if err == nil {
		_, err = t.Write(list)
	}
	for _, end := range []func() error{t.Close, z.Close, enc.Close} {
		if err == nil {
			err = end()
		}
	}
	if err != nil {
		return nil, tooLarge(err, c.Files, Source{})
	}
	return &Sealed{Bytes: out.b.Bytes(), SHA256: hex.EncodeToString(out.sum.Sum(nil)), Contents: &c, Digest: digest(to, &c)}, nil
}

// pack reads one file into the tar. With ErrChanging what was written is worth
// nothing.
func pack(ctx context.Context, t *tar.Writer, s Source) (e Entry, err error) {
	if err := ctx.Err(); err != nil {
		return e, context.Cause(ctx)
	}
	if s.Data != nil {
		return packData(t, s)
	}
	// Not blocking: what was a file a moment ago may be a pipe by now.
	f, err := os.OpenFile(s.Path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return e, fmt.Errorf("%s: %w: it is gone", s.Path, ErrChanging)
	}
	if err != nil {
		return e, hint.Add(fmt.Errorf("read for the bundle: %w", err), "run eddy as root, or as the user whom the file belongs to")
	}
	defer f.Close()
	before, err := f.Stat()
	if err != nil {
		return e, err
	}
	if !before.Mode().IsRegular() {
		return e, fmt.Errorf("%s: %w: it is no file any more", s.Path, ErrChanging)
	}
	sys := before.Sys().(*syscall.Stat_t)
	e = Entry{
		Name: s.Name, Path: s.Path, Class: s.Class, Size: before.Size(), Mode: fmt.Sprintf("%04o", before.Mode().Perm()),
		UID: int(sys.Uid), GID: int(sys.Gid), MTime: before.ModTime().UTC(),
	}
	if u, err := user.LookupId(strconv.Itoa(e.UID)); err == nil {
		e.User = u.Username
	}
	if g, err := user.LookupGroupId(strconv.Itoa(e.GID)); err == nil {
		e.Group = g.Name
	}
	if err := t.WriteHeader(&tar.Header{
		Name: e.Name, Typeflag: tar.TypeReg, Size: e.Size, Mode: int64(before.Mode().Perm()), ModTime: e.MTime.Truncate(time.Second),
		Uid: e.UID, Gid: e.GID, Uname: e.User, Gname: e.Group, Format: tar.FormatPAX,
	}); err != nil {
		return e, err
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(t, sum), io.LimitReader(f, e.Size))
	if err != nil {
		return e, fmt.Errorf("read %s for the bundle: %w", s.Path, err)
	}
	after, err := f.Stat()
	if err != nil {
		return e, err
	}
	now := after.Sys().(*syscall.Stat_t)
	if n != e.Size || after.Size() != e.Size || !after.ModTime().Equal(before.ModTime()) || now.Ctim != sys.Ctim {
		return e, fmt.Errorf("%s: %w", s.Path, ErrChanging)
	}
	e.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return e, nil
}

// packData writes what lies in no file. It has no time, so that the same content makes
// the same bundle.
func packData(t *tar.Writer, s Source) (Entry, error) {
	sum := sha256.Sum256(s.Data)
	e := Entry{Name: s.Name, Path: s.Path, Class: s.Class, Size: int64(len(s.Data)), Mode: "0600", MTime: time.Unix(0, 0).UTC(), SHA256: hex.EncodeToString(sum[:])}
	err := t.WriteHeader(&tar.Header{Name: e.Name, Typeflag: tar.TypeReg, Size: e.Size, Mode: 0o600, ModTime: e.MTime, Format: tar.FormatPAX})
	if err == nil {
		_, err = t.Write(s.Data)
	}
	return e, err
}

// tooLarge adds to that error which files are to blame.
func tooLarge(err error, files []Entry, last Source) error {
	if !errors.Is(err, ErrTooLarge) {
		return err
	}
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b Entry) int { return cmp.Compare(b.Size, a.Size) })
	what := last.Path // in the middle of which it was, unless it is the list
	if what == "" && len(files) > 0 {
		what = fmt.Sprintf("%s with %d bytes", files[0].Path, files[0].Size)
	}
	return hint.Add(fmt.Errorf("%w: at most %d MiB, compressed; look at %s", ErrTooLarge, MaxSealed>>20, what),
		"a bundle is for keys and configuration: leave out what can be had elsewhere: `keys.exclude: [GLOB]`")
}

// digest tells whether two bundles are the same but for when they were made.
func digest(to Recipients, c *Contents) string {
	same := *c
	same.ID, same.Made, same.Files = "", time.Time{}, slices.Clone(c.Files)
	for i := range same.Files {
		same.Files[i].MTime = time.Time{}
	}
	b, err := json.Marshal(struct {
		To       []string
		Contents Contents
	}{to.Fingerprints(), same})
	if err != nil {
		panic(err) // plain values, just written as JSON
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// bounded is a buffer that takes so much and no more, and hashes it.
type bounded struct {
	b    bytes.Buffer
	sum  hash.Hash
	left int
}

func (w *bounded) Write(p []byte) (int, error) {
	if len(p) > w.left {
		return 0, ErrTooLarge
	}
	w.left -= len(p)
	w.sum.Write(p)
	return w.b.Write(p)
}
