package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/user"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/hint"
)

// DefaultDockerHost is where the engine listens when nobody says otherwise.
const DefaultDockerHost = "unix:///var/run/docker.sock"

// errRefused is in the chain where the engine, or a proxy before it, was asked
// and did nothing.
var errRefused = errors.New("refused")

// errNoContainer says that the engine does not know the container.
var errNoContainer = errors.New("no such container")

// maxAnswer bounds what is read of an answer, in bytes. A container with
// hundreds of mounts and labels stays below it.
const maxAnswer = 4 << 20

// engine speaks the API of a container engine (docs.docker.com/reference/api/engine):
// inspect, start and stop, which have meant the same in every version of it.
type engine struct {
	host string // as DOCKER_HOST has it
	base string // scheme and host of the requests
	http http.Client
}

// newEngine reads a host: unix:///path or tcp://host:port, the latter without
// TLS, for a proxy beside the engine.
func newEngine(host string) (*engine, error) {
	kind, addr, _ := strings.Cut(host, "://")
	e := &engine{host: host, base: "http://docker"}
	network := "unix"
	switch {
	case kind == "unix" && strings.HasPrefix(addr, "/"):
	case kind == "tcp" && addr != "" && !strings.ContainsAny(addr, "@/?#"):
		network, e.base = "tcp", "http://"+addr
	default: // its text may hold a password
		return nil, hint.Add(errors.New("the engine's address is neither unix:///path nor tcp://host:port"),
			"eddy runs on the engine's machine, where the node's files are: "+DefaultDockerHost+", or the socket of a rootless engine")
	}
	e.http = http.Client{
		Transport: &http.Transport{
			// An engine may be replaced while a node is held: nothing of it is kept.
			DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{Timeout: answerTimeout}).DialContext(ctx, network, addr)
			},
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return e, nil
}

var apiVersion = regexp.MustCompile(`^[0-9]{1,3}\.[0-9]{1,3}$`)

// version is the prefix of a request's path: the engine's own version, which it
// never finds too old or too new. A proxy that hides it gets no prefix, which
// means the same.
func (e *engine) version(ctx context.Context) (string, error) {
	resp, err := e.send(ctx, http.MethodGet, "/_ping", nil)
	if err != nil {
		return "", err
	}
	resp.Body.Close()
	if v := resp.Header.Get("Api-Version"); apiVersion.MatchString(v) {
		return "/v" + v, nil
	}
	return "", nil
}

func (e *engine) send(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	var in io.Reader
	if body != nil {
		in = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, e.base+path, in)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, e.unreachable(err)
	}
	return resp, nil
}

// call makes one call and returns the answer's body. That nothing had to be done
// (304) is a success.
func (e *engine) call(ctx context.Context, method, path string) ([]byte, error) {
	return e.ask(ctx, method, path, nil, maxAnswer)
}

// ask is call with a body, where it is not nil, and a bound of the answer's in bytes.
func (e *engine) ask(ctx context.Context, method, path string, send []byte, bound int64) ([]byte, error) {
	version, err := e.version(ctx)
	if err != nil {
		return nil, err
	}
	resp, err := e.send(ctx, method, version+path, send)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, bound+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the engine's answer: %w", err)
	case int64(len(body)) > bound:
		return nil, fmt.Errorf("the engine's answer is larger than %d bytes", bound)
	case resp.StatusCode < 300 || resp.StatusCode == http.StatusNotModified:
		return body, nil
	}
	return nil, refusedBy(resp.StatusCode, body)
}

// refusedBy says why the engine, or a proxy before it, did not do what it was
// asked. A failure of its own (500 and above) may have come in the middle.
func refusedBy(code int, body []byte) error {
	var said struct {
		Message string `json:"message"`
	}
	text := printable(string(body), 200)
	if json.Unmarshal(body, &said) == nil && said.Message != "" {
		text = printable(said.Message, 500)
	}
	var err error = &Refusal{Code: code, Said: text}
	switch {
	case code == http.StatusNotFound:
		return fmt.Errorf("%w: %w: %w", errRefused, errNoContainer, err)
	case code == http.StatusForbidden, code == http.StatusUnauthorized:
		err = hint.Add(err, "a proxy before the engine must allow GET containers/NAME/json and POST containers/NAME/start and stop")
	}
	if code < 500 {
		err = fmt.Errorf("%w: %w", errRefused, err)
	}
	return err
}

// Refusal is in the chain where an engine has answered that it does not do what it was
// asked.
type Refusal struct {
	Code int // of HTTP
	Said string
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("the engine says %d %s: %s", r.Code, http.StatusText(r.Code), r.Said)
}

// errUnreachable is in the chain where the engine was not asked at all.
var errUnreachable = errors.New("the engine cannot be reached")

// unreachable names what is wrong with the way to the engine, on one line.
func (e *engine) unreachable(err error) error {
	var request *url.Error // repeats the address, with a socket's path escaped
	if errors.As(err, &request) {
		err = request.Err
	}
	var dial *net.OpError
	if !errors.As(err, &dial) || dial.Op != "dial" {
		return fmt.Errorf("ask the engine at %s: %w", e.host, err)
	}
	err = fmt.Errorf("%w at %s: %w", errUnreachable, e.host, dial.Err)
	rootless := fmt.Sprintf("/run/user/%d/docker.sock", os.Getuid())
	switch {
	case errors.Is(err, fs.ErrPermission):
		return hint.Add(err, fmt.Sprintf("as root: `usermod -aG docker %s`, then log in anew, or start eddy's service anew; that makes it root on this machine: a proxy that allows less is named by `replica.control.docker.socket: tcp://HOST:PORT`", me()))
	case errors.Is(err, fs.ErrNotExist) && exists(rootless):
		return hint.Add(err, "an engine without root listens there: set `replica.control.docker.socket: "+rootless+"`")
	case strings.HasPrefix(e.host, "tcp:"):
		return hint.Add(err, "start what is to listen there, or set `replica.control.docker.socket: PATH` to the engine's own socket")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		return hint.Add(err, "as root: `systemctl start docker`; if the engine listens elsewhere, set `replica.control.docker.socket: PATH`")
	}
	return err
}

// me is this process's user, by name where it has one.
func me() string {
	if u, err := user.Current(); err == nil {
		return u.Username
	}
	return fmt.Sprint(os.Getuid())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
