package uploader

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/cenkalti/backoff/v4"

	"github.com/eddy-backup/eddy/internal/hint"
)

// errShort is in the chain of the error about an object that ends too early.
var errShort = io.ErrUnexpectedEOF

// Open implements Store. The first request is made at once, so that a missing
// object is told before anything is read.
func (s *s3Store) Open(ctx context.Context, key, etag string, off, n int64) (io.ReadCloser, error) {
	if n < 0 {
		o, err := s.Stat(ctx, key)
		if err != nil {
			return nil, err
		}
		if etag == "" {
			etag = o.ETag
		}
		n = max(0, o.Size-off)
	}
	r := &rangeReader{ctx: ctx, s: s, key: key, etag: etag, off: off, end: off + n, policy: s.newBackOff()}
	if n == 0 {
		return r, nil
	}
	if err := r.connect(); err != nil {
		return nil, err
	}
	return r, nil
}

// rangeReader reads a range of one object and goes on where a connection broke
// off. It pins the ETag, so that it never joins two versions.
type rangeReader struct {
	ctx       context.Context
	s         *s3Store
	key, etag string
	off, end  int64
	closed    bool

	body   io.ReadCloser
	cancel context.CancelFunc
	stall  *time.Timer // ends a connection that sends nothing
	broken int         // connections in a row that gave no byte
	policy *backoff.ExponentialBackOff
}

// maxBroken is how many connections in a row may break without a byte.
const maxBroken = 6

func (r *rangeReader) connect() error {
	slack := r.s.c.Slack
	err := r.s.attempt(r.ctx, "read", r.key, slack+time.Second, func(context.Context, int) error {
		// The body outlives the attempt, so it has a context and a timer of its own.
		ctx, cancel := context.WithCancel(r.ctx)
		timer := time.AfterFunc(slack, cancel)
		in := &s3.GetObjectInput{Bucket: &r.s.bucket, Key: r.s.key(r.key), Range: aws.String(fmt.Sprintf("bytes=%d-%d", r.off, r.end-1))}
		if r.etag != "" {
			in.IfMatch = etagHeader(r.etag)
		}
		// A range has no checksum of its own, and the length is checked here.
		out, err := r.s.api.GetObject(ctx, in, withoutValidation)
		stalled := !timer.Stop()
		if err == nil {
			if err = r.check(out); err != nil {
				out.Body.Close() // what is in it is not ours
			}
		}
		if err != nil {
			cancel()
			if stalled {
				return context.DeadlineExceeded
			}
			return err
		}
		r.etag = unquote(out.ETag)
		r.body, r.cancel, r.stall = out.Body, cancel, timer
		return nil
	})
	if errors.Is(err, ErrPrecondition) {
		return replaced("read", r.key)
	}
	return err
}

func withoutValidation(o *s3.Options) {
	o.ResponseChecksumValidation = aws.ResponseChecksumValidationWhenRequired
}

// check compares what an answer says of itself with what was asked for.
func (r *rangeReader) check(out *s3.GetObjectOutput) error {
	if etag := unquote(out.ETag); r.etag != "" && etag != r.etag {
		return replaced("read", r.key)
	}
	var first, last int64
	if _, err := fmt.Sscanf(aws.ToString(out.ContentRange), "bytes %d-%d/", &first, &last); err != nil {
		first, last = 0, aws.ToInt64(out.ContentLength)-1 // the whole object: the store ignores ranges
	}
	if first != r.off {
		return &storeError{kind: ErrRefused, said: fmt.Sprintf("bytes from %d were asked for, bytes from %d came", r.off, first)}
	}
	if last < r.end-1 {
		return tooShort("read", r.key)
	}
	return nil
}

// replaced: the object is another one than when it was first looked at.
func replaced(op, key string) error {
	return &storeError{op: op, key: key, kind: ErrDamaged, said: "it was replaced since"}
}

// Read implements io.Reader.
func (r *rangeReader) Read(b []byte) (int, error) {
	if r.closed {
		return 0, errors.New("read of a closed object")
	}
	if r.off >= r.end {
		return 0, io.EOF
	}
	if len(b) == 0 {
		return 0, nil
	}
	for {
		if r.ctx.Err() != nil {
			return 0, fmt.Errorf("read %s: %w", r.key, context.Cause(r.ctx))
		}
		if r.body == nil {
			if err := r.connect(); err != nil {
				return 0, err
			}
		}
		// The timer runs only here: a slow consumer is no stalled connection.
		r.stall.Reset(r.s.c.Slack)
		n, err := r.body.Read(b[:min(int64(len(b)), r.end-r.off)])
		r.stall.Stop()
		r.off += int64(n)
		if n > 0 {
			if r.broken > 0 {
				r.broken = 0
				r.policy.Reset()
			}
			return n, nil // an error with it shows again at the next read
		}
		if err == nil {
			continue
		}
		r.drop()
		if r.broken++; r.broken > maxBroken {
			return 0, hint.Add(&storeError{
				op: "read", key: r.key, kind: ErrUnreachable, cause: errShort,
				said: fmt.Sprintf("connections break off at byte %d", r.off),
			}, "look at the network and its proxies, then try again")
		}
		if err := pause(r.ctx, r.policy.NextBackOff()); err != nil {
			return 0, fmt.Errorf("read %s: %w", r.key, err)
		}
	}
}

// drop gives the connection up.
func (r *rangeReader) drop() {
	if r.body == nil {
		return
	}
	r.stall.Stop()
	r.cancel()
	r.body.Close() // its error is about a connection that nobody wants any more
	r.body = nil
}

// Close implements io.Closer.
func (r *rangeReader) Close() error {
	r.drop()
	r.closed = true
	return nil
}
