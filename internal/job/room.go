package job

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

// errRoom: the attempt was ended so that the replica does not run out of disk.
var errRoom = errors.New("the node's disk is filling up")

const (
	// roomEvery is how often the filesystems of the roots are asked.
	roomEvery = 2 * time.Second
	// worthwhile is how much a stage must pin for its removal to help.
	worthwhile = 8 << 20
	roomAdvice = "make room on that filesystem: while a backup is sent, what the node compacts away stays on the disk"
)

// need is what must be free on a filesystem of so many bytes for a backup to
// begin: a twentieth of a small one.
func need(size int64) int64 { return min(leastFree, size/20) }

// low is where the node's own room begins to be at stake: four times as much.
func low(size int64) int64 { return 4 * need(size) }

// room tells what is free on the filesystem of a directory, and its size.
func (b *Backup) room(dir string) (free, size int64, err error) {
	if b.Room != nil {
		return b.Room(dir)
	}
	if free, _, err = fsx.FreeBytes(dir); err != nil {
		return 0, 0, err
	}
	size, err = fsx.TotalBytes(dir)
	return free, size, err
}

// hasRoom refuses to begin where the replica's disk is nearly full, or cannot
// take what is to be copied.
func (b *Backup) hasRoom(ctx context.Context, roots []snapshot.Root) error {
	copied := map[string]int64{}
	if s, ok := b.Replica.(observer.Surveyor); ok {
		survey, err := s.Survey(ctx)
		if err != nil {
			return err
		}
		for _, r := range survey.Roots {
			copied[r.Path] = r.Copied.Bytes
		}
	}
	for _, r := range roots {
		free, size, err := b.room(r.Path)
		if err != nil {
			return fmt.Errorf("%w: look at the room of %s: %w", observer.ErrNotFit, r.Path, err)
		}
		if want := need(size) + copied[r.Path]; free < want {
			return hint.Add(fmt.Errorf("%w: %s free on the filesystem of %s, a backup needs %s", observer.ErrNotFit, ui.Bytes(free), r.Path, ui.Bytes(want)), roomAdvice)
		}
	}
	return nil
}

// roomWatch watches the disk while a stage lies on it.
type roomWatch struct {
	b     *Backup
	roots []snapshot.Root
	tight atomic.Pointer[string] // what is low; nil: nothing
	stop  func()
}

// watchRoom begins to watch. The context that it returns ends with errRoom when
// the disk is so low that waiting for the end of the volume would risk the node;
// stop ends the watch, and waits for that.
func (b *Backup) watchRoom(ctx context.Context, roots []snapshot.Root) (context.Context, *roomWatch) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &roomWatch{b: b, roots: roots}
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(cmp.Or(b.roomEvery, roomEvery))
		defer tick.Stop()
		for ctx.Err() == nil {
			if err := w.look(ctx); err != nil {
				cancel(err)
			}
			select {
			case <-ctx.Done():
			case <-tick.C:
			}
		}
	}()
	w.stop = func() { cancel(context.Canceled); <-done }
	return ctx, w
}

// look asks every filesystem. What cannot be asked is no reason to give up what
// works.
func (w *roomWatch) look(ctx context.Context) error {
	var tight *string
	for _, r := range w.roots {
		free, size, err := w.b.room(r.Path)
		if err != nil || free >= low(size) {
			continue
		}
		pinned, err := snapshot.PinnedBytes(ctx, []snapshot.Root{r})
		if err != nil || pinned < worthwhile {
			continue
		}
		text := fmt.Sprintf("%s free on the filesystem of %s, and %s there are kept by the stage only", ui.Bytes(free), r.Path, ui.Bytes(pinned))
		if free < low(size)/2 {
			return w.full(text)
		}
		tight = &text
	}
	w.tight.Store(tight)
	return nil
}

func (w *roomWatch) full(text string) error {
	return hint.Add(mark(ErrStage, fmt.Errorf("%w: %s", errRoom, text)), roomAdvice)
}

// atBorder ends an attempt between two volumes where the disk is low, though what
// the last one was made of is released.
func (w *roomWatch) atBorder(ctx context.Context) error {
	if err := w.look(ctx); err != nil {
		return err
	}
	if text := w.tight.Load(); text != nil {
		return w.full(*text)
	}
	return nil
}
