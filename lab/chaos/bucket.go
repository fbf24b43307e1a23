package chaos

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/eddy-backup/eddy/lab"
)

// bucket is the store as it really is, past wire and liar.
type bucket struct {
	api  *s3.Client
	name string
}

func newBucket(s *lab.S3) *bucket {
	return &bucket{name: s.Bucket, api: s3.New(s3.Options{
		BaseEndpoint: aws.String(s.Endpoint), Region: s.Region, UsePathStyle: true,
		Credentials: credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
		HTTPClient:  &http.Client{Timeout: 2 * time.Minute},
	})}
}

// object is a line of a listing.
type object struct {
	size int64
	etag string
}

// list is everything below a directory, by key relative to it.
func (b *bucket) list(ctx context.Context, dir string) (map[string]object, error) {
	all := map[string]object{}
	pages := s3.NewListObjectsV2Paginator(b.api, &s3.ListObjectsV2Input{Bucket: &b.name, Prefix: aws.String(dir + "/")})
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, err
		}
		for _, o := range page.Contents {
			all[strings.TrimPrefix(aws.ToString(o.Key), dir+"/")] = object{aws.ToInt64(o.Size), aws.ToString(o.ETag)}
		}
	}
	return all, nil
}

// open reads an object from its beginning.
func (b *bucket) open(ctx context.Context, key string) (io.ReadCloser, error) {
	out, err := b.api.GetObject(ctx, &s3.GetObjectInput{Bucket: &b.name, Key: &key})
	if err != nil {
		return nil, err
	}
	return out.Body, nil
}

func (b *bucket) read(ctx context.Context, key string) ([]byte, error) {
	r, err := b.open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, 64<<20))
}

// uploads are the keys of all half-sent objects.
func (b *bucket) uploads(ctx context.Context) (map[string]string, error) {
	out, err := b.api.ListMultipartUploads(ctx, &s3.ListMultipartUploadsInput{Bucket: &b.name})
	if err != nil {
		return nil, err
	}
	ids := map[string]string{}
	for _, u := range out.Uploads {
		ids[aws.ToString(u.UploadId)] = aws.ToString(u.Key)
	}
	return ids, nil
}

// abortAll is what a lifecycle rule does to uploads that are old.
func (b *bucket) abortAll(ctx context.Context) error {
	ids, err := b.uploads(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for id, key := range ids {
		_, err := b.api.AbortMultipartUpload(ctx, &s3.AbortMultipartUploadInput{Bucket: &b.name, Key: &key, UploadId: &id})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// remove deletes everything below a directory.
func (b *bucket) remove(ctx context.Context, dir string) error {
	all, err := b.list(ctx, dir)
	if err != nil {
		return err
	}
	for key := range all {
		if _, err := b.api.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &b.name, Key: aws.String(dir + "/" + key)}); err != nil {
			return err
		}
	}
	return nil
}

// latestDoc is latest.json, as far as it is looked at.
type latestDoc struct {
	Seq         int64
	Incarnation string
	ID          string
	Position    struct{ Index int64 }
}

// manifestDoc is a manifest, as far as it is looked at.
type manifestDoc struct {
	ID      string
	Cluster string
	Volumes []struct {
		Name string
		Size int64
	}
	Sums  struct{ Name string }
	Sizes struct {
		Source, Read, Sent, Copied, Stored, Files int64
	}
	Runs []struct{ Read, Sent int64 } // of eddy, until it was whole
}

// view is a cluster's part of the bucket at one time.
type view struct {
	dir       string
	objects   map[string]object
	manifests map[string]manifestDoc // of all that are visible as backups, by id
	latest    *latestDoc             // nil: there is none
}

func (b *bucket) view(ctx context.Context, cluster string) (v *view, err error) {
	v = &view{dir: path.Join(prefix, cluster), manifests: map[string]manifestDoc{}}
	if v.objects, err = b.list(ctx, v.dir); err != nil {
		return nil, err
	}
	for key := range v.objects {
		id, ok := strings.CutPrefix(path.Dir(key), "data/")
		if !ok || path.Base(key) != "manifest.json" {
			continue
		}
		var m manifestDoc
		if err := b.json(ctx, path.Join(v.dir, key), &m); err != nil {
			return nil, err
		}
		v.manifests[id] = m
	}
	if _, ok := v.objects["latest.json"]; ok {
		v.latest = &latestDoc{}
		if err := b.json(ctx, path.Join(v.dir, "latest.json"), v.latest); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (b *bucket) json(ctx context.Context, key string, into any) error {
	body, err := b.read(ctx, key)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	return nil
}

// ids are the visible backups, oldest first.
func (v *view) ids() []string {
	var ids []string
	for id := range v.manifests {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// latestText looks at latest.txt: its own checksum, and whether it names what
// latest.json does.
func (b *bucket) latestText(ctx context.Context, v *view) error {
	if v.latest == nil {
		return errors.New("there is no latest.json")
	}
	body, err := b.read(ctx, path.Join(v.dir, "latest.txt"))
	if err != nil {
		return err
	}
	text := string(body)
	i := strings.LastIndex(text, "sha256 ")
	if i < 0 {
		return errors.New("latest.txt has no checksum")
	}
	sum := sha256.Sum256(body[:i])
	if strings.TrimSpace(text[i+len("sha256 "):]) != hex.EncodeToString(sum[:]) {
		return errors.New("latest.txt does not have the checksum that it gives")
	}
	if first, _, _ := strings.Cut(text, "\n"); first != "id "+v.latest.ID {
		return fmt.Errorf("latest.txt says %q, latest.json %s", first, v.latest.ID)
	}
	return nil
}
