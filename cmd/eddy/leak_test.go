package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/eddy-backup/eddy/internal/leak"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

// leaks URL FILE...: the key of each file, of CometBFT or an age identity, stands
// somewhere in the store, raw, in hex or in base64, packed or not. ! leaks: none does,
// in none of its objects; and what is called .age, and only that, is ciphertext.
func leaks(ts *testscript.TestScript, neg bool, args []string) {
	ctx := context.Background()
	store, err := uploader.Open(ctx, uploader.Config{URL: args[0], Endpoint: ts.Getenv("EDDY_STORE_ENDPOINT")})
	fatal(ts, err)
	var needles []leak.Needle
	for _, file := range args[1:] {
		b, err := os.ReadFile(ts.MkAbs(file))
		fatal(ts, err)
		n, err := leak.CometKey(file, b)
		if err != nil {
			n, err = leak.AgeIdentity(file, b)
		}
		fatal(ts, err)
		needles = append(needles, n)
	}
	hits, read, err := leak.Search(ctx, store, needles...)
	fatal(ts, err)
	objects, sealed, err := ciphertext(ctx, store)
	fatal(ts, err)
	ts.Logf("%d keys, %d objects, %d of them sealed, %d bytes looked at: %q", len(needles), objects, sealed, read, hits)
	for _, n := range needles {
		found := strings.Contains(strings.Join(hits, "\n"), n.Name+" in ")
		if found == neg {
			ts.Fatalf("%s found: %v", n.Name, found)
		}
	}
}

// ciphertext counts the objects of a store, and those that are sealed. One whose name
// and beginning disagree is an error.
func ciphertext(ctx context.Context, store uploader.Store) (objects, sealed int, err error) {
	for o, err := range store.List(ctx, "", "") {
		if err != nil {
			return objects, sealed, err
		}
		r, err := store.Open(ctx, o.Key, "", 0, min(o.Size, 32))
		if err != nil {
			return objects, sealed, err
		}
		head, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return objects, sealed, err
		}
		objects++
		is := bundle.Encrypted(head)
		if is {
			sealed++
		}
		if is != strings.HasSuffix(o.Key, ".age") || bytes.Contains(head, []byte("SECRET")) {
			return objects, sealed, errors.New(o.Key + ": its name does not say what it is")
		}
	}
	return objects, sealed, nil
}
