package uploader

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/s3"

	"github.com/eddy-backup/eddy/internal/s3fake"
)

// fake opens a bucket with quirks, below a prefix. Back-offs and deadlines are
// short.
func fake(t testing.TB, q s3fake.Quirks, set ...func(*Config)) (*s3Store, *s3fake.Server) {
	t.Helper()
	q.SmallParts = unit < mib
	server := s3fake.New("bucket", q)
	return fakeAt(t, server, set...), server
}

// fakeAt opens the server's bucket once more, as another process would.
func fakeAt(t testing.TB, server *s3fake.Server, set ...func(*Config)) *s3Store {
	t.Helper()
	web := httptest.NewServer(server)
	t.Cleanup(web.Close)
	wire := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(wire.CloseIdleConnections)
	return fakeBy(t, server, wire, web.URL, set...)
}

// noNetwork hands requests to a server in this process, so that time may be a test's
// own.
type noNetwork struct{ server *s3fake.Server }

func (n noNetwork) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body == nil {
		req.Body = http.NoBody
	}
	w := httptest.NewRecorder()
	n.server.ServeHTTP(w, req)
	return w.Result(), nil
}

func fakeBy(t testing.TB, server *s3fake.Server, wire http.RoundTripper, endpoint string, set ...func(*Config)) *s3Store {
	t.Helper()
	c := Config{URL: "s3://" + server.Bucket + "/eddy", Region: "us-east-1", Endpoint: endpoint, Slack: 5 * time.Second, GiveUp: 2 * time.Second, unit: unit}
	for _, f := range set {
		f(&c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	s, err := newS3Store(t.Context(), c.withDefaults(), server.Bucket, "eddy", func(o *s3.Options) {
		o.HTTPClient = &http.Client{Transport: wire}
		o.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "key", SecretAccessKey: "canary-secret"}, nil
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	s.wait = 5 * time.Millisecond
	return s
}

// The fake does what the real server does: the same suite holds for both.
func TestS3StoreOnTheFake(t *testing.T) {
	suite(t, func(t *testing.T) Store { s, _ := fake(t, s3fake.Quirks{}); return s }, 1100)
}
