package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// smallFrame is how much of a file is in a frame where a test needs many of them.
// Frames of the real size are those of TestGolden and TestRoundTrip.
const smallFrame = 512 << 10

// mixedHome has small files, files of several frames of smallFrame, and names of all
// kinds.
func mixedHome(t testing.TB) string {
	t.Helper()
	home := fastDir(t)
	r := rand.New(rand.NewPCG(1, 2))
	write := func(name string, n int) {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i / 100 * i % 251) // compresses a little
		}
		p := filepath.Join(home, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 40 {
		write(fmt.Sprintf("data/a.db/%06d.ldb", i), r.IntN(2000))
	}
	write("data/a.db/000100.ldb", 2*smallFrame+17)
	write("data/a.db/000101.ldb", ownFrame)
	write("data/b/CURRENT", 16)
	write("data/b/empty", 0)
	write("data/b/log", smallFrame+1)
	return home
}

// made is a volume as an earlier run made it.
type made struct {
	frames []Known
	bytes  [][]byte // of frames, index and seek table
	result VolumeResult
}

func (m made) whole() []byte { return bytes.Join(m.bytes, nil) }

func makeAll(t testing.TB, st *Stage, o PlanOptions) []made {
	t.Helper()
	p, err := NewPlan(st, st.Roots(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	var all []made
	for {
		v, err := p.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		var m made
		for f, err := range v.Frames(t.Context(), nil) {
			if err != nil {
				t.Fatal(err)
			}
			m.frames = append(m.frames, Known{ID: f.ID, CLen: f.CLen, CRC: f.CRC, Record: f.Record})
			m.bytes = append(m.bytes, bytes.Clone(f.Data))
		}
		m.result = v.Result()
		all = append(all, m)
	}
}

func seqOf(known []Known) iter.Seq2[Known, error] {
	return func(yield func(Known, error) bool) {
		for _, k := range known {
			if !yield(k, nil) {
				return
			}
		}
	}
}

// counted counts the files that are opened.
type counted struct {
	Source
	opened *int
}

func (c counted) Open(e Entry) (*os.File, error) {
	*c.opened++
	return c.Source.Open(e)
}

// Wherever an earlier run broke off, the rest is made as if it had not: volumes
// that are complete are passed over, frames that were made are not read, and
// each can be made again, the same to the byte.
func TestPlanGoesOn(t *testing.T) {
	st := stageOf(t, mixedHome(t), "resume")
	var sums bytes.Buffer
	o := PlanOptions{Archive: st.ID(), VolumeSize: smallFrame, frame: smallFrame, Sums: &sums}
	all := makeAll(t, st, o)
	want := sums.String()
	if len(all) < 4 || !slices.ContainsFunc(all, func(m made) bool { return m.result.Carry != nil }) {
		t.Fatalf("%d volumes, none of which ends inside a file", len(all))
	}
	for at := range all {
		whole := len(all[at].frames) // index and seek table among them
		for _, n := range slices.Compact([]int{0, 1, whole - 3, whole - 2, whole}) {
			t.Run(fmt.Sprintf("volume %d, %d frames", at, n), func(t *testing.T) {
				sums.Reset()
				got := goOn(t, st, o, all, at, n)
				if s := sums.String(); s != "" && !strings.Contains(want, s) {
					t.Errorf("the list of hashes is not a part of what it was:\n%s", s)
				}
				if n > 0 {
					return
				}
				rep, err := Extract(t.Context(), sources(got), ExtractOptions{Dir: fastDir(t)})
				if err != nil || rep.Files != 45 {
					t.Errorf("extracted %+v, %v", rep, err)
				}
			})
		}
	}
}

// goOn makes the archive behind an earlier run that has made the volumes before
// at, and n frames of that one.
func goOn(t *testing.T, st *Stage, o PlanOptions, all []made, at, n int) (volumes [][]byte) {
	opened := 0
	p, err := NewPlan(counted{st, &opened}, st.Roots(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	for i := range at {
		if _, err := p.Skip(t.Context(), all[i].result.Carry); err != nil {
			t.Fatal(err)
		}
		volumes = append(volumes, all[i].whole())
	}
	if opened > at {
		t.Errorf("%d files were opened to pass over %d volumes", opened, at)
	}
	known := all[at].frames[:n]
	for {
		v, err := p.Next(t.Context())
		if errors.Is(err, io.EOF) {
			return volumes
		}
		if err != nil {
			t.Fatal(err)
		}
		ref := all[v.Number()]
		var b bytes.Buffer
		i := 0
		for f, err := range v.Frames(t.Context(), seqOf(known)) {
			if err != nil {
				t.Fatal(err)
			}
			data := f.Data
			if k := i < len(known) && f.ID != ""; k != (data == nil) {
				t.Fatalf("frame %d of %d known: its bytes were made: %t", i, len(known), data != nil)
			}
			if data == nil && i%3 == 0 {
				if data, err = f.Again(t.Context()); err != nil {
					t.Fatal(err)
				}
			} else if data == nil {
				data = ref.bytes[i]
			}
			// The index tells when a frame was made, so it differs where one was.
			if f.ID != "" && !bytes.Equal(data, ref.bytes[i]) {
				t.Fatalf("frame %d of volume %d has other bytes", i, v.Number())
			}
			b.Write(data)
			i++
		}
		r := v.Result()
		if r.Files != ref.result.Files || r.SourceBytes != ref.result.SourceBytes || r.Frames != ref.result.Frames || !bytes.Equal(r.Carry, ref.result.Carry) {
			t.Fatalf("result %+v, want %+v", r, ref.result)
		}
		if len(known) == 0 && r.ReadBytes != r.SourceBytes {
			t.Fatalf("%d bytes read of %d", r.ReadBytes, r.SourceBytes)
		}
		if len(known) == len(ref.frames) && !bytes.Equal(b.Bytes(), ref.whole()) {
			t.Fatal("a volume that was known whole is another one")
		}
		volumes = append(volumes, b.Bytes())
		if n > 0 {
			return volumes // what comes then is the same each time
		}
		known = nil
	}
}

// Frames that are not of this stage are refused before anything comes of them.
func TestPlanGoesOnWithItsOwnOnly(t *testing.T) {
	home := mixedHome(t)
	st := stageOf(t, home, "own")
	o := PlanOptions{Archive: st.ID(), VolumeSize: smallFrame, frame: smallFrame}
	all := makeAll(t, st, o)
	for what, change := range map[string]func([]Known) []Known{
		"another length":   func(k []Known) []Known { k[0].Record = []byte(`{"ulen":7}`); return k },
		"no record":        func(k []Known) []Known { k[0].Record = nil; return k },
		"a frame too many": func(k []Known) []Known { return append(k[:2:2], k[1:]...) },
		"another index":    func(k []Known) []Known { k[len(k)-2].CRC++; return k },
		"no running hash": func(k []Known) []Known {
			i := slices.IndexFunc(k, func(k Known) bool { return bytes.Contains(k.Record, []byte(`"hash"`)) })
			k[i].Record = bytes.Replace(k[i].Record, []byte(`"hash"`), []byte(`"hush"`), 1)
			return k[:i+1]
		},
	} {
		p, err := NewPlan(st, st.Roots(), o)
		if err != nil {
			t.Fatal(err)
		}
		v, err := p.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var last error
		for _, err := range v.Frames(t.Context(), seqOf(change(slices.Clone(all[0].frames)))) {
			last = err
		}
		if !errors.Is(last, errOtherFrames) {
			t.Errorf("%s: %v, want errOtherFrames", what, last)
		}
		p.Close()
	}
}

// A frame that is made again from other bytes is no longer the frame.
func TestFrameThatChanged(t *testing.T) {
	home := mixedHome(t)
	st := stageOf(t, home, "changed")
	o := PlanOptions{Archive: st.ID(), frame: smallFrame}
	all := makeAll(t, st, o)
	f, err := os.OpenFile(filepath.Join(home, StageDir, "changed", "data/b/log"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 5); err != nil {
		t.Fatal(err)
	}
	f.Close()
	p, err := NewPlan(st, st.Roots(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	v, err := p.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for f, err := range v.Frames(t.Context(), seqOf(all[0].frames)) {
		if err != nil {
			t.Fatal(err)
		}
		if f.Data == nil {
			if _, err := f.Again(t.Context()); err != nil {
				refused++
			}
		}
	}
	if refused != 1 {
		t.Errorf("%d frames were refused, want the one that changed", refused)
	}
}
