package etcd

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc/metadata"

	"github.com/eddy-backup/eddy/internal/hint"
)

// TLS names files in PEM.
type TLS struct {
	CA, Cert, Key string
	ServerName    string // "": the endpoint's host
}

func (t TLS) config() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: t.ServerName}
	if t.CA != "" {
		b, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("replica.etcd.tls.ca: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(b) {
			return nil, fmt.Errorf("replica.etcd.tls.ca: %s holds no certificate in PEM", t.CA)
		}
	}
	if t.Cert != "" {
		pair, err := tls.LoadX509KeyPair(t.Cert, t.Key)
		if err != nil {
			return nil, fmt.Errorf("replica.etcd.tls: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// conn is a connection to one member.
type conn struct {
	url string
	c   *clientv3.Client
}

// with connects to one member and asks it, within the time.
func (e *Etcd) with(ctx context.Context, url string, within time.Duration, ask func(context.Context, *conn) error) (err error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	c, err := e.dial(ctx, url)
	if err != nil {
		return err
	}
	defer func() { _ = c.c.Close() }() // its context has mostly ended, which is no news
	if err = ask(ctx, c); err != nil && ctx.Err() != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s: %w", within, err)
	}
	return err
}

func (e *Etcd) dial(ctx context.Context, url string) (*conn, error) {
	cfg := clientv3.Config{Endpoints: []string{url}, Context: ctx, Logger: zap.NewNop()}
	if strings.HasPrefix(url, "https://") || !strings.Contains(url, "://") && e.o.TLS != (TLS{}) {
		t, err := e.o.TLS.config()
		if err != nil {
			return nil, err
		}
		cfg.TLS = t
	}
	if err := probe(ctx, url, cfg.TLS); err != nil {
		return nil, err
	}
	c, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", url, err)
	}
	return &conn{url, c}, nil
}

// probe tells at once why a member cannot be reached: the client goes on dialling
// until its time is over, and does not say why.
func probe(ctx context.Context, url string, with *tls.Config) error {
	a, err := address(url)
	if err != nil {
		return err
	}
	p, err := (&net.Dialer{}).DialContext(ctx, "tcp", a)
	if err != nil {
		return err
	}
	defer p.Close()
	if with == nil {
		return nil
	}
	with = with.Clone()
	if with.ServerName == "" {
		if with.ServerName, _, err = net.SplitHostPort(a); err != nil {
			return err
		}
	}
	return tls.Client(p, with).HandshakeContext(ctx)
}

// login adds a token to ctx, where there is a user. A learner logs nobody in, so
// that the endpoints are tried in turn: a token of one holds for all.
func (e *Etcd) login(ctx context.Context) (context.Context, error) {
	if e.o.User == "" {
		return ctx, nil
	}
	password, err := e.o.Password()
	if err != nil {
		return ctx, err
	}
	var last error
	for _, url := range e.o.Endpoints {
		var token string
		last = e.with(ctx, url, askWithin, func(ctx context.Context, c *conn) error {
			r, err := c.c.Authenticate(ctx, e.o.User, password)
			if err == nil {
				token = r.Token
			}
			return err
		})
		if last == nil {
			return metadata.AppendToOutgoingContext(ctx, rpctypes.TokenFieldNameGRPC, token), nil
		}
		if errors.Is(last, rpctypes.ErrAuthNotEnabled) {
			return ctx, nil
		}
	}
	return ctx, hint.Add(fmt.Errorf("log in as %s: %w", e.o.User, last), "the user needs etcd's role root; voters must be among the endpoints, a learner logs nobody in")
}

func (c *conn) Status(ctx context.Context) (*pb.StatusResponse, error) {
	r, err := c.c.Status(ctx, c.url)
	if err == nil && r.Header == nil {
		err = errors.New("an answer without a header")
	}
	return (*pb.StatusResponse)(r), err
}

// Members asks the member itself, without the quorum.
func (c *conn) Members(ctx context.Context) ([]*pb.Member, error) {
	r, err := c.c.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, err
	}
	return r.Members, nil
}

// advice to an error of a connection.
func advice(err error) string {
	var unknown x509.UnknownAuthorityError
	text := err.Error()
	switch {
	case errors.As(err, &unknown) || strings.Contains(text, "unknown authority"):
		return "set `replica.etcd.tls.ca: FILE`, or ETCDCTL_CACERT, to the CA of etcd's servers"
	case strings.Contains(text, "tls") || strings.Contains(text, "certificate"):
		return "look at replica.etcd.tls; `etcdctl --endpoints URL --cacert CA --cert CERT --key KEY endpoint status` must work with the same files"
	case strings.Contains(text, "user name is empty") || strings.Contains(text, "permission denied"):
		return "set `replica.etcd.user: NAME` with its password_file; the user needs etcd's role root"
	}
	return "is etcd running there? `etcdctl --endpoints URL endpoint status` must work"
}
