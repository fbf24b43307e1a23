package observer

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// What is wrong with the bytes is not what is wrong with their reading, even behind a
// decoder.
func TestReading(t *testing.T) {
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	disk := errors.New("input/output error")
	for name, c := range map[string]struct {
		ctx  context.Context
		r    io.Reader
		want error
	}{
		"no gzip":    {t.Context(), strings.NewReader("no gzip at all"), nil},
		"cut":        {t.Context(), strings.NewReader("\x1f\x8b"), nil},
		"a bad disk": {t.Context(), io.MultiReader(strings.NewReader("\x1f\x8b"), iotest.ErrReader(disk)), disk},
		"cancelled":  {gone, strings.NewReader("no gzip at all"), context.Canceled},
	} {
		_, err := gzip.NewReader(Reading(c.ctx, c.r))
		if err == nil || OfReading(err) != c.want {
			t.Errorf("%s: %v, of the reading: %v", name, err, OfReading(err))
		}
	}
}
