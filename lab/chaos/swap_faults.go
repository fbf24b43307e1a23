package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"
)

// The verbs that exchange a node's data.
var (
	inPlace = []string{"restore", "latest"}
	undo    = []string{"restore", "--undo"}
)

// swapDoc is a home's swap.json, as far as it is looked at.
type swapDoc struct {
	ID, Step string
	Moves    []json.RawMessage
}

// readSwap reads the journal of a swap; zero where there is none. It is replaced by
// renames and so never half.
func readSwap(home string) (s swapDoc) {
	if b, err := os.ReadFile(filepath.Join(home, ".eddy", "swap.json")); err == nil && json.Unmarshal(b, &s) != nil {
		s = swapDoc{ID: "?", Step: "damaged"}
	}
	return s
}

func (s swapDoc) is(o swapDoc) bool { return s.ID == o.ID && s.Step == o.Step }

// beside is reached when so many bytes of a restore lie beside the live data.
func beside(bytes int64) point {
	return point{fmt.Sprintf("%d MB beside", bytes/1e6), func(_ *world, s *setup, _ *eddy) bool {
		dirs, err := filepath.Glob(filepath.Join(s.real, ".eddy", "restore-*"))
		return err == nil && regularBytes(dirs...) >= bytes
	}}
}

func regularBytes(dirs ...string) (sum int64) {
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				if fi, err := d.Info(); err == nil {
					sum += fi.Size()
				}
			}
			return nil // what moves under the walk is counted the next time
		})
	}
	return sum
}

// swapping is reached when the journal of a swap says so.
func swapping(step string) point {
	return point{step, func(_ *world, s *setup, _ *eddy) bool { return readSwap(s.real).Step == step }}
}

// toStart is reached when the data are exchanged and the node is still to start.
func toStart() point {
	return point{"restart.json", func(_ *world, s *setup, _ *eddy) bool {
		_, err := os.Lstat(filepath.Join(s.workdir, "restart.json"))
		return err == nil
	}}
}

// killMoving does it a random while after the first name may have been moved.
func killMoving(ctx context.Context, t *trial) error {
	if err := t.reach(ctx, swapping("moving")); err != nil {
		return err
	}
	d := time.Duration(t.rnd.Int64N(int64(20 * time.Millisecond)))
	t.note = fmt.Sprintf("after %.1f ms", d.Seconds()*1e3)
	t.wait(d)
	return kill(after(0), itself)(ctx, t)
}

// atRename does something to eddy at a random one of the renames of an exchange,
// on the home's disk: it is killed, or the rename fails.
func atRename(errno syscall.Errno) fault {
	return func(ctx context.Context, t *trial) error {
		if err := t.reach(ctx, phase("halt")); err != nil {
			return err
		}
		var struck atomic.Bool
		seen, want := 0, 0 // the disk asks for one rename at a time
		draw := rand.New(rand.NewPCG(t.rnd.Uint64(), 0))
		f := &diskFault{victim: t.e.pid()}
		f.rename = func() syscall.Errno {
			doc := readSwap(t.s.real)
			if doc.Step != "moving" || struck.Load() {
				return 0
			}
			if want == 0 {
				want = 1 + draw.IntN(len(doc.Moves))
				t.note = fmt.Sprintf("rename %d of %d", want, len(doc.Moves))
			}
			if seen++; seen < want {
				return 0
			}
			struck.Store(true)
			if errno == 0 {
				_ = signal(f.victim, syscall.SIGKILL) // that it died is seen below
			}
			return errno
		}
		homeDisk(t).harm(f)
		<-t.e.done
		if !struck.Load() {
			return fmt.Errorf("%w: no name was moved", errMissed)
		}
		return nil
	}
}
