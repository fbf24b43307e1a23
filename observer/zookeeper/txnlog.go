package zookeeper

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/adler32"
	"io"
	"time"
)

// The forms of a log: a header of 16 bytes (magic, version, database id 0), then
// records: adler32 as a long, length as an int, that many bytes, 'B'. A server makes
// the file longer ahead of its writes, so that zeros follow the last record.
const (
	logHeader = 16
	recHead   = 12
	recEnd    = 0x42
	txnHeader = 8 + 4 + 8 + 8 + 4 // session, cxid, zxid, time, type
	txnDigest = 4 + 8             // version, digest of the tree after it
	minTxn    = txnHeader
)

// txn is one transaction of a log.
type txn struct {
	zxid uint64
	time time.Time
	tree *treeDigest // what its last bytes are if the log has digests
	raw  []byte      // the whole record; until the next one is read
}

// logEnd is how a log ends.
type logEnd struct {
	size int64 // bytes up to the end of the last whole record
	txns int64
	// torn: a record behind it was begun and not finished, as a kill leaves it. Nobody
	// was told that it was done.
	torn bool
	tail int64 // zeros behind that
}

// readLog reads a log to its last byte and gives each transaction to f.
func readLog(ctx context.Context, r io.Reader, head func([]byte) error, f func(txn) error) (end logEnd, err error) {
	j := newJute(r)
	if j.ends() { // a server that was killed before its first write
		return end, j.err
	}
	var b [logHeader]byte
	if !j.full(b[:]) {
		return end, j.err
	}
	be := binary.BigEndian
	if b == [logHeader]byte{} {
		end.tail = logHeader
		return end, zeros(j, &end)
	}
	if be.Uint32(b[:]) != logMagic || be.Uint32(b[4:]) != fileFormat || be.Uint64(b[8:]) != 0 {
		return end, malformed("it does not begin as a log does")
	}
	if err := head(b[:]); err != nil {
		return end, err
	}
	end.size = logHeader
	var rec bytes.Buffer
	for {
		if end.txns%4096 == 0 && ctx.Err() != nil {
			return end, ctx.Err()
		}
		if j.ends() || j.err != nil {
			return end, j.err
		}
		rec.Reset()
		if err := j.record(&rec, &end); err != nil || end.torn || rec.Len() == 0 {
			return end, err
		}
		t, err := parseTxn(rec.Bytes())
		if err != nil {
			return end, err
		}
		if err := f(t); err != nil {
			return end, err
		}
		end.size += int64(rec.Len())
		end.txns++
	}
}

// record reads the next one into rec, which stays empty where none follows.
func (j *jute) record(rec *bytes.Buffer, end *logEnd) error {
	at := j.n
	var head [recHead]byte
	n, err := io.ReadFull(j.r, head[:])
	j.n += int64(n)
	short := func(err error) error {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			end.torn, rec = true, nil
			return nil
		}
		return err
	}
	if err != nil && isZero(head[:n]) && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		end.tail += int64(n)
		return nil
	}
	if err != nil {
		return short(err)
	}
	if isZero(head[:]) {
		end.tail += recHead
		return zeros(j, end)
	}
	be := binary.BigEndian
	size := int32(be.Uint32(head[8:]))
	if size < minTxn || size > maxBlob {
		return malformed("a record of %d bytes at byte %d", size, at)
	}
	rec.Write(head[:])
	m, err := io.CopyN(rec, j.r, int64(size)+1)
	j.n += m
	if err != nil {
		rec.Reset()
		return short(err)
	}
	all := rec.Bytes()
	body := all[recHead : len(all)-1]
	if last := all[len(all)-1]; last != recEnd {
		// Killed in the middle: what was not written is zeros, to the file's end.
		if last != 0 {
			return malformed("the record at byte %d has no end", at)
		}
		rec.Reset()
		end.torn = true
		return zeros(j, end)
	}
	if uint64(adler32.Checksum(body)) != be.Uint64(all) {
		return malformed("the checksum of the record at byte %d is wrong", at)
	}
	return nil
}

// zeros reads to the file's end, where nothing else may stand: ZooKeeper itself reads
// no further, so that whatever does would be lost unseen.
func zeros(j *jute, end *logEnd) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := j.r.Read(buf)
		if !isZero(buf[:n]) {
			return malformed("bytes behind its end, after byte %d", j.n)
		}
		j.n += int64(n)
		end.tail += int64(n)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func isZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.NativeEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

func parseTxn(raw []byte) (t txn, err error) {
	body := raw[recHead : len(raw)-1]
	be := binary.BigEndian
	t = txn{zxid: be.Uint64(body[12:]), time: time.UnixMilli(int64(be.Uint64(body[20:]))), raw: raw}
	if n := len(body) - txnDigest; n >= txnHeader {
		t.tree = &treeDigest{zxid: t.zxid, version: int32(be.Uint32(body[n:])), sum: be.Uint64(body[n+4:])}
	}
	return t, nil
}

// follows tells whether a transaction is the one after another: the next of its
// epoch, or the first of a later one.
func follows(before, zxid uint64) bool {
	if zxid>>32 == before>>32 {
		return zxid == before+1
	}
	return zxid>>32 > before>>32 && uint32(zxid) == 1
}
