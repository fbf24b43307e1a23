package command

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/observer"
)

// Form is what a dump must be.
type Form string

// The forms that are known.
const (
	AnyForm   Form = "any"    // something
	TarForm   Form = "tar"    // a whole tar
	TarGzForm Form = "tar.gz" // a whole tar in a whole gzip
	PGPForm   Form = "pgp"    // an OpenPGP message, of which only the beginning is looked at
)

// Expect says what a dump must be, so that an error message is not kept as one.
type Expect struct {
	Form Form
	// Contains are names that a tar must have, as they stand in it but for a leading
	// ./; Members is how many it must have at least.
	Contains []string
	Members  int
}

// look reads a dump. said is what it is, "" where nothing could be told; finding is
// what is wrong with it, "" where nothing is. An error is of the reading.
func (e Expect) look(ctx context.Context, r io.Reader) (said, finding string, err error) {
	in := bufio.NewReaderSize(observer.Reading(ctx, r), 1<<16)
	switch e.Form {
	case PGPForm:
		return pgp(in)
	case TarForm:
		return e.tar(in)
	case TarGzForm:
		z, err := gzip.NewReader(in)
		if err != nil {
			finding, err := wrong("it is no gzip", err)
			return "", finding, err
		}
		return e.tar(z) // to its trailer
	default:
		return "", "", nil
	}
}

// wrong makes a finding of an error, unless it is of the reading.
func wrong(what string, err error) (finding string, _ error) {
	if err := observer.OfReading(err); err != nil {
		return "", err
	}
	return fmt.Sprintf("%s: %v", what, err), nil
}

// zeros counts the zero bytes at the end of what was written.
type zeros int64

func (z *zeros) Write(b []byte) (int, error) {
	rest := bytes.TrimRight(b, "\x00")
	if len(rest) > 0 {
		*z = 0
	}
	*z += zeros(len(b) - len(rest))
	return len(b), nil
}

// tarEnd is how many zero bytes end a tar (pax, "ustar Interchange Format"). The
// reader of archive/tar does without them, so that one that was cut short between
// two members would be whole to it.
const tarEnd = 1024

// tar reads a tar to its end.
func (e Expect) tar(in io.Reader) (said, finding string, err error) {
	var end zeros
	in = io.TeeReader(in, &end)
	missing := slices.Clone(e.Contains)
	for i := range missing {
		missing[i] = path.Clean(missing[i])
	}
	t, n, bytes := tar.NewReader(in), 0, int64(0)
	for {
		h, err := t.Next()
		if errors.Is(err, io.EOF) {
			if _, err = io.Copy(io.Discard, in); err == nil && end < tarEnd {
				err = io.ErrUnexpectedEOF
			}
			if err == nil {
				break
			}
		}
		var m int64
		if err == nil {
			m, err = io.Copy(io.Discard, t)
		}
		if err != nil {
			finding, err := wrong(fmt.Sprintf("it is no whole tar: behind %d members", n), err)
			return "", finding, err
		}
		n++
		bytes += m
		missing = slices.DeleteFunc(missing, func(s string) bool { return s == path.Clean(h.Name) })
	}
	switch {
	case n == 0:
		return "", "it is an empty tar", nil
	case n < e.Members:
		return "", fmt.Sprintf("it has %d members, %d are too few", n, e.Members), nil
	case len(missing) > 0:
		return "", fmt.Sprintf("it lacks %s", strings.Join(missing, ", ")), nil
	}
	return fmt.Sprintf("tar, %d members, %d bytes in them", n, bytes), "", nil
}

// pgp knows an OpenPGP message by its first packet (RFC 9580 4.2): a session key for
// a public key (tag 1) or of a passphrase (tag 3); or by its armour.
func pgp(in *bufio.Reader) (said, finding string, err error) {
	head, err := in.Peek(27)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", "", err
	}
	if bytes.HasPrefix(head, []byte("-----BEGIN PGP MESSAGE-----")) {
		return "PGP message, armoured", "", nil
	}
	if len(head) > 0 && head[0]&0x80 != 0 {
		tag := head[0] & 0x3f
		if head[0]&0x40 == 0 { // the old form
			tag = head[0] >> 2 & 0x0f
		}
		if tag == 1 || tag == 3 {
			return "PGP message", "", nil
		}
	}
	return "", "it is no PGP message", nil
}
