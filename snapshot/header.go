package snapshot

import (
	"archive/tar"
	"bytes"
	"fmt"
	"time"
)

// tarBlock is the unit of a tar stream, in bytes.
const tarBlock = 512

// header returns the tar header of an entry: ustar where it fits, pax for what
// does not, whole seconds, numeric ids, nothing of the run. Equal entries give
// equal bytes.
func header(e Entry) ([]byte, error) {
	h := &tar.Header{
		Name: e.Name, Mode: int64(e.Mode), Uid: e.UID, Gid: e.GID, ModTime: time.Unix(e.MTime.Unix(), 0), Format: tar.FormatUSTAR,
	}
	switch e.Type {
	case TypeFile:
		h.Typeflag, h.Size = tar.TypeReg, e.Size
	case TypeDir:
		h.Typeflag, h.Name = tar.TypeDir, e.Name+"/"
	case TypeSymlink:
		h.Typeflag, h.Linkname = tar.TypeSymlink, e.Link
	default:
		return nil, fmt.Errorf("%s: unknown type %q", e.Name, e.Type)
	}
	var b bytes.Buffer
	err := tar.NewWriter(&b).WriteHeader(h)
	if err != nil {
		b.Reset()
		h.Format = tar.FormatPAX
		err = tar.NewWriter(&b).WriteHeader(h)
	}
	if err != nil {
		return nil, fmt.Errorf("tar header of %q: %w", e.Name, err)
	}
	return b.Bytes(), nil
}

// padding is how many zero bytes fill the last block of n bytes of content.
func padding(n int64) int64 { return (tarBlock - n%tarBlock) % tarBlock }
