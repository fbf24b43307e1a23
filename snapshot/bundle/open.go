package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/snapshot"
)

// Bundle is one that was opened and compared with its own list.
type Bundle struct {
	Contents *Contents
	sealed   []byte
	ids      Identities
}

// Open decrypts a bundle and compares every file with its list. The error has
// ErrIdentity where none of the identities opens it, snapshot.ErrCorrupt where it is
// not what somebody has sealed. Nothing of it is kept in the clear.
func Open(sealed []byte, ids Identities) (*Bundle, error) {
	sums := map[string]Entry{}
	var c *Contents
	order := []string{}
	err := walk(sealed, ids, func(h *tar.Header, r io.Reader) error {
		if c != nil {
			return corrupt("the bundle goes on behind its list with %.80q", h.Name)
		}
		if h.Name == ContentsName {
			if h.Size > maxContents {
				return corrupt("the bundle's list has %d bytes", h.Size)
			}
			b, err := io.ReadAll(r)
			if err == nil {
				c, err = DecodeContents(b)
			}
			return err
		}
		if !validName(h.Name) {
			return corrupt("the bundle holds %.80q, which leads elsewhere", h.Name)
		}
		if _, twice := sums[h.Name]; twice || len(sums) == maxFiles {
			return corrupt("the bundle holds %.80q twice, or too much", h.Name)
		}
		sum := sha256.New()
		n, err := io.Copy(sum, r)
		sums[h.Name] = Entry{Name: h.Name, Size: n, Mode: fmt.Sprintf("%04o", h.Mode), SHA256: hex.EncodeToString(sum.Sum(nil))}
		order = append(order, h.Name)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case c == nil:
		return nil, corrupt("the bundle has no list")
	case len(c.Files) != len(sums):
		return nil, corrupt("the bundle holds %d files and lists %d", len(sums), len(c.Files))
	}
	for i, f := range c.Files {
		if s := sums[f.Name]; s.Size != f.Size || s.SHA256 != f.SHA256 || s.Mode != f.Mode || order[i] != f.Name {
			return nil, corrupt("%.80q of the bundle is not what its list says", f.Name)
		}
	}
	return &Bundle{Contents: c, sealed: sealed, ids: ids}, nil
}

// Each decrypts the bundle again and hands out its files in order. What fn does not
// read is passed over.
func (b *Bundle) Each(fn func(e Entry, r io.Reader) error) error {
	i := 0
	return walk(b.sealed, b.ids, func(h *tar.Header, r io.Reader) error {
		if h.Name == ContentsName {
			return nil
		}
		e := b.Contents.Files[i] // Open has compared the order
		i++
		return fn(e, r)
	})
}

// walk reads the members of a sealed tar, to the end of each layer: what was read
// counts only when the last chunk's tag and the frame's checksum are right as well.
func walk(sealed []byte, ids Identities, fn func(*tar.Header, io.Reader) error) error {
	if !Encrypted(sealed) {
		return corrupt("the bundle does not begin as age files do")
	}
	plain, err := ids.Decrypt(bytes.NewReader(sealed))
	if err != nil {
		return err
	}
	z, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	in := &layers{r: z, left: maxPlain}
	t := tar.NewReader(in)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return corrupt("the bundle's tar: %w", err)
		}
		if h.Typeflag != tar.TypeReg || h.Mode&^0o777 != 0 {
			return corrupt("the bundle holds %.80q, which is no plain file", h.Name)
		}
		if err := fn(h, short{t}); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, plain); err != nil || n > 0 {
		return corrupt("the bundle goes on behind its end")
	}
	return nil
}

// layers reads what was decrypted and decompressed. The sealed bytes are in memory:
// whatever cannot be read is the bundle's fault.
type layers struct {
	r    io.Reader
	left int64
}

func (l *layers) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, corrupt("the bundle decodes to more than %d bytes", maxPlain)
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = corrupt("the bundle: %w", err)
	}
	return n, err
}

// short is a member of the tar, whose early end is the bundle's fault as well.
type short struct{ r io.Reader }

func (s short) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, snapshot.ErrCorrupt) {
		err = corrupt("the bundle's tar: %w", err)
	}
	return n, err
}

// Opens tells which of the fingerprints, if any, belongs to one of the identities.
func (ids Identities) Opens(marks []string) bool {
	return slices.ContainsFunc(ids.Marks(), func(m string) bool { return slices.Contains(marks, m) })
}
