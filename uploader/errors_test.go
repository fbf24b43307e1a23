package uploader

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/rs/zerolog"

	"github.com/eddy-backup/eddy/internal/hint"
)

// stub opens a store whose server gives exact answers and keeps nothing.
func stub(t *testing.T, answer http.HandlerFunc, set ...func(*Config)) *s3Store {
	t.Helper()
	server := httptest.NewServer(answer)
	t.Cleanup(server.Close)
	return stubAt(t, server.URL, set...)
}

func stubAt(t *testing.T, endpoint string, set ...func(*Config)) *s3Store {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	return stubBare(t, endpoint, set...)
}

func stubBare(t *testing.T, endpoint string, set ...func(*Config)) *s3Store {
	t.Helper()
	c := Config{URL: "s3://bucket/prefix", Endpoint: endpoint, GiveUp: time.Nanosecond, Slack: 5 * time.Second, MinRate: 1 << 30}
	for _, f := range set {
		f(&c)
	}
	wire := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(wire.CloseIdleConnections)
	s, err := newS3Store(t.Context(), c.withDefaults(), "bucket", "prefix", func(o *s3.Options) { o.HTTPClient = &http.Client{Transport: wire} })
	if err != nil {
		t.Fatal(err)
	}
	s.wait = time.Millisecond
	return s
}

func TestAnswersBecomeErrors(t *testing.T) {
	for _, c := range []struct {
		status     int
		code, text string
		want       error
		calls      int
		hint       string
	}{
		{404, "NoSuchKey", "The specified key does not exist.", ErrNotFound, 1, ""},
		{404, "NoSuchBucket", "The specified bucket does not exist.", ErrRefused, 1, "create the bucket"},
		{404, "XAdminUserNotFound", "No user exists with the provided access key ID.", ErrRefused, 1, "AWS_ACCESS_KEY_ID"},
		{404, "SomethingElse", "", ErrRefused, 1, ""},
		{403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.", ErrRefused, 1, "AWS_ACCESS_KEY_ID"},
		{403, "SignatureDoesNotMatch", "The request signature we calculated does not match.", ErrRefused, 1, "AWS_SECRET_ACCESS_KEY"},
		{403, "AccessDenied", "User: arn:aws:iam::1:user/x is not authorized", ErrRefused, 1, "policy-writer.json"},
		{403, "", "", ErrRefused, 1, "policy-writer.json"},
		{400, "ExpiredToken", "The provided token has expired.", ErrRefused, 1, "log in again"},
		{403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large.", ErrRefused, 1, "timedatectl set-ntp true"},
		{301, "PermanentRedirect", "The bucket you are attempting to access must be addressed using the specified endpoint.", ErrRefused, 1, "store.region"},
		{400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'eu-west-1'", ErrRefused, 1, "store.region"},
		{403, "InvalidObjectState", "The operation is not valid for the object's storage class", ErrRefused, 1, "archive class"},
		{501, "NotImplemented", "A header you provided implies functionality that is not implemented.", ErrRefused, 1, "lacks a call"},
		{412, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold", ErrPrecondition, 1, ""},
		{409, "ConditionalRequestConflict", "", ErrPrecondition, minTries, ""},
		{409, "ObjectParentIsFile", "Object parent already exists as a file.", ErrRefused, 1, ""},
		{400, "BadDigest", "The Content-MD5 you specified did not match what we received.", ErrDamaged, maxDamaged, ""},
		{400, "RequestTimeout", "Your socket connection to the server was not read from or written to", ErrUnreachable, minTries, "again later"},
		{500, "InternalError", "We encountered an internal error. Please try again.", ErrUnreachable, minTries, "again later"},
		{502, "", "", ErrUnreachable, minTries, "again later"},
		{503, "SlowDown", "Reduce your request rate.", ErrUnreachable, minTries, "again later"},
		{429, "TooManyRequests", "two lines\nof text " + strings.Repeat("x", 5000), ErrUnreachable, minTries, "again later"},
	} {
		t.Run(fmt.Sprintf("%d %s", c.status, c.code), func(t *testing.T) {
			calls := 0
			s := stub(t, func(w http.ResponseWriter, r *http.Request) {
				calls++
				w.WriteHeader(c.status)
				if c.code != "" {
					fmt.Fprintf(w, "<Error><Code>%s</Code><Message>%s</Message><StringToSign>AWS4-HMAC-SHA256 canary-sign</StringToSign></Error>", c.code, c.text)
				}
			})
			_, _, err := s.GetSmall(t.Context(), "k/latest.json", 10)
			if !errors.Is(err, c.want) {
				t.Fatalf("%v, want %v", err, c.want)
			}
			for _, sentinel := range []error{ErrNotFound, ErrPrecondition, ErrRefused, ErrUnreachable, ErrDamaged} {
				if sentinel != c.want && errors.Is(err, sentinel) {
					t.Errorf("%v is also %v", err, sentinel)
				}
			}
			if !strings.Contains(hint.Of(err), c.hint) || c.hint == "" && hint.Of(err) != "" {
				t.Errorf("hint %q, want one with %q", hint.Of(err), c.hint)
			}
			if calls != c.calls {
				t.Errorf("%d calls, want %d", calls, c.calls)
			}
			text := err.Error()
			if !strings.HasPrefix(text, "read k/latest.json: ") || !strings.Contains(text, c.code) || strings.ContainsAny(text, "\n\r") || len(text) > 500 {
				t.Errorf("the error reads %q", text)
			}
			for _, leak := range []string{"canary", "Signature=", "AWS4", "http://"} {
				if strings.Contains(text+hint.Of(err), leak) {
					t.Errorf("the error holds %q: %s", leak, text)
				}
			}
		})
	}
}

func TestUnreachableStores(t *testing.T) {
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0) // of the handshake that is meant to fail
	secure.StartTLS()
	defer secure.Close()
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	for name, c := range map[string]struct{ endpoint, text, hint string }{
		"nobody listens":      {"http://127.0.0.1:1", "connection refused", "store.endpoint"},
		"no such host":        {"http://store.invalid", "store.invalid", "DNS"},
		"an unknown CA":       {secure.URL, "certificate", "AWS_CA_BUNDLE"},
		"http, not https":     {strings.Replace(plain.URL, "http:", "https:", 1), "http, not https", "http://"},
		"silence":             {"http://" + silent.Addr().String(), "no answer in time", "store.endpoint"},
		"hangs up at once":    {hangUp(t), "", "store.endpoint"},
		"it is no S3 at all":  {speaks(t, "SSH-2.0-OpenSSH_9.2\r\n"), "", "store.endpoint"},
		"an HTML page, as OK": {page(t), "cannot be read", "store.endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			s := stubAt(t, c.endpoint, func(c *Config) { c.Slack = 300 * time.Millisecond })
			begun := time.Now()
			var err error
			for _, err = range s.List(t.Context(), "", "") {
				break
			}
			if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), c.text) || !strings.Contains(hint.Of(err), c.hint) {
				t.Errorf("%v (hint %q), want ErrUnreachable with %q and a hint with %q", err, hint.Of(err), c.text, c.hint)
			}
			if d := time.Since(begun); d > 10*time.Second {
				t.Errorf("it took %s", d)
			}
			if strings.ContainsAny(err.Error(), "\n\r") || strings.Contains(err.Error(), "canary") {
				t.Errorf("the error reads %q", err)
			}
		})
	}
}

// listen serves every connection with f.
func listen(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f(conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "http://" + l.Addr().String()
}

func hangUp(t *testing.T) string { return listen(t, func(net.Conn) {}) }

func speaks(t *testing.T, text string) string {
	return listen(t, func(c net.Conn) { _, _ = c.Write([]byte(text)) })
}

func page(t *testing.T) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, "<html><body>please log in<br></body>")
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestNoCredentials(t *testing.T) {
	for _, name := range []string{"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONFIG_FILE", "/dev/null")
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	s := stubBare(t, "http://127.0.0.1:1")
	begun := time.Now()
	_, err := s.Stat(t.Context(), "k")
	if !errors.Is(err, ErrRefused) || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "no credentials") || !strings.Contains(hint.Of(err), "AWS_ACCESS_KEY_ID") {
		t.Errorf("%v (hint %q)", err, hint.Of(err))
	}
	if d := time.Since(begun); d > time.Second {
		t.Errorf("it took %s", d)
	}
}

// Deletes report the keys that stayed.
func TestDeleteReportsWhatStayed(t *testing.T) {
	s := stub(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, `<DeleteResult>
			<Error><Key>prefix/gone</Key><Code>NoSuchKey</Code></Error>
			<Error><Key>prefix/a</Key><Code>AccessDenied</Code><Message>Access Denied because object protected by object lock.</Message></Error>
			<Error><Key>prefix/b</Key><Code>AccessDenied</Code></Error>
		</DeleteResult>`)
	})
	err := s.Delete(t.Context(), "a", "b", "c", "gone")
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "a: AccessDenied: Access Denied because") || !strings.Contains(err.Error(), "and 1 more") {
		t.Errorf("%v", err)
	}
	if hint.Of(err) == "" || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v (hint %q)", err, hint.Of(err))
	}
}

// What the SDK sends, as the store sees it.
func TestRequests(t *testing.T) {
	var seen []*http.Request
	s := stub(t, func(w http.ResponseWriter, r *http.Request) {
		seen = append(seen, r.Clone(context.Background()))
		http.Error(w, "", http.StatusForbidden)
	}, func(c *Config) {
		c.StorageClass, c.SSE, c.Region = "STANDARD_IA", SSE{Mode: "aws:kms", KMSKeyID: "key-1"}, "eu-test-7"
	})
	_, _ = s.Put(t.Context(), request(t, "c/vol-0000.tar.zst", []byte("x"), 1))
	_, _ = s.PutSmall(t.Context(), "c/latest.json", []byte("x"), "application/json", Condition{IfMatch: "abc"})
	_, _ = s.PutSmall(t.Context(), "c/latest.json", []byte("x"), "application/json", Condition{IfAbsent: true})
	if len(seen) != 3 {
		t.Fatalf("%d requests", len(seen))
	}
	check := func(r *http.Request, header, want string) {
		t.Helper()
		if got := r.Header.Get(header); got != want {
			t.Errorf("%s %s: %s is %q, want %q", r.Method, r.URL, header, got, want)
		}
	}
	for _, r := range seen {
		if !strings.HasPrefix(r.URL.Path, "/bucket/prefix/c/") {
			t.Errorf("path %s: the bucket should stand in it", r.URL.Path)
		}
		check(r, "X-Amz-Server-Side-Encryption", "aws:kms")
		check(r, "X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", "key-1")
		if !strings.Contains(r.Header.Get("Authorization"), "/eu-test-7/s3/") {
			t.Errorf("signed for %s", r.Header.Get("Authorization"))
		}
	}
	check(seen[0], "X-Amz-Storage-Class", "STANDARD_IA")
	check(seen[0], "X-Amz-Checksum-Algorithm", "CRC64NVME")
	check(seen[0], "X-Amz-Checksum-Type", "FULL_OBJECT")
	check(seen[0], "Content-Type", "application/zstd")
	check(seen[1], "X-Amz-Storage-Class", "")
	check(seen[1], "If-Match", `"abc"`)
	check(seen[2], "If-None-Match", "*")
	check(seen[2], "Content-Type", "application/json")
}

// A part's bytes are not in its signature, its checksum is. A store that refuses
// the checksum gets MD5 and signed bytes.
func TestPartsAreSignedByTheirChecksum(t *testing.T) {
	var refuse bool
	var parts []http.Header
	s := stub(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Query().Has("uploads"):
			io.WriteString(w, "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>")
		case r.Method == http.MethodPut:
			parts = append(parts, r.Header.Clone())
			if refuse && r.Header.Get("X-Amz-Checksum-Crc64nvme") != "" {
				http.Error(w, "<Error><Code>InvalidArgument</Code></Error>", http.StatusBadRequest)
				return
			}
			w.Header().Set("ETag", `"abc"`)
		default:
			http.Error(w, "<Error><Code>AccessDenied</Code></Error>", http.StatusForbidden)
		}
	})
	body := []byte("some bytes")
	sum := sha256.Sum256(body)
	for _, c := range []struct {
		refuse bool
		want   []string // x-amz-content-sha256 of each part sent
	}{{false, []string{"UNSIGNED-PAYLOAD"}}, {true, []string{"UNSIGNED-PAYLOAD", hex.EncodeToString(sum[:])}}} {
		refuse, parts = c.refuse, nil
		_, _ = s.Put(t.Context(), request(t, "k", body, 1))
		var got []string
		for _, h := range parts {
			got = append(got, h.Get("X-Amz-Content-Sha256"))
			signed, named := h.Get("Authorization"), "content-md5"
			if h.Get("X-Amz-Checksum-Crc64nvme") != "" {
				named = "x-amz-checksum-crc64nvme"
			}
			if !strings.Contains(signed, named) {
				t.Errorf("%s is not among the signed headers: %s", named, signed)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("refused %v: the parts were signed as %q, want %q", c.refuse, got, c.want)
		}
	}
}

// Whoever waits for a store that stumbles is told why.
func TestRetriesAreLogged(t *testing.T) {
	var log strings.Builder
	calls := 0
	s := stub(t, func(w http.ResponseWriter, r *http.Request) {
		if calls++; calls < 3 {
			http.Error(w, "<Error><Code>SlowDown</Code></Error>", http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("ETag", `"abc"`)
	}, func(c *Config) { c.GiveUp, c.Log = time.Minute, zerolog.New(&log) })
	if _, err := s.PutSmall(t.Context(), "k", []byte("x"), "", Condition{}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(log.String(), "SlowDown"); got != 2 || strings.Contains(log.String(), "canary-secret") {
		t.Errorf("%d lines of two retries:\n%s", got, log.String())
	}
}

// The way out that a hint names, for stores that refuse checksums.
func TestChecksumsOfSmallObjects(t *testing.T) {
	for env, want := range map[string]bool{"": true, "when_supported": true, "when_required": false} {
		t.Setenv("AWS_REQUEST_CHECKSUM_CALCULATION", env)
		var sent bool
		s := stub(t, func(w http.ResponseWriter, r *http.Request) {
			sent = r.Header.Get("X-Amz-Checksum-Crc32") != ""
			w.Header().Set("ETag", `"abc"`)
		})
		o, err := s.PutSmall(t.Context(), "k", []byte("x"), "", Condition{})
		if err != nil || o.ETag != "abc" || sent != want {
			t.Errorf("%q: %+v, %v, with a checksum: %v", env, o, err, sent)
		}
	}
}

func TestPathStyle(t *testing.T) {
	for _, c := range []struct {
		style, endpoint, env string
		want                 bool
	}{
		{"", "", "", false},
		{"auto", "", "", false},
		{"auto", "http://127.0.0.1:9", "", true},
		{"auto", "", "http://127.0.0.1:9", true},
		{"false", "http://127.0.0.1:9", "", false},
		{"true", "", "", true},
	} {
		t.Setenv("AWS_ENDPOINT_URL", c.env)
		s := stubAt(t, c.endpoint, func(conf *Config) { conf.PathStyle = c.style })
		if got := s.api.(*s3.Client).Options().UsePathStyle; got != c.want {
			t.Errorf("%+v: path style %v", c, got)
		}
	}
}
