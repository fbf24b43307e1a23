package cometbft

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft/check"
	"github.com/eddy-backup/eddy/snapshot"
)

// A look that does not end is given up, which is not the dump's fault; one that is
// interrupted says nothing.
func TestALookThatDoesNotEnd(t *testing.T) {
	o := Offline{Argv: []string{"/bin/sleep", "600"}, Within: 100 * time.Millisecond}
	trees := []snapshot.Tree{{Dir: t.TempDir()}}
	c, err := o.Check(t.Context(), trees, "c", nil, observer.Position{}, true)
	if err != nil || c.Opened != "none" || c.Unfinished == "" || c.Hint == "" || len(c.Findings) > 0 {
		t.Errorf("%+v, %v", c, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	o.Within = time.Hour
	if c, err := o.Check(ctx, trees, "c", nil, observer.Position{}, true); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("interrupted: %+v, %v", c, err)
	}
}

// Where a process that should tell the position could not, nothing is known; the
// dump may be all right.
func TestATipThatNobodyTells(t *testing.T) {
	for name, o := range map[string]Offline{
		"no time":   {Argv: []string{"/bin/sleep", "600"}, Within: 100 * time.Millisecond},
		"no memory": {Argv: []string{"/bin/sh", "-c", "kill -9 $$"}},
	} {
		if tip, err := o.tip(t.Context(), t.TempDir()); !errors.Is(err, ErrNoPosition) {
			t.Errorf("%s: %+v, %v", name, tip, err)
		}
	}
	o := Offline{Argv: []string{"/bin/sh", "-c", "echo index out of range >&2; exit 2"}}
	if tip, err := o.tip(t.Context(), t.TempDir()); err == nil || errors.Is(err, ErrNoPosition) || !strings.Contains(err.Error(), "index out of range") {
		t.Errorf("it ended: %+v, %v", tip, err)
	}
}

// What a report says is kept; only a process that had too little memory is no
// finding.
func TestWhatAReportMeans(t *testing.T) {
	got, err := checked(check.Report{
		Located: true, ChainID: "c", Height: 7, AppHash: []byte{1}, Time: time.Unix(9, 0), BlockHash: []byte{2}, Parts: "1:03", Validators: []byte{4},
		Opened: check.All, Grade: check.Broken, Notes: []string{"n"}, Seconds: 2, Peak: 3, Proven: check.Proven{Blocks: 12},
		Layers: []check.Layer{{Stage: check.StageState, Name: "data/state.db", Engine: "goleveldb", Opened: true, Said: "said"}},
		Findings: []check.Finding{
			{Stage: check.StageApp, What: check.AppHash, Where: "app", Detail: "d", Hint: "h"}, {Stage: check.StageApp, What: check.AppBehind},
		},
	})
	want := observer.Checked{
		Opened: "all", Grade: "broken", Notes: []string{"n"}, Seconds: 2, Peak: 3, Proven: map[string]int64{"blocks": 12},
		Layers:   []observer.CheckedLayer{{Name: "state", Engine: "goleveldb", Opened: true, Said: "said"}},
		Findings: []string{"app: app-hash: app: d", "app: app-behind: : "}, Hint: "h",
		At: &observer.Position{
			Kind: "cometbft", Index: 7, Hash: []byte{1}, HashKind: "app_hash", Time: time.Unix(9, 0), Consistency: "stopped",
			Marks: map[string]string{"chain_id": "c", "block_hash": "02", "part_set": "1:03", "validators_hash": "04"},
		},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	got, err = checked(check.Report{
		Opened: check.None, Grade: check.Broken,
		Findings: []check.Finding{{Stage: check.StageChild, What: check.ChildMemory, Detail: "too much", Hint: "h"}},
	})
	if err != nil || got.Unfinished != "too much" || got.Grade != "" || got.Hint != "h" || len(got.Findings) > 0 || got.Opened != "none" {
		t.Errorf("%+v, %v", got, err)
	}
}
