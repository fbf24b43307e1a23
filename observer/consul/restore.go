package consul

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// Target implements observer.Restorer.
func (s *Source) Target(ctx context.Context, t observer.RestoreTask) (string, error) {
	if !s.o.Named {
		return "", hint.Add(fmt.Errorf("%w: the server that a restore would replace, %s, is named nowhere but in the variables of other tools", observer.ErrNotFit, s.api.base),
			"write it down: "+s.sys.set("address", s.api.base))
	}
	a, st, h, err := s.target(ctx)
	if err != nil {
		return "", err
	}
	there := fmt.Sprintf("%s %s at %s, %s", s.sys.title, st.Position.Incarnation, a.base, h.what)
	for _, m := range st.Members {
		if m.Leader {
			there += ", led by " + m.Address
		}
	}
	if t.Overwrite {
		return there, nil
	}
	const how = "look whether this is the right cluster; `--overwrite-live` replaces it, after its own snapshot was saved"
	switch {
	case !h.fresh:
		return "", hint.Add(fmt.Errorf("%w: the cluster is not fresh: %s", observer.ErrNotFit, there), how)
	case s.sys.kind != Vault && t.Position.Incarnation != "" && t.Position.Incarnation != st.Position.Incarnation:
		return "", hint.Add(fmt.Errorf("%w: the backup is of %q, this is %q", observer.ErrNotFit, t.Position.Incarnation, st.Position.Incarnation), how)
	}
	return there, nil
}

// target asks the cluster that a dump would be brought into: it must have a leader.
func (s *Source) target(ctx context.Context) (*api, observer.State, holdings, error) {
	st, err := s.Describe(ctx)
	if err != nil {
		return nil, st, holdings{}, err
	}
	q := observer.QuorumOf(st.Members)
	if q.Leaders != 1 || q.Bears() < 0 {
		return nil, st, holdings{}, hint.Add(fmt.Errorf("%w: %d of %d servers are reachable, %d lead: a dump is brought back into a cluster with a quorum and a leader", observer.ErrNotFit, q.Reachable, q.Voters, q.Leaders),
			"start fresh servers, as many as there were, with empty data directories; when they have a leader, restore")
	}
	a, err := s.leading(ctx)
	if err != nil {
		return nil, st, holdings{}, fmt.Errorf("%w: %w", observer.ErrNotFit, err)
	}
	h, err := s.sys.holds(ctx, a)
	if err != nil {
		return nil, st, h, fmt.Errorf("%w: what lives there is not told: %w", observer.ErrNotFit, err)
	}
	return a, st, h, nil
}

// Restore implements observer.Restorer: the dump is given to one server, once; raft
// brings it to the others. To do it again is the same.
func (s *Source) Restore(ctx context.Context, t observer.RestoreTask) (next []string, err error) {
	say := t.Say
	if say == nil {
		say = func(string, string) {}
	}
	a, st, h, err := s.target(ctx)
	if err != nil {
		return nil, err
	}
	note, err := observer.ReadNote(t.Dir)
	if err != nil {
		return nil, err
	}
	if was := note.State.Version; was != "" && st.Version != "" && was != st.Version {
		say("version", fmt.Sprintf("the snapshot was made by %s %s, this is %s: only the same version is sure to take it", s.sys.title, was, st.Version))
	}
	if !h.fresh {
		path, err := s.save(ctx, a)
		if err != nil {
			return nil, fmt.Errorf("save what is there: %w", err)
		}
		say("saved", "what was there is saved, encrypted: "+path)
		next = append(next, "what was there before is in "+path+": `age -d -i key.txt "+path+"` gives the snapshot; remove it when it is not wanted any more")
	}
	path, told := s.sys.snapshot, "the tokens of the backup are valid again; the one that eddy has just used may not be"
	if s.sys.kind == Vault {
		told = "unseal it with the unseal keys of the backup's cluster, not with those of the new one; its tokens are valid again"
		if st.Position.Incarnation != t.Position.Incarnation {
			path += "-force"
		}
	}
	say("restore", "giving the snapshot to "+a.base+path)
	if err := s.give(ctx, a, path, filepath.Join(t.Dir, observer.DumpName)); err != nil {
		return next, err
	}
	if s.sys.kind == Vault {
		return append(next, told), nil
	}
	if err := s.led(ctx, a); err != nil {
		return next, err
	}
	say("leader", "it has a leader again")
	return append(next, told, "look whether all servers follow: `"+s.sys.kind+" operator raft list-peers`", "make a fresh backup: `eddy backup --new-incarnation --label after-restore`"), nil
}

// give sends a snapshot.
func (s *Source) give(ctx context.Context, a *api, path, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, a.max.restore, fmt.Errorf("not done within %s", a.max.restore))
	defer cancel()
	resp, err := a.send(ctx, s.sys.method, path, nil, io.NopCloser(f), fi.Size())
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// save takes a snapshot of what lives there and looks at it, without a byte of it in
// the plain on a disk.
func (s *Source) save(ctx context.Context, a *api) (path string, err error) {
	f, err := a.open(ctx, nil)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	kept, err := s.o.Save("before-restore-" + s.now().UTC().Format("20060102T150405Z") + ".snap.age")
	if err != nil {
		return "", err
	}
	if _, err := s.sys.readArchive(ctx, io.TeeReader(f, kept)); err != nil {
		return "", errors.Join(err, kept.Abort())
	}
	return kept.Commit()
}

// led waits until a server leads and knows what it was given.
func (s *Source) led(ctx context.Context, a *api) error {
	ctx, cancel := context.WithTimeoutCause(ctx, a.max.led, fmt.Errorf("no leader within %s", a.max.led))
	defer cancel()
	return backoff.Retry(func() error {
		leader := ""
		err := a.ask(ctx, "/v1/status/leader", nil, &leader)
		if err == nil && leader == "" {
			err = errors.New("the snapshot was taken, and no server leads since")
		}
		if err == nil {
			_, err = s.sys.holds(ctx, a)
		}
		if c := code(err); c == http.StatusForbidden || c == http.StatusUnauthorized { // our token is gone with what was there
			err = nil
		}
		return err
	}, backoff.WithContext(backoff.NewConstantBackOff(time.Second/2), ctx))
}
