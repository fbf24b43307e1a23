package uploader

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// Upload is a large object that somebody began to put and has not finished. It is
// no object yet, no listing shows it, and it is paid for.
type Upload struct {
	Key   string
	ID    string    // as the store names it
	Begun time.Time // by the store's clock; of a directory: when it was last written to
}

// Uploads implements Store.
func (s *s3Store) Uploads(ctx context.Context, prefix string) iter.Seq2[Upload, error] {
	return func(yield func(Upload, error) bool) {
		in := &s3.ListMultipartUploadsInput{Bucket: &s.bucket, Prefix: s.key(prefix)}
		if s.known().ListUploads == Ignored {
			in.Prefix = nil // it finds nothing by one; all are looked through
		}
		for {
			var out *s3.ListMultipartUploadsOutput
			err := s.attempt(ctx, "list unfinished uploads of", prefix, s.deadline(mib), func(ctx context.Context, _ int) (err error) {
				out, err = s.api.ListMultipartUploads(ctx, in)
				return err
			})
			if err != nil {
				yield(Upload{}, err)
				return
			}
			for _, u := range out.Uploads {
				key, ok := strings.CutPrefix(aws.ToString(u.Key), *s.key(""))
				if !ok || !strings.HasPrefix(key, prefix) {
					continue
				}
				if !yield(Upload{Key: key, ID: aws.ToString(u.UploadId), Begun: aws.ToTime(u.Initiated)}, nil) {
					return
				}
			}
			if !aws.ToBool(out.IsTruncated) || aws.ToString(out.NextKeyMarker) == "" {
				return
			}
			in.KeyMarker, in.UploadIdMarker = out.NextKeyMarker, out.NextUploadIdMarker
		}
	}
}

// AbortUpload implements Store.
func (s *s3Store) AbortUpload(ctx context.Context, u Upload) error { return s.abort(ctx, u.Key, u.ID) }

// tmpUpload is the name that Put gives a file before it is an object.
var tmpUpload = regexp.MustCompile(`^` + regexp.QuoteMeta(tmpMark) + `[0-9a-f]{12}-(.+)$`)

// Uploads implements Store.
func (s *fileStore) Uploads(ctx context.Context, prefix string) iter.Seq2[Upload, error] {
	return func(yield func(Upload, error) bool) {
		names, err := s.names(ctx, prefix[:strings.LastIndexByte(prefix, '/')+1], true)
		if err != nil {
			yield(Upload{}, s.fail(ctx, "list unfinished uploads of", prefix, err))
			return
		}
		for _, name := range names {
			m := tmpUpload.FindStringSubmatch(path.Base(name))
			st, err := os.Lstat(s.temporary(name))
			if m == nil || err != nil { // of PutSmall, or gone since
				continue
			}
			key := path.Join(path.Dir(name), m[1])
			if strings.HasPrefix(key, prefix) && !yield(Upload{Key: key, ID: name, Begun: st.ModTime()}, nil) {
				return
			}
		}
	}
}

// AbortUpload implements Store.
func (s *fileStore) AbortUpload(ctx context.Context, u Upload) error {
	if !isTemporary(u.ID) {
		return &storeError{op: "abort the upload of", key: u.Key, kind: ErrRefused, said: "it is none"}
	}
	return s.fail(ctx, "remove", u.ID, ignoreAbsent(s.fs.Remove(s.temporary(u.ID))))
}

// orphanAge is how old an unfinished upload must be before others than its maker
// end it: its maker may come back and go on.
const orphanAge = 24 * time.Hour

var volumeName = regexp.MustCompile(`^vol-[0-9]{4,}\.tar\.zst(\.age)?$`)

// ours tells whether an upload's key is one that this cluster's eddys make, and of
// which backup; the probe's have none.
func (c *Catalog) ours(key string) (id string, ok bool) {
	if name, found := strings.CutPrefix(key, c.probeUnder()); found {
		return "", name == probeLarge || name == probeCopy
	}
	rest, found := strings.CutPrefix(key, c.dataPrefix())
	id, name, valid := splitKey(rest)
	return id, found && valid && volumeName.MatchString(name)
}

// SweepUploads aborts unfinished uploads of this cluster's backups that nobody
// will finish: older than a day, of a run that no longer reports, and not kept,
// which is asked for the caller's own. It returns how many those were. Others'
// uploads are never touched, whatever their age. A store that does not list
// uploads has none to sweep (Caps.ListUploads).
func (c *Catalog) SweepUploads(ctx context.Context, keep func(Upload) bool) (aborted int, err error) {
	now, err := c.storeTime(ctx)
	if err != nil {
		return 0, err
	}
	var runs map[string]Run // read when there is anything to ask of them
	for u, err := range c.store.Uploads(ctx, c.cluster+"/") {
		if err != nil {
			return aborted, err
		}
		id, ours := c.ours(u.Key)
		if !ours || now.Sub(u.Begun) < orphanAge || keep(u) {
			continue
		}
		if runs == nil {
			if runs, err = c.runs(ctx); err != nil {
				return aborted, err
			}
		}
		if r, ok := runs[id]; ok {
			if status, _ := r.state(now); status == StatusBackingUp {
				continue // an upload may take days
			}
		}
		if err := c.store.AbortUpload(ctx, u); err != nil {
			return aborted, err
		}
		aborted++
	}
	return aborted, nil
}

// storeTime is now by the store's clock, as far as the lease tells it: its holder
// renews it all the time. Without one it is this host's, which may be wrong.
func (c *Catalog) storeTime(ctx context.Context) (time.Time, error) {
	o, err := c.store.Stat(ctx, c.leaseKey())
	if errors.Is(err, ErrNotFound) {
		return time.Now(), nil
	}
	return o.Modified, err
}

// JournalOf tells whether the journal at path is of the upload. One that cannot
// be read may be of any.
func JournalOf(path string, u Upload) bool {
	e, err := readJournal(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	return err != nil || e.head.UploadID == u.ID
}
