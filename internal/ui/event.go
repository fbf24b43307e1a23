// Package ui shows what a job does: one stream of events, three renderers (a
// terminal with a progress bar, plain lines, JSON).
//
// It refuses to know what the events mean. Results go to stdout, everything
// else to stderr; with --json every line of stdout is one object with
// message_type, as docs/json.md specifies.
package ui

// Event is one thing that happened. Concrete events are plain structs with json
// tags, defined by who emits them.
type Event interface {
	// MessageType names the event in JSON: "phase", "progress", "summary", ...
	MessageType() string
	// Line is the event for a human, without a line break. "" shows nothing.
	Line() string
}

// Sink takes events, from any goroutine, and does not block for long.
type Sink interface{ Emit(Event) }

// Progress is the event that moves a progress bar. Renderers may drop all but
// the newest.
type Progress struct {
	What  string `json:"what"`  // "upload", "restore", ...
	Done  int64  `json:"done"`  // bytes
	Total int64  `json:"total"` // bytes; 0: unknown
}
