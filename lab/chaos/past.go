package chaos

import (
	"bytes"
	"context"
	"fmt"
	"path"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"
)

const day = 24 * time.Hour

// history is the backups of earlier days that a cluster was given, by id: for each
// whether retention lets it go.
type history map[string]bool

// kept is how many backups retention keeps in a round.
const kept = 2

// theseDays are the ages of the backups that past makes, and what keep makes of them.
var theseDays = []struct {
	age   time.Duration
	extra string // an object of the backup beside what every one has
	goes  bool
}{
	{age: 1 * day},
	{age: 4 * day}, // something newer took its place a day ago
	{age: 8 * day, goes: true},
	{age: 9 * day, extra: "pins/ops.json"},
	{age: 10 * day, goes: true},
	{age: 11 * day, extra: "grades/20261101T000000Z-verified.json"}, // none newer is
	{age: 12 * day, goes: true},
}

// past gives a cluster backups of earlier days: copies of its newest one, with ids
// of their days, of which the store says to eddy that they are as old as that.
func (w *world) past(ctx context.Context, s *setup) error {
	if err := w.forgetPast(ctx, s); err != nil { // of a round that missed
		return err
	}
	s.past = history{}
	for i, d := range theseDays {
		id := fmt.Sprintf("%s-auto-%06x", time.Now().Add(-d.age).UTC().Format("20060102T150405Z"), i)
		s.past[id] = d.goes
		w.liar.antedate(path.Join(prefix, s.name, "data", id)+"/", d.age)
		if err := w.copyBackup(ctx, s, id); err != nil {
			return err
		}
		if d.extra != "" {
			if err := w.bucket.put(ctx, path.Join(prefix, s.name, "data", id, d.extra), []byte("{}\n")); err != nil {
				return err
			}
		}
	}
	return w.known(ctx, s)
}

// copyBackup makes another backup of the newest one, complete and good.
func (w *world) copyBackup(ctx context.Context, s *setup, id string) error {
	from, to := path.Join(prefix, s.name, "data", s.latest.ID), path.Join(prefix, s.name, "data", id)
	all, err := w.bucket.list(ctx, from)
	if err != nil {
		return err
	}
	for name := range all {
		if name == "manifest.json" {
			continue
		}
		_, err := w.bucket.api.CopyObject(ctx, &s3.CopyObjectInput{
			Bucket: &w.bucket.name, Key: aws.String(path.Join(to, name)), CopySource: aws.String(path.Join(w.bucket.name, from, name)),
		})
		if err != nil {
			return err
		}
	}
	manifest, err := w.bucket.read(ctx, path.Join(from, "manifest.json"))
	if err != nil {
		return err
	}
	s.contents[id] = s.contents[s.latest.ID]
	return w.bucket.put(ctx, path.Join(to, "manifest.json"), bytes.ReplaceAll(manifest, []byte(s.latest.ID), []byte(id)))
}

func (b *bucket) put(ctx context.Context, key string, body []byte) error {
	_, err := b.api.PutObject(ctx, &s3.PutObjectInput{Bucket: &b.name, Key: &key, Body: bytes.NewReader(body)})
	return err
}

// known has the judge take the past's manifests as they stand: there is no stage to
// compare them with.
func (w *world) known(ctx context.Context, s *setup) error {
	v, err := w.bucket.view(ctx, s.name)
	if err != nil {
		return err
	}
	for id := range s.past {
		s.judged[id] = v.objects[path.Join("data", id, "manifest.json")].etag
	}
	return nil
}

// forgetPast removes what is left of it, and lets the store tell the time again.
func (w *world) forgetPast(ctx context.Context, s *setup) error {
	for id := range s.past {
		if err := w.bucket.remove(ctx, path.Join(prefix, s.name, "data", id)); err != nil {
			return err
		}
		delete(s.judged, id)
		delete(s.contents, id)
	}
	s.past = nil
	w.liar.antedate("", 0)
	return nil
}

// judgePast looks at what retention has made of a past, once it was left alone: what
// is to stay is there whole, all else is gone whole.
func (w *world) judgePast(ctx context.Context, s *setup, out *verdicts) error {
	v, err := w.bucket.view(ctx, s.name)
	if err != nil {
		return err
	}
	for id, goes := range s.past {
		if !goes {
			got, err := w.bucket.archive(ctx, v, id, s.secrets)
			if err == nil {
				err = same(s.contents[id], got)
			}
			if err != nil {
				out.lost++
				out.add("I3: %s was to stay, and does not restore: %v", id, err)
			}
			continue
		}
		for key := range v.objects {
			if strings.HasPrefix(key, path.Join("data", id)+"/") {
				out.add("I4: retention lets %s go, and %s is left", id, key)
			}
		}
	}
	return nil
}

// mayGo tells whether somebody has asked for a backup's end.
func (s *setup) mayGo(id string) bool { return id == s.doomed || s.past[id] }

// antedate has the store say, of what is below a prefix, that it was written so
// long before it was; without a prefix it says the truth again.
func (l *liar) antedate(prefix string, by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if prefix == "" {
		l.ages = nil
		return
	}
	if l.ages == nil {
		l.ages = map[string]time.Duration{}
	}
	l.ages[prefix] = by
}

var (
	listedObject = regexp.MustCompile(`(?s)<Contents>.*?</Contents>`)
	listedKey    = regexp.MustCompile(`<Key>(.*?)</Key>`)
	listedTime   = regexp.MustCompile(`<LastModified>(.*?)</LastModified>`)
)

// antedated is a listing as antedate has said that it is to be.
func antedated(list []byte, ages map[string]time.Duration) []byte {
	return listedObject.ReplaceAllFunc(list, func(o []byte) []byte {
		key, when := listedKey.FindSubmatch(o), listedTime.FindSubmatch(o)
		if key == nil || when == nil {
			return o
		}
		at, err := time.Parse(time.RFC3339, string(when[1]))
		if err != nil {
			return o
		}
		for p, by := range ages {
			if strings.HasPrefix(string(key[1]), p) {
				at = at.Add(-by)
			}
		}
		return bytes.Replace(o, when[1], []byte(at.UTC().Format("2006-01-02T15:04:05.000Z")), 1)
	})
}

// keysOf are those that a request for many wants to have deleted.
func keysOf(body []byte) (keys []string) {
	for _, k := range listedKey.FindAllSubmatch(body, -1) {
		keys = append(keys, string(k[1]))
	}
	return keys
}
