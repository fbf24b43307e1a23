package control

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// halts plays a restore's part of a control: a node that is halted stays down
// until the swap file is gone, whoever comes.
func halts(t *testing.T, c Control, h home, swap string) {
	t.Helper()
	ctx := ctxOf(t)
	if err := c.MayHalt(ctx, false); err != nil {
		t.Fatal(err)
	}
	if err := c.Halt(ctx, Request{}); !errors.Is(err, ErrUnguarded) || h.pid() == 0 {
		t.Fatalf("halt without a swap file: %v", err)
	}
	if err := os.WriteFile(swap, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // one that is down is no error
		if err := c.Halt(ctx, Request{Down: AllDown([]string{string(h)}, nil)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Hold(ctx, Request{}); err == nil {
		t.Fatal("a halted node was held")
	}
	if _, err := c.Recover(ctx); err != nil {
		t.Fatal(err)
	}
	starts := h.starts()
	time.Sleep(400 * time.Millisecond)
	if h.pid() != 0 || h.starts() != starts {
		t.Fatal("the node was started between two steps of a swap")
	}
	if err := os.Remove(swap); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, 2*time.Second, "the node runs", func() bool { return h.pid() != 0 && h.starts() == starts+1 })
}

func TestSuperviseHalts(t *testing.T) {
	t.Parallel()
	h := newHome(t)
	swap := h.path("swap.json")
	_, sock := supervise(t, h, SuperviseOptions{SwapFile: swap, MaxHold: time.Second})
	halts(t, NewSupervise(sock), h, swap)
	if err := NewSupervise(sock).MayHalt(ctxOf(t), true); err == nil {
		t.Fatal("supervise would leave the node down")
	}

	h = newHome(t)
	_, sock = supervise(t, h, SuperviseOptions{})
	c := NewSupervise(sock)
	if err := c.MayHalt(ctxOf(t), false); !errors.Is(err, ErrUnguarded) || hint.Of(err) == "" {
		t.Fatalf("a supervise that knows no home: %v", err)
	}
	if err := c.Halt(ctxOf(t), Request{}); !errors.Is(err, ErrUnguarded) || h.pid() == 0 {
		t.Fatalf("a supervise that knows no home halts: %v", err)
	}
	if err := NewSupervise(h.path("nobody")).Halt(ctxOf(t), Request{}); err != nil {
		t.Fatalf("no supervise, no node: %v", err)
	}
}

func TestExecHalts(t *testing.T) {
	h, c := execNode(t)
	halts(t, mustExec(t, c), h, c.SwapFile)
	closed(t, c)
}
