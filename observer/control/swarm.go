package control

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Engine is a container engine for those who ask it for more than one container. It may
// be used by many goroutines.
type Engine struct{ e *engine }

// NewEngine reads a host as DOCKER_HOST has it; "": the default. Nothing is asked.
func NewEngine(host string) (*Engine, error) {
	e, err := newEngine(cmp.Or(host, DefaultDockerHost))
	if err != nil {
		return nil, err
	}
	return &Engine{e}, nil
}

// Host is where it listens.
func (e *Engine) Host() string { return e.e.host }

// maxListing bounds the answer that lists all objects of a swarm, in bytes.
const maxListing = 64 << 20

// Call makes one call: body, where it is not nil, is sent as JSON, and the answer's is
// read into the value that into points to, unless that is nil. What the engine has
// answered against it is a *Refusal in the chain. It needs a ctx with a deadline: some calls to a swarm
// wait for a quorum that may never come.
func (e *Engine) Call(ctx context.Context, method, path string, body, into any) error {
	var send []byte
	if body != nil {
		var err error
		if send, err = json.Marshal(body); err != nil {
			return err
		}
	}
	b, err := e.e.ask(ctx, method, path, send, maxListing)
	if err != nil || into == nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("the engine's answer to %s %s is none: %w", method, path, err)
	}
	return nil
}

// Unlock unlocks the engine of a manager whose swarm is locked after each start.
type Unlock struct {
	Host string `json:"host"`
	Key  string `json:"key"` // a secret
}

// String has no key.
func (u *Unlock) String() string { return "unlock the engine at " + u.Host }

// unlockTime bounds what a guard gives it.
const unlockTime = 2 * time.Minute

// Do waits until the engine answers, gives it the key where it says that it is locked,
// and returns when it is not, or when ctx is done. A manager that has lost its quorum is
// pending then, and stays so.
func (u *Unlock) Do(ctx context.Context) error {
	e, err := NewEngine(u.Host)
	if err != nil {
		return err
	}
	for {
		var last error
		var info struct {
			Swarm struct{ LocalNodeState string }
		}
		err := within(ctx, func(ctx context.Context) error { return e.Call(ctx, http.MethodGet, "/info", nil, &info) })
		state := info.Swarm.LocalNodeState
		switch {
		case err != nil:
			last = err
		case state == "locked":
			last = errors.New("it is locked")
			// It answers when the manager has joined again, which may need others: its
			// state is asked for, whatever it says.
			err := within(ctx, func(ctx context.Context) error {
				return e.Call(ctx, http.MethodPost, "/swarm/unlock", map[string]string{"UnlockKey": u.Key}, nil)
			})
			var no *Refusal
			if errors.As(err, &no) && (no.Code == http.StatusUnauthorized || no.Code == http.StatusBadRequest) {
				return hint.Add(fmt.Errorf("unlock the manager: %w", err), "as root: `docker swarm unlock`, with the key that `docker swarm unlock-key` shows on another manager")
			}
		case state == "":
			last = errors.New("it does not say how it is")
		default:
			return nil
		}
		if sleep(ctx, pollEvery) != nil {
			return hint.Add(fmt.Errorf("the manager is not unlocked: %w: %w", context.Cause(ctx), last), "`docker info` says how it is; as root: `docker swarm unlock`")
		}
	}
}

// within bounds one call.
func within(ctx context.Context, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	return do(ctx)
}
