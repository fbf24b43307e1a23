package job

import (
	"context"
	"errors"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/uploader"
)

// restoringLapse is how long a restore may take before it counts as abandoned.
const restoringLapse = 24 * time.Hour

// restoring says in the store that a backup is being restored in place, so that
// others see it and nobody deletes it meanwhile. ended takes that back, or says why
// it failed. A store that refuses it is said, and the restore goes on: whoever
// restores need not be able to write. It must not be called while a node is held.
func (r *Restore) restoring(ctx context.Context, m *uploader.Manifest) (ended func(context.Context, error)) {
	cannot := func(err error) {
		if errors.Is(err, uploader.ErrRefused) { // as it should be with credentials that restore only
			r.Events.Emit(Phase{ID: m.ID, Phase: "unseen", Text: "these credentials may not write: others do not see in the store that this restore runs"})
			return
		}
		r.Events.Emit(Warning{Text: "others do not see in the store that this restore runs: " + err.Error(), Hint: hint.Or(err, "the restore goes on")})
	}
	if r.Host == "" {
		return func(context.Context, error) {}
	}
	id := uploader.NewID(r.Now(), "restore")
	err := r.Catalog.EndRestores(ctx, m.ID, r.Host) // that died here
	if err == nil {
		err = r.Catalog.StartRun(ctx, uploader.Run{
			ID: id, Status: uploader.StatusRestoring, Component: m.System, Host: r.Host, Of: m.ID,
			LapseSeconds: int64(restoringLapse / time.Second),
		})
	}
	if err != nil {
		cannot(err)
		return func(context.Context, error) {}
	}
	return func(ctx context.Context, cause error) {
		ctx, cancel := noteTo(ctx, 20*time.Second)
		defer cancel()
		var err error
		if cause == nil || errors.Is(cause, ErrWarnings) {
			err = r.Catalog.EndRun(ctx, id)
		} else {
			err = r.Catalog.GiveUpRun(ctx, id, cause)
		}
		if err != nil {
			cannot(err)
		}
	}
}
