package uploader

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// The means by which Compare has found an object equal.
const (
	EqualChecksum = "checksum" // the whole object's CRC64NVME, as the store tells it
	EqualETag     = "etag"
	EqualSize     = "size" // the store tells nothing else that can be compared
)

// Compare asks the store for one volume, reads none of it, and says by what it is
// the one that the manifest names. The error has ErrDamaged where it is another
// one. EqualSize comes with a doubt where the ETag is another one: the object was
// written again, perhaps by whoever copied the bucket.
func (c *Catalog) Compare(ctx context.Context, id string, v Volume) (by string, doubt string, err error) {
	o, err := c.store.Stat(ctx, c.ObjectKey(id, v.Name))
	switch {
	case errors.Is(err, ErrNotFound):
		return "", "", fmt.Errorf("%w: it is missing", ErrDamaged)
	case err != nil:
		return "", "", err
	case o.Size != v.Size:
		return "", "", fmt.Errorf("%w: the store has %d bytes, the manifest says %d", ErrDamaged, o.Size, v.Size)
	case o.CRC64NVME != "" && v.CRC64NVME != "" && o.CRC64NVME != v.CRC64NVME:
		return "", "", fmt.Errorf("%w: the store has checksum %s, the manifest says %s", ErrDamaged, o.CRC64NVME, v.CRC64NVME)
	case o.CRC64NVME != "" && v.CRC64NVME != "":
		return EqualChecksum, "", nil
	case o.ETag == v.ETag:
		return EqualETag, "", nil
	}
	if _, isFile := c.store.(*fileStore); isFile && v.Checked == "read-back" { // it was a file then, too
		return "", "", fmt.Errorf("%w: its beginning or its end is another one than was written", ErrDamaged)
	}
	return EqualSize, fmt.Sprintf("its ETag is %.60q, the manifest says %.60q: it was written again since", o.ETag, v.ETag), nil
}

// Strangers are the names of objects of a backup that no eddy has put there for
// it: volumes beyond those of the manifest, which `cat vol-*` would take along, and
// whatever else lies below data/<id>/.
func (c *Catalog) Strangers(ctx context.Context, m *Manifest) ([]string, error) {
	known := map[string]bool{manifestName: true, signatureName: true, SumsName: true}
	for _, v := range m.Volumes {
		known[v.Name] = true
	}
	var out []string
	prefix := c.dataPrefix() + m.ID + "/"
	for o, err := range c.store.List(ctx, prefix, "") {
		if err != nil {
			return nil, err
		}
		name := strings.TrimPrefix(o.Key, prefix)
		if known[name] || strings.HasPrefix(name, gradesPrefix) || strings.HasPrefix(name, pinsPrefix) {
			continue
		}
		if out = append(out, name); len(out) == maxFindings {
			break
		}
	}
	return out, nil
}
