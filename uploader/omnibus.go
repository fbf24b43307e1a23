package uploader

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// omnibusName is what nodes of cosmos-omnibus are pointed at by SNAPSHOT_JSON.
const omnibusName = "snapshot.json"

// Omnibus returns a catalog whose commits also write snapshot.json, from which
// cosmos-omnibus takes where the latest archive is: the URL below which everybody may
// fetch the store's objects; "": that of the bucket itself.
func (c *Catalog) Omnibus(base string) *Catalog {
	if s, ok := c.store.(interface{ web() string }); ok && base == "" {
		base = s.web()
	}
	d := *c
	d.omnibus = cmp.Or(base, c.store.URL())
	return &d
}

// putOmnibus writes snapshot.json for p, where it is wanted. Its reader follows one
// address and opens what is there with zstd and tar alone: an archive in several
// volumes, or an encrypted one, cannot be named, and what stands there stays.
func (c *Catalog) putOmnibus(ctx context.Context, p pointer) error {
	if c.omnibus == "" {
		return nil
	}
	if len(p.Volumes) != 1 || !strings.HasSuffix(p.Volumes[0].Name, ".tar.zst") {
		return fmt.Errorf("%s names another backup still: it can name one volume that is not encrypted, and %s has %d; raise backup.volume_size", omnibusName, p.ID, len(p.Volumes))
	}
	at, err := url.JoinPath(c.omnibus, c.ObjectKey(p.ID, p.Volumes[0].Name))
	if err != nil {
		return fmt.Errorf("%s: %w", omnibusName, err)
	}
	body, err := json.MarshalIndent(struct {
		Latest string `json:"latest"`
	}{at}, "", "  ")
	if err != nil {
		return fmt.Errorf("%s: %w", omnibusName, err)
	}
	_, err = c.store.PutSmall(ctx, c.cluster+"/"+omnibusName, append(body, '\n'), "application/json", Condition{})
	return err
}
