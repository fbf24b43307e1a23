package check

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	dbm "github.com/cometbft/cometbft-db"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// asChild is how this test's binary plays a child.
func asChild(role string) []string {
	return []string{"/usr/bin/env", "EDDY_TEST_CHILD=" + role, os.Args[0]}
}

// playChild is what such a one does.
func playChild(role string) int {
	switch role {
	case "check":
		if err := Child(context.Background(), os.Stdin, os.Stdout); err != nil {
			os.Stderr.WriteString(err.Error())
			return 1
		}
	case "greedy":
		if err := bound(256 << 20); err != nil {
			return 1
		}
		var all [][]byte
		for {
			b := make([]byte, 16<<20)
			for i := range b {
				b[i] = 1
			}
			all = append(all, b)
			if len(all) > 1000 {
				return 3
			}
		}
	case "panics":
		panic("index out of range")
	case "killed":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "babbles":
		os.Stdout.WriteString("this is no answer")
	case "sleeps":
		time.Sleep(time.Minute)
	}
	return 0
}

func TestInChild(t *testing.T) {
	d := sdkDump(t, dbm.GoLevelDBBackend)
	o := Options{ChainID: "wasm-check-1", Deep: true, Height: sdkHeight}
	want, err := Run(t.Context(), d.home, o)
	must(t, err)
	got, err := InChild(t.Context(), asChild("check"), 0, d.home, o)
	must(t, err)
	if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(Report{}, "Seconds", "Peak"), cmpopts.IgnoreUnexported(Report{})); diff != "" {
		t.Errorf("a child sees it otherwise:\n%s", diff)
	}
	if got.Peak < 1<<20 || got.Peak > 256<<20 {
		t.Errorf("its peak: %d bytes", got.Peak)
	}
	if _, err := InChild(t.Context(), asChild("check"), 0, d.home+"/x", o); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no directory: %v", err)
	}
	if _, err := InChild(t.Context(), []string{"/nonexistent"}, 0, d.home, o); err == nil {
		t.Error("no program: no error")
	}
}

// A child that comes to a bad end is a finding, never a sound dump.
func TestBadEnds(t *testing.T) {
	for role, want := range map[string]What{
		"greedy": ChildMemory, "killed": ChildMemory, "panics": ChildEnded, "babbles": ChildEnded, "silent": ChildEnded,
	} {
		r, err := InChild(t.Context(), asChild(role), 0, t.TempDir(), Options{})
		if err != nil || len(r.Findings) != 1 || r.Findings[0].What != want || r.Findings[0].Hint == "" || r.Sound() || r.Grade != Broken {
			t.Errorf("%s: %+v, %v", role, r, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	begun := time.Now()
	if _, err := InChild(ctx, asChild("sleeps"), 0, t.TempDir(), Options{}); !errors.Is(err, context.DeadlineExceeded) || time.Since(begun) > 20*time.Second {
		t.Errorf("one that hangs: %v after %s", err, time.Since(begun))
	}
}

// When nobody waits any more, the child gives up.
func TestNobodyWaits(t *testing.T) {
	var out strings.Builder
	err := Child(t.Context(), strings.NewReader("garbage\n"), &out)
	if err == nil || out.Len() > 0 {
		t.Errorf("garbage: %v, %s", err, out.String())
	}
}

// A bound holds whoever writes: exec copies by a buffer's ReadFrom where it finds one.
func TestHead(t *testing.T) {
	h := head{max: 10}
	n, err := io.Copy(&h, io.LimitReader(strings.NewReader(strings.Repeat("x", 1<<20)), 1<<20))
	if n != 1<<20 || err != nil || h.b.String() != strings.Repeat("x", 10) {
		t.Errorf("%d copied, %d kept, %v", n, h.b.Len(), err)
	}
}
