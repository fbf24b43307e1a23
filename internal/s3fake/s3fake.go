// Package s3fake is a bucket in memory behind the S3 protocol, for tests of what
// real servers do not do on demand: faults, and the ways in which stores differ
// from S3.
//
// It is for injecting those and nothing else: without them it passes the same
// suite as the real server, so that it cannot drift from what stores do. It
// refuses to check signatures and knows only the calls that eddy makes, path
// style, CRC32 and CRC64NVME. Its invariant: a call is applied whole or not at
// all, and a fault is answered before anything is applied.
package s3fake

import (
	"crypto/md5"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Quirks are the ways in which a store differs from S3. The zero value has none.
type Quirks struct {
	EqualParts bool       // Complete refuses parts of unequal size, the last apart
	SmallParts bool       // Complete takes parts of any size, so that few bytes make many
	Checksums  Checksums  // what becomes of x-amz-checksum headers
	Conditions Conditions // what becomes of If-Match and If-None-Match on writes
	// UploadsByKey lists unfinished uploads by their exact key, or all of them, and
	// finds none by another prefix.
	UploadsByKey bool
	Copies       Copies // what becomes of UploadPartCopy into an upload with a checksum
	// Class is the storage class that objects have whatever the request says, as
	// after a lifecycle rule. Of GLACIER, DEEP_ARCHIVE and COLD nothing can be read.
	Class string
	// Refuses answers calls by name ("DeleteObjects") with a refusal, always.
	Refuses map[string]Reply
	// What the bucket says of itself: "Enabled" or "", whether it has object lock,
	// and the rules of its lifecycle in XML, without the element around them.
	Versioning string
	ObjectLock bool
	Lifecycle  string
}

// Checksums says how a store takes checksum headers.
type Checksums int

// The ways with checksums.
const (
	SumsKnown       Checksums = iota // verified and kept
	SumsRefused                      // any of them is an error
	SumsPartRefused                  // an error with UploadPart and Complete only
	SumsNo64                         // CRC64NVME is unknown
	SumsIgnored                      // neither verified nor kept
)

// Copies says how a store copies a range into an upload that was begun with a
// checksum.
type Copies int

// The ways with copied parts.
const (
	CopiesKnown    Copies = iota // the part's checksum is that of the range
	CopiesRefused                // 400, as minio says it
	CopiesWholeSum               // the part's checksum is that of the whole source, as versitygw has it
	CopiesNoSum                  // right, but the answer to the call does not tell the checksum
)

// Conditions says how a store takes conditional writes.
type Conditions int

// The ways with conditional writes.
const (
	CondKept    Conditions = iota // the condition holds, or 412
	CondRefused                   // 501
	CondIgnored                   // written in any case
)

// Call is a request that has arrived.
type Call struct {
	Op   string // as S3 calls it: "UploadPart"
	Key  string
	Part int // of UploadPart and UploadPartCopy
	N    int // how often Op has been called, this time included
}

// Reply is an error as S3 says it. A Status of 200 with a Code is the error in the
// body of a success, which Complete and UploadPartCopy know.
type Reply struct {
	Status int
	Code   string
}

// Server is the bucket. Its fields are set before the first request; it may be
// used by many connections at once.
type Server struct {
	Bucket string
	Quirks Quirks
	// Fault, where set, is asked before each call; what is not nil is the answer.
	// It may be called from many goroutines.
	Fault func(Call) *Reply

	mu      sync.Mutex
	calls   map[string]int
	objects map[string]*object
	uploads map[string]*upload
	serial  int
}

// New makes an empty bucket.
func New(bucket string, q Quirks) *Server {
	return &Server{Bucket: bucket, Quirks: q, calls: map[string]int{}, objects: map[string]*object{}, uploads: map[string]*upload{}}
}

// Calls tells how often an operation was called.
func (s *Server) Calls(op string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[op]
}

// Keys lists what is stored, and Uploads counts what is unfinished.
func (s *Server) Keys() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.keys("")
}

// Uploads counts the unfinished uploads.
func (s *Server) Uploads() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.uploads)
}

// Age makes all that is stored, and all that is unfinished, older.
func (s *Server) Age(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.uploads {
		u.begun = u.begun.Add(-d)
	}
	for _, o := range s.objects {
		o.modified = o.modified.Add(-d)
	}
}

// Object is what is stored at a key, nil where nothing is, and its ETag.
func (s *Server) Object(key string) (data []byte, etag string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.objects[key]; o != nil {
		return o.data, o.etag
	}
	return nil, ""
}

// Rot flips a bit of what is stored, as a bad disk does: ETag and checksum stay.
func (s *Server) Rot(key string, off int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[key]
	o.data = slices.Clone(o.data)
	o.data[off] ^= 1
}

// Remove deletes an object, as somebody else does.
func (s *Server) Remove(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, key)
}

// request is a call with all that its handler needs.
type request struct {
	*http.Request
	Call
	body []byte
	// The answer, beside its headers. It is written when the bucket is free again:
	// a reader may take its time.
	status int
	out    []byte
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, hr *http.Request) {
	body, err := io.ReadAll(hr.Body) // whole, whatever the answer will be
	if err != nil {
		return // the client has gone
	}
	bucket, c := CallOf(hr)
	r := &request{Request: hr, body: body, Call: c, status: http.StatusOK}
	s.mu.Lock()
	s.calls[r.Op]++
	r.N = s.calls[r.Op]
	s.mu.Unlock()
	refusal := s.refusal(r, bucket)
	if refusal == nil {
		s.mu.Lock()
		refusal = s.handle(w.Header(), r)
		s.mu.Unlock()
	}
	if refusal != nil {
		r.status, r.out = refusal.Status, refusal.body(w.Header())
	}
	w.WriteHeader(r.status)
	if r.Method != http.MethodHead {
		_, _ = w.Write(r.out) // the client may have gone
	}
}

// CallOf tells what a request asks of which bucket.
func CallOf(r *http.Request) (bucket string, c Call) {
	bucket, key, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	c = Call{Op: operation(r, key), Key: key}
	c.Part, _ = strconv.Atoi(r.URL.Query().Get("partNumber"))
	return bucket, c
}

// operation names the call of a request.
func operation(r *http.Request, key string) string {
	q := r.URL.Query()
	names := map[string]string{}
	switch {
	case key == "" && r.Method == http.MethodPost:
		return "DeleteObjects"
	case key == "":
		names = map[string]string{
			"uploads": "ListMultipartUploads", "versioning": "GetBucketVersioning", "object-lock": "GetObjectLockConfiguration",
			"lifecycle": "GetBucketLifecycleConfiguration", "list-type": "ListObjectsV2",
		}
	case r.Method == http.MethodGet:
		names = map[string]string{"uploadId": "ListParts", "": "GetObject"}
	case r.Method == http.MethodHead:
		names = map[string]string{"": "HeadObject"}
	case r.Method == http.MethodPut && r.Header.Get("x-amz-copy-source") != "":
		names = map[string]string{"uploadId": "UploadPartCopy"}
	case r.Method == http.MethodPut:
		names = map[string]string{"uploadId": "UploadPart", "tagging": "PutObjectTagging", "": "PutObject"}
	case r.Method == http.MethodPost:
		names = map[string]string{"uploads": "CreateMultipartUpload", "uploadId": "CompleteMultipartUpload"}
	case r.Method == http.MethodDelete:
		names = map[string]string{"uploadId": "AbortMultipartUpload", "": "DeleteObject"}
	}
	for sub, name := range names {
		if sub != "" && q.Has(sub) {
			return name
		}
	}
	return names[""]
}

// refusal is what is answered before anything is done.
func (s *Server) refusal(r *request, bucket string) *Reply {
	if s.Fault != nil {
		if reply := s.Fault(r.Call); reply != nil {
			return reply
		}
	}
	if bucket != s.Bucket {
		return &Reply{http.StatusNotFound, "NoSuchBucket"}
	}
	if reply, ok := s.Quirks.Refuses[r.Op]; ok {
		return &reply
	}
	return s.verify(r)
}

func (s *Server) handle(h http.Header, r *request) *Reply {
	switch r.Op {
	case "PutObject":
		return s.put(h, r)
	case "GetObject", "HeadObject":
		return s.get(h, r)
	case "ListObjectsV2":
		return s.list(h, r)
	case "DeleteObject":
		delete(s.objects, r.Key)
		r.status = http.StatusNoContent
		return nil
	case "DeleteObjects":
		return s.deleteObjects(h, r)
	case "PutObjectTagging":
		return s.tag(r)
	case "CreateMultipartUpload":
		return s.create(h, r)
	case "UploadPart":
		return s.uploadPart(h, r)
	case "UploadPartCopy":
		return s.copyPart(h, r)
	case "CompleteMultipartUpload":
		return s.complete(h, r)
	case "AbortMultipartUpload":
		return s.abort(h, r)
	case "ListParts":
		return s.listParts(h, r)
	case "ListMultipartUploads":
		return s.listUploads(h, r)
	case "GetBucketVersioning":
		return r.respond(h, versioning{Status: s.Quirks.Versioning})
	case "GetObjectLockConfiguration":
		if !s.Quirks.ObjectLock {
			return &Reply{http.StatusNotFound, "ObjectLockConfigurationNotFoundError"}
		}
		return r.respond(h, objectLock{Enabled: "Enabled"})
	case "GetBucketLifecycleConfiguration":
		if s.Quirks.Lifecycle == "" {
			return &Reply{http.StatusNotFound, "NoSuchLifecycleConfiguration"}
		}
		return r.respond(h, lifecycle{Rules: s.Quirks.Lifecycle})
	default:
		return &Reply{http.StatusNotImplemented, "NotImplemented"}
	}
}

func (p *Reply) body(h http.Header) []byte {
	if p.Code == "" {
		return nil
	}
	e := failure{Code: p.Code, Message: "as the test wants it"}
	if p.Code == "InvalidObjectState" {
		e.StorageClass = "GLACIER"
	}
	return document(h, e)
}

// respond answers with a document.
func (r *request) respond(h http.Header, v any) *Reply {
	r.out = document(h, v)
	return nil
}

func document(h http.Header, v any) []byte {
	h.Set("Content-Type", "application/xml")
	b, err := xml.Marshal(v)
	if err != nil {
		panic(err) // structs of strings and numbers
	}
	return b
}

// Alter puts other bytes at a key, or removes it where they are nil, and returns what
// takes that back. rot changes them below the store: what the store says of the
// object is what it was told when it was put. Else the object is written anew, as by
// a request without checksums.
func (s *Server) Alter(key string, data []byte, rot bool) (undo func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, was := s.objects[key]
	undo = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if delete(s.objects, key); was {
			s.objects[key] = before
		}
	}
	if data == nil {
		delete(s.objects, key)
		return undo
	}
	o := &object{modified: time.Now()}
	if was {
		c := *before
		o = &c
	}
	o.data, s.objects[key] = data, o
	if was && rot {
		return undo
	}
	o.etag, o.crc32, o.crc64 = fmt.Sprintf(`"%x"`, md5.Sum(data)), "", ""
	if s.Quirks.Checksums == SumsKnown {
		o.crc64 = sum64(data)
	}
	return undo
}
