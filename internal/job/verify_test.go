package job

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/s3fake"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// bucket is a store whose objects can be altered behind its back.
type bucket struct {
	t     *testing.T
	store uploader.Store
	get   func(key string) []byte
	alter func(key string, b []byte) (undo func()) // nil removes
	key   *uploader.SigningKey
	undo  []func()
}

func (b *bucket) catalog(cluster string) *uploader.Catalog {
	return uploader.NewCatalog(b.store, cluster)
}

func (b *bucket) set(key string, data []byte) { b.undo = append(b.undo, b.alter(key, data)) }

func (b *bucket) heal() {
	for _, u := range slices.Backward(b.undo) {
		u()
	}
	b.undo = nil
}

// inProcess carries requests to a server without a network.
type inProcess struct{ http.Handler }

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	if r.Body == nil {
		r.Body = http.NoBody
	}
	p.ServeHTTP(w, r)
	return w.Result(), nil
}

func newBucket(t *testing.T, kind string) *bucket {
	t.Helper()
	b := &bucket{t: t}
	c := uploader.Config{GiveUp: 100 * time.Millisecond}
	if kind == "file" {
		dir := fastDir(t)
		c.URL = "file://" + dir
		b.get = func(key string) []byte {
			data, err := os.ReadFile(filepath.Join(dir, key))
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		b.alter = func(key string, data []byte) func() {
			p := filepath.Join(dir, key)
			before, err := os.ReadFile(p)
			was := err == nil
			if err = os.WriteFile(p, data, 0o600); data == nil {
				err = os.Remove(p)
			}
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if !was {
					os.Remove(p)
				} else if err := os.WriteFile(p, before, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	} else {
		q := s3fake.Quirks{SmallParts: true}
		if kind == "s3 bare" {
			q.Checksums = s3fake.SumsIgnored
		}
		s := s3fake.New("bucket", q)
		c.URL, c.Region, c.Endpoint, c.Transport, c.PartSize = "s3://bucket/eddy", "us-east-1", "http://s3.test", inProcess{s}, 1<<20
		b.get = func(key string) []byte { data, _ := s.Object("eddy/" + key); return data }
		b.alter = func(key string, data []byte) func() { return s.Alter("eddy/"+key, data, kind == "s3 rot") }
	}
	var err error
	if b.store, err = uploader.Open(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if b.key, err = uploader.NewSigningKey(); err != nil {
		t.Fatal(err)
	}
	return b
}

// homeOf is a node's directory: large files that do not shrink, one that does,
// and many small ones.
func homeOf(t *testing.T, seed uint64) string {
	t.Helper()
	home := fastDir(t)
	r := rand.New(rand.NewPCG(seed, 1))
	put := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(home, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 6 {
		b := make([]byte, 264<<10)
		for j := 0; j < len(b); j += 8 {
			binary.LittleEndian.PutUint64(b[j:], r.Uint64())
		}
		put(fmt.Sprintf("%02d.ldb", i), b)
	}
	put("10.ldb", bytes.Repeat([]byte(fmt.Sprintf("%d a line that shrinks\n", seed)), 20_000))
	for i := range 40 {
		put(fmt.Sprintf("small-%02d", i), []byte(strings.Repeat(fmt.Sprint(r.Uint64()), 20)))
	}
	return home
}

// backupOf makes a backup in several volumes and returns its manifest.
func (b *bucket) backupOf(cluster string, seed, height uint64, key *uploader.SigningKey) *uploader.Manifest {
	b.t.Helper()
	job := &Backup{
		Replica: &still{home: homeOf(b.t, seed), height: height}, Store: b.store, Catalog: b.catalog(cluster).With(uploader.Keys{Sign: key}),
		Workdir: Workdir{Dir: fastDir(b.t)}, Cluster: cluster, Label: "auto", Version: "v1", VolumeSize: 640 << 10, Events: &told{},
		Reason: func(error) string { return ReasonOther }, Now: time.Now,
	}
	sum, err := job.Run(b.t.Context())
	if err != nil && !errors.Is(err, ErrWarnings) {
		b.t.Fatal(err)
	}
	got, err := b.catalog(cluster).Select(b.t.Context(), sum.ID)
	if err != nil || got.Status != uploader.StatusReady || len(got.Manifest.Volumes) < 3 {
		b.t.Fatalf("%+v, %v", got, err)
	}
	return got.Manifest
}

// verify runs a proof that writes no grade; signers are those that must have signed.
func (b *bucket) verify(cluster, id, by string, signers ...uploader.Signer) (Verified, error) {
	v := &Verify{
		Catalog: b.catalog(cluster).With(uploader.Keys{Signers: signers}), Selector: id, By: by, Share: 1, NoGrade: true, Events: &told{}, Now: time.Now,
	}
	return v.Run(b.t.Context())
}

// victim is a backup that is damaged, with all that damages need.
type victim struct {
	*bucket
	m, other *uploader.Manifest // other: of the same cluster
	foreign  *uploader.Manifest // of another one
}

func (v *victim) at(name string) string { return "c/data/" + v.m.ID + "/" + name }

func (v *victim) change(name string, f func(b []byte) []byte) {
	v.t.Helper()
	was := v.get(v.at(name))
	now := f(bytes.Clone(was))
	if bytes.Equal(was, now) {
		v.t.Fatal("this damage changes nothing")
	}
	v.set(v.at(name), now)
}

func (v *victim) flip(name string, at func(b []byte) int) {
	v.change(name, func(b []byte) []byte { b[at(b)] ^= 0x20; return b })
}

// manifest changes the manifest by its fields, and leaves its signature.
func (v *victim) manifest(f func(m map[string]any)) {
	v.change("manifest.json", func(b []byte) []byte {
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			v.t.Fatal(err)
		}
		f(m)
		b, err := json.MarshalIndent(m, "", "  ")
		if err != nil {
			v.t.Fatal(err)
		}
		return append(b, '\n')
	})
}

func field(m map[string]any, volume int) map[string]any {
	return m["volumes"].([]any)[volume].(map[string]any)
}

func frames(t *testing.T, b []byte) (x *snapshot.Index, all []snapshot.IndexFrame) {
	t.Helper()
	x, err := snapshot.ReadIndex(t.Context(), snapshot.VolumeSource{Size: int64(len(b)), Open: func(_ context.Context, off, n int64) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b[off : off+n])), nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	for f, err := range x.Frames() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	return x, all
}

// reindex puts another index behind the frames of a volume, and a seek table that
// fits: what a forger would do, by snapshot/FORMAT.md.
func reindex(t *testing.T, vol []byte, change func(lines []map[string]any)) (out []byte, sum string) {
	t.Helper()
	x, _ := frames(t, vol)
	body := vol[x.Data+8:]
	dec, err := zstd.NewReader(bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	var lines []map[string]any
	in := json.NewDecoder(dec)
	in.UseNumber()
	for {
		var l map[string]any
		if err := in.Decode(&l); err != nil {
			break // the skippable frame ends behind the lines
		}
		lines = append(lines, l)
	}
	change(lines)
	var raw bytes.Buffer
	var seek []byte
	for i, l := range lines {
		b, err := json.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		raw.Write(append(b, '\n'))
		if i > 0 {
			clen, _ := l["clen"].(json.Number).Int64()
			ulen, _ := l["ulen"].(json.Number).Int64()
			seek = binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(seek, uint32(clen)), uint32(ulen))
		}
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	packed := enc.EncodeAll(raw.Bytes(), nil)
	h := sha256.Sum256(packed)
	le := binary.LittleEndian
	out = slices.Clone(vol[:x.Data])
	out = le.AppendUint32(le.AppendUint32(out, 0x184D2A50), uint32(len(packed)+64))
	out = append(out, packed...)
	out = append(le.AppendUint64(le.AppendUint64(out, uint64(len(packed))), uint64(raw.Len())), h[:]...)
	out = append(le.AppendUint32(le.AppendUint32(out, 1), 0), "EDDYIDX1"...)
	out = le.AppendUint32(le.AppendUint32(out, 0x184D2A5E), uint32(len(seek)+9))
	out = append(out, seek...)
	out = append(le.AppendUint32(out, uint32(len(lines)-1)), 0)
	return le.AppendUint32(out, 0x8F92EAB1), fmt.Sprintf("%x", h)
}

// forge changes the index of a volume, and the manifest so that it fits.
func (v *victim) forge(volume int, change func(vol []byte, lines []map[string]any)) {
	var sum string
	var vol []byte
	v.change(uploader.VolumeName(volume), func(b []byte) []byte {
		vol, sum = reindex(v.t, b, func(lines []map[string]any) { change(b, lines) })
		return vol
	})
	o, err := v.store.Stat(v.t.Context(), v.at(uploader.VolumeName(volume)))
	if err != nil {
		v.t.Fatal(err)
	}
	v.manifest(func(m map[string]any) {
		f := field(m, volume)
		f["index_sha256"], f["size"], f["crc64nvme"], f["etag"] = sum, len(vol), crc.Base64(crc.NVME(vol)), o.ETag
		delete(m, "signer")
	})
	v.set(v.at("manifest.sig"), nil)
}

// damage is a way to harm a backup, and by which proof it is found at the latest, on
// a directory, on S3 that tells checksums and was written to, on such a one that
// rots below, and on S3 that tells none.
type damage struct {
	name string
	do   func(v *victim)
	want [4]string
	// signers: the keys that the proof is told of are the victim's own.
	signers bool
}

const (
	never = "never"
	q     = uploader.ByQuick
	s     = uploader.BySample
)

func always(by string) [4]string { return [4]string{by, by, by, by} }

func damages() []damage {
	head := func([]byte) int { return 40 }
	vol := uploader.VolumeName
	lastFrame := func(t *testing.T, b []byte) (snapshot.IndexFrame, int) {
		x, all := frames(t, b)
		return all[len(all)-1], int(x.Data)
	}
	return []damage{
		{name: "a bit in the first frame", do: func(v *victim) { v.flip(vol(0), head) }, want: [4]string{q, q, s, s}},
		{name: "a bit in the middle of a volume", do: func(v *victim) { v.flip(vol(1), func(b []byte) int { return len(b) / 2 }) }, want: [4]string{s, q, s, s}},
		{name: "a bit in the last frame", do: func(v *victim) {
			v.flip(vol(len(v.m.Volumes)-1), func(b []byte) int { f, _ := lastFrame(v.t, b); return int(f.Off) + 5 })
		}, want: [4]string{q, q, s, s}},
		{name: "a frame of zeros", do: func(v *victim) {
			v.change(vol(1), func(b []byte) []byte {
				_, all := frames(v.t, b)
				clear(b[all[1].Off : all[1].Off+int64(all[1].CLen)])
				return b
			})
		}, want: [4]string{s, q, s, s}},
		{name: "a frame that is another, whole one", do: func(v *victim) {
			v.change(vol(1), func(b []byte) []byte {
				_, all := frames(v.t, b)
				if all[0].CLen != all[1].CLen {
					v.t.Fatal("frames of unequal length")
				}
				copy(b[all[1].Off:], b[all[0].Off:all[0].Off+int64(all[0].CLen)])
				return b
			})
		}, want: [4]string{s, q, s, s}},
		{name: "a bit in the index", do: func(v *victim) {
			v.flip(vol(0), func(b []byte) int { x, _ := frames(v.t, b); return int(x.Data) + 30 })
		}, want: always(q)},
		{name: "a bit in the tail of the index", do: func(v *victim) {
			v.flip(vol(1), func(b []byte) int { return bytes.LastIndex(b, []byte("EDDYIDX1")) - 20 })
		}, want: always(q)},
		{name: "a bit in the seek table", do: func(v *victim) {
			v.flip(vol(0), func(b []byte) int { return bytes.LastIndex(b, []byte("EDDYIDX1")) + 18 })
		}, want: always(q)},
		{name: "a volume cut by a byte", do: func(v *victim) { v.change(vol(0), func(b []byte) []byte { return b[:len(b)-1] }) }, want: always(q)},
		{name: "a volume without its first frame", do: func(v *victim) {
			v.change(vol(0), func(b []byte) []byte { _, all := frames(v.t, b); return b[all[1].Off:] })
		}, want: always(q)},
		{name: "an empty volume", do: func(v *victim) { v.change(vol(1), func([]byte) []byte { return []byte{} }) }, want: always(q)},
		{name: "a volume of another backup", do: func(v *victim) {
			v.change(vol(1), func([]byte) []byte { return v.get("c/data/" + v.other.ID + "/" + vol(1)) })
		}, want: always(q)},
		{name: "two volumes exchanged", do: func(v *victim) {
			a, b := v.get(v.at(vol(0))), v.get(v.at(vol(1)))
			v.set(v.at(vol(0)), b)
			v.set(v.at(vol(1)), a)
		}, want: always(q)},
		{name: "a volume is missing", do: func(v *victim) { v.set(v.at(vol(1)), nil) }, want: always(q)},
		{name: "a volume too many", do: func(v *victim) { v.set(v.at(vol(len(v.m.Volumes))), v.get(v.at(vol(0)))) }, want: always(q)},
		{name: "a strange object", do: func(v *victim) { v.set(v.at("data.bin"), []byte("x")) }, want: always(q)},
		{name: "the list of hashes is missing", do: func(v *victim) { v.set(v.at(uploader.SumsName), nil) }, want: always(q)},
		{name: "a bit in the list of hashes", do: func(v *victim) { v.flip(uploader.SumsName, func(b []byte) int { return len(b) / 2 }) }, want: always(q)},
		{name: "a hash in the list edited", do: func(v *victim) {
			v.change(uploader.SumsName, func(b []byte) []byte {
				dec, _ := zstd.NewReader(nil)
				defer dec.Close()
				plain, err := dec.DecodeAll(b, nil)
				if err != nil {
					v.t.Fatal(err)
				}
				plain[0] ^= 1
				enc, _ := zstd.NewWriter(nil)
				packed := enc.EncodeAll(plain, nil)
				v.manifest(func(m map[string]any) {
					m["sums"] = map[string]any{"name": uploader.SumsName, "size": len(packed)}
					delete(m, "signer")
				})
				return packed
			})
		}, want: always(q)},
		{name: "manifest cut", do: func(v *victim) { v.change("manifest.json", func(b []byte) []byte { return b[:len(b)/2] }) }, want: always(q)},
		{name: "manifest of another cluster", do: func(v *victim) {
			v.change("manifest.json", func([]byte) []byte { return v.get("foreign/data/" + v.foreign.ID + "/manifest.json") })
		}, want: always(q)},
		{name: "manifest of another backup", do: func(v *victim) {
			v.change("manifest.json", func([]byte) []byte { return v.get("c/data/" + v.other.ID + "/manifest.json") })
		}, want: always(q)},
		{name: "manifest with another height", do: func(v *victim) {
			v.manifest(func(m map[string]any) { m["position"].(map[string]any)["index"] = 5 })
		}, want: always(q)},
		{name: "the same, no longer signed, signers named", signers: true, do: func(v *victim) {
			v.manifest(func(m map[string]any) { m["position"].(map[string]any)["index"] = 5; delete(m, "signer") })
			v.set(v.at("manifest.sig"), nil)
		}, want: always(q)},
		{name: "unsigned manifest with another checksum", do: func(v *victim) {
			v.manifest(func(m map[string]any) { field(m, 0)["crc64nvme"] = "AAAAAAAAAAA="; delete(m, "signer") })
		}, want: always(q)},
		{name: "unsigned manifest with another index", do: func(v *victim) {
			v.manifest(func(m map[string]any) { field(m, 0)["index_sha256"] = strings.Repeat("0", 64); delete(m, "signer") })
		}, want: always(q)},
		{name: "unsigned manifest with fewer files", do: func(v *victim) {
			v.manifest(func(m map[string]any) { m["sizes"].(map[string]any)["files"] = 1; delete(m, "signer") })
		}, want: always(q)},
		{name: "unsigned manifest with fewer volumes", do: func(v *victim) {
			v.manifest(func(m map[string]any) { m["volumes"] = m["volumes"].([]any)[:1]; delete(m, "signer") })
		}, want: always(q)},
		{name: "signature is missing", do: func(v *victim) { v.set(v.at("manifest.sig"), nil) }, want: always(q)},
		{name: "signature is another", do: func(v *victim) { v.flip("manifest.sig", func([]byte) int { return 7 }) }, want: always(q)},
		{name: "signature of another backup", do: func(v *victim) {
			v.change("manifest.sig", func([]byte) []byte { return v.get("c/data/" + v.other.ID + "/manifest.sig") })
		}, want: always(q)},
		{name: "forged: frames in another order in the index", do: func(v *victim) {
			v.forge(1, func(_ []byte, lines []map[string]any) {
				a, b := lines[1], lines[2]
				for _, k := range []string{"id", "entries", "crc64nvme"} {
					a[k], b[k] = b[k], a[k]
				}
			})
		}, want: always(q)},
		{name: "forged: the index promises another file", do: func(v *victim) {
			v.forge(1, func(_ []byte, lines []map[string]any) { lines[1]["id"] = strings.Repeat("ab", 32) })
		}, want: [4]string{s, s, q, s}},
		{name: "forged: all of it, signers named", signers: true, do: func(v *victim) { v.fake() }, want: always(q)},
		// Below a store that tells checksums it cannot be done: it tells the old ones.
		{name: "forged: all of it, nobody named", do: func(v *victim) { v.fake() }, want: [4]string{never, never, q, never}},
		{name: "signed by another key, signers named", signers: true, do: func(v *victim) {
			// A whole and honest backup, but of somebody else's. It stays, as the latest.
			key, err := uploader.NewSigningKey()
			if err != nil {
				v.t.Fatal(err)
			}
			v.m = v.backupOf("c", 9, 500, key)
		}, want: always(q)},
	}
}

// fake makes of the other backup this one: every hash right, nothing signed.
func (v *victim) fake() {
	other := "c/data/" + v.other.ID + "/"
	v.change("manifest.json", func([]byte) []byte {
		b := bytes.ReplaceAll(v.get(other+"manifest.json"), []byte(v.other.ID), []byte(v.m.ID))
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			v.t.Fatal(err)
		}
		delete(m, "signer")
		for i := range v.other.Volumes {
			name := uploader.VolumeName(i)
			vol, sum := reindex(v.t, v.get(other+name), func(lines []map[string]any) { lines[0]["archive"] = v.m.ID })
			v.set(v.at(name), vol)
			f := field(m, i)
			o, err := v.store.Stat(v.t.Context(), v.at(name))
			if err != nil {
				v.t.Fatal(err)
			}
			f["size"], f["index_sha256"], f["crc64nvme"], f["etag"] = len(vol), sum, crc.Base64(crc.NVME(vol)), o.ETag
		}
		v.set(v.at(uploader.SumsName), v.get(other+uploader.SumsName))
		b, err := json.Marshal(m)
		if err != nil {
			v.t.Fatal(err)
		}
		return b
	})
	v.set(v.at("manifest.sig"), nil)
}

// Whatever is done to a backup in the bucket is found, by the earliest proof that
// can see it; and by --read-data in any case.
func TestDamageInTheBucketIsFound(t *testing.T) {
	kinds := []string{"file", "s3", "s3 rot", "s3 bare"}[:damagedKinds]
	all := damages()
	var table [4][]string // by kind, and by damage
	t.Run("kinds", func(t *testing.T) {
		for k, kind := range kinds {
			t.Run(kind, func(t *testing.T) { t.Parallel(); table[k] = foundIn(t, k, kind, all) })
		}
	})
	t.Logf("%-50s %-10s %-10s %-10s %-10s", "damage", "directory", "S3", "S3, rotten", "S3, no sums")
	for i, d := range all {
		line := fmt.Sprintf("%-50s", d.name)
		for k := range kinds {
			if i < len(table[k]) {
				line += fmt.Sprintf(" %-10s", table[k][i])
			}
		}
		t.Log(line)
	}
}

// foundIn does all damages to a backup in a bucket of the kth kind, and returns by
// which proof each was found.
func foundIn(t *testing.T, k int, kind string, all []damage) (table []string) {
	b := newBucket(t, kind)
	base := victim{bucket: b, foreign: b.backupOf("foreign", 3, 10, nil)}
	base.m = b.backupOf("c", 1, 10, b.key)
	base.other = b.backupOf("c", 2, 20, b.key)
	for _, by := range []string{uploader.ByQuick, uploader.BySample, uploader.ByReadData} {
		got, err := b.verify("c", base.m.ID, by, b.key.Signer())
		if err != nil || len(got.Findings) > 0 || got.Signed != "known" {
			t.Fatalf("nothing is wrong, and %s says %v", by, err)
		}
	}
	for _, d := range all {
		v := base
		d.do(&v)
		var signers []uploader.Signer
		if d.signers {
			signers = append(signers, b.key.Signer())
		}
		finds := func(by string) bool {
			_, err := b.verify("c", v.m.ID, by, signers...)
			if err != nil && !errors.Is(err, ErrWarnings) && !errors.Is(err, uploader.ErrDamaged) && !errors.Is(err, uploader.ErrUntrusted) {
				t.Errorf("%s: %s: %v", d.name, by, err)
			}
			return err != nil && !errors.Is(err, ErrWarnings)
		}
		found, last := never, finds(uploader.ByReadData)
		switch {
		case finds(uploader.ByQuick):
			found = uploader.ByQuick
		case finds(uploader.BySample):
			found = uploader.BySample
		case last:
			found = uploader.ByReadData
		}
		if found != never && !last {
			t.Errorf("%s: found by %s and not by --read-data", d.name, found)
		}
		if found != d.want[k] {
			t.Errorf("%s: found by %s, want %s", d.name, found, d.want[k])
		}
		table = append(table, found)
		b.heal()
	}
	if _, err := b.verify("c", base.m.ID, uploader.ByReadData, b.key.Signer()); err != nil {
		t.Fatalf("healed: %v", err)
	}
	return table
}
