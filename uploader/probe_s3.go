package uploader

import (
	"bytes"
	"context"
	"errors"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/eddy-backup/eddy/internal/crc"
	"github.com/eddy-backup/eddy/internal/hint"
)

// Probe implements Store: about thirty calls and 11 MiB, half as much again where
// the store refuses something. Two probes at the same moment may disturb each
// other, which can only make a store look weaker than it is.
func (s *s3Store) Probe(ctx context.Context, under string) (Caps, error) {
	t := &trial{
		// A store that nobody has steered yet: what an earlier probe found does not
		// hide what is true now.
		s:     &s3Store{c: s.c, api: s.api, bucket: s.bucket, prefix: s.prefix, sums: s.sums, wait: s.wait},
		small: under + "small", large: under + probeLarge, copied: under + probeCopy,
		caps: Caps{
			Format: capsFormat, MinReader: capsFormat, Store: s.URL(), Endpoint: s.c.Endpoint, Class: s.c.StorageClass, Probed: time.Now().UTC(),
		},
	}
	err := t.run(ctx)
	if hasCode(err, "InvalidObjectState") { // before anybody looked at the class
		err = t.thawFirst("")
	}
	s.answered.Store(s.answered.Load() || t.s.answered.Load())
	cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.deadline(0))
	defer cancel()
	cerr := t.clean(cctx)
	if err != nil {
		return Caps{}, err // what stayed is small, and the next probe writes it over
	}
	if cerr != nil {
		return Caps{}, cerr
	}
	s.caps.Store(&t.caps)
	return t.caps, nil
}

// trial is one probe of a bucket.
type trial struct {
	s                    *s3Store
	caps                 Caps
	small, large, copied string    // keys
	written              []string  // of them
	open                 []*upload // begun, neither completed nor aborted
}

func (t *trial) run(ctx context.Context) error {
	t.written = append(t.written, t.small)
	if err := t.trySmallSums(ctx); err != nil {
		return err
	}
	if err := trySmall(ctx, t.s, t.small, &t.caps); err != nil {
		return err
	}
	if err := t.tryParts(ctx); err != nil {
		return err
	}
	o, err := t.tryClass(ctx)
	if err != nil {
		return err
	}
	t.tryCopies(ctx, o)
	t.caps.Tags = answer(t.once(ctx, func(ctx context.Context) error {
		_, err := t.s.api.PutObjectTagging(ctx, &s3.PutObjectTaggingInput{
			Bucket: &t.s.bucket, Key: t.s.key(t.small),
			Tagging: &types.Tagging{TagSet: []types.Tag{{Key: aws.String("eddy"), Value: aws.String("probe")}}},
		})
		return err
	}))
	t.askBucket(ctx)
	return ctx.Err()
}

// once makes a call of which only the answer matters: it is not tried again.
func (t *trial) once(ctx context.Context, call func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, t.s.deadline(minPart))
	defer cancel()
	return classify("probe", "", call(ctx))
}

// answer judges a call that either works or is not to be relied on. Rights that
// the credentials lack say nothing about the store.
func answer(err error) Answer {
	switch {
	case err == nil:
		return Kept
	case errors.Is(err, ErrUnreachable), hasCode(err, "AccessDenied", "AllAccessDisabled"):
		return Unknown
	default:
		return Refused
	}
}

// trySmallSums writes one object with the checksum that the AWS SDK adds, as far
// as the AWS configuration has not turned it off.
func (t *trial) trySmallSums(ctx context.Context) error {
	if t.s.sums == aws.RequestChecksumCalculationWhenRequired {
		return nil
	}
	_, err := t.s.PutSmall(ctx, t.small, []byte("eddy"), "text/plain", Condition{})
	switch {
	case err == nil:
		t.caps.SmallSums = Kept
	case refusesChecksums(err):
		t.caps.SmallSums = Refused
		t.steer()
	default:
		return err
	}
	return nil
}

// steer makes the trial's own store do what a later one will.
func (t *trial) steer() {
	c := t.caps
	c.Conditions = Unknown // asked for, not compared
	t.s.caps.Store(&c)
}

// tryParts uploads parts of unequal size, and equal ones where those are refused.
func (t *trial) tryParts(ctx context.Context) error {
	const small = 1000 // bytes of the last part
	least := int(t.s.c.leastPart())
	t.caps.UnequalParts = Kept
	o, err := t.put(ctx, least, least+least/5, small)
	if hasCode(err, "InvalidObjectState") { // as parts were read back
		return err
	}
	if errors.Is(err, ErrRefused) || errors.Is(err, ErrDamaged) {
		t.caps.UnequalParts = Refused
		o, err = t.put(ctx, least, least, small)
	}
	if err != nil {
		return err
	}
	t.caps.WholeSum = Refused
	if o.Checked == "checksum" {
		t.caps.WholeSum = Kept
	}
	return nil
}

// put makes the large object of parts of the given sizes.
func (t *trial) put(ctx context.Context, sizes ...int) (Object, error) {
	u := t.s.newUpload(PutRequest{Key: t.large})
	if err := u.create(ctx); err != nil {
		return Object{}, err
	}
	t.open = append(t.open, u)
	if t.caps.ListUploads == Unknown {
		t.caps.ListUploads = t.tryUploads(ctx, u)
	}
	if u.plain.Load() {
		t.caps.PartSums = Refused
	} else if err := t.tryWrongSum(ctx, u); err != nil {
		return Object{}, err
	}
	var size int64
	var sum uint64
	for i, n := range sizes {
		p := part{number: int32(i + 1), off: size, len: int64(n), buf: bytes.Repeat([]byte{byte('a' + i)}, n)}
		p.crc = crc.NVME(p.buf)
		size, sum = size+p.len, crc.Combine(sum, p.crc, p.len)
		if err := errors.Join(u.note(p), u.send(ctx, p)); err != nil {
			return Object{}, err
		}
	}
	t.written = append(t.written, t.large)
	o, err := u.complete(ctx, nil, size, sum)
	if err != nil {
		return Object{}, err
	}
	t.done(u)
	if u.plain.Load() && t.caps.PartSums != Ignored {
		t.caps.PartSums = Refused
	}
	t.steer()
	return o, nil
}

// tryUploads looks for an upload that has just begun, as a sweep does: by the
// prefix of its directory, and among all.
func (t *trial) tryUploads(ctx context.Context, u *upload) Answer {
	for _, prefix := range []*string{t.s.key(path.Dir(u.r.Key) + "/"), nil} {
		found := false
		err := t.once(ctx, func(ctx context.Context) error {
			out, err := t.s.api.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &t.s.bucket, Prefix: prefix})
			if err == nil {
				found = slices.ContainsFunc(out.Uploads, func(o types.MultipartUpload) bool { return aws.ToString(o.UploadId) == u.id }) ||
					prefix == nil && aws.ToBool(out.IsTruncated) // somebody else's are many
			}
			return err
		})
		switch {
		case err != nil:
			return answer(err)
		case found && prefix != nil:
			return Kept
		case found:
			return Ignored
		}
	}
	return Refused
}

// tryWrongSum sends a part with a checksum that is not its own. A store that
// takes it does not look.
func (t *trial) tryWrongSum(ctx context.Context, u *upload) error {
	p := part{number: 1, len: 4, buf: []byte("eddy"), crc: 1}
	err := t.once(ctx, func(ctx context.Context) error {
		_, err := u.sendOnce(ctx, p, false)
		return err
	})
	t.caps.PartSums = Kept
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, ErrUnreachable):
		return err
	case err == nil:
		t.caps.PartSums = Ignored
		u.plain.Store(true)
	}
	// Whether a refusal is about this value or about all of them, the right one
	// shows.
	return nil
}

func (t *trial) done(u *upload) {
	for i, o := range t.open {
		if o == u {
			t.open = append(t.open[:i], t.open[i+1:]...)
			return
		}
	}
}

// tryClass looks in which class the large object is, and reads the end of it.
func (t *trial) tryClass(ctx context.Context) (Object, error) {
	var class types.StorageClass
	var o Object
	err := t.s.attempt(ctx, "look at", t.large, t.s.deadline(0), func(ctx context.Context, _ int) error {
		out, err := t.s.api.HeadObject(ctx, &s3.HeadObjectInput{Bucket: &t.s.bucket, Key: t.s.key(t.large)})
		if err != nil {
			return err
		}
		class = out.StorageClass
		o = Object{Key: t.large, Size: aws.ToInt64(out.ContentLength), ETag: unquote(out.ETag)}
		return nil
	})
	if err != nil {
		return o, err
	}
	if !isArchived(string(class)) {
		var r io.ReadCloser
		if r, err = t.s.Open(ctx, t.large, o.ETag, o.Size-10, 10); err == nil {
			_, err = io.Copy(io.Discard, r)
			err = errors.Join(err, r.Close())
		}
		if !hasCode(err, "InvalidObjectState") {
			return o, err
		}
	}
	return o, t.thawFirst(string(class))
}

// thawFirst refuses a bucket from which nothing can be restored at once.
func (t *trial) thawFirst(class string) error {
	if class == "" {
		class = "an archive class"
	}
	todo := "set `store.url: s3://BUCKET/PREFIX` to a bucket that keeps objects readable, or give this one another default class"
	if t.s.c.StorageClass != "" {
		todo = "set `store.storage_class: STANDARD`, or STANDARD_IA or GLACIER_IR"
	}
	return hint.Add(&storeError{
		op: "use the bucket", kind: ErrRefused,
		said: "what is written goes to " + class + " at once, and must be thawed for hours before it can be read",
	}, todo)
}

// tryCopies makes an object of a range of the large one and a part of its own:
// with the checksums of a volume where the store has them right (minio refuses to
// copy into such an upload, versitygw takes the whole source's checksum for the
// range's), else without.
func (t *trial) tryCopies(ctx context.Context, from Object) {
	if t.caps.PartSums == Kept && t.caps.WholeSum == Kept {
		if t.caps.CopySums = t.tryCopy(ctx, from, false); t.caps.CopySums == Kept {
			t.caps.PartCopy = Kept
			return
		}
	}
	t.caps.PartCopy = t.tryCopy(ctx, from, true)
}

func (t *trial) tryCopy(ctx context.Context, from Object, plain bool) Answer {
	const off, tail = 1000, "eddy"
	n := t.s.c.leastPart()
	u := t.s.newUpload(PutRequest{Key: t.copied})
	u.plain.Store(plain)
	if u.create(ctx) != nil {
		return Unknown
	}
	t.open = append(t.open, u)
	last := part{number: 2, off: n, len: int64(len(tail)), buf: []byte(tail), crc: crc.NVME([]byte(tail))}
	// The border of the large object's first two parts is in the range.
	sum := crc.Combine(crc.NVME(bytes.Repeat([]byte{'a'}, int(n-off))), crc.NVME(bytes.Repeat([]byte{'b'}, off)), off)
	u.parts = []sentPart{{len: n}, {off: n, len: last.len}}
	err := t.once(ctx, func(ctx context.Context) (err error) {
		u.parts[0].etag, u.parts[0].crc, err = u.copyOnce(ctx, part{number: 1, from: &Range{Key: t.large, ETag: from.ETag, Off: off, Len: n}})
		return err
	})
	if err != nil {
		return answer(err)
	}
	if !plain && u.parts[0].crc != crc.Base64(sum) {
		return Ignored
	}
	if u.send(ctx, last) != nil {
		return Unknown
	}
	t.written = append(t.written, t.copied)
	whole := crc.Base64(crc.Combine(sum, last.crc, last.len))
	err = t.once(ctx, func(ctx context.Context) error { return u.tryComplete(ctx, n+last.len, whole) })
	if err != nil {
		return answer(err)
	}
	t.done(u)
	if !plain {
		o, err := t.s.Stat(ctx, t.copied)
		switch {
		case err != nil:
			return Unknown
		case o.CRC64NVME != whole:
			return Ignored
		}
	}
	r, err := t.s.Open(ctx, t.copied, "", n-off-8, 16)
	if err != nil {
		return Unknown
	}
	got, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return Unknown
	}
	if string(got) != strings.Repeat("a", 8)+strings.Repeat("b", 8) {
		return Ignored
	}
	return Kept
}

// clean removes what the trial wrote, and learns how.
func (t *trial) clean(ctx context.Context) error {
	for _, u := range t.open {
		if err := t.s.abort(ctx, u.r.Key, u.id); err != nil && !errors.Is(err, ErrRefused) {
			return err
		}
	}
	err := t.s.deleteMany(ctx, t.written)
	t.caps.DeleteMany = answer(err)
	if refusesMany(err) {
		t.caps.DeleteMany = Refused
		err = t.s.deleteEach(ctx, t.written)
	}
	if err != nil && !errors.Is(err, ErrRefused) {
		return err
	}
	t.caps.Delete = Kept
	if err != nil {
		t.caps.Delete = Refused
	}
	for _, key := range t.written {
		if _, err := t.s.Stat(ctx, key); err == nil {
			t.caps.Left = true
			if t.caps.Delete == Kept {
				t.caps.Delete = Ignored
			}
		}
	}
	return nil
}
