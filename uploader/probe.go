package uploader

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// The names of the probe's large objects.
const (
	probeLarge = "large"
	probeCopy  = "copy"
)

// probeUnder is where the probe's objects lie. Their names are always the same:
// where credentials may not delete, at most these stay.
func (c *Catalog) probeUnder() string { return c.cluster + "/probe/" }

// Probe finds out what the store can do (see Store.Probe) with the rights that
// the cluster's part of it gives.
func (c *Catalog) Probe(ctx context.Context) (Caps, error) {
	return c.store.Probe(ctx, c.probeUnder())
}

// Probe implements Store. A directory can do all that eddy asks of a store.
func (s *fileStore) Probe(ctx context.Context, under string) (c Caps, err error) {
	c = Caps{
		Format: capsFormat, MinReader: capsFormat, Store: s.URL(), Probed: time.Now().UTC(),
		SmallSums: Kept, PartSums: Kept, WholeSum: Kept, UnequalParts: Kept, ListUploads: Kept, DeleteMany: Kept, Delete: Kept,
		Versioning: Absent, ObjectLock: Absent, LifecycleRead: Absent,
	}
	small := under + "small"
	defer func() { err = errors.Join(err, s.Delete(context.WithoutCancel(ctx), small)) }()
	return c, trySmall(ctx, s, small, &c)
}

// Use implements Store.
func (s *fileStore) Use(c Caps) bool { return c.Store == s.URL() }

// trySmall asks a store for what every verb needs of it, with one small object.
func trySmall(ctx context.Context, s Store, key string, c *Caps) error {
	body := func() []byte {
		return []byte("eddy tries what this store can do; this object may be deleted " + rand.Text() + "\n")
	}
	first := body()
	if _, err := s.PutSmall(ctx, key, first, "text/plain", Condition{}); err != nil {
		return err
	}
	got, o, err := s.GetSmall(ctx, key, 1<<10)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, first) {
		return hint.Add(&storeError{op: "read", key: key, kind: ErrDamaged, said: "it is not what was written a moment ago"},
			"something between eddy and the store keeps old answers, or the store is not consistent: eddy cannot work with it")
	}
	if err := tryRange(ctx, s, key, o.ETag, first); err != nil {
		return err
	}
	if err := tryList(ctx, s, key); err != nil {
		return err
	}
	c.Conditions, err = tryConditions(ctx, s, key, o.ETag, body())
	return err
}

func tryRange(ctx context.Context, s Store, key, etag string, want []byte) error {
	const off, n = 5, 11
	r, err := s.Open(ctx, key, etag, off, n)
	if err != nil {
		return err
	}
	got, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return err
	}
	if !bytes.Equal(got, want[off:off+n]) {
		return hint.Add(&storeError{op: "read", key: key, kind: ErrDamaged, said: "a range of it is not what was written there"}, "eddy cannot restore from a store without ranged reads: use another one")
	}
	return nil
}

func tryList(ctx context.Context, s Store, key string) error {
	for o, err := range s.List(ctx, key, "") {
		if err != nil {
			return err
		}
		if o.Key == key {
			return nil
		}
	}
	return hint.Add(&storeError{op: "list", key: key, kind: ErrDamaged, said: "an object that was just written is not listed"},
		"eddy counts only what is listed, and cannot work with a store whose lists lag")
}

// tryConditions writes once under each condition that does not hold, and once
// under one that does.
func tryConditions(ctx context.Context, s Store, key, etag string, body []byte) (Answer, error) {
	for _, c := range []Condition{{IfAbsent: true}, {IfMatch: "00000000000000000000000000000000"}} {
		switch _, err := s.PutSmall(ctx, key, body, "text/plain", c); {
		case err == nil:
			return Ignored, nil
		case errors.Is(err, ErrPrecondition):
		case errors.Is(err, ErrRefused):
			return Refused, nil
		default:
			return Unknown, err
		}
	}
	switch _, err := s.PutSmall(ctx, key, body, "text/plain", Condition{IfMatch: etag}); {
	case err == nil:
		return Kept, nil
	case errors.Is(err, ErrPrecondition), errors.Is(err, ErrRefused):
		return Refused, nil
	default:
		return Unknown, fmt.Errorf("a conditional write: %w", err)
	}
}
