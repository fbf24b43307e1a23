package leak

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

// A key that was planted is found in every form, at every place, packed or not.
func TestPlantedKeysAreFound(t *testing.T) {
	key := make([]byte, 32)
	rand.Read(key)
	identity, _, err := bundle.NewIdentity(false, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	secret, err := AgeIdentity("identity", identity)
	if err != nil {
		t.Fatal(err)
	}
	store, err := uploader.Open(t.Context(), uploader.Config{URL: "file://" + t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 100_000)
	rand.Read(noise)
	plant := map[string][]byte{
		"raw": key, "hex": []byte(hex.EncodeToString(key)), "HEX": []byte(strings.ToUpper(hex.EncodeToString(key))),
		"age": identity, "age-bytes": secret.Forms[0],
	}
	for shift := range 3 {
		longer := append(append(bytes.Repeat([]byte{7}, shift), key...), 1, 2, 3, 4)
		plant["base64-"+string('0'+rune(shift))] = []byte(base64.StdEncoding.EncodeToString(longer))
		plant["url-"+string('0'+rune(shift))] = []byte(base64.RawURLEncoding.EncodeToString(longer))
	}
	want := []string{}
	for name, form := range plant {
		body := append(append(bytes.Clone(noise), form...), noise...)
		for at, b := range map[string][]byte{"plain/" + name: body, "packed/" + name: append(z.EncodeAll(body[:100_010], nil), z.EncodeAll(body[100_010:], nil)...)} {
			if _, err := store.PutSmall(t.Context(), at, b, "", uploader.Condition{}); err != nil {
				t.Fatal(err)
			}
		}
		who := "key"
		if strings.HasPrefix(name, "age") {
			who = "identity"
		}
		want = append(want, who+" in plain/"+name, who+" in packed/"+name+", decompressed")
	}
	if _, err := store.PutSmall(t.Context(), "clean", noise, "", uploader.Condition{}); err != nil {
		t.Fatal(err)
	}
	hits, read, err := Search(t.Context(), store, Key("key", key), secret)
	if err != nil {
		t.Fatal(err)
	}
	// Random bytes are stored as they are in a frame, so a packed one may show twice.
	hits = slices.DeleteFunc(hits, func(h string) bool { return strings.Contains(h, "in packed/") && !strings.HasSuffix(h, "decompressed") })
	slices.Sort(hits)
	slices.Sort(want)
	if !slices.Equal(hits, want) {
		t.Errorf("found %q\nwant  %q", hits, want)
	}
	if read < int64(len(plant))*2*int64(len(noise)) {
		t.Errorf("only %d bytes were looked at", read)
	}
}
