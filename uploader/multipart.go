package uploader

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/eddy-backup/eddy/internal/crc"
)

// Put implements Store: a multipart upload by hand, because neither the manager
// nor its successor can be resumed. The store checks each part and the whole
// object by CRC64NVME. A store that knows no such checksum gets the parts' MD5
// instead, and then parts are read back, which Object.Checked says.
func (s *s3Store) Put(ctx context.Context, r PutRequest) (Object, error) {
	u := s.newUpload(r)
	old, err := u.resume(ctx)
	if err != nil {
		return Object{}, err
	}
	sent := iter.Seq2[Sent, error](func(func(Sent, error) bool) {})
	if old != nil {
		u.goesOn(old)
		sent = old.pieces()
		u.journal, err = old.goOn(s.c.FS)
	} else {
		err = u.begin(ctx)
	}
	if err != nil {
		return Object{}, err
	}
	defer u.journal.close()
	cut := cutter{size: u.partSize, limit: s.c.inFlight(u.partSize), note: u.note, more: u.journal.more, send: u.send, copies: u.copies, copy: u.copy}
	if old != nil {
		cut.prior = old.parts
		u.adopt(old.parts)
	}
	size, sum, err := cut.run(ctx, r.Key, r.Pieces(sent))
	if errors.Is(err, errChanged) && r.Reuses {
		return Object{}, u.distrust(ctx, err)
	}
	if errors.Is(err, errChanged) {
		// What cannot be gone on with would fail the next run as well.
		return Object{}, errors.Join(err, s.Abandon(context.WithoutCancel(ctx), r.Journal))
	}
	if err != nil {
		return Object{}, err
	}
	o, err := u.complete(ctx, old, size, sum)
	if r.Reuses && u.hasCopies() && (errors.Is(err, ErrDamaged) || refusesUpload(err)) {
		return Object{}, u.distrust(ctx, err)
	}
	if old != nil && refusesUpload(err) {
		// Some stores take parts for an upload that is being aborted, and then list
		// one of which they have forgotten the rest. No run could ever complete it.
		return Object{}, errors.Join(err, s.Abandon(context.WithoutCancel(ctx), r.Journal))
	}
	if err != nil {
		return Object{}, err
	}
	if r.Stored != nil {
		if err := r.Stored(o); err != nil {
			return Object{}, err
		}
	}
	return o, ignoreAbsent(s.c.FS.Remove(r.Journal))
}

// upload is one multipart upload.
type upload struct {
	s        *s3Store
	r        PutRequest
	id       string
	partSize int64
	journal  *journal
	// plain: the store refuses CRC64NVME; parts go with their MD5. It may turn
	// true during an upload, never back.
	plain atomic.Bool

	mu    sync.Mutex // of what follows: one goroutine appends while others note ETags
	parts []sentPart
	moved Moved
	gone  map[string]bool // sources from which nothing can be copied any more
}

type sentPart struct {
	off, len int64
	crc      string // base64; "" of a part that the store copied, and said no checksum of
	etag     string
	proof    *proof // of a part that the store copied
}

func (s *s3Store) newUpload(r PutRequest) *upload {
	u := &upload{s: s, r: r, partSize: s.c.partSize(r.Upper), gone: map[string]bool{}}
	sums := s.known().PartSums
	u.plain.Store(sums == Refused || sums == Ignored || r.Reuses && s.known().CopySums != Kept && s.Copies())
	return u
}

func (u *upload) head() journalHead {
	return journalHead{
		Store: u.s.URL(), Endpoint: u.s.c.Endpoint, Key: u.r.Key, UploadID: u.id, PartSize: u.partSize, Plain: u.plain.Load(),
		Identity: u.r.Identity,
	}
}

// goesOn makes it the upload that an earlier run began, with or without a
// checksum as that one did.
func (u *upload) goesOn(old *earlier) {
	u.id = old.head.UploadID
	if sums := u.s.known().PartSums; sums != Refused && sums != Ignored {
		u.plain.Store(old.head.Plain)
	}
}

// begin makes a new upload and its journal.
func (u *upload) begin(ctx context.Context) error {
	if err := u.create(ctx); err != nil {
		return err
	}
	var err error
	if u.journal, err = createJournal(u.s.c.FS, u.r.Journal, u.head()); err != nil {
		// Nobody else knows of this upload.
		return errors.Join(err, u.s.abort(context.WithoutCancel(ctx), u.r.Key, u.id))
	}
	return nil
}

// note journals a part that is about to be sent.
func (u *upload) note(p part) error {
	line := lineOf(p)
	u.mu.Lock()
	u.parts = append(u.parts, sentPart{off: p.off, len: p.len, crc: line.CRC, proof: p.proof})
	u.mu.Unlock()
	return u.journal.append(line)
}

// done takes a part as stored.
func (u *upload) done(p part, etag, sum string) error {
	note := journalNote{Ack: p.number, ETag: etag}
	u.mu.Lock()
	sp := &u.parts[p.number-1]
	if p.from != nil {
		u.moved.Copied += p.len
	} else {
		u.moved.Sent += p.len
		if sp.proof != nil {
			note.Sent = sum
		}
		sp.proof = nil
	}
	sp.etag, sp.crc = etag, sum
	u.tell()
	u.mu.Unlock()
	return u.journal.say(note)
}

// tell reports what was moved so far. u.mu is held.
func (u *upload) tell() {
	if u.r.Moved != nil {
		u.r.Moved(u.moved)
	}
}

func (u *upload) create(ctx context.Context) error {
	err := u.tryCreate(ctx)
	if refusesChecksums(err) {
		u.plain.Store(true)
		err = u.tryCreate(ctx)
	}
	return err
}

func (u *upload) tryCreate(ctx context.Context) error {
	s := u.s
	return s.attempt(ctx, "begin the upload of", u.r.Key, s.deadline(0), func(ctx context.Context, _ int) error {
		in := &s3.CreateMultipartUploadInput{
			Bucket: &s.bucket, Key: s.key(u.r.Key), ContentType: aws.String(contentType(u.r.Key)),
			StorageClass: types.StorageClass(s.c.StorageClass), ServerSideEncryption: types.ServerSideEncryption(s.c.SSE.Mode),
		}
		if s.c.SSE.KMSKeyID != "" {
			in.SSEKMSKeyId = &s.c.SSE.KMSKeyID
		}
		if !u.plain.Load() {
			in.ChecksumAlgorithm, in.ChecksumType = types.ChecksumAlgorithmCrc64nvme, types.ChecksumTypeFullObject
		}
		out, err := s.api.CreateMultipartUpload(ctx, in)
		if err != nil {
			return err
		}
		if u.id = aws.ToString(out.UploadId); u.id == "" {
			return &storeError{kind: ErrRefused, said: "no upload id in the answer"}
		}
		return nil
	})
}

func contentType(key string) string {
	if path.Ext(key) == ".zst" {
		return "application/zstd"
	}
	return "application/octet-stream"
}

// refusesChecksums tells whether the store may have refused the call for its
// checksum: stores that do not know CRC64NVME say so in several ways.
func refusesChecksums(err error) bool {
	return errors.Is(err, ErrRefused) && hasCode(err, "InvalidRequest", "InvalidArgument", "NotImplemented", "NotSupported", "UnsupportedArgument")
}

// refusesUpload tells whether the store refuses to complete an upload for what is
// in it, and not for who asks, or how.
func refusesUpload(err error) bool {
	return refusesChecksums(err) || errors.Is(err, ErrRefused) && hasCode(err, "InvalidPart", "InvalidPartOrder", "EntityTooSmall", "BadDigest")
}

func (u *upload) send(ctx context.Context, p part) error {
	plain := u.plain.Load()
	etag, err := u.trySend(ctx, p, plain)
	if !plain && refusesChecksums(err) {
		u.plain.Store(true)
		etag, err = u.trySend(ctx, p, true)
	}
	if err != nil {
		return err
	}
	return u.done(p, etag, crc.Base64(p.crc))
}

func (u *upload) trySend(ctx context.Context, p part, plain bool) (etag string, err error) {
	s := u.s
	what := fmt.Sprintf("upload part %d of", p.number)
	err = s.attempt(ctx, what, u.r.Key, s.deadline(p.len), func(ctx context.Context, _ int) (err error) {
		etag, err = u.sendOnce(ctx, p, plain)
		return err
	})
	return etag, err
}

// sendOnce is one attempt at a part.
func (u *upload) sendOnce(ctx context.Context, p part, plain bool) (etag string, err error) {
	s, begun := u.s, time.Now()
	content := newBody(p.buf)
	defer content.detach()
	in := &s3.UploadPartInput{
		Bucket: &s.bucket, Key: s.key(u.r.Key), UploadId: &u.id, PartNumber: aws.Int32(p.number),
		Body: content, ContentLength: aws.Int64(p.len),
	}
	var opts []func(*s3.Options)
	if plain {
		sum := md5.Sum(p.buf)
		in.ContentMD5 = aws.String(base64.StdEncoding.EncodeToString(sum[:]))
		opts = append(opts, withoutChecksums)
	} else {
		in.ChecksumCRC64NVME = aws.String(crc.Base64(p.crc))
		opts = append(opts, payloadUnsigned)
	}
	out, err := s.api.UploadPart(ctx, in, opts...)
	if err != nil {
		return "", err
	}
	if aws.ToString(out.ETag) == "" {
		return "", &storeError{kind: ErrUnreachable, again: true, said: "no ETag in the answer"}
	}
	s.c.Log.Debug().Str("key", u.r.Key).Int32("part", p.number).Int64("bytes", p.len).Dur("took_ms", time.Since(begun)).Msg("part stored")
	return *out.ETag, nil
}

// payloadUnsigned leaves the sha256 of a part out of its signature, as the SDK
// itself does over TLS: it would cost more than compression does. The part's
// CRC64NVME is in a signed header. Over plain http that does not stop somebody on
// the path who forges bytes, but nor does a signature, as the answers are not
// signed: such a part is found when the archive is read, by the sha256 of each
// file. Stores that take no checksum get signed parts.
func payloadUnsigned(o *s3.Options) {
	o.APIOptions = append(o.APIOptions, v4.SwapComputePayloadSHA256ForUnsignedPayloadMiddleware)
}

func withoutChecksums(o *s3.Options) {
	o.RequestChecksumCalculation = aws.RequestChecksumCalculationWhenRequired
}

// complete ends the upload and proves that the object is what was sent. old is
// the earlier run that was gone on with, or nil.
func (u *upload) complete(ctx context.Context, old *earlier, size int64, sum uint64) (Object, error) {
	want := crc.Base64(sum)
	switch {
	case old != nil && old.finished:
		if *old.done != (journalDone{size, want}) {
			return Object{}, u.damaged("an earlier run ended it with %d bytes and checksum %s; they are %d and %s now", old.done.Size, old.done.CRC, size, want)
		}
	default:
		// Whoever comes after a crash can tell by this line an upload that was ended
		// from one that somebody has aborted.
		if err := u.journal.append(journalNote{Done: &journalDone{size, want}}); err != nil {
			return Object{}, err
		}
		err := u.tryComplete(ctx, size, want)
		if !u.plain.Load() && refusesChecksums(err) {
			u.plain.Store(true)
			err = u.tryComplete(ctx, size, want)
		}
		if err != nil {
			return Object{}, err
		}
	}
	o, err := u.s.Stat(ctx, u.r.Key)
	if err != nil {
		return Object{}, err
	}
	switch {
	case o.Size != size:
		return Object{}, u.damaged("%d bytes are stored, %d were sent", o.Size, size)
	case o.CRC64NVME == want:
		o.Checked = "checksum"
		return o, nil
	case o.CRC64NVME != "":
		return Object{}, u.damaged("the stored checksum is %s, what was sent has %s", o.CRC64NVME, want)
	}
	o.CRC64NVME = want
	o.Checked, err = u.readBack(ctx, o.ETag)
	return o, err
}

func (u *upload) damaged(format string, args ...any) error {
	return &storeError{op: "upload", key: u.r.Key, kind: ErrDamaged, said: fmt.Sprintf(format, args...)}
}

// tryComplete makes the call. A lost answer is neither failure nor success: some
// stores then answer the next try with 404 or 412, though the object is there. So
// the object itself is asked.
func (u *upload) tryComplete(ctx context.Context, size int64, want string) error {
	s := u.s
	in := &s3.CompleteMultipartUploadInput{Bucket: &s.bucket, Key: s.key(u.r.Key), UploadId: &u.id, MultipartUpload: &types.CompletedMultipartUpload{}}
	plain := u.plain.Load()
	for i, p := range u.parts {
		line := types.CompletedPart{PartNumber: aws.Int32(int32(i + 1)), ETag: aws.String(p.etag)}
		if !plain && p.crc != "" {
			line.ChecksumCRC64NVME = aws.String(p.crc)
		}
		in.MultipartUpload.Parts = append(in.MultipartUpload.Parts, line)
	}
	if !plain {
		in.ChecksumCRC64NVME, in.ChecksumType = &want, types.ChecksumTypeFullObject
	}
	lost := false // an earlier attempt may have done it
	// A store may join the parts only now.
	deadline := s.deadline(0) + time.Duration(len(u.parts))*100*time.Millisecond
	return s.attempt(ctx, "complete the upload of", u.r.Key, deadline, func(ctx context.Context, _ int) error {
		out, err := s.api.CompleteMultipartUpload(ctx, in)
		if err == nil && aws.ToString(out.ETag) != "" {
			return nil
		}
		if err == nil {
			err = &storeError{kind: ErrUnreachable, again: true, said: "no ETag in the answer"}
		}
		judged := classify("complete the upload of", u.r.Key, err)
		lost = lost || errors.Is(judged, ErrUnreachable)
		if !lost && !errors.Is(judged, ErrUploadGone) {
			return err
		}
		// The attempt's own time may be over.
		hctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.deadline(0))
		defer cancel()
		o, herr := s.head(hctx, u.r.Key)
		if herr == nil && o.Size == size && (o.CRC64NVME == want || lost && o.CRC64NVME == "") {
			return nil // without a checksum it is read back below
		}
		return err
	})
}

// readBack reads parts again, where the store has no checksum to compare: the
// first, the last, two between. It returns how much of the object that was.
func (u *upload) readBack(ctx context.Context, etag string) (checked string, err error) {
	last := len(u.parts) - 1
	picks := []int{0, last / 3, last * 2 / 3, last}
	checked = "sample"
	if len(u.parts) <= len(picks) {
		picks, checked = nil, "read-back"
		for i := range u.parts {
			picks = append(picks, i)
		}
	}
	for _, i := range picks {
		p := u.parts[i].known()
		r, err := u.s.Open(ctx, u.r.Key, etag, p.Off, p.Len)
		if err != nil {
			return "", err
		}
		sum, err := crcOf(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return "", err
		}
		if crc.Base64(sum) != p.CRC {
			return "", u.damaged("part %d reads back differently", i+1)
		}
	}
	return checked, nil
}

// known is the part, or the whole pieces around one that was copied.
func (p sentPart) known() proof {
	if p.proof != nil {
		return *p.proof
	}
	return proof{p.off, p.len, p.crc}
}

func crcOf(r io.Reader) (sum uint64, err error) {
	buf := make([]byte, 1<<20)
	for {
		n, err := r.Read(buf)
		sum = crc.Combine(sum, crc.NVME(buf[:n]), int64(n))
		if errors.Is(err, io.EOF) {
			return sum, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

// Abandon implements Store.
func (s *s3Store) Abandon(ctx context.Context, path string) error {
	e, err := readJournal(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// The upload of another store is out of reach: its lifecycle rule ends it.
	if err == nil && e.head.Store == s.URL() && e.head.Endpoint == s.c.Endpoint {
		if err := s.abort(ctx, e.head.Key, e.head.UploadID); err != nil {
			return err
		}
	}
	return ignoreAbsent(s.c.FS.Remove(path))
}

func (s *s3Store) abort(ctx context.Context, key, id string) error {
	err := s.attempt(ctx, "abort the upload of", key, s.deadline(0), func(ctx context.Context, _ int) error {
		_, err := s.api.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &s.bucket, Key: s.key(key), UploadId: &id})
		return err
	})
	if errors.Is(err, ErrUploadGone) {
		return nil
	}
	return err
}

func ignoreAbsent(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
