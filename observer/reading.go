package observer

import (
	"context"
	"errors"
	"io"
)

// Reading reads r for as long as ctx lives. Decoders of foreign bytes report what is
// wrong with the bytes and what is wrong with the reading alike; behind Reading,
// OfReading tells the two apart.
func Reading(ctx context.Context, r io.Reader) io.Reader { return faithful{ctx, r} }

// OfReading is the error of the reading in err's chain; nil where err is of what was read.
func OfReading(err error) error {
	var r readError
	if errors.As(err, &r) {
		return r.error
	}
	return nil
}

type faithful struct {
	ctx context.Context
	r   io.Reader
}

type readError struct{ error }

func (e readError) Unwrap() error { return e.error }

func (f faithful) Read(b []byte) (int, error) {
	if err := f.ctx.Err(); err != nil {
		return 0, readError{err}
	}
	n, err := f.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = readError{err}
	}
	return n, err
}
