package job

import (
	"context"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// opens has what a look into the backup needs put into a scratch directory while it is
// read back. done removes that.
func (v *Verify) opens(m *uploader.Manifest, o *snapshot.VerifyOptions, out *Verified) (look func(context.Context) error, done func() error, err error) {
	look, done = func(context.Context) error { return nil }, func() error { return nil }
	looker := v.Lookers[m.Position.Kind]
	switch {
	case v.By != uploader.ByReadData:
		return look, done, nil
	case v.NoOpen:
		out.Opened = openedSkipped
		return look, done, nil
	case looker == nil:
		out.Opened = OpenedNone
		return look, done, nil
	}
	dir, done, err := v.Scratch.Take()
	if err != nil {
		return look, done, err
	}
	needs := looker.Needs()
	o.Into = &snapshot.Pick{FS: v.Scratch.FS, Dir: dir, See: needs.See, Head: needs.Head}
	return func(ctx context.Context) error { return v.look(ctx, m, looker, dir, out) }, done, nil
}

// look looks into what was read back.
func (v *Verify) look(ctx context.Context, m *uploader.Manifest, looker observer.Looker, dir string, out *Verified) error {
	v.phase(m.ID, "check", "every byte is read; looking into it")
	r, err := looker.Check(ctx, []snapshot.Tree{{Dir: dir}}, PositionOf(m))
	if err != nil {
		return err
	}
	out.Opened, out.Check = r.Opened, checkOf(r)
	for _, f := range r.Findings {
		v.found(stageOpened, "", f)
	}
	switch {
	case r.Unfinished != "":
		v.warn("what was read back could not be looked into: "+r.Unfinished, r.Hint)
	case len(r.Findings) == 0:
		v.phase(m.ID, "check", "%s", whatWasOpened(r))
	}
	return nil
}
