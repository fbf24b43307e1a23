package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/s3"
	"golang.org/x/sys/unix"
)

// The S3 servers that the lab has. The two differ where S3 leaves room, so that
// what is true of both is not one server's habit.
const (
	Versitygw = "versitygw"
	Minio     = "minio"
)

// S3Options say how to run the S3 server. The zero value runs versitygw from
// Binary's default in a new temporary directory.
type S3Options struct {
	// Server is Versitygw or Minio. Default: Versitygw.
	Server string
	// Binary is the server's path. Default: Binary(Server).
	Binary string
	// Dir is where the server's directory is made. Default: the system's
	// temporary directory, or the user's cache directory where the former's
	// filesystem has no user xattrs, in which the server keeps its metadata.
	Dir string
	// Bucket is created once the server is ready. Default: "eddy-lab".
	Bucket string
}

// S3 is a running server over a directory that is removed with it.
type S3 struct {
	Server    string // Versitygw or Minio
	Endpoint  string // http://127.0.0.1:port
	Region    string
	Bucket    string
	AccessKey string
	SecretKey string
	// Data is the directory below which the server keeps its objects: versitygw as
	// files of their names, for tests that damage what is stored.
	Data string

	dir  string
	proc *Process
}

const (
	startTimeout = 20 * time.Second
	stopGrace    = 10 * time.Second
)

// StartS3 starts a server with keys of its own and returns when it answers and
// its bucket exists. The caller stops it.
func StartS3(ctx context.Context, o S3Options) (_ *S3, err error) {
	if o.Server == "" {
		o.Server = Versitygw
	}
	run, ok := map[string]func(*S3, string, string) command{Versitygw: versitygw, Minio: minio}[o.Server]
	if !ok {
		return nil, fmt.Errorf("no S3 server %q: there are %s and %s", o.Server, Versitygw, Minio)
	}
	if o.Binary == "" {
		if o.Binary, err = Binary(o.Server); err != nil {
			return nil, err
		}
	}
	if o.Bucket == "" {
		o.Bucket = "eddy-lab"
	}
	dir, err := xattrDir(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &S3{
		Server:    o.Server,
		Region:    "us-east-1",
		Bucket:    o.Bucket,
		AccessKey: "lab" + randomHex(8),
		SecretKey: randomHex(20),
		Data:      filepath.Join(dir, "objects"),
		dir:       dir,
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Stop())
		}
	}()
	for _, d := range []string{s.Data, filepath.Join(dir, "versions")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, err
		}
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	s.Endpoint = "http://" + addr
	c := run(s, o.Binary, addr)
	log := filepath.Join(dir, "server.log")
	if s.proc, err = StartProcess(c.argv, c.env, log); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if err := s.proc.waitReady(ctx, func(ctx context.Context) error { return s.healthy(ctx, c.health) }); err != nil {
		tail, _ := os.ReadFile(log) // whatever it printed, to explain err
		return nil, fmt.Errorf("%s at %s: %w\n%s", o.Server, addr, err, tail)
	}
	if _, err := s.client().CreateBucket(ctx, &s3.CreateBucketInput{Bucket: &s.Bucket}); err != nil {
		return nil, fmt.Errorf("create bucket %s: %w", s.Bucket, err)
	}
	return s, nil
}

// command is how a server is run. Its keys go by the environment: an argument is
// readable by every user.
type command struct {
	argv, env []string
	health    string // a path that answers 200 once it is ready
}

func versitygw(s *S3, binary, addr string) command {
	return command{
		argv: []string{
			binary, "--quiet", "--port", addr, "--region", s.Region, "--health", "/health",
			"posix", "--versioning-dir", filepath.Join(s.dir, "versions"), s.Data,
		},
		env:    []string{"ROOT_ACCESS_KEY=" + s.AccessKey, "ROOT_SECRET_KEY=" + s.SecretKey},
		health: "/health",
	}
}

func minio(s *S3, binary, addr string) command {
	return command{
		argv: []string{binary, "server", "--quiet", "--address", addr, s.Data},
		env: []string{
			"MINIO_ROOT_USER=" + s.AccessKey, "MINIO_ROOT_PASSWORD=" + s.SecretKey, "MINIO_REGION=" + s.Region,
			"MINIO_BROWSER=off", "MINIO_UPDATE=off", "MINIO_CALLHOME_ENABLE=off",
			"HOME=" + s.dir, // where it would keep certificates
		},
		health: "/minio/health/ready",
	}
}

// Environ returns base with the variables by which a program finds the server
// and nothing else: EDDY_LAB_S3_* for eddy's own tests, AWS_* for everything that
// speaks S3. A profile or token of the caller's would win over the keys.
func (s *S3) Environ(base []string) []string {
	env := make([]string, 0, len(base)+12)
	for _, kv := range base {
		name, _, _ := strings.Cut(kv, "=")
		switch name {
		case "AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_SESSION_TOKEN":
		default:
			env = append(env, kv)
		}
	}
	return append(
		env,
		"EDDY_LAB_S3_SERVER="+s.Server,
		"EDDY_LAB_S3_ENDPOINT="+s.Endpoint,
		"EDDY_LAB_S3_BUCKET="+s.Bucket,
		"EDDY_LAB_S3_DATA="+s.Data,
		"AWS_ACCESS_KEY_ID="+s.AccessKey,
		"AWS_SECRET_ACCESS_KEY="+s.SecretKey,
		"AWS_REGION="+s.Region,
		"AWS_DEFAULT_REGION="+s.Region, // the one that awscli reads
		"AWS_ENDPOINT_URL="+s.Endpoint,
		"AWS_CONFIG_FILE=/dev/null",
		"AWS_SHARED_CREDENTIALS_FILE=/dev/null",
		"AWS_EC2_METADATA_DISABLED=true",
	)
}

// Exited is closed when the server has ended, which before Stop it never should.
func (s *S3) Exited() <-chan struct{} { return s.proc.Done() }

// Stop ends the server and removes its directory. It may be called again.
func (s *S3) Stop() error {
	var err error
	if s.proc != nil {
		err = s.proc.Stop(stopGrace)
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

func (s *S3) healthy(ctx context.Context, path string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.Endpoint+path, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return nil
}

func (s *S3) client() *s3.Client {
	return s3.New(s3.Options{
		BaseEndpoint: aws.String(s.Endpoint),
		Region:       s.Region,
		UsePathStyle: true,
		Credentials:  credentials.NewStaticCredentialsProvider(s.AccessKey, s.SecretKey, ""),
	})
}

// Binary finds a server that `make` has built: in EDDY_LAB_BIN, else beside the
// running program.
func Binary(name string) (string, error) {
	dir := os.Getenv("EDDY_LAB_BIN")
	if dir == "" {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		dir = filepath.Dir(self)
	}
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find server %s (built by `make lab`; EDDY_LAB_BIN names its directory): %w", name, err)
	}
	return path, nil
}

// freeAddr asks the kernel for a loopback port. Between here and the server's
// own listen somebody else may take it; the server then ends and says so.
func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}

// xattrDir makes a fresh directory on a filesystem with user xattrs: in parent,
// or in the first default that has them.
func xattrDir(parent string) (string, error) {
	parents := []string{parent}
	if parent == "" {
		parents = []string{os.TempDir()}
		if cache, err := os.UserCacheDir(); err == nil {
			parents = append(parents, filepath.Join(cache, "eddy-lab"))
		}
	}
	var errs []error
	for _, p := range parents {
		if err := os.MkdirAll(p, 0o700); err != nil {
			errs = append(errs, err)
			continue
		}
		dir, err := os.MkdirTemp(p, "eddy-lab-s3-")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		err = unix.Setxattr(dir, "user.eddy-lab", []byte("1"), 0)
		if err == nil {
			return dir, nil
		}
		errs = append(errs, fmt.Errorf("set a user xattr below %s: %w", p, err), os.Remove(dir))
	}
	return "", fmt.Errorf("no place for the S3 server, which needs user xattrs: %w", errors.Join(errs...))
}

func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails since Go 1.24
	return hex.EncodeToString(b)
}
