package main

import (
	"context"
	"errors"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/snapshot/bundle"
	"github.com/eddy-backup/eddy/uploader"
)

// The exit codes, as docs/cli.md lists them.
const (
	exitDone         = 0
	exitFailed       = 1
	exitUsage        = 2
	exitWarnings     = 3
	exitNoBackup     = 10
	exitLocked       = 11
	exitNotFit       = 12
	exitCorrupt      = 13
	exitStore        = 14
	exitProof        = 15
	exitNotConfirmed = 16
	exitInterrupted  = 130
)

// errUsage marks an error of the command line itself.
var errUsage = errors.New("usage")

// childExit carries the exit code of a child that eddy stands for (supervise).
type childExit int

func (c childExit) Error() string { return "child exited" }

// verdict is the exit code of a check in the manner of Nagios, whose one line has
// been printed.
type verdict int

func (v verdict) Error() string { return "check: " + v.word() }

const (
	verdictOK verdict = iota
	verdictWarning
	verdictCritical
	verdictUnknown
)

func (v verdict) word() string { return [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}[v] }

// exitCode maps an error to the code that scripts rely on. An interruption wins
// over whatever it caused, but not over a node that stands still; among the others
// the first sentinel found in this order stands.
func exitCode(ctx context.Context, err error) int {
	var child childExit
	var check verdict
	var conf *config.Error
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &child):
		return int(child)
	case errors.As(err, &check):
		return int(check)
	case errors.Is(err, observer.ErrDown):
		return exitFailed
	case ctx.Err() != nil && errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.As(err, &conf), errors.Is(err, errUsage), errors.Is(err, bundle.ErrIdentity), errors.Is(err, bundle.ErrRecipient):
		return exitUsage
	case errors.Is(err, job.ErrWarnings):
		return exitWarnings
	case errors.Is(err, uploader.ErrNoSuchBackup):
		return exitNoBackup
	case errors.Is(err, fsx.ErrLocked), errors.Is(err, uploader.ErrLeaseLost), errors.Is(err, control.ErrRestoring):
		return exitLocked
	case errors.Is(err, job.ErrNotConfirmed), errors.Is(err, uploader.ErrNewest), errors.Is(err, uploader.ErrPinned):
		return exitNotConfirmed
	case errors.Is(err, observer.ErrNotFit), errors.Is(err, control.ErrStopped), errors.Is(err, control.ErrKilled),
		errors.Is(err, control.ErrStopTimeout), errors.Is(err, control.ErrNotDown):
		return exitNotFit
	case errors.Is(err, job.ErrProof), errors.Is(err, uploader.ErrFailed):
		return exitProof
	case errors.Is(err, snapshot.ErrCorrupt), errors.Is(err, uploader.ErrDamaged), errors.Is(err, uploader.ErrUntrusted):
		return exitCorrupt
	case errors.Is(err, uploader.ErrRefused), errors.Is(err, uploader.ErrUnreachable), errors.Is(err, uploader.ErrNotFound):
		return exitStore
	default:
		return exitFailed
	}
}

// reason is the word by which a failed run is counted, of job.Reasons. As with
// exit codes the first that fits stands: where a node was not started again, that
// is what matters.
func reason(err error) string {
	var conf *config.Error
	switch {
	case errors.Is(err, job.ErrStart):
		return job.ReasonStart
	case errors.Is(err, context.Canceled):
		return job.ReasonInterrupted
	case errors.As(err, &conf), errors.Is(err, bundle.ErrIdentity), errors.Is(err, bundle.ErrRecipient):
		return job.ReasonConfig
	case errors.Is(err, fsx.ErrLocked), errors.Is(err, uploader.ErrLeaseLost), errors.Is(err, control.ErrRestoring):
		return job.ReasonLocked
	case errors.Is(err, control.ErrStopped), errors.Is(err, control.ErrKilled),
		errors.Is(err, control.ErrStopTimeout), errors.Is(err, control.ErrNotDown):
		return job.ReasonHold
	case errors.Is(err, observer.ErrNotFit):
		return job.ReasonGate
	case errors.Is(err, job.ErrProof), errors.Is(err, uploader.ErrFailed):
		return job.ReasonProof
	case errors.Is(err, snapshot.ErrCorrupt), errors.Is(err, uploader.ErrDamaged), errors.Is(err, uploader.ErrUntrusted):
		return job.ReasonCorrupt
	case errors.Is(err, uploader.ErrRefused), errors.Is(err, uploader.ErrUnreachable), errors.Is(err, uploader.ErrNotFound):
		return job.ReasonStore
	case errors.Is(err, job.ErrStage):
		return job.ReasonStage
	default:
		return job.ReasonOther
	}
}
