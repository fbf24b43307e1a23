package chaos

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// expiring is retention at work.
var expiring = []string{"expire", "--apply", "--last", strconv.Itoa(kept)}

// handover is what a run may take that has to wait, before anything else, for the
// lease of one that was killed.
const handover = runTime + 2*time.Minute

// atDeletion strikes at one of the first requests, the nth, that delete. how says
// when: before the store has heard of it, when it has done half of it, or when it
// has done it all; the answer is lost.
func (t *trial) atDeletion(ctx context.Context, nth, how int, strike func(keys []string) error) error {
	t.note = fmt.Sprintf("%s deletion %d", [...]string{"before", "in", "after"}[how], nth)
	struck := make(chan error, 1)
	var mu sync.Mutex
	seen := 0
	t.w.liar.tell(on(opDelete, 0, func(l *liar, _ http.ResponseWriter, r *http.Request, _, _ string) bool {
		mu.Lock()
		seen++
		mine := seen == nth
		mu.Unlock()
		if !mine {
			return false
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		keys := keysOf(body)
		switch how {
		case 1:
			for _, key := range keys[:len(keys)/2] {
				_, derr := t.w.bucket.api.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &t.w.bucket.name, Key: &key})
				err = errors.Join(err, derr)
			}
		case 2:
			l.silently(r)
		}
		struck <- errors.Join(err, strike(keys))
		panic(http.ErrAbortHandler)
	}))
	select {
	case err := <-struck:
		return err
	case <-t.e.done:
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(handover): // the lease may be that of a round that killed
	}
	return fmt.Errorf("%w: nothing was deleted", errMissed)
}

// deletions is how many requests delete: three for each backup that goes.
const deletions = 9

// killDeleting kills eddy at one of its deletions.
func killDeleting(ctx context.Context, t *trial) error {
	err := t.atDeletion(ctx, 1+t.rnd.IntN(deletions), t.rnd.IntN(3), func([]string) error {
		return signal(t.e.pid(), syscall.SIGKILL)
	})
	if err == nil {
		<-t.e.done
	}
	return err
}

// killOneOfTwo has another node's eddy wait for the lease of the one that deletes,
// kills that, and has the other one end its work.
func killOneOfTwo(ctx context.Context, t *trial) error {
	var beside *eddy
	// One backup is left whole: who finds nothing to delete does not wait.
	err := t.atDeletion(ctx, 1+t.rnd.IntN(deletions-3), t.rnd.IntN(3), func([]string) (err error) {
		if beside, err = t.beside(expiring...); err != nil {
			return err
		}
		waits := t.w.reach(ctx, t.s, beside, phase("busy"))
		err = signal(t.e.pid(), syscall.SIGKILL)
		if !waits {
			err = errors.Join(err, fmt.Errorf("%w: the other one does not wait:\n%s", errMissed, beside.tail()))
		}
		return err
	})
	if beside == nil {
		return err
	}
	<-t.e.done
	return errors.Join(err, t.besideEnds(beside, 0))
}

// freezeOneOfTwo stops the eddy that deletes until another one has taken its lease
// over and has deleted all. Some of that is there again when the first one wakes
// up: it must not touch that any more.
func freezeOneOfTwo(ctx context.Context, t *trial) error {
	var hand string // the backup that it has in hand
	err := t.atDeletion(ctx, 1, 2, func(keys []string) error {
		hand = strings.Join(keys, " ")
		return signal(t.e.pid(), syscall.SIGSTOP)
	})
	if err != nil {
		return err
	}
	t.w.liar.tell(nil)
	wake := func(err error) error { return errors.Join(err, signal(t.e.pid(), syscall.SIGCONT)) }
	beside, err := t.beside(expiring...)
	if err == nil {
		err = t.besideEnds(beside, 0)
	}
	var again []string
	for id, goes := range t.s.past {
		if err == nil && goes && !strings.Contains(hand, id) {
			again = append(again, id)
			err = t.w.copyBackup(ctx, t.s, id)
		}
	}
	if err == nil {
		err = t.w.known(ctx, t.s)
	}
	if err = wake(err); err != nil {
		return err
	}
	code, err := t.e.end(runTime)
	if err != nil {
		return err
	}
	if code != locked {
		t.out.add("I3: who has lost the lease exits with %d, want %d:\n%s", code, locked, t.e.tail())
	}
	v, err := t.w.bucket.view(ctx, t.s.name)
	if err != nil {
		return err
	}
	for _, id := range again {
		if _, ok := v.manifests[id]; !ok {
			t.out.lost++
			t.out.add("I3: who has lost the lease has deleted %s", id)
		}
	}
	return nil
}

// killBesideExpire has another node's eddy delete what is old while this one sends,
// and kills this one.
func killBesideExpire(ctx context.Context, t *trial) error {
	if err := t.reach(ctx, state("uploading")); err != nil {
		return err
	}
	beside, err := t.beside(expiring...)
	if err != nil {
		return err
	}
	if err := kill(sentPercent(50), itself)(ctx, t); err != nil {
		return errors.Join(err, signal(beside.pid(), syscall.SIGTERM))
	}
	t.meanwhile = beside
	return nil
}

const locked = 11 // the exit code for it

// beside starts a verb on this round's cluster as another node's eddy, with a
// workdir of its own.
func (t *trial) beside(verb ...string) (*eddy, error) {
	other := t.w.setups[supervised]
	if t.s == other {
		other = t.w.setups[plain]
	}
	return t.w.start(other, append(verb[:len(verb):len(verb)], "--cluster", t.s.name)...)
}

// besideEnds waits for another node's eddy, whose exit code must be among these.
func (t *trial) besideEnds(e *eddy, want ...int) error {
	begun := time.Now()
	code, err := e.end(handover)
	if err != nil {
		return err
	}
	t.note += fmt.Sprintf(", the other one exit %d after %.0f s", code, time.Since(begun).Seconds())
	for _, c := range want {
		if code == c {
			return nil
		}
	}
	t.out.add("I6: the other eddy exits with %d:\n%s", code, e.tail())
	return nil
}

// finishPast has retention do what is left to do, and looks at what it leaves.
func (w *world) finishPast(ctx context.Context, t *trial) error {
	if t.meanwhile != nil {
		if err := t.besideEnds(t.meanwhile, 0, locked); err != nil {
			return err
		}
	}
	// Twice: what the first one may only sweep the second one must not stumble over.
	for range 2 {
		code, said, err := w.run(ctx, t.s, handover, expiring...)
		if err != nil {
			return err
		}
		if !done(code) {
			t.out.add("I6: an undisturbed expire exits with %d:\n%s", code, said)
		}
	}
	if _, err := w.judgeVisible(ctx, t.s, t.out); err != nil {
		return err
	}
	if err := w.judgePast(ctx, t.s, t.out); err != nil {
		return err
	}
	return w.forgetPast(ctx, t.s)
}
