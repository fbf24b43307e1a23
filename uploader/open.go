package uploader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Open implements Store. The first request is made at once, so that a missing
// object is told before anything is read.
func (s *s3Store) Open(ctx context.Context, key, etag string, off, n int64) (io.ReadCloser, error) {
	if n < 0 {
		o, err := s.Stat(ctx, key)
		if err != nil {
			return nil, err
		}
		n = max(0, o.Size-off)
	}
	r := &rangeReader{ctx: ctx, s: s, key: key, etag: etag, off: off, end: off + n}
	if n == 0 {
		return r, nil
	}
	return r, r.connect()
}

// rangeReader reads a range of one object and goes on where a connection broke
// off. It pins the ETag, so that it never joins two versions.
type rangeReader struct {
	ctx       context.Context
	s         *s3Store
	key, etag string
	off, end  int64

	body   io.ReadCloser
	cancel context.CancelFunc
	stall  *time.Timer // ends a connection that sends nothing
	broken int         // connections in a row that gave no byte
}

// maxBroken is how many connections in a row may break without a byte.
const maxBroken = 6

func (r *rangeReader) connect() error {
	return r.s.attempt(r.ctx, "read", r.key, 0, func(context.Context, int) error {
		// The body outlives the attempt, so it has a context and a timer of its own.
		ctx, cancel := context.WithCancel(r.ctx)
		timer := time.AfterFunc(r.s.c.Slack, cancel)
		in := &s3.GetObjectInput{Bucket: &r.s.bucket, Key: r.s.key(r.key), Range: aws.String(fmt.Sprintf("bytes=%d-%d", r.off, r.end-1))}
		if r.etag != "" {
			in.IfMatch = aws.String(`"` + r.etag + `"`)
		}
		out, err := r.s.api.GetObject(ctx, in)
		if err != nil {
			timer.Stop()
			cancel()
			if errors.Is(classify("read", r.key, err), ErrPrecondition) {
				return &changed{r.key}
			}
			if ctx.Err() != nil && r.ctx.Err() == nil {
				return errors.New("the connection stalled")
			}
			return err
		}
		if r.etag == "" {
			r.etag = unquote(out.ETag)
		}
		r.body, r.cancel, r.stall = out.Body, cancel, timer
		return nil
	})
}

// changed: the object was replaced while it was read.
type changed struct{ key string }

func (c *changed) Error() string        { return c.key + " was replaced while it was read" }
func (c *changed) Is(target error) bool { return target == ErrDamaged }

func (r *rangeReader) Read(b []byte) (int, error) {
	for {
		if r.off >= r.end {
			return 0, io.EOF
		}
		if err := r.ctx.Err(); err != nil {
			return 0, err
		}
		if r.body == nil {
			if err := r.connect(); err != nil {
				return 0, err
			}
		}
		r.stall.Reset(r.s.c.Slack)
		n, err := r.body.Read(b[:min(int64(len(b)), r.end-r.off)])
		r.off += int64(n)
		if n > 0 {
			r.broken = 0
			return n, nil // an error with it shows again at the next read
		}
		if err == nil {
			continue
		}
		r.drop()
		if r.broken++; r.broken > maxBroken {
			return 0, fmt.Errorf("read %s at %d: %w: connections break off: %w", r.key, r.off, ErrUnreachable, io.ErrUnexpectedEOF)
		}
	}
}

func (r *rangeReader) drop() {
	if r.body == nil {
		return
	}
	r.stall.Stop()
	r.cancel()
	r.body.Close() // of a connection that is given up
	r.body = nil
}

// Close implements io.Closer.
func (r *rangeReader) Close() error {
	r.drop()
	return nil
}
