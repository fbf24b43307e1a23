package uploader

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// What cosmos-omnibus does with SNAPSHOT_JSON: it takes .latest with jq, and the suffix
// tells it zstd; then it looks for a directory data.
const omnibusReads = `set -euo pipefail
at=$(curl -Ls "$JSON?nocache=1" | jq -r .latest)
[[ $at = *.tar.zst ]]
curl -fsL "$at" | zstd -cd | tar xf -
[ -d data ]`

func TestOmnibusFindsTheLatest(t *testing.T) {
	dir := t.TempDir()
	web := httptest.NewServer(http.StripPrefix("/pub/", http.FileServer(http.Dir(dir))))
	t.Cleanup(web.Close)
	c := NewCatalog(newFileStore(dir), "test").Omnibus(web.URL + "/pub")
	tree := t.TempDir()
	commit := func(i int, volumes ...string) error {
		t.Helper()
		m := manifestAt(t, c, t0.Add(time.Duration(i)*time.Hour), "auto", uint64(i))
		m.Volumes = nil
		if volumes[0] == SealedName {
			m.Encryption = &Encryption{Scheme: "age", Recipients: []string{"age:0"}}
		}
		for _, name := range volumes {
			sh(t, tree, "mkdir -p data; echo "+m.ID+" >data/id; tar -c data | zstd -q >../v")
			body := read(t, tree, "..", "v")
			put(t, c, c.ObjectKey(m.ID, name), body)
			m.Volumes = append(m.Volumes, Volume{Name: name, Size: int64(len(body)), SHA256: strings.Repeat("0", 64)})
		}
		return c.Commit(t.Context(), m, false)
	}
	reads := func() string {
		t.Helper()
		into := t.TempDir()
		if out, err := bash(t, into, omnibusReads, "JSON="+web.URL+"/pub/test/snapshot.json"); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return strings.TrimSpace(read(t, into, "data", "id"))
	}
	for i := range 2 {
		if err := commit(i+1, VolumeName(0)); err != nil {
			t.Fatal(err)
		}
		if p, _, err := c.latest(t.Context()); err != nil || reads() != p.ID {
			t.Fatalf("%s, latest is %+v, %v", reads(), p, err)
		}
	}
	// What it cannot read it is not led to.
	before := reads()
	for i, volumes := range [][]string{{VolumeName(0), VolumeName(1)}, {SealedName}} {
		err := commit(i+3, volumes...)
		if !errors.Is(err, ErrReadyBut) || !strings.Contains(err.Error(), "backup.volume_size") || reads() != before {
			t.Fatalf("%s, %v", reads(), err)
		}
	}
	if got := read(t, dir, "test", readmeName); got != c.readme() {
		t.Error("README.txt was not brought up to date")
	}
	if s3 := NewCatalog(&s3Store{bucket: "b", prefix: "p", c: Config{Region: "eu-west-1"}}, "test").Omnibus(""); s3.omnibus != "https://b.s3.eu-west-1.amazonaws.com/p" {
		t.Errorf("%+v", s3)
	}
	if names, err := filepath.Glob(filepath.Join(dir, "test", "*.json")); err != nil || len(names) != 2 {
		t.Errorf("%v, %v", names, err)
	}
}
