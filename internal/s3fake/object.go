package s3fake

import (
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"hash/crc32"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/crc"
)

type object struct {
	data         []byte
	etag, mime   string
	class        string
	crc32, crc64 string // base64; of the whole object, "" where none is kept
	modified     time.Time
}

const (
	header32 = "x-amz-checksum-crc32"
	header64 = "x-amz-checksum-crc64nvme"
)

func sum32(b []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)))
}

func sum64(b []byte) string { return crc.Base64(crc.NVME(b)) }

// verify compares a body with what its headers say of it, as far as the store
// knows them.
func (s *Server) verify(r *request) *Reply {
	if want := r.Header.Get("Content-MD5"); want != "" {
		if sum := md5.Sum(r.body); want != base64.StdEncoding.EncodeToString(sum[:]) {
			return &Reply{http.StatusBadRequest, "BadDigest"}
		}
	}
	if want := r.Header.Get("x-amz-content-sha256"); len(want) == 2*sha256.Size {
		if sum := sha256.Sum256(r.body); want != hex.EncodeToString(sum[:]) {
			return &Reply{http.StatusBadRequest, "XAmzContentSHA256Mismatch"}
		}
	}
	var sums []string
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-checksum-") && name != "x-amz-checksum-mode" {
			sums = append(sums, name)
		}
	}
	of64 := r.Header.Get(header64) != "" || r.Header.Get("x-amz-checksum-algorithm") == "CRC64NVME" || strings.Contains(string(r.body), "<ChecksumCRC64NVME>")
	part := r.Op == "UploadPart" || r.Op == "CompleteMultipartUpload"
	switch mode := s.Quirks.Checksums; {
	case mode == SumsIgnored:
		return nil
	case mode == SumsRefused && (len(sums) > 0 || of64), mode == SumsPartRefused && part && (len(sums) > 0 || of64):
		return &Reply{http.StatusBadRequest, "InvalidArgument"}
	case mode == SumsNo64 && of64:
		return &Reply{http.StatusBadRequest, "InvalidRequest"}
	case r.Op == "CompleteMultipartUpload": // there they are of the object
		return nil
	}
	for name, sum := range map[string]func([]byte) string{header32: sum32, header64: sum64} {
		if want := r.Header.Get(name); want != "" && want != sum(r.body) {
			return &Reply{http.StatusBadRequest, "BadDigest"}
		}
	}
	return nil
}

// allowed decides on a conditional write.
func (s *Server) allowed(r *request) *Reply {
	match, none := r.Header.Get("If-Match"), r.Header.Get("If-None-Match")
	if match == "" && none == "" || s.Quirks.Conditions == CondIgnored {
		return nil
	}
	have, there := s.objects[r.Key]
	switch {
	case s.Quirks.Conditions == CondRefused:
		return &Reply{http.StatusNotImplemented, "NotImplemented"}
	case match != "" && !there:
		return &Reply{http.StatusNotFound, "NoSuchKey"}
	case match != "" && match != have.etag, none == "*" && there:
		return &Reply{http.StatusPreconditionFailed, "PreconditionFailed"}
	}
	return nil
}

// class is the storage class of an object that is put now.
func (s *Server) class(r *request) string {
	if s.Quirks.Class != "" {
		return s.Quirks.Class
	}
	return r.Header.Get("x-amz-storage-class")
}

func (s *Server) put(h http.Header, r *request) *Reply {
	if refusal := s.allowed(r); refusal != nil {
		return refusal
	}
	o := &object{
		data: r.body, etag: fmt.Sprintf(`"%x"`, md5.Sum(r.body)), mime: r.Header.Get("Content-Type"), class: s.class(r), modified: time.Now(),
	}
	switch {
	case s.Quirks.Checksums != SumsKnown:
	case r.Header.Get(header32) != "":
		o.crc32 = sum32(r.body)
	default: // S3 gives this one to objects that come without any
		o.crc64 = sum64(r.body)
	}
	s.objects[r.Key] = o
	h.Set("ETag", o.etag)
	return nil
}

func (s *Server) get(h http.Header, r *request) *Reply {
	o, ok := s.objects[r.Key]
	if !ok {
		return &Reply{http.StatusNotFound, "NoSuchKey"}
	}
	if m := r.Header.Get("If-Match"); m != "" && m != o.etag {
		return &Reply{http.StatusPreconditionFailed, "PreconditionFailed"}
	}
	data := o.data
	if r.Op == "GetObject" && archived(o) {
		return &Reply{http.StatusForbidden, "InvalidObjectState"}
	}
	if text := r.Header.Get("Range"); text != "" {
		first, last, ok := span(text, len(data))
		if !ok {
			return &Reply{http.StatusRequestedRangeNotSatisfiable, "InvalidRange"}
		}
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", first, last, len(data)))
		data, r.status = data[first:last+1], http.StatusPartialContent
	} else if r.Header.Get("x-amz-checksum-mode") == "ENABLED" {
		for name, sum := range map[string]string{header32: o.crc32, header64: o.crc64} {
			if sum != "" {
				h.Set(name, sum)
				h.Set("x-amz-checksum-type", "FULL_OBJECT")
			}
		}
	}
	if o.class != "" && o.class != "STANDARD" {
		h.Set("x-amz-storage-class", o.class)
	}
	h.Set("ETag", o.etag)
	h.Set("Content-Type", o.mime)
	h.Set("Last-Modified", o.modified.UTC().Format(http.TimeFormat))
	h.Set("Content-Length", strconv.Itoa(len(data)))
	r.out = data
	return nil
}

// archived tells what must be thawed. COLD stands for the names that stores other
// than AWS have for such a class.
func archived(o *object) bool {
	return slices.Contains([]string{"GLACIER", "DEEP_ARCHIVE", "COLD"}, o.class)
}

// span reads "bytes=first-last" of an object of n bytes.
func span(text string, n int) (first, last int, ok bool) {
	if c, err := fmt.Sscanf(text, "bytes=%d-%d", &first, &last); c < 1 || c == 1 && err == nil {
		return 0, 0, false
	} else if c == 1 {
		last = n - 1
	}
	last = min(last, n-1)
	return first, last, first >= 0 && first <= last
}

func (s *Server) keys(prefix string) []string {
	var keys []string
	for key := range s.objects {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func (s *Server) list(h http.Header, r *request) *Reply {
	q := r.URL.Query()
	prefix, delimiter := q.Get("prefix"), q.Get("delimiter")
	most := 1000
	if n, err := strconv.Atoi(q.Get("max-keys")); err == nil {
		most = n
	}
	after, err := base64.URLEncoding.DecodeString(q.Get("continuation-token"))
	if err != nil {
		return &Reply{http.StatusBadRequest, "InvalidArgument"}
	}
	var out listing
	last, n := string(after), 0
	for _, key := range s.keys(prefix) {
		item, common := key, false
		if delimiter != "" {
			if i := strings.Index(key[len(prefix):], delimiter); i >= 0 {
				item, common = key[:len(prefix)+i+len(delimiter)], true
			}
		}
		if item <= last && last != "" {
			continue // on an earlier page, or the same common prefix
		}
		if n == most {
			out.IsTruncated, out.NextContinuationToken = true, base64.URLEncoding.EncodeToString([]byte(last))
			break
		}
		last, n = item, n+1
		if common {
			out.CommonPrefixes = append(out.CommonPrefixes, commonPrefix{item})
			continue
		}
		o := s.objects[key]
		out.Contents = append(out.Contents, listedObject{key, o.modified.UTC().Format(time.RFC3339Nano), o.etag, len(o.data), o.class})
	}
	return r.respond(h, out)
}

func (s *Server) deleteObjects(h http.Header, r *request) *Reply {
	var d deletion
	if xml.Unmarshal(r.body, &d) != nil {
		return &Reply{http.StatusBadRequest, "MalformedXML"}
	}
	for _, o := range d.Objects {
		delete(s.objects, o.Key)
	}
	return r.respond(h, deletionResult{})
}

func (s *Server) tag(r *request) *Reply {
	if _, ok := s.objects[r.Key]; !ok {
		return &Reply{http.StatusNotFound, "NoSuchKey"}
	}
	return nil
}
