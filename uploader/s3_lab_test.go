//go:build lab

package uploader

import (
	"crypto/rand"
	"net/http"
	"os"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/s3"
)

// lab opens the real S3 server that the environment names, below a prefix of the
// test's own. The requests go through wrap, where given, so that a test can make
// trouble on the way.
func lab(t testing.TB, wrap func(http.RoundTripper) http.RoundTripper, set ...func(*Config)) *s3Store {
	t.Helper()
	env := func(name string) string {
		v := os.Getenv(name)
		if v == "" {
			t.Fatalf("%s is not set: run these tests by `make test`", name)
		}
		return v
	}
	env("AWS_ACCESS_KEY_ID")
	env("AWS_SECRET_ACCESS_KEY")
	c := Config{
		URL:    "s3://" + env("EDDY_LAB_S3_BUCKET") + "/test-" + rand.Text(),
		Region: env("AWS_REGION"), Endpoint: env("EDDY_LAB_S3_ENDPOINT"),
	}
	for _, f := range set {
		f(&c)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	u, err := c.parseURL()
	if err != nil {
		t.Fatal(err)
	}
	wire := http.DefaultTransport.(*http.Transport).Clone()
	t.Cleanup(wire.CloseIdleConnections)
	var transport http.RoundTripper = wire
	if wrap != nil {
		transport = wrap(wire)
	}
	s, err := newS3Store(t.Context(), c.withDefaults(), u.Host, u.Path, func(o *s3.Options) {
		o.HTTPClient = &http.Client{Transport: transport}
	})
	if err != nil {
		t.Fatal(err)
	}
	if env("EDDY_LAB_S3_SERVER") == "minio" { // as its probe finds
		s.caps.Store(&Caps{ListUploads: Ignored})
	}
	return s
}

func TestS3Store(t *testing.T) {
	suite(t, func(t *testing.T) Store { return lab(t, nil) }, 1100)
}
