package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// DockerConfig says which container a node is.
type DockerConfig struct {
	Container string // its name, or its id
	// Host is where the engine listens: unix:///path, or tcp://host:port for a
	// proxy before it; "": DefaultDockerHost.
	Host string

	MayStart func(context.Context) error `json:"-"` // see ExecConfig
	Dir      string                      // workdir, for the journal; must exist
	SwapFile string                      // see SuperviseOptions; "": none

	StartTimeout  time.Duration // from the start to a container that runs; 0: 120 s
	StatusTimeout time.Duration // of one question; 0: 10 s
	Linger        time.Duration // see ExecConfig; 0: 15 minutes
}

// NewDocker controls a node that is a container, through the engine's API. It
// asks for stops without end: however long the node takes, and whatever stop
// time-out its container has, the engine sends no SIGKILL for it. Journal, lock
// and guard are those of exec. The engine is not asked anything yet.
func NewDocker(c DockerConfig) (Control, error) {
	if c.StartTimeout == 0 {
		c.StartTimeout = 120 * time.Second
	}
	if c.StatusTimeout == 0 {
		c.StatusTimeout = 10 * time.Second
	}
	if c.Linger == 0 {
		c.Linger = 15 * time.Minute
	}
	if c.Host == "" {
		c.Host = DefaultDockerHost
	}
	switch {
	case c.Container == "":
		return nil, errors.New("control.docker: no container was named")
	case c.Dir == "":
		return nil, errors.New("control.docker: no workdir for the hold journal")
	case c.StartTimeout < 0 || c.StatusTimeout < 0 || c.Linger < 0:
		return nil, errors.New("control.docker: a time-out must not be negative")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("control.docker: %w", err)
	}
	if _, err := newEngine(c.Host); err != nil {
		return nil, fmt.Errorf("control.docker: %w", err)
	}
	n := (&node{
		Container: ContainerRef{Name: c.Container, Host: c.Host}, Dir: dir, SwapFile: c.SwapFile,
		StartTimeout: c.StartTimeout, StatusTimeout: c.StatusTimeout,
	}).managed()
	return &docker{
		guarded:   &guarded{name: controlDocker + " " + c.Container, control: controlDocker, node: n, linger: c.Linger, mayStart: c.MayStart},
		container: n.by.(*container),
	}, nil
}

type docker struct {
	*guarded
	container *container
}

var _ Control = (*docker)(nil)

// Status implements Control. A container that must not be held is an error that
// says why.
func (d *docker) Status(ctx context.Context) (Status, error) {
	st, err := d.guarded.Status(ctx)
	if err != nil || st.Held {
		return st, err
	}
	ctx, cancel := context.WithTimeout(ctx, d.node.StatusTimeout)
	defer cancel()
	i, err := d.container.look(ctx)
	if err == nil {
		err = i.refusal()
	}
	if err != nil {
		return st, fmt.Errorf("%s: %w", d, err)
	}
	return st, nil
}

// Hold implements Control. A port that nothing answers for, not even to refuse,
// is no reason against the engine's word: the address of a stopped container is
// nobody's, and its name is not known any more.
func (d *docker) Hold(ctx context.Context, r Request) (Hold, error) {
	r.Down = withoutAddress(r.Down)
	return d.guarded.Hold(ctx, r)
}

// Halt implements Control, likewise.
func (d *docker) Halt(ctx context.Context, r Request) error {
	r.Down = withoutAddress(r.Down)
	return d.guarded.Halt(ctx, r)
}

func withoutAddress(down func(context.Context) error) func(context.Context) error {
	if down == nil {
		return nil
	}
	return func(ctx context.Context) error {
		err := down(ctx)
		if errors.Is(err, errNoAnswer) {
			return nil
		}
		return err
	}
}

// ContainerRef names a container to whoever has to start it.
type ContainerRef struct {
	Name string `json:"name"`
	ID   string `json:"id,omitempty"` // of the one that was stopped
	Host string `json:"host"`         // the engine
}

// container is the manager of a node that is a container.
type container struct {
	ref    ContainerRef
	engine *engine
	bad    error // why there is no engine
}

// dockerArgv is docker's own command line for the engine at host, for a person.
func dockerArgv(host string, args ...string) []string {
	argv := []string{"docker"}
	if host != cmp.Or(os.Getenv("DOCKER_HOST"), DefaultDockerHost) {
		argv = append(argv, "--host", host)
	}
	return append(argv, args...)
}

func newContainer(ref ContainerRef) *container {
	e, err := newEngine(ref.Host)
	return &container{ref: ref, engine: e, bad: err}
}

// id is what the engine is asked for: what was stopped, if that is known.
func (c *container) id() string {
	if c.ref.ID != "" {
		return c.ref.ID
	}
	return c.ref.Name
}

// call makes a call about the container id.
func (c *container) call(ctx context.Context, method, id, what string) ([]byte, error) {
	if c.bad != nil {
		return nil, c.bad
	}
	return c.engine.call(ctx, method, "/containers/"+url.PathEscape(id)+what)
}

func (c *container) inspect(ctx context.Context, id string) (containerInfo, error) {
	b, err := c.call(ctx, http.MethodGet, id, "/json")
	if err != nil {
		return containerInfo{}, err
	}
	i, err := parseContainer(b)
	i.host = c.ref.Host
	return i, err
}

// look finds the container: by its name, or, where a journal names it, by its id.
// One whose name has gone over to another container was replaced, as `compose up`
// does it, also while its own remains are still there.
func (c *container) look(ctx context.Context) (containerInfo, error) {
	if c.ref.ID == "" {
		i, err := c.inspect(ctx, c.ref.Name)
		if errors.Is(err, errNoContainer) {
			err = hint.Add(fmt.Errorf("there is no container %s", c.ref.Name), hint.Command(dockerArgv(c.ref.Host, "ps", "-a")...)+" lists them: set `replica.control.docker.container: NAME`; replica.control.docker.socket says which engine is asked")
		}
		return i, err
	}
	i, err := c.inspect(ctx, c.ref.ID)
	how := "was removed"
	if err == nil && i.name != c.ref.Name {
		if other, oerr := c.inspect(ctx, c.ref.Name); oerr == nil && other.id != c.ref.ID {
			how, err = "was replaced", errNoContainer
		}
	}
	if errors.Is(err, errNoContainer) {
		err = hint.Add(fmt.Errorf("%w: container %s (%.12s) %s", errGone, c.ref.Name, c.ref.ID, how),
			"see to it that the node runs: eddy does not start what it has not stopped")
	}
	return i, err
}

func (c *container) status(ctx context.Context) (runState, string, error) {
	i, err := c.look(ctx)
	if err != nil {
		return unknown, "", fmt.Errorf("status: %w", err)
	}
	st, err := i.state()
	return st, i.run(), err
}

// fit asks for a start, too, of the container that runs, which does nothing: who
// may stop it, but not start it, finds out before. One that is down is left down.
func (c *container) fit(ctx context.Context, r *Record) error {
	i, err := c.look(ctx)
	if err == nil {
		err = i.refusal()
	}
	if err != nil {
		return err
	}
	if st, err := i.state(); st != running {
		return join(ErrStopped, err) // it is not for us to start it
	}
	if _, err := c.call(ctx, http.MethodPost, i.id, "/start"); err != nil {
		return fmt.Errorf("it could not be started again: %w", err)
	}
	r.Identity = i.run()
	r.Container = ContainerRef{Name: i.name, ID: i.id, Host: c.ref.Host}
	return nil
}

// startArgv implements manager.
func (c *container) startArgv() []string { return dockerArgv(c.ref.Host, "start", c.ref.Name) }

// lookEvery implements manager: an engine that is restarted starts containers
// whose policy is always, and anybody may.
func (c *container) lookEvery() time.Duration { return time.Second }

// stop asks for a stop without end (t=-1). The engine goes on with it when ctx
// is done: it has given the signal, and waits.
func (c *container) stop(ctx context.Context) (failed, err error) {
	_, failed = c.call(ctx, http.MethodPost, c.id(), "/stop?t=-1")
	switch {
	case errors.Is(failed, errUnreachable), errors.Is(failed, errRefused):
		return nil, failed
	case ctx.Err() != nil:
		return nil, nil
	case failed != nil:
		return failed, nil
	}
	i, err := c.look(ctx)
	if err != nil || i.status != "exited" {
		return nil, nil // is asked next, with patience
	}
	return i.ending(), nil
}

func (c *container) start(ctx context.Context, _ *os.File) (failed, err error) {
	_, failed = c.call(ctx, http.MethodPost, c.id(), "/start")
	switch {
	case errors.Is(failed, errUnreachable), errors.Is(failed, errRefused):
		return nil, failed
	case failed != nil && ctx.Err() != nil:
		return nil, fmt.Errorf("%w: %w", errNoReturn, context.Cause(ctx))
	}
	return hint.Add(failed, hint.Command(c.startArgv()...)+" says what is wrong"), nil
}
