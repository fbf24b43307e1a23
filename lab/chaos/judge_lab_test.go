//go:build lab

package chaos

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/lab"
)

const (
	older = "20261120T235500Z-auto-000001"
	newer = "20261121T235500Z-auto-000002"
)

// gallery is a bucket with two backups, their stages and the rest of a world, in
// which nothing is wrong.
type gallery struct {
	*testing.T
	w *world
	s *setup
}

func newGallery(t *testing.T, store *lab.S3) *gallery {
	dir := t.TempDir()
	g := &gallery{T: t, w: &world{bucket: newBucket(store)}, s: &setup{
		name: "c", real: filepath.Join(dir, "home"), workdir: filepath.Join(dir, "work"),
		judged: map[string]string{}, contents: map[string]content{}, watch: &watcher{links: filepath.Join(dir, "kept")},
	}}
	g.check(os.MkdirAll(g.s.workdir, 0o700))
	g.check(g.w.bucket.remove(t.Context(), "chaos/c"))
	for i, id := range []string{older, newer} {
		archive := pack(t, "data/a", strings.Repeat("abcdefgh", 500), "data/b", fmt.Sprint(i))
		for name, body := range map[string]string{"data/a": strings.Repeat("abcdefgh", 500), "data/b": fmt.Sprint(i)} {
			path := filepath.Join(g.s.watch.links, id, name)
			g.check(os.MkdirAll(filepath.Dir(path), 0o700))
			g.check(os.WriteFile(path, []byte(body), 0o600))
		}
		g.put("data/"+id+"/vol-0000.tar.zst", archive)
		g.put("data/"+id+"/SHA256SUMS.zst", g.sums(id))
		g.put("data/"+id+"/manifest.json", fmt.Appendf(nil,
			`{"id":%q,"cluster":"c","volumes":[{"name":"vol-0000.tar.zst","size":%d}],"sums":{"name":"SHA256SUMS.zst"},"sizes":{"source":4001,"files":2,"stored":%d}}`, id, len(archive), len(archive)))
	}
	g.latest(2, 200, newer)
	return g
}

func (g *gallery) check(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

func (g *gallery) put(key string, body []byte) {
	g.Helper()
	_, err := g.w.bucket.api.PutObject(g.Context(), &s3.PutObjectInput{Bucket: &g.w.bucket.name, Key: aws.String("chaos/c/" + key), Body: bytes.NewReader(body)})
	g.check(err)
}

func (g *gallery) drop(key string) {
	g.Helper()
	_, err := g.w.bucket.api.DeleteObject(g.Context(), &s3.DeleteObjectInput{Bucket: &g.w.bucket.name, Key: aws.String("chaos/c/" + key)})
	g.check(err)
}

func (g *gallery) latest(seq, index int, id string) {
	g.put("latest.json", fmt.Appendf(nil, `{"seq":%d,"incarnation":"i","id":%q,"position":{"index":%d}}`, seq, id, index))
	text := "id " + id + "\n"
	g.put("latest.txt", fmt.Appendf(nil, "%ssha256 %x\n", text, sha256.Sum256([]byte(text))))
}

func (g *gallery) sums(id string) []byte {
	files, err := tree(filepath.Join(g.s.watch.links, id))
	g.check(err)
	var list []byte
	for name, sum := range files {
		list = fmt.Appendf(list, "%s  %s\n", sum, name)
	}
	enc, err := zstd.NewWriter(nil)
	g.check(err)
	defer enc.Close()
	return enc.EncodeAll(list, nil)
}

func (g *gallery) judge() []string {
	g.Helper()
	var out verdicts
	v, err := g.w.judgeVisible(g.Context(), g.s, &out)
	g.check(err)
	g.check(g.w.judgeSwept(g.Context(), g.s, v, &out))
	return out.found
}

// A checker that finds nothing must be known to find something.
func TestJudge(t *testing.T) {
	store, err := lab.StartS3(t.Context(), lab.S3Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := store.Stop(); err != nil {
			t.Error(err)
		}
	})
	volume := "data/" + newer + "/vol-0000.tar.zst"
	for _, c := range []struct {
		name, want string
		first      bool // judged once before the harm
		harm       func(*gallery)
	}{
		{"nothing", "", false, func(*gallery) {}},
		{"nothing, looked at again", "", true, func(*gallery) {}},
		{"a volume is cut", "I2", false, func(g *gallery) {
			g.put(volume, pack(g.T, "data/a", "x")[:40])
		}},
		{"a volume is gone", "I2", true, func(g *gallery) {
			g.drop(volume)
		}},
		{"a file differs from the stage", "I2", false, func(g *gallery) {
			g.check(os.WriteFile(filepath.Join(g.s.watch.links, newer, "data", "b"), []byte("9"), 0o600))
		}},
		{"a file of the stage is left out", "I2", false, func(g *gallery) {
			g.check(os.WriteFile(filepath.Join(g.s.watch.links, newer, "data", "c"), []byte("9"), 0o600))
		}},
		{"the list of hashes is another", "I2", false, func(g *gallery) { g.put("data/"+newer+"/SHA256SUMS.zst", nil) }},
		{"a manifest is written again", "I2", true, func(g *gallery) { g.put("data/"+older+"/manifest.json", []byte(`{}`)) }},
		{"a backup is gone", "I3", true, func(g *gallery) {
			g.check(g.w.bucket.remove(g.Context(), "chaos/c/data/"+older))
		}},
		{"latest goes back", "I3", true, func(g *gallery) { g.latest(3, 100, older) }},
		{"latest has an old number", "I3", true, func(g *gallery) { g.latest(1, 200, newer) }},
		{"latest is gone", "I3", true, func(g *gallery) {
			g.drop("latest.json")
		}},
		{"latest names nothing", "I2", true, func(g *gallery) { g.latest(3, 300, "20261122T235500Z-auto-000003") }},
		{"latest.txt is torn", "I3", false, func(g *gallery) { g.put("latest.txt", []byte("id x\nsha256 "+hex.EncodeToString(make([]byte, 32)))) }},
		{"an upload is open", "I4", false, func(g *gallery) {
			_, err := g.w.bucket.api.CreateMultipartUpload(g.Context(), &s3.CreateMultipartUploadInput{Bucket: &g.w.bucket.name, Key: aws.String("chaos/c/data/x/vol-0000.tar.zst")})
			g.check(err)
			g.Cleanup(func() {
				if err := g.w.bucket.abortAll(t.Context()); err != nil {
					g.Error(err)
				}
			})
		}},
		{"a journal is left", "I4", false, func(g *gallery) {
			g.check(os.WriteFile(filepath.Join(g.s.workdir, "upload-0000.journal"), nil, 0o600))
		}},
		{"a stage is left", "I4", false, func(g *gallery) { g.check(os.MkdirAll(filepath.Join(g.s.real, ".eddy", newer), 0o700)) }},
		{"a run is said to go on", "I4", false, func(g *gallery) { g.put("runs/"+newer+".json", []byte(`{"status":"BACKING_UP"}`)) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newGallery(t, store)
			if c.first {
				if found := g.judge(); len(found) > 0 {
					t.Fatalf("before the harm: %q", found)
				}
			}
			c.harm(g)
			found := strings.Join(g.judge(), "; ")
			if (found == "") != (c.want == "") || !strings.Contains(found, c.want) {
				t.Errorf("found %q, want %s", found, c.want)
			}
		})
	}
}
