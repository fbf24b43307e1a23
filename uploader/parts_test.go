package uploader

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/crc"
)

// However the pieces are cut, the parts are equal in size, come in order to the
// note, hold the bytes, claim each piece where it ends, and use no more buffers
// than one above those in flight.
func TestCutter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 50).Draw(t, "part")
		limit := rapid.IntRange(1, 4).Draw(t, "in flight")
		b := rapid.SliceOfN(rapid.Byte(), 1, 1000).Draw(t, "bytes")
		sizes := rapid.SliceOfN(rapid.IntRange(0, 120), 1, 5).Draw(t, "pieces")
		if !slices.ContainsFunc(sizes, func(n int) bool { return n > 0 }) {
			sizes = append(sizes, 7)
		}
		var (
			mu       sync.Mutex
			inFlight int
			buffers  = map[*byte]bool{}
			got      = make([]byte, len(b))
			noted    []part
			ends     []int // of pieces, as the parts claim them
		)
		end := 0
		c := cutter{
			size: int64(size), limit: limit,
			note: func(p part) error {
				noted = append(noted, p)
				for _, pc := range p.pieces {
					if end += int(pc.Len); int64(end) <= p.off || int64(end) > p.off+p.len {
						t.Errorf("part [%d,+%d) claims a piece that ends at %d", p.off, len(p.buf), end)
					}
					ends = append(ends, end)
				}
				return nil
			},
			send: func(_ context.Context, p part) error {
				mu.Lock()
				defer mu.Unlock()
				if inFlight++; inFlight > limit {
					t.Errorf("%d parts in flight", inFlight)
				}
				buffers[&p.buf[:1][0]] = true
				if cap(p.buf) != size {
					t.Errorf("a buffer of %d bytes", cap(p.buf))
				}
				mu.Unlock()
				copy(got[p.off:], p.buf)
				if crc.NVME(p.buf) != p.crc {
					t.Errorf("part %d changed since its checksum was made", p.number)
				}
				mu.Lock()
				inFlight--
				return nil
			},
		}
		n, sum, err := c.run(context.Background(), "k", pieces(b, sizes...))
		if err != nil || n != int64(len(b)) || sum != crc.NVME(b) || !bytes.Equal(got, b) {
			t.Fatalf("%d bytes of %d, checksum %x of %x, %v", n, len(b), sum, crc.NVME(b), err)
		}
		if len(buffers) > limit+1 {
			t.Errorf("%d buffers for %d in flight", len(buffers), limit)
		}
		for i, p := range noted {
			if int(p.number) != i+1 || p.off != int64(i*size) || i < len(noted)-1 && len(p.buf) != size {
				t.Errorf("part %d is %d at %d with %d bytes", i+1, p.number, p.off, len(p.buf))
			}
		}
		if !slices.Contains(ends, len(b)) {
			t.Errorf("no part claims the last piece: %v", ends)
		}
	})
}

// While the store is slow the producer waits: memory does not grow.
func TestCutterHoldsTheProducerBack(t *testing.T) {
	const size, limit = 100, 3
	block := make(chan struct{})
	var pulled int
	done := make(chan error)
	c := cutter{
		size: size, limit: limit, note: func(part) error { return nil },
		send: func(context.Context, part) error { <-block; return nil },
	}
	started := make(chan int, 1000)
	go func() {
		_, _, err := c.run(t.Context(), "k", func(yield func(Piece, error) bool) {
			for range 50 {
				pulled++
				started <- pulled
				if !yield(Piece{Bytes: func(context.Context) ([]byte, error) { return make([]byte, size), nil }}, nil) {
					return
				}
			}
		})
		done <- err
	}()
	most := 0
	for quiet := time.NewTimer(time.Second); ; {
		select {
		case most = <-started:
			quiet.Reset(200 * time.Millisecond)
			continue
		case <-quiet.C:
		}
		break
	}
	// limit are in flight, one is full and waits, one piece is in the producer's hand.
	if most > limit+2 {
		t.Errorf("%d pieces were taken while nothing could be sent", most)
	}
	close(block)
	if err := <-done; err != nil || pulled != 50 {
		t.Errorf("%d pieces, %v", pulled, err)
	}
}

func TestCutterErrors(t *testing.T) {
	boom := errors.New("boom")
	b := make([]byte, 10_000)
	ok := func(part) error { return nil }
	stuck := func(ctx context.Context, _ part) error { <-ctx.Done(); return context.Cause(ctx) }
	for name, c := range map[string]struct {
		cutter
		pieces func(func(Piece, error) bool)
	}{
		"a part fails while others hang": {cutter{note: ok, send: func(ctx context.Context, p part) error {
			if p.number == 2 {
				return boom
			}
			return stuck(ctx, p)
		}}, pieces(b, 64)},
		"the journal fails": {cutter{note: func(p part) error {
			if p.number == 3 {
				return boom
			}
			return nil
		}, send: stuck}, pieces(b, 64)},
		"the producer fails": {cutter{note: ok, send: stuck}, func(yield func(Piece, error) bool) {
			for p := range pieces(b[:150], 64) {
				if !yield(p, nil) {
					return
				}
			}
			yield(Piece{}, boom)
		}},
		"a piece fails": {cutter{note: ok, send: stuck}, func(yield func(Piece, error) bool) {
			yield(Piece{Bytes: func(context.Context) ([]byte, error) { return nil, boom }}, nil)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			c.size, c.limit = 100, 3
			if _, _, err := c.run(t.Context(), "k", c.pieces); !errors.Is(err, boom) || errors.Is(err, context.Canceled) {
				t.Errorf("%v, want the cause", err)
			}
		})
	}
}

func TestBodyIsDetached(t *testing.T) {
	b := newBody([]byte("0123456789"))
	if got, err := io.ReadAll(io.LimitReader(b, 4)); err != nil || string(got) != "0123" {
		t.Errorf("%q, %v", got, err)
	}
	if n, err := b.Seek(2, io.SeekStart); err != nil || n != 2 {
		t.Errorf("seek: %d, %v", n, err)
	}
	b.detach()
	if n, err := b.Read(make([]byte, 4)); n != 0 || err == nil {
		t.Errorf("a read after the attempt: %d, %v", n, err)
	}
	if _, err := b.Seek(0, io.SeekStart); err == nil {
		t.Error("a seek after the attempt")
	}
}
