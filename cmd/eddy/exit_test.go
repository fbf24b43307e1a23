package main

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/observer/held"
)

// A node that stands still is what matters, whatever else a run has met.
func TestANodeThatStandsStillIsAFailureBeforeAllElse(t *testing.T) {
	down := held.Error(fmt.Errorf("release: %w: no more processes", control.ErrDown))
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name   string
		ctx    context.Context
		err    error
		code   int
		reason string
	}{
		{"a start", t.Context(), observer.Mark(job.ErrStart, down), exitFailed, job.ReasonStart},
		{"a start, interrupted", interrupted, errors.Join(context.Canceled, observer.Mark(job.ErrStart, down)), exitFailed, job.ReasonStart},
		{"a stop and a start", t.Context(), observer.Mark(job.ErrStart, errors.Join(control.ErrKilled, down)), exitFailed, job.ReasonStart},
		{"the guard still tries", t.Context(), observer.Mark(job.ErrStart, errors.Join(control.ErrHeld, down)), exitFailed, job.ReasonStart},
		{"interrupted", interrupted, context.Canceled, exitInterrupted, job.ReasonInterrupted},
		{"a slow stop", t.Context(), held.Error(errors.Join(control.ErrStopTimeout, control.ErrStopping)), exitNotFit, job.ReasonHold},
		{"another eddy", t.Context(), fmt.Errorf("busy: %w", fsx.ErrLocked), exitLocked, job.ReasonLocked},
	} {
		if code, word := exitCode(c.ctx, c.err), reason(c.err); code != c.code || word != c.reason {
			t.Errorf("%s: exit code %d, reason %s; want %d, %s", c.name, code, word, c.code, c.reason)
		}
	}
}
