package uploader

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/internal/hint"
)

const goodManifest = `{"format":1,"min_reader":1,"id":"20261120T120000Z-auto-000001","label":"auto","cluster":"x",
"volumes":[{"name":"vol-0000.tar.zst","size":1}],"roots":[{"name":"data","prefix":"data","path":"/mnt/a"}],
"of_the_future":{"a":[1]}}`

func TestDecodeManifest(t *testing.T) {
	if _, err := DecodeManifest([]byte(goodManifest)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		old, new string
		want     error
	}{
		"newer":            {`"min_reader":1`, `"min_reader":2`, ErrNewer},
		"newer, and other": {`"format":1,"min_reader":1,"id":"20261120T120000Z-auto-000001"`, `"format":2,"min_reader":2,"id":{}`, ErrNewer},
		"no format":        {`"format":1`, `"format":0`, ErrDamaged},
		"no min_reader":    {`"min_reader":1`, `"min_reader":0`, ErrDamaged},
		"cut short":        {`}]`, ``, ErrDamaged},
		"id that leads up": {`20261120T120000Z-auto-000001`, `../20261120T120000Z-auto-000001`, ErrDamaged},
		"id of no day":     {`20261120T120000Z`, `20261320T120000Z`, ErrDamaged},
		"another label":    {`"label":"auto"`, `"label":"hand"`, ErrDamaged},
		"cluster ..":       {`"cluster":"x"`, `"cluster":".."`, ErrDamaged},
		"no volumes":       {`[{"name":"vol-0000.tar.zst","size":1}]`, `[]`, ErrDamaged},
		"volume missed":    {`vol-0000`, `vol-0001`, ErrDamaged},
		"volume elsewhere": {`vol-0000.tar.zst`, `../vol-0000.tar.zst`, ErrDamaged},
		"empty volume":     {`"size":1`, `"size":0`, ErrDamaged},
		"negative volume":  {`"size":1`, `"size":-1`, ErrDamaged},
		"huge volume":      {`"size":1`, `"size":9223372036854775808`, ErrDamaged},
		"negative sizes":   {`"cluster"`, `"sizes":{"stored":-1},"cluster"`, ErrDamaged},
		"negative hold":    {`"cluster"`, `"held_seconds":-1,"cluster"`, ErrDamaged},
		"sums elsewhere":   {`"cluster"`, `"sums":{"name":"../SHA256SUMS.zst","size":1},"cluster"`, ErrDamaged},
		"root above":       {`"prefix":"data"`, `"prefix":"../data"`, ErrDamaged},
		"root absolute":    {`"prefix":"data"`, `"prefix":"/data"`, ErrDamaged},
		"an array":         {goodManifest, `[]`, ErrDamaged},
		"too long":         {`"x"`, `"` + strings.Repeat("x", maxManifest) + `"`, ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := DecodeManifest([]byte(strings.Replace(goodManifest, c.old, c.new, 1)))
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			if c.want == ErrNewer && hint.Of(err) == "" {
				t.Fatal("no hint")
			}
			if len(err.Error()) > 400 {
				t.Fatalf("an error of %d bytes", len(err.Error()))
			}
		})
	}
}

// The names of the fields are a format that others read: they are pinned here.
func TestManifestFormatIsPinned(t *testing.T) {
	at := time.Date(2026, 11, 20, 23, 55, 0, 0, time.UTC)
	m := Manifest{
		Format: 1, MinReader: 1, ID: "20261120T235500Z-auto-0123ab", Label: "auto", Class: "normal", Cluster: "gaia", Incarnation: "ff",
		Node: Node{ID: "n", Name: "m", Host: "h", Role: "observer"}, System: "cometbft",
		Versions: Versions{System: "0.38.26", App: "1", Eddy: "v1", Encoder: "e", Go: "go"},
		Position: Position{Kind: "cometbft", Index: 7, Epoch: 1, Hash: "ab", HashKind: "app_hash", Time: at, Consistency: "stopped"},
		Opened:   "none", Attested: "not possible", Stored: "checksum", Engines: []string{"goleveldb"}, Pruning: "default", Indexer: "kv",
		Sizes: Sizes{Source: 6, Read: 5, Sent: 4, Copied: 3, Stored: 2, Files: 1}, Times: Times{Begun: at, Held: at, Released: at, Uploaded: at}, HeldSeconds: 0.5,
		Volumes: []Volume{{Name: "vol-0000.tar.zst", Size: 2, ETag: "e", CRC64NVME: "c", IndexSHA256: "i", Frames: 1, Checked: "checksum"}},
		Sums:    &SumsRef{Name: SumsName, Size: 1}, Roots: []RootRef{{Name: "data", Prefix: "data", Path: "/d"}},
		LeftOut: []LeftOut{{Name: "x", Reason: "y"}}, LeftOutMore: 1, Created: at,
	}
	const T = `"2026-11-20T23:55:00Z"`
	want := `{"format":1,"min_reader":1,"id":"20261120T235500Z-auto-0123ab","label":"auto","class":"normal","cluster":"gaia","incarnation":"ff",` +
		`"node":{"id":"n","name":"m","host":"h","role":"observer"},"system":"cometbft",` +
		`"versions":{"system":"0.38.26","app":"1","eddy":"v1","encoder":"e","go":"go"},` +
		`"position":{"kind":"cometbft","index":7,"epoch":1,"hash":"ab","hash_kind":"app_hash","time":` + T + `,"consistency":"stopped"},` +
		`"opened":"none","attested":"not possible","stored":"checksum","engines":["goleveldb"],"pruning":"default","indexer":"kv",` +
		`"sizes":{"source":6,"read":5,"sent":4,"copied":3,"stored":2,"files":1},` +
		`"times":{"begun":` + T + `,"held":` + T + `,"released":` + T + `,"uploaded":` + T + `},"held_seconds":0.5,` +
		`"volumes":[{"name":"vol-0000.tar.zst","size":2,"etag":"e","crc64nvme":"c","index_sha256":"i","frames":1,"checked":"checksum"}],` +
		`"sums":{"name":"SHA256SUMS.zst","size":1},"roots":[{"name":"data","prefix":"data","path":"/d"}],` +
		`"left_out":[{"name":"x","reason":"y"}],"left_out_more":1,"created":` + T + `}`
	got, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Fatal(d)
	}
	back, err := DecodeManifest(got)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(m, *back); d != "" {
		t.Fatal(d)
	}
}

// A home full of strange names must not make a manifest that nobody reads.
func TestWhatWasLeftOutIsCutToFit(t *testing.T) {
	for name, c := range map[string]struct{ n, length, most int }{
		"many names": {5000, 10, maxLeftOut},
		"long names": {500, 4096, 100},
		"few":        {3, 10, 3},
	} {
		t.Run(name, func(t *testing.T) {
			c2 := testCatalog(t)
			m := manifestAt(t, c2, t0, "auto", 1)
			m.LeftOut = nil
			for i := range c.n {
				m.LeftOut = append(m.LeftOut, LeftOut{Name: fmt.Sprintf("%0*d", c.length, i), Reason: "\x01"})
			}
			if err := c2.Commit(t.Context(), m, false); err != nil {
				t.Fatal(err)
			}
			b, err := c2.Latest(t.Context())
			if err != nil || len(b.Manifest.LeftOut) > c.most || len(b.Manifest.LeftOut)+int(b.Manifest.LeftOutMore) != c.n {
				t.Fatalf("%d names and %d more of %d, %v", len(b.Manifest.LeftOut), b.Manifest.LeftOutMore, c.n, err)
			}
			if len(m.LeftOut) != c.n {
				t.Fatal("the caller's list was cut")
			}
		})
	}
}

func FuzzDecodeManifest(f *testing.F) {
	f.Add([]byte(goodManifest))
	f.Add([]byte(strings.Replace(goodManifest, `"min_reader":1`, `"min_reader":9`, 1)))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := DecodeManifest(b)
		if err != nil {
			if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrNewer) {
				t.Fatalf("%q: %v", b, err)
			}
			return
		}
		for i, v := range m.Volumes {
			if v.Name != VolumeName(i) || v.Size <= 0 {
				t.Fatalf("accepted %q", b)
			}
		}
		if again, err := json.Marshal(m); err != nil {
			t.Fatal(err)
		} else if _, err := DecodeManifest(again); err != nil {
			t.Fatalf("accepted %q, but not what it means: %v", b, err)
		}
	})
}
