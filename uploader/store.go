package uploader

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"time"
)

// The errors of a store. Every error that a Store returns has at most one of
// them in its chain; hint.Of has the advice for the operator.
var (
	// ErrNotFound: no object at that key.
	ErrNotFound = errors.New("no such object")
	// ErrPrecondition: a conditional write lost (412, 409).
	ErrPrecondition = errors.New("somebody else wrote it first")
	// ErrRefused: the store answered no: credentials, rights, no such bucket.
	ErrRefused = errors.New("the store refuses")
	// ErrUnreachable: no answer, after all retries.
	ErrUnreachable = errors.New("the store is unreachable")
	// ErrDamaged: what the store has is not what was sent or recorded.
	ErrDamaged = errors.New("stored bytes differ")
	// ErrCopied: what was copied inside the store is not what it was taken for; the
	// upload is given up. Put again without Piece.Reuse.
	ErrCopied = errors.New("what was copied has other bytes")
	// ErrUploadGone: an unfinished upload was ended by somebody else. Put again.
	ErrUploadGone = errors.New("the upload is gone")
)

// Object is what the store says of a stored object.
type Object struct {
	Key       string
	Size      int64  // bytes
	ETag      string // as the store gives it, without quotes
	CRC64NVME string // base64 of the big-endian value; "" where the store keeps none
	Modified  time.Time
	// Checked is the strongest means by which the stored bytes were compared with
	// what was sent: "checksum" (the store's own full-object checksum equals ours),
	// "sample" (size, tail and ranges read back), "read-back" (every byte).
	Checked string
}

// Range names bytes of an object that is already in the bucket.
type Range struct {
	Key, ETag string
	Off, Len  int64
}

// Piece is a run of bytes of an object to be put.
type Piece struct {
	// ID names the content for ever: equal ids decode to equal bytes.
	ID string
	// Len is the length of the bytes where they need not be made: then Bytes is
	// called only where they are needed, perhaps never, perhaps after the sequence
	// has advanced. Where it is 0 Bytes is called at once, and what it returns is
	// valid until the sequence advances.
	Len int64
	// CRC is the CRC64NVME of the bytes. Only where Len is 0 it may be 0: not known.
	CRC uint64
	// Bytes returns the stored bytes. Where Len is 0 it is called from the goroutine
	// that consumes the sequence. Else it may be another one until Put returns: one
	// at a time of an object's pieces, and what it returns is valid until the next
	// such call.
	Bytes func(ctx context.Context) ([]byte, error)
	// Reuse, where set, names the same bytes in the bucket; Len and CRC are known.
	// It is of use only where Store.Copies.
	Reuse *Range
	// Record is what the producer needs to go on behind this piece after a crash;
	// it is journalled with the part in which the piece ends.
	Record json.RawMessage
}

// Sent is a piece of an earlier run, as it was journalled.
type Sent struct {
	ID     string
	Len    int64
	CRC    uint64
	Record json.RawMessage
}

// PutRequest describes one large object.
type PutRequest struct {
	Key string
	// Upper is an upper bound of the object's size in bytes; the part size is
	// made from it and fixed for the upload.
	Upper int64
	// Pieces is called once and yields the object's bytes in order; what it returns
	// is consumed once. It must begin with the pieces that sent yields, which are
	// none where the upload begins: with the same lengths and checksums, so that
	// Bytes is not called for those that the store has.
	Pieces func(sent iter.Seq2[Sent, error]) iter.Seq2[Piece, error]
	// Journal is the path of the append-only upload journal; its directory exists.
	Journal string
	// Identity says what is being sent (plan digest, chain, eddy and encoder
	// version, ...). A journal with another identity is never continued.
	Identity map[string]string
	// Reuses says that some pieces may have Reuse. On some stores that costs the
	// object its stored checksum.
	Reuses bool
	// Stored, where set, is called once the object is whole and checked, with the
	// journal still there: whoever must not send it again writes it down there. With
	// its error Put ends, and the next one finds the object as it is.
	Stored func(Object) error
	// Moved, where set, is called as the upload goes on, from any goroutine.
	Moved func(Moved)
}

// Moved counts the bytes of an upload by how they came into the bucket.
type Moved struct {
	Kept   int64 // stored by an earlier run
	Sent   int64 // each part once, however often it had to be tried
	Copied int64 // inside the bucket
	// KeptCopied is how much of Kept that run had copied.
	KeptCopied int64
}

// Condition restricts a small write. The zero value writes unconditionally.
type Condition struct {
	IfAbsent bool   // only where the key does not exist
	IfMatch  string // only where the object has this ETag
}

// Store is an object store. All methods may be called from many goroutines.
type Store interface {
	// Put stores one large object, part by part, and returns when its stored
	// bytes are checked. On an error the upload stays, the journal beside it: a Put
	// with the same journal, key, part size and identity goes on with it, and sends
	// what the store does not list. Anything else is abandoned first. An upload that
	// is gone (a lifecycle rule has ended it) is begun anew; where that is found out
	// in the middle, the error is ErrUploadGone. Abandon removes both.
	Put(ctx context.Context, r PutRequest) (Object, error)
	// Abandon aborts the upload that the journal describes and removes the
	// journal. A journal or upload that is gone already is no error.
	Abandon(ctx context.Context, journal string) error
	// PutSmall stores a small object whole.
	PutSmall(ctx context.Context, key string, body []byte, contentType string, c Condition) (Object, error)
	// GetSmall reads an object of at most limit bytes; a larger one is an error.
	GetSmall(ctx context.Context, key string, limit int64) ([]byte, Object, error)
	// Stat asks for one object.
	Stat(ctx context.Context, key string) (Object, error)
	// Open reads n bytes at off (n < 0: to the end). The reader retries from
	// where it broke off, pins the ETag of the first answer (or etag, where
	// given), and returns io.ErrUnexpectedEOF rather than a short success.
	Open(ctx context.Context, key, etag string, off, n int64) (io.ReadCloser, error)
	// List yields objects below prefix in key order. With a delimiter the
	// common prefixes come as objects whose Key ends in it.
	List(ctx context.Context, prefix, delimiter string) iter.Seq2[Object, error]
	// Delete removes objects; keys that do not exist are no error.
	Delete(ctx context.Context, keys ...string) error
	// Uploads yields what was begun by Put below prefix and is neither finished nor
	// abandoned, by whomever, in no certain order.
	Uploads(ctx context.Context, prefix string) iter.Seq2[Upload, error]
	// AbortUpload ends one of them; one that is gone already is no error.
	AbortUpload(ctx context.Context, u Upload) error
	// Probe finds out what the store can do, by trying it with objects of its own
	// below the prefix under, which it removes again where it may. The error is
	// about what no backup can do without: rights, reading, ranges, a class that
	// can be read at once. The store is steered by the result from then on.
	Probe(ctx context.Context, under string) (Caps, error)
	// Copies tells whether Put copies inside the store what has Reuse, as far as is
	// known: a store that has refused once does so no more.
	Copies() bool
	// Use steers the store by an earlier probe. It is called before the store is
	// used; false means that the result is of another store, and changes nothing.
	Use(c Caps) bool
	// URL names the store for messages, without credentials.
	URL() string
}
