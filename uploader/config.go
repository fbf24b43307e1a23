package uploader

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/rs/zerolog"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// ErrConfig is in the chain of every error that Validate and Open return about
// the configuration itself.
var ErrConfig = errors.New("store configuration")

// Config says which store and how it is talked to. Credentials are not part of
// it: they come from the AWS chain (environment, profile, role).
type Config struct {
	URL          string // s3://bucket/prefix or file:///directory
	Region       string // "": from the AWS chain, else us-east-1
	Endpoint     string // http(s) address of a store that is not AWS
	PathStyle    string // "true", "false", "auto" or "" (path style where an endpoint is given)
	Profile      string // of the shared AWS configuration
	StorageClass string // of the objects that Put makes; "": the bucket's default
	SSE          SSE
	PartSize     int64 // bytes; 0: by the object's size; a directory takes any
	Concurrency  int   // parts in flight; 0: 4

	// MinRate is the slowest transfer that is still waited for, in bytes a second
	// (0: 64 KiB/s), Slack what any call may take beside it (0: 30 s): together
	// they are the deadline of an attempt. A stalled connection has no other end.
	MinRate int64
	Slack   time.Duration
	// GiveUp is how long a call is tried again before the store counts as
	// unreachable (0: 2 minutes; 15 s while the store has not answered once).
	GiveUp time.Duration
	// FS makes the changes to files: of journals, and of a file store.
	FS fsx.FS
	// Transport, where set, carries the requests instead of the network. What it
	// leads to may take parts of any size.
	Transport http.RoundTripper
	// Log hears of calls that are tried again, and at the debug level of every
	// part. The zero value is silent.
	Log zerolog.Logger

	// unit is what sizes of parts are multiples of, in bytes; 0: a MiB. Less is for
	// tests, of stores that take parts of any size.
	unit int64
}

// SSE is server-side encryption: Mode "", "AES256" or "aws:kms".
type SSE struct{ Mode, KMSKeyID string }

const (
	mib = 1 << 20
	// The limits of S3: a part that is not the last, any part, an upload.
	minPart  = 5 * mib
	maxPart  = 5 << 30
	maxParts = 10_000
)

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

// Validate finds every mistake of the configuration. It touches no network.
func (c Config) Validate() error {
	var errs []error
	bad := func(todo, format string, args ...any) {
		errs = append(errs, hint.Add(fmt.Errorf("%w: "+format, append([]any{ErrConfig}, args...)...), todo))
	}
	if _, err := c.parseURL(); err != nil {
		errs = append(errs, err)
	}
	if c.Endpoint != "" {
		// The address is not repeated: it may hold a password.
		if u, err := url.Parse(c.Endpoint); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" {
			bad("write https://host or http://host:port, without credentials", "endpoint")
		}
	}
	switch c.PathStyle {
	case "", "auto", "true", "false":
	default:
		bad("write auto, true or false", "path style %q", c.PathStyle)
	}
	switch c.SSE.Mode {
	case "", "AES256", "aws:kms":
	default:
		bad("write AES256, aws:kms, or nothing", "encryption mode %q", c.SSE.Mode)
	}
	if c.SSE.KMSKeyID != "" && c.SSE.Mode != "aws:kms" {
		bad("set the mode to aws:kms, or remove the key", "a KMS key without mode aws:kms")
	}
	limited := c.Transport == nil && c.unit == 0 && !strings.HasPrefix(c.URL, "file:")
	if c.PartSize < 0 || c.PartSize > maxPart || c.PartSize != 0 && c.PartSize < minPart && limited {
		bad("write 5 MiB to 5 GiB, or 0", "part size %d", c.PartSize)
	}
	if c.Concurrency < 0 || c.MinRate < 0 || c.Slack < 0 || c.GiveUp < 0 {
		bad("write 0 for the default", "a negative number")
	}
	return errors.Join(errs...)
}

// parseURL takes the store's URL apart: file with a directory in Path, or s3 with
// the bucket in Host and the prefix, without slashes around it, in Path.
func (c Config) parseURL() (*url.URL, error) {
	const forms = "write s3://bucket/prefix or file:///directory"
	u, err := url.Parse(c.URL)
	if err != nil || u.User != nil {
		// The URL is not repeated: it may hold a password.
		return nil, hint.Add(fmt.Errorf("%w: URL", ErrConfig), forms+", without credentials")
	}
	switch {
	case u.RawQuery != "" || u.Fragment != "":
		return nil, hint.Add(fmt.Errorf("%w: URL %s://%s%s with a query or a fragment", ErrConfig, u.Scheme, u.Host, u.Path), forms)
	case u.Scheme == "file" && u.Host == "" && filepath.IsAbs(u.Path):
		u.Path = filepath.Clean(u.Path)
		return u, nil
	case u.Scheme == "s3" && u.Host != "" && u.Port() == "":
		u.Path = strings.Trim(path.Clean("/"+u.Path), "/")
		return u, nil
	default:
		return nil, hint.Add(fmt.Errorf("%w: URL %s", ErrConfig, c.URL), forms)
	}
}

// Open makes the store that the URL names. It asks nothing of the store.
func Open(ctx context.Context, c Config) (Store, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	u, err := c.parseURL()
	if err != nil {
		return nil, err
	}
	c = c.withDefaults()
	if u.Scheme == "file" {
		s := newFileStore(u.Path)
		s.fs, s.c = c.FS, c
		return s, nil
	}
	var more []func(*s3.Options)
	if c.Transport != nil {
		more = append(more, func(o *s3.Options) { o.HTTPClient = &http.Client{Transport: c.Transport} })
	}
	return newS3Store(ctx, c, u.Host, u.Path, more...)
}

// partSize is the size of every part but the last: at least 8 MiB, and large
// enough that 9,000 parts hold the whole.
func (c Config) partSize(upper int64) int64 {
	if c.PartSize != 0 {
		return c.PartSize
	}
	unit := cmp.Or(c.unit, mib)
	return max(8*unit, (upper+9000*unit-1)/(9000*unit)*unit)
}

// leastPart is the smallest part that is not the last one of its upload.
func (c Config) leastPart() int64 {
	if c.PartSize != 0 {
		return min(minPart, c.PartSize)
	}
	return min(minPart, 5*cmp.Or(c.unit, mib))
}

// inFlight is how many parts are sent at once: fewer where parts are larger than
// 32 MiB, so that the buffers, one more than parts in flight, keep to 160 MiB.
// With parts above 80 MiB (objects above 700 GiB) they are two.
func (c Config) inFlight(partSize int64) int {
	const budget = 160 * mib
	return int(max(1, min(int64(c.Concurrency), budget/partSize-1)))
}
