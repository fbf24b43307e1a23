package consul

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// The members of a snapshot's archive.
const (
	metaName  = "meta.json"
	stateName = "state.bin"
	sumsName  = "SHA256SUMS"
)

// Bounds of what is read of an archive; state.bin has none, and passes by.
const (
	maxMeta   = 1 << 20  // bytes of meta.json
	maxSums   = 64 << 10 // bytes of each list of hashes
	maxTail   = 64 << 10 // bytes behind the last member
	maxServer = 1000     // servers of a configuration
)

// meta is meta.json: what raft says of its snapshot.
type meta struct {
	ID    string
	Index uint64
	Term  uint64
	Size  int64 // of state.bin
	// Configuration lists the servers of the cluster at that index.
	Configuration struct {
		Servers []struct{ ID, Address string }
	}
}

// taken is when the snapshot was made, by its ID: term-index-milliseconds.
func (m meta) taken() (t time.Time, ok bool) {
	var term, index, ms uint64
	n, err := fmt.Sscanf(m.ID, "%d-%d-%d", &term, &index, &ms)
	ok = err == nil && n == 3 && term == m.Term && index == m.Index && ms < 1<<50
	return time.UnixMilli(int64(ms)).UTC(), ok
}

// archive is what one was found to be.
type archive struct {
	meta    meta
	state   int64            // bytes of state.bin
	records map[string]int64 // nil: they were not counted
	unread  string           // why not, where they should have been
}

// unsound is what is wrong with an archive. Other errors are of the reading.
type unsound string

func (u unsound) Error() string { return string(u) }

// wrong makes a finding of an error, unless it is of the reading.
func wrong(what string, err error) error {
	if err := observer.OfReading(err); err != nil {
		return err
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return unsound(what + ": it is cut short")
	}
	return unsound(what + ": " + err.Error())
}

// readArchive reads an archive to its last byte and compares every hash. An error
// that is unsound says what is wrong with it.
func (s system) readArchive(ctx context.Context, in io.Reader) (a archive, err error) {
	file := bufio.NewReaderSize(observer.Reading(ctx, in), 1<<16)
	z, err := gzip.NewReader(file)
	if err != nil {
		return a, wrong("it is no gzip", err)
	}
	z.Multistream(false)
	r := &reader{t: tar.NewReader(z), sums: map[string]string{}, sys: s}
	for {
		h, err := r.t.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return a, wrong("it is no whole tar", err)
		}
		if err := r.member(h, &a); err != nil {
			return a, err
		}
	}
	// The decoder knows only at its end that all was right.
	tail, err := io.ReadAll(io.LimitReader(z, maxTail+1))
	if err != nil {
		return a, wrong("its gzip is not whole", err)
	}
	if len(tail) > maxTail || len(bytes.TrimRight(tail, "\x00")) > 0 {
		return a, unsound("something stands behind its last member")
	}
	if _, err := file.ReadByte(); err == nil {
		return a, unsound("something stands behind its gzip")
	} else if !errors.Is(err, io.EOF) {
		return a, wrong("read behind its gzip", err)
	}
	return a, r.complete(a)
}

// reader goes through the members of one archive.
type reader struct {
	t    *tar.Reader
	sys  system
	sums map[string]string // sha256 of each member, hex
	said []byte            // SHA256SUMS
}

func (r *reader) member(h *tar.Header, a *archive) error {
	known := append([]string{metaName, stateName}, r.sys.sums...)
	switch {
	case h.Typeflag != tar.TypeReg:
		return unsound(fmt.Sprintf("its member %.40q is no file", h.Name))
	case !slices.Contains(known, h.Name):
		return unsound(fmt.Sprintf("it has a member %.40q, which none should have", h.Name))
	case r.sums[h.Name] != "":
		return unsound("it has " + h.Name + " twice")
	}
	sum := sha256.New()
	in := io.TeeReader(r.t, sum)
	var err error
	switch h.Name {
	case stateName:
		a.state = h.Size
		if r.sys.records {
			var cerr error
			if a.records, cerr = countRecords(in); cerr != nil {
				a.records, a.unread = nil, cerr.Error()
			}
		}
	case metaName:
		var b []byte
		if b, err = bounded(in, maxMeta); err == nil {
			err = parseMeta(b, &a.meta)
		}
	default:
		var b []byte
		if b, err = bounded(in, maxSums); h.Name == sumsName {
			r.said = b
		}
	}
	if err == nil {
		_, err = io.Copy(io.Discard, in)
	}
	var u unsound
	if errors.As(err, &u) {
		return err
	}
	if err != nil {
		return wrong("its member "+h.Name, err)
	}
	r.sums[h.Name] = hex.EncodeToString(sum.Sum(nil))
	return nil
}

func bounded(r io.Reader, most int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		return nil, unsound(fmt.Sprintf("a member has more than %d bytes", most))
	}
	return b, err
}

func parseMeta(b []byte, m *meta) error {
	if err := json.Unmarshal(b, m); err != nil {
		return unsound(metaName + ": " + err.Error())
	}
	switch n := len(m.Configuration.Servers); {
	case m.Index == 0 || m.Term == 0:
		return unsound(metaName + " names no index and term")
	case n > maxServer:
		return unsound(fmt.Sprintf("%s names %d servers", metaName, n))
	}
	return nil
}

// complete compares what was read with what the archive says of itself.
func (r *reader) complete(a archive) error {
	for _, name := range append([]string{metaName, stateName}, r.sys.sums...) {
		if r.sums[name] == "" {
			return unsound("it lacks " + name)
		}
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(r.said)) {
		sum, name, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "  ")
		switch {
		case !ok || name != metaName && name != stateName || listed[name]:
			return unsound(fmt.Sprintf("%s has the line %.100q", sumsName, line))
		case sum != r.sums[name]:
			return unsound(fmt.Sprintf("%s has another sha256 than %s says", name, sumsName))
		}
		listed[name] = true
	}
	switch {
	case len(listed) != 2:
		return unsound(fmt.Sprintf("%s names %d of two members", sumsName, len(listed)))
	case a.meta.Size != 0 && a.meta.Size != a.state:
		return unsound(fmt.Sprintf("%s has %d bytes, %s says %d", stateName, a.state, metaName, a.meta.Size))
	}
	return nil
}
