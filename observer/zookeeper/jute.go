package zookeeper

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"hash/adler32"
	"io"
)

// maxString bounds a path or another name in a snapshot, maxBlob a node's data or a
// transaction, in bytes: jute.maxbuffer is 1 MiB unless somebody has raised it.
const (
	maxString = 1 << 20
	maxBlob   = 64 << 20
)

// errForm is in the chain of what a reader says of bytes that no ZooKeeper wrote.
var errForm = errors.New("damaged")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errForm, fmt.Sprintf(format, args...))
}

// jute reads ZooKeeper's serialization (big endian, lengths before contents) and sums
// what it has read. After an error all it returns is zero.
type jute struct {
	r   *bufio.Reader
	sum hash.Hash32
	n   int64 // bytes read
	err error
	b   [8]byte
}

func newJute(r io.Reader) *jute {
	return &jute{r: bufio.NewReaderSize(r, 64<<10), sum: adler32.New()}
}

func (j *jute) full(b []byte) bool {
	if j.err != nil {
		return false
	}
	n, err := io.ReadFull(j.r, b)
	j.n += int64(n)
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = malformed("it ends at byte %d, too early", j.n)
		}
		j.err = err
		return false
	}
	_, _ = j.sum.Write(b) // a hash takes everything
	return true
}

func (j *jute) int() int32 {
	if !j.full(j.b[:4]) {
		return 0
	}
	return int32(binary.BigEndian.Uint32(j.b[:4]))
}

func (j *jute) long() int64 {
	if !j.full(j.b[:8]) {
		return 0
	}
	return int64(binary.BigEndian.Uint64(j.b[:8]))
}

// length reads that of what follows; -1 stands for null.
func (j *jute) length(most int32, what string) int32 {
	n := j.int()
	if j.err == nil && (n < -1 || n > most) {
		j.err = malformed("%s of %d bytes at byte %d", what, n, j.n-4)
		return 0
	}
	return max(n, 0)
}

func (j *jute) text() string {
	n := j.length(maxString, "a name")
	if j.err != nil {
		return ""
	}
	if n <= 4<<10 {
		b := make([]byte, n)
		j.full(b)
		return string(b)
	}
	// It is not taken at its word before the bytes are there.
	var out []byte
	buf := make([]byte, 64<<10)
	for left := int(n); left > 0 && j.err == nil; {
		part := buf[:min(left, len(buf))]
		if j.full(part) {
			out = append(out, part...)
		}
		left -= len(part)
	}
	return string(out)
}

// skip passes over a blob.
func (j *jute) skip(what string) {
	left := int(j.length(maxBlob, what))
	buf := make([]byte, min(left, 64<<10))
	for left > 0 && j.err == nil {
		part := buf[:min(left, len(buf))]
		j.full(part)
		left -= len(part)
	}
}

// pass reads n bytes and forgets them.
func (j *jute) pass(n int) {
	var buf [128]byte
	j.full(buf[:n])
}

// ends tells whether nothing follows.
func (j *jute) ends() bool {
	if j.err != nil {
		return false
	}
	_, err := j.r.Peek(1)
	if err != nil && !errors.Is(err, io.EOF) {
		j.err = err
	}
	return errors.Is(err, io.EOF)
}
