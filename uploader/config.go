package uploader

import (
	"context"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Config says which store and how it is talked to.
type Config struct {
	URL          string // s3://bucket/prefix or file:///directory
	Region       string
	Endpoint     string // of a store that is not AWS
	PathStyle    string // "auto" (path style where an endpoint is given), "true", "false"
	Profile      string
	StorageClass string
	SSE          SSE
	PartSize     int64 // bytes; 0: by the object's size
	Concurrency  int   // parts in flight; 0: 4

	// MinRate is the slowest transfer that is still waited for, in bytes a second
	// (0: 64 KiB/s), Slack what any call may take beside it (0: 30 s): together
	// they are the deadline of an attempt. A stalled connection has no other end.
	MinRate int64
	Slack   time.Duration
	// GiveUp is how long a call is tried again before the store counts as
	// unreachable (0: 2 minutes).
	GiveUp time.Duration
}

// SSE is server-side encryption: Mode "", "AES256" or "aws:kms".
type SSE struct{ Mode, KMSKeyID string }

func (c Config) withDefaults() Config {
	if c.Concurrency == 0 {
		c.Concurrency = 4
	}
	if c.MinRate == 0 {
		c.MinRate = 64 << 10
	}
	if c.Slack == 0 {
		c.Slack = 30 * time.Second
	}
	if c.GiveUp == 0 {
		c.GiveUp = 2 * time.Minute
	}
	return c
}

// Open makes the store that the URL names. It asks nothing of the store.
func Open(ctx context.Context, c Config) (Store, error) {
	c = c.withDefaults()
	u, err := url.Parse(c.URL)
	if err != nil || u.User != nil {
		// The URL is not repeated: it may hold a password.
		return nil, hint.Add(fmt.Errorf("store URL: %w", ErrRefused), "write s3://bucket/prefix or file:///directory, without credentials")
	}
	switch u.Scheme {
	case "file":
		if u.Host != "" || !filepath.IsAbs(u.Path) {
			return nil, hint.Add(fmt.Errorf("store URL %s: %w", c.URL, ErrRefused), "write file:///directory with three slashes")
		}
		return newFileStore(u.Path), nil
	case "s3":
		if u.Host == "" {
			return nil, hint.Add(fmt.Errorf("store URL %s: %w", c.URL, ErrRefused), "write s3://bucket/prefix")
		}
		return newS3Store(ctx, c, u.Host, strings.Trim(path.Clean("/"+u.Path), "/"))
	default:
		return nil, hint.Add(fmt.Errorf("store URL %s: %w", c.URL, ErrRefused), "write s3://bucket/prefix or file:///directory")
	}
}

// partSize is the size of every part but the last: at least 8 MiB, and large
// enough that 9,000 parts hold the whole.
func (c Config) partSize(upper int64) int64 {
	if c.PartSize != 0 {
		return c.PartSize
	}
	const mib = 1 << 20
	return max(8*mib, (upper/9000+mib-1)/mib*mib)
}

// inFlight is how many parts are sent at once: fewer where parts are large, so
// that their buffers stay within memory.
func (c Config) inFlight(partSize int64) int {
	const budget = 128 << 20
	return int(max(1, min(int64(c.Concurrency), budget/partSize)))
}
