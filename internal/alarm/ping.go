package alarm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/eddy-backup/eddy/internal/hint"
)

const (
	pingTimeout = 10 * time.Second // of one try
	pingRetries = 2
	pingPause   = time.Second // before the first retry; then longer
)

// Ping is a dead man's switch: an address that is asked for at each backup, and
// whose keeper raises the alarm when that stops. The address is a secret: who
// knows it can keep the alarm silent.
type Ping struct {
	url    *url.URL
	client *http.Client
	pause  time.Duration
}

// NewPing makes the switch of an http or https address.
func NewPing(address string) (*Ping, error) {
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, errors.New("the ping's address is no http or https URL")
	}
	return &Ping{url: u, pause: pingPause, client: &http.Client{
		Timeout: pingTimeout,
		Transport: &http.Transport{Proxy: func(r *http.Request) (*url.URL, error) {
			p, err := http.ProxyFromEnvironment(r)
			if err != nil {
				return nil, errors.New("the proxy that the environment names is no URL") // which may hold a password
			}
			return p, nil
		}, DisableKeepAlives: true},
		// Whoever it is that we would be sent to would get the address as Referer.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Start says that a run has begun: ADDRESS/start. It is tried once, for the run
// waits for it.
func (p *Ping) Start(ctx context.Context) error { return p.get(ctx, "start", 0) }

// Success says that there is a backup: ADDRESS itself.
func (p *Ping) Success(ctx context.Context) error { return p.get(ctx, "", pingRetries) }

// Fail says that a run has failed: ADDRESS/fail.
func (p *Ping) Fail(ctx context.Context) error { return p.get(ctx, "fail", pingRetries) }

func (p *Ping) get(ctx context.Context, what string, retries uint64) error {
	u := *p.url
	if what != "" {
		u = *u.JoinPath(what)
	}
	wait := backoff.NewExponentialBackOff(backoff.WithInitialInterval(p.pause))
	err := backoff.Retry(func() error { return p.once(ctx, u.String()) }, backoff.WithContext(backoff.WithMaxRetries(wait, retries), ctx))
	if err != nil {
		return hint.Add(fmt.Errorf("ping: %w", err), hint.Or(err, "look at notify.ping_url, and at the way to the network"))
	}
	return nil
}

func (p *Ping) once(ctx context.Context, address string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return backoff.Permanent(errors.New("the address is no URL"))
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return bare(err)
	}
	defer resp.Body.Close()
	// Read, so that the server sees its answer taken; an error changes nothing.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	switch code := resp.StatusCode; {
	case code < 300:
		return nil
	case code < 400:
		return backoff.Permanent(hint.Add(fmt.Errorf("it is answered by a redirect (%d)", code), "set `notify.ping_url: URL` to the address that it leads to"))
	case code < 500 && code != http.StatusTooManyRequests && code != http.StatusRequestTimeout:
		return backoff.Permanent(fmt.Errorf("it is answered by %d %s", code, http.StatusText(code)))
	default:
		return fmt.Errorf("it is answered by %d %s", code, http.StatusText(code))
	}
}

// bare is an error of net/http without the address, which stands in its text.
func bare(err error) error {
	if u := new(url.Error); errors.As(err, &u) {
		if u.Timeout() {
			return errors.New("no answer in time")
		}
		return u.Err
	}
	return err
}
