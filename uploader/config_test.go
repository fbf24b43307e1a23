package uploader

import (
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/eddy-backup/eddy/internal/hint"
)

func TestURLs(t *testing.T) {
	for in, want := range map[string]string{
		"s3://backups/eddy":          "s3://backups/eddy",
		"s3://backups":               "s3://backups",
		"s3://backups/":              "s3://backups",
		"s3://backups//a/./b/../c//": "s3://backups/a/c",
		"file:///srv/backups/":       "file:///srv/backups",
		"file:///srv/back%20ups":     "file:///srv/back%20ups",
		"file:///":                   "file:///",
	} {
		s, err := Open(t.Context(), Config{URL: in})
		if err != nil || s.URL() != want {
			t.Errorf("%s: %v, %v; want %s", in, s, err, want)
		}
	}
}

func TestValidate(t *testing.T) {
	good := Config{URL: "s3://b/p"}
	for name, c := range map[string]struct {
		set  func(*Config)
		text string
	}{
		"no URL":              {func(c *Config) { c.URL = "" }, "URL"},
		"another scheme":      {func(c *Config) { c.URL = "gs://b/p" }, "gs://b/p"},
		"no bucket":           {func(c *Config) { c.URL = "s3:///p" }, "s3:///p"},
		"a port":              {func(c *Config) { c.URL = "s3://b:9000/p" }, "b:9000"},
		"a relative file":     {func(c *Config) { c.URL = "file://srv/x" }, "file://srv/x"},
		"a query":             {func(c *Config) { c.URL = "s3://b/p?region=x" }, "query"},
		"a password":          {func(c *Config) { c.URL = "s3://key:canary@b/p" }, "URL"},
		"a broken password":   {func(c *Config) { c.URL = "s3://key:canary%@b/p" }, "URL"},
		"an endpoint's":       {func(c *Config) { c.Endpoint = "https://key:canary@h" }, "endpoint"},
		"no endpoint":         {func(c *Config) { c.Endpoint = "localhost:9000" }, "endpoint"},
		"path style":          {func(c *Config) { c.PathStyle = "yes" }, `"yes"`},
		"encryption":          {func(c *Config) { c.SSE.Mode = "AES-256" }, `"AES-256"`},
		"a key without mode":  {func(c *Config) { c.SSE = SSE{"AES256", "k"} }, "KMS key"},
		"small parts":         {func(c *Config) { c.PartSize = 1 << 20 }, "part size 1048576"},
		"negative numbers":    {func(c *Config) { c.Concurrency = -1 }, "negative"},
		"a negative duration": {func(c *Config) { c.GiveUp = -time.Second }, "negative"},
	} {
		conf := good
		c.set(&conf)
		err := conf.Validate()
		if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), c.text) || hint.Of(err) == "" || strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v (hint %q), want ErrConfig with %q", name, err, hint.Of(err), c.text)
		}
		if _, err := Open(t.Context(), conf); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: Open returns %v", name, err)
		}
	}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	both := Config{URL: "gs://x", PathStyle: "yes"}.Validate()
	if !strings.Contains(both.Error(), "gs://x") || !strings.Contains(both.Error(), `"yes"`) {
		t.Errorf("only some of the mistakes: %v", both)
	}
}

// Whatever the size, the parts hold it, are whole MiB, and their buffers keep to
// the memory that is given.
func TestPartsHoldEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{Concurrency: rapid.IntRange(1, 16).Draw(t, "concurrency")}
		upper := rapid.Int64Range(0, 40<<40).Draw(t, "upper")
		part := c.partSize(upper)
		if part < 8*mib || part > maxPart || part%mib != 0 {
			t.Fatalf("parts of %d bytes", part)
		}
		if n := (upper + part - 1) / part; n > 9000 {
			t.Fatalf("%d parts", n)
		}
		n := int64(c.inFlight(part))
		if n < 1 || n > int64(c.Concurrency) {
			t.Fatalf("%d in flight", n)
		}
		if buffers := (n + 1) * part; buffers > max(160*mib, 2*part) {
			t.Fatalf("%d MiB of buffers", buffers/mib)
		}
	})
	if part := (Config{}).partSize(281 << 30); part != 32*mib || (Config{Concurrency: 4}).inFlight(part) != 4 {
		t.Errorf("281 GiB: parts of %d MiB, not all four in flight", part/mib)
	}
}
