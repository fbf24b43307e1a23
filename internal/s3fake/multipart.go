package s3fake

import (
	"cmp"
	"crypto/md5"
	"encoding/xml"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/crc"
)

// upload is a multipart upload.
type upload struct {
	key, mime, class string
	with64           bool // created with CRC64NVME
	begun            time.Time
	parts            map[int]part
}

type part struct {
	data []byte
	md5  [md5.Size]byte
	etag string
	sum  string // what the store holds for its CRC64NVME
}

const (
	minPart = 5 << 20 // bytes, of every part but the last
	maxPage = 1000    // lines of a listing
)

func (s *Server) create(h http.Header, r *request) *Reply {
	s.serial++
	id := fmt.Sprintf("upload-%d", s.serial)
	s.uploads[id] = &upload{
		key: r.Key, mime: r.Header.Get("Content-Type"), class: s.class(r), begun: time.Now(), parts: map[int]part{},
		with64: r.Header.Get("x-amz-checksum-algorithm") == "CRC64NVME" && s.Quirks.Checksums == SumsKnown,
	}
	return r.respond(h, created{UploadId: id})
}

// find is the upload that a request names; nil where there is none.
func (s *Server) find(r *request) (id string, u *upload) {
	id = r.URL.Query().Get("uploadId")
	if u = s.uploads[id]; u != nil && u.key == r.Key {
		return id, u
	}
	return id, nil
}

func noSuchUpload() *Reply { return &Reply{http.StatusNotFound, "NoSuchUpload"} }

func (s *Server) uploadPart(h http.Header, r *request) *Reply {
	_, u := s.find(r)
	if u == nil {
		return noSuchUpload()
	}
	if r.Part < 1 || r.Part > 10_000 {
		return &Reply{http.StatusBadRequest, "InvalidArgument"}
	}
	h.Set("ETag", u.add(r.Part, r.body))
	if sum := r.Header.Get(header64); sum != "" && s.Quirks.Checksums == SumsKnown {
		h.Set(header64, sum)
	}
	return nil
}

func (u *upload) add(number int, data []byte) (etag string) {
	sum := md5.Sum(data)
	etag = fmt.Sprintf(`"%x"`, sum)
	u.parts[number] = part{data, sum, etag, sum64(data)}
	return etag
}

func (s *Server) copyPart(h http.Header, r *request) *Reply {
	_, u := s.find(r)
	if u == nil {
		return noSuchUpload()
	}
	source, err := url.PathUnescape(r.Header.Get("x-amz-copy-source"))
	key, ok := strings.CutPrefix(strings.TrimPrefix(source, "/"), s.Bucket+"/")
	o := s.objects[key]
	switch {
	case err != nil || !ok || o == nil:
		return &Reply{http.StatusNotFound, "NoSuchKey"}
	case archived(o):
		return &Reply{http.StatusForbidden, "InvalidObjectState"}
	}
	if u.with64 && s.Quirks.Copies == CopiesRefused {
		return &Reply{http.StatusBadRequest, "InvalidArgument"}
	}
	if m := r.Header.Get("x-amz-copy-source-if-match"); m != "" && m != o.etag {
		return &Reply{http.StatusPreconditionFailed, "PreconditionFailed"}
	}
	data := o.data
	if text := r.Header.Get("x-amz-copy-source-range"); text != "" {
		first, last, ok := span(text, len(data))
		if !ok {
			return &Reply{http.StatusBadRequest, "InvalidArgument"}
		}
		data = data[first : last+1]
	}
	out := copied{ETag: u.add(r.Part, data), LastModified: time.Now().UTC().Format(time.RFC3339Nano)}
	if u.with64 {
		p := u.parts[r.Part]
		if s.Quirks.Copies == CopiesWholeSum {
			p.sum = sum64(o.data)
			u.parts[r.Part] = p
		}
		if s.Quirks.Copies != CopiesNoSum {
			out.ChecksumCRC64NVME = p.sum
		}
	}
	return r.respond(h, out)
}

func (s *Server) complete(h http.Header, r *request) *Reply {
	id, u := s.find(r)
	if u == nil {
		return noSuchUpload()
	}
	var c completion
	if xml.Unmarshal(r.body, &c) != nil || len(c.Parts) == 0 {
		return &Reply{http.StatusBadRequest, "MalformedXML"}
	}
	if refusal := s.allowed(r); refusal != nil {
		return refusal
	}
	known := s.Quirks.Checksums == SumsKnown
	var data, sums []byte
	var total uint64
	for i, line := range c.Parts {
		p, ok := u.parts[line.PartNumber]
		switch {
		case !ok || p.etag != line.ETag, known && line.ChecksumCRC64NVME != "" && line.ChecksumCRC64NVME != p.sum:
			return &Reply{http.StatusBadRequest, "InvalidPart"}
		case i > 0 && line.PartNumber <= c.Parts[i-1].PartNumber:
			return &Reply{http.StatusBadRequest, "InvalidPartOrder"}
		case !s.Quirks.SmallParts && i < len(c.Parts)-1 && len(p.data) < minPart:
			return &Reply{http.StatusBadRequest, "EntityTooSmall"}
		case s.Quirks.EqualParts && i < len(c.Parts)-1 && len(p.data) != len(u.parts[c.Parts[0].PartNumber].data):
			return &Reply{http.StatusBadRequest, "InvalidPart"}
		}
		if of, err := crc.FromBase64(p.sum); err == nil {
			total = crc.Combine(total, of, int64(len(p.data)))
		}
		data, sums = append(data, p.data...), append(sums, p.md5[:]...)
	}
	o := &object{data: data, etag: fmt.Sprintf(`"%x-%d"`, md5.Sum(sums), len(c.Parts)), mime: u.mime, class: u.class, modified: time.Now()}
	if known {
		sum := sum64(data)
		if u.with64 { // combined from the parts', as a store does that reads nothing again
			sum = crc.Base64(total)
		}
		if want := r.Header.Get(header64); want != "" && want != sum {
			return &Reply{http.StatusBadRequest, "BadDigest"}
		}
		if u.with64 {
			o.crc64 = sum
		}
	}
	s.objects[u.key] = o
	delete(s.uploads, id)
	return r.respond(h, completed{Key: u.key, ETag: o.etag, ChecksumCRC64NVME: o.crc64})
}

func (s *Server) abort(h http.Header, r *request) *Reply {
	id, u := s.find(r)
	if u == nil {
		return noSuchUpload()
	}
	delete(s.uploads, id)
	r.status = http.StatusNoContent
	return nil
}

func (s *Server) listParts(h http.Header, r *request) *Reply {
	_, u := s.find(r)
	if u == nil {
		return noSuchUpload()
	}
	q, most := r.URL.Query(), 1000
	if n, err := strconv.Atoi(q.Get("max-parts")); err == nil {
		most = n
	}
	after, _ := strconv.Atoi(q.Get("part-number-marker")) // none: from the beginning
	var out partList
	for _, number := range slices.Sorted(maps.Keys(u.parts)) {
		if number <= after {
			continue
		}
		if len(out.Parts) == most {
			out.IsTruncated, out.NextPartNumberMarker = true, out.Parts[most-1].PartNumber
			break
		}
		p := u.parts[number]
		line := listedPart{PartNumber: number, ETag: p.etag, Size: len(p.data)}
		if u.with64 {
			line.ChecksumCRC64NVME = p.sum
		}
		out.Parts = append(out.Parts, line)
	}
	return r.respond(h, out)
}

// listUploads lists by key and upload id, in pages of 1000.
func (s *Server) listUploads(h http.Header, r *request) *Reply {
	q := r.URL.Query()
	prefix := q.Get("prefix")
	var all []listedUpload
	for id, u := range s.uploads {
		if strings.HasPrefix(u.key, prefix) && (prefix == "" || !s.Quirks.UploadsByKey || u.key == prefix) {
			all = append(all, listedUpload{u.key, id, u.begun.UTC().Format(time.RFC3339Nano)})
		}
	}
	slices.SortFunc(all, func(a, b listedUpload) int {
		return cmp.Or(strings.Compare(a.Key, b.Key), strings.Compare(a.UploadId, b.UploadId))
	})
	all = slices.DeleteFunc(all, func(u listedUpload) bool {
		c := strings.Compare(u.Key, q.Get("key-marker"))
		return c < 0 || c == 0 && u.UploadId <= q.Get("upload-id-marker")
	})
	var out uploadList
	if out.Uploads = all; len(all) > maxPage {
		out.Uploads, out.IsTruncated = all[:maxPage], true
		out.NextKeyMarker, out.NextUploadIdMarker = all[maxPage-1].Key, all[maxPage-1].UploadId
	}
	return r.respond(h, out)
}
