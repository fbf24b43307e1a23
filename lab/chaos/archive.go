package chaos

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// content is the sha256 of each file of a tree or an archive, by name.
type content map[string]string

// archive reads one backup back, every byte of it, by S3, zstd and tar alone, and
// compares it with its manifest and its list of hashes. needles are texts that must
// not be in it.
func (b *bucket) archive(ctx context.Context, v *view, id string, needles [][]byte) (content, error) {
	m, dir := v.manifests[id], path.Join("data", id)
	if m.ID != id || path.Base(v.dir) != m.Cluster || len(m.Volumes) == 0 {
		return nil, fmt.Errorf("the manifest is of %s in %s with %d volumes", m.ID, m.Cluster, len(m.Volumes))
	}
	var volumes []io.Reader
	for i, vol := range m.Volumes {
		if want := fmt.Sprintf("vol-%04d.tar.zst", i); vol.Name != want {
			return nil, fmt.Errorf("volume %d is named %s", i, vol.Name)
		}
		o, ok := v.objects[path.Join(dir, vol.Name)]
		if !ok || o.size != vol.Size {
			return nil, fmt.Errorf("%s: listed %t with %d bytes, the manifest says %d", vol.Name, ok, o.size, vol.Size)
		}
		r := &lazy{open: func() (io.ReadCloser, error) { return b.open(ctx, path.Join(v.dir, dir, vol.Name)) }}
		defer r.Close()
		volumes = append(volumes, r)
	}
	files, bytes, err := unpack(io.MultiReader(volumes...), needles)
	if err != nil {
		return nil, err
	}
	if int64(len(files)) != m.Sizes.Files || bytes != m.Sizes.Source {
		return nil, fmt.Errorf("%d files of %d bytes, the manifest says %d of %d", len(files), bytes, m.Sizes.Files, m.Sizes.Source)
	}
	sums, err := b.open(ctx, path.Join(v.dir, dir, m.Sums.Name))
	if err != nil {
		return nil, err
	}
	defer sums.Close()
	listed, err := readSums(sums)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", m.Sums.Name, err)
	}
	if err := same(listed, files); err != nil {
		return nil, fmt.Errorf("against %s: %w", m.Sums.Name, err)
	}
	return files, nil
}

// lazy opens when it is first read, so that a long archive has one connection.
type lazy struct {
	open func() (io.ReadCloser, error)
	r    io.ReadCloser
}

func (l *lazy) Read(p []byte) (int, error) {
	if l.r == nil {
		var err error
		if l.r, err = l.open(); err != nil {
			return 0, err
		}
	}
	return l.r.Read(p)
}

func (l *lazy) Close() error {
	if l.r == nil {
		return nil
	}
	return l.r.Close()
}

// unpack hashes what is in a compressed tar stream.
func unpack(r io.Reader, needles [][]byte) (content, int64, error) {
	dec, err := zstd.NewReader(r)
	if err != nil {
		return nil, 0, err
	}
	defer dec.Close()
	stream := &search{r: dec, needles: needles}
	files, size := content{}, int64(0)
	for t := tar.NewReader(stream); ; {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, 0, err
		}
		if path.IsAbs(h.Name) || path.Clean(h.Name) != strings.TrimSuffix(h.Name, "/") || strings.HasPrefix(h.Name, "../") {
			return nil, 0, fmt.Errorf("name %q", h.Name)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		switch path.Base(h.Name) {
		case "priv_validator_key.json", "priv_validator_state.json", "node_key.json":
			return nil, 0, fmt.Errorf("%s is in the archive", h.Name)
		}
		if _, ok := files[h.Name]; ok {
			return nil, 0, fmt.Errorf("%s is in the archive twice", h.Name)
		}
		sum := sha256.New()
		n, err := io.Copy(sum, t)
		if err != nil {
			return nil, 0, fmt.Errorf("%s: %w", h.Name, err)
		}
		files[h.Name] = hex.EncodeToString(sum.Sum(nil))
		size += n
	}
	// tar ends before the stream does, and the last checksum comes after it.
	if _, err := io.Copy(io.Discard, stream); err != nil {
		return nil, 0, err
	}
	return files, size, stream.found
}

// search reads through and looks for texts, across reads, too.
type search struct {
	r       io.Reader
	needles [][]byte
	tail    []byte
	found   error
}

// overlap is longer than any needle.
const overlap = 256

func (s *search) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	seam := append(s.tail, p[:min(n, overlap)]...)
	for _, needle := range s.needles {
		if bytes.Contains(p[:n], needle) || bytes.Contains(seam, needle) {
			s.found = errors.New("a private key is in the archive")
		}
	}
	if n >= overlap {
		s.tail = append(s.tail[:0], p[n-overlap:n]...)
	} else {
		s.tail = append(s.tail[:0], seam[max(0, len(seam)-overlap):]...)
	}
	return n, err
}

// readSums reads a compressed list as sha256sum writes it.
func readSums(r io.Reader) (content, error) {
	dec, err := zstd.NewReader(r)
	if err != nil {
		return nil, err
	}
	defer dec.Close()
	b, err := io.ReadAll(dec)
	if err != nil {
		return nil, err
	}
	c := content{}
	for line := range strings.Lines(string(b)) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		if !ok || len(sum) != 64 {
			return nil, fmt.Errorf("line %q", line)
		}
		c[name] = sum
	}
	return c, nil
}

// tree hashes the files below a directory.
func tree(dir string) (content, error) {
	c := content{}
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		f, err := os.Open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, f); err != nil {
			return err
		}
		c[filepath.ToSlash(rel)] = hex.EncodeToString(sum.Sum(nil))
		return nil
	})
	return c, err
}

// same compares two trees and names the first few differences.
func same(want, got content) error {
	var errs []error
	for name, sum := range want {
		switch {
		case got[name] == "":
			errs = append(errs, fmt.Errorf("%s is missing", name))
		case got[name] != sum:
			errs = append(errs, fmt.Errorf("%s has other content", name))
		}
	}
	for name := range got {
		if want[name] == "" {
			errs = append(errs, fmt.Errorf("%s is too much", name))
		}
	}
	return errors.Join(errs[:min(len(errs), 5)]...)
}
