package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// PROTOCOL.md is the specification of what follows.
const (
	protocolFormat = 1
	maxLine        = 64 << 10
	maxWord        = 200 // bytes of purpose and stage
	maxMillis      = int64(7 * 24 * time.Hour / time.Millisecond)
)

const (
	opStatus  = "status"
	opHold    = "hold"
	opRelease = "release"
)

const (
	codeUsage     = "usage"
	codeDenied    = "denied"
	codeHeld      = "held"
	codeStopped   = "stopped"
	codeCapped    = "capped"
	codeEnding    = "ending"
	codeTimeout   = "timeout"
	codeKilled    = "killed"
	codeBlocked   = "blocked"
	codeNotHolder = "not_holder"
	codeNoSwap    = "no_swap"
)

const eventLost = "lost"

type request struct {
	Format        int    `json:"format"`
	Op            string `json:"op"`
	DeadlineMS    int64  `json:"deadline_ms,omitempty"`
	StopTimeoutMS int64  `json:"stop_timeout_ms,omitempty"`
	Purpose       string `json:"purpose,omitempty"`
	Stage         string `json:"stage,omitempty"`
}

type response struct {
	Format int         `json:"format"`
	OK     bool        `json:"ok"`
	Code   string      `json:"code,omitempty"`
	Error  string      `json:"error,omitempty"`
	Hint   string      `json:"hint,omitempty"`
	Event  string      `json:"event,omitempty"`
	Status *wireStatus `json:"status,omitempty"`
}

type wireStatus struct {
	State       string `json:"state"`
	Running     bool   `json:"running"`
	Held        bool   `json:"held"`
	PID         int    `json:"pid,omitempty"`
	Since       string `json:"since,omitempty"`
	Starts      int    `json:"starts,omitempty"`
	Purpose     string `json:"purpose,omitempty"`
	Stage       string `json:"stage,omitempty"`
	RemainingMS int64  `json:"remaining_ms,omitempty"`
	Guard       string `json:"guard,omitempty"`
	SwapFile    string `json:"swap_file,omitempty"` // while it exists supervise starts no node
}

// parseRequest reads one line of a peer. What it returns is within bounds.
func parseRequest(line []byte) (request, error) {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return request{}, fmt.Errorf("no JSON request: %w", err)
	}
	if r.Format != protocolFormat {
		return request{}, fmt.Errorf("format %d is not spoken here, 1 is", r.Format)
	}
	switch r.Op {
	case opStatus, opRelease:
		return request{Format: r.Format, Op: r.Op}, nil
	case opHold:
	default:
		return request{}, fmt.Errorf("unknown op %q", printable(r.Op, 32))
	}
	switch {
	case r.DeadlineMS <= 0 || r.DeadlineMS > maxMillis:
		return request{}, errors.New("hold: deadline_ms must be positive and at most a week")
	case r.StopTimeoutMS < 0 || r.StopTimeoutMS > maxMillis:
		return request{}, errors.New("hold: stop_timeout_ms must not be negative and at most a week")
	case r.Purpose != purposeBackup && r.Purpose != purposeRestore:
		return request{}, fmt.Errorf("hold: purpose %q is not known here", printable(r.Purpose, 32))
	}
	r.Stage = printable(r.Stage, maxWord)
	return r, nil
}

func parseResponse(line []byte) (response, error) {
	var r response
	if err := json.Unmarshal(line, &r); err != nil {
		return response{}, fmt.Errorf("no JSON answer: %w", err)
	}
	if r.Format != protocolFormat {
		return response{}, fmt.Errorf("answer in format %d, this eddy reads 1", r.Format)
	}
	r.Code, r.Event = printable(r.Code, 32), printable(r.Event, 32)
	r.Error, r.Hint = printable(r.Error, 1000), printable(r.Hint, 1000)
	return r, nil
}
