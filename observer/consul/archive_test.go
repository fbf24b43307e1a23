package consul

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// The counts are those that `consul snapshot inspect` of 1.21.5 tells.
func TestRealSnapshot(t *testing.T) {
	sys, _ := systemOf(Consul)
	a, err := sys.readArchive(t.Context(), bytes.NewReader(realSnapshot(t)))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int64{
		"catalog entries": 5, "keys": 25, "ACL policies": 3, "CA roots": 1, "CA provider states": 1, "indexes": 27, "ACL tokens": 2,
		"config entries": 1, "system metadata": 4, "autopilot settings": 1, "CA settings": 1, "sessions": 1, "federation states": 1,
		"virtual IPs": 1, "tombstones": 1, "free virtual IPs": 1, "chunks": 1,
	}
	if diff := cmp.Diff(want, a.records); diff != "" || a.unread != "" {
		t.Error(diff, a.unread)
	}
	taken, ok := a.meta.taken()
	if a.meta.Index != 53 || a.meta.Term != 2 || len(a.meta.Configuration.Servers) != 1 || !ok || taken.UnixMilli() != 1795297142507 {
		t.Errorf("%+v, %v", a.meta, taken)
	}
}

// A flipped bit anywhere in a dump is found, and so is its end anywhere else.
func TestFlippedBits(t *testing.T) {
	s := source(t, Consul, newStandin(t, Consul).URL, rightToken, nil)
	st, err := taken(t, s, false)
	if err != nil {
		t.Fatal(err)
	}
	good := realSnapshot(t)
	note, err := os.ReadFile(filepath.Join(st.Trees()[0].Dir, observer.NoteName))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name string, b []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	findings := func() int {
		got, err := s.Check(t.Context(), []snapshot.Tree{{Dir: dir}}, observer.Position{})
		if err != nil {
			t.Fatal(err)
		}
		return len(got.Findings)
	}
	write(observer.NoteName, note)
	write(observer.DumpName, good)
	if findings() != 0 {
		t.Fatal("the good one is not")
	}
	for i := 0; i < len(good); i += 1 + min(i/20, 8) { // each byte of the head
		bad := bytes.Clone(good)
		bad[i] ^= 1 << (i % 8)
		if write(observer.DumpName, bad); findings() == 0 {
			t.Errorf("a bit of byte %d is flipped, and nobody sees it", i)
		}
	}
	for i := 0; i < len(good); i += 197 {
		if write(observer.DumpName, good[:i]); findings() == 0 {
			t.Errorf("it is cut at %d, and nobody sees it", i)
		}
	}
	write(observer.DumpName, good)
	if write(observer.NoteName, note[:len(note)/2]); findings() == 0 {
		t.Error("half a note is enough")
	}
}

func TestWhatIsNoSnapshot(t *testing.T) {
	vault, _ := systemOf(Vault)
	nomad, _ := systemOf(Nomad)
	for name, c := range map[string]struct {
		sys    system
		change func(map[string][]byte)
		want   string
	}{
		"whole":               {nomad, nil, ""},
		"whole, of Vault":     {vault, nil, ""},
		"Vault's without end": {vault, func(m map[string][]byte) { delete(m, "SHA256SUMS.sealed") }, "it lacks SHA256SUMS.sealed"},
		"no state":            {nomad, func(m map[string][]byte) { delete(m, stateName) }, "it lacks state.bin"},
		"no hashes":           {nomad, func(m map[string][]byte) { delete(m, sumsName) }, "it lacks SHA256SUMS"},
		"something else":      {nomad, func(m map[string][]byte) { m["more"] = nil }, `a member "more"`},
		"another state":       {nomad, func(m map[string][]byte) { m[stateName] = []byte("State of nomad") }, "state.bin has another sha256"},
		"another meta":        {nomad, func(m map[string][]byte) { m[metaName] = bytes.Replace(m[metaName], []byte("53"), []byte("54"), 1) }, "meta.json has another sha256"},
		"half the hashes":     {nomad, func(m map[string][]byte) { m[sumsName] = m[sumsName][:bytes.IndexByte(m[sumsName], '\n')+1] }, "names 1 of two"},
		"strange hashes":      {nomad, func(m map[string][]byte) { m[sumsName] = append(m[sumsName], "x  ../../etc\n"...) }, "has the line"},
		"no position":         {nomad, func(m map[string][]byte) { m[metaName] = []byte("{}") }, "names no index"},
		"no JSON":             {nomad, func(m map[string][]byte) { m[metaName] = []byte("no") }, "meta.json: invalid"},
		"a huge meta":         {nomad, func(m map[string][]byte) { m[metaName] = make([]byte, maxMeta+1) }, "more than"},
	} {
		_, err := c.sys.readArchive(t.Context(), bytes.NewReader(packed(t, c.sys, c.change)))
		var u unsound
		if c.want == "" && err != nil || c.want != "" && (!errors.As(err, &u) || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good := packed(t, nomad, nil)
	for name, b := range map[string][]byte{"empty": nil, "text": []byte("No cluster leader"), "more behind it": append(bytes.Clone(good), 'x'), "twice": append(bytes.Clone(good), good...)} {
		var u unsound
		if _, err := nomad.readArchive(t.Context(), bytes.NewReader(b)); !errors.As(err, &u) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A disk that cannot be read says nothing of the dump.
	var u unsound
	if _, err := nomad.readArchive(t.Context(), iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(good)))); !errors.Is(err, iotest.ErrTimeout) || errors.As(err, &u) {
		t.Errorf("%v", err)
	}
}

func FuzzArchive(f *testing.F) {
	sys, _ := systemOf(Consul)
	nomad, _ := systemOf(Nomad)
	f.Add(realSnapshot(f))
	f.Add(packed(f, nomad, nil))
	f.Add(packed(f, nomad, func(m map[string][]byte) { m[sumsName] = []byte("  \n") }))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := sys.readArchive(t.Context(), bytes.NewReader(b))
		var u unsound
		if err != nil && !errors.As(err, &u) {
			t.Errorf("%v is no finding", err)
		}
		if err == nil && (a.meta.Index == 0 || a.state == 0 && a.records != nil) {
			t.Errorf("sound: %+v", a)
		}
	})
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte("\x81\xa9LastIndex\x35\x02\x81\xa3Key\xa1a\x03\x90"))
	f.Add([]byte("\x80\x1d\xdf\xff\xff\xff\xff\xc0"))
	f.Add([]byte("\x80\x00\xc9\xff\xff\xff\xff\x01x"))
	f.Add([]byte("\xc1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := countRecords(bytes.NewReader(b))
		total := int64(0)
		for _, n := range got {
			total += n
		}
		if err == nil && 2*total >= int64(len(b)) { // a byte and a value each, behind a header
			t.Errorf("%d records in %d bytes", total, len(b))
		}
	})
}
