package job

import (
	"fmt"
	"time"

	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer"
)

// Phase announces a step of a job.
type Phase struct {
	ID    string `json:"id,omitempty"`
	Phase string `json:"phase"`
	Text  string `json:"text"`
}

// MessageType implements ui.Event.
func (Phase) MessageType() string { return "phase" }

// Line implements ui.Event.
func (p Phase) Line() string { return p.Text }

// Warning is something that the operator should look at; the work goes on.
type Warning struct {
	Text string `json:"text"`
	Hint string `json:"hint,omitempty"`
}

// MessageType implements ui.Event.
func (Warning) MessageType() string { return "warning" }

// Line implements ui.Event.
func (w Warning) Line() string {
	if w.Hint == "" {
		return "warning: " + w.Text
	}
	return "warning: " + w.Text + "\n   hint: " + w.Hint
}

// Summary ends a backup. Sizes in bytes, times in seconds.
type Summary struct {
	Outcome      string   `json:"outcome"`           // "ready", "unchanged", "skipped", "salvaged"
	Resumed      bool     `json:"resumed,omitempty"` // an earlier run had begun it
	ID           string   `json:"id,omitempty"`
	Cluster      string   `json:"cluster"`
	Position     uint64   `json:"position"`
	At           string   `json:"at"` // the position, for people
	Hash         string   `json:"hash,omitempty"`
	Files        int64    `json:"files,omitempty"`
	SourceBytes  int64    `json:"source_bytes,omitempty"`
	ReadBytes    int64    `json:"read_bytes,omitempty"`   // by this run
	SentBytes    int64    `json:"sent_bytes,omitempty"`   // by this run
	CopiedBytes  int64    `json:"copied_bytes,omitempty"` // inside the store, by this run
	StoredBytes  int64    `json:"stored_bytes,omitempty"`
	Volumes      int      `json:"volumes,omitempty"`
	HeldSeconds  float64  `json:"held_seconds,omitempty"`
	StopSeconds  float64  `json:"stop_seconds,omitempty"`
	StageSeconds float64  `json:"stage_seconds,omitempty"`
	StartSeconds float64  `json:"start_seconds,omitempty"`
	Seconds      float64  `json:"seconds"`
	Stored       string   `json:"stored,omitempty"` // by what means the stored bytes were checked
	Attested     string   `json:"attested,omitempty"`
	Warnings     []string `json:"warnings,omitempty"`

	heldAt, releasedAt time.Time
	label              string
}

func (s *Summary) at(p observer.Position) { s.Position, s.At = p.Index, p.String() }

// MessageType implements ui.Event.
func (Summary) MessageType() string { return "summary" }

// Line implements ui.Event.
func (s Summary) Line() string {
	if s.Outcome == "unchanged" {
		return fmt.Sprintf("unchanged: %s is still at %s, which %s holds; nothing was sent", s.Cluster, s.At, s.ID)
	}
	if s.Outcome == "skipped" {
		return fmt.Sprintf("skipped: %s has not caught up (%s)", s.Cluster, s.At)
	}
	took := ui.Duration(time.Duration(s.Seconds * float64(time.Second)))
	copied := ""
	if s.CopiedBytes > 0 {
		copied = fmt.Sprintf("; %s of it copied from an earlier attempt, %s sent", ui.Bytes(s.CopiedBytes), ui.Bytes(s.SentBytes))
	}
	if s.Outcome == "salvaged" {
		return fmt.Sprintf("SALVAGED %s: %s at %s, %d files, %s, %s stored (%s), %s in all; it is not the latest, and nothing deletes it",
			s.ID, s.Cluster, s.At, s.Files, ui.Bytes(s.SourceBytes), ui.Bytes(s.StoredBytes), s.Stored, took)
	}
	if s.Resumed {
		return fmt.Sprintf("READY %s: %s at %s, %d files, %s, %s stored (%s); an earlier run had begun it: %s read and %s sent in %s%s",
			s.ID, s.Cluster, s.At, s.Files, ui.Bytes(s.SourceBytes), ui.Bytes(s.StoredBytes), s.Stored,
			ui.Bytes(s.ReadBytes), ui.Bytes(s.SentBytes), took, copied)
	}
	held := fmt.Sprintf("node held %.2f s", s.HeldSeconds)
	if s.HeldSeconds == 0 {
		held = "nothing stopped"
	}
	return fmt.Sprintf("READY %s: %s at %s, %d files, %s read, %s stored (%s), %s, %s in all%s",
		s.ID, s.Cluster, s.At, s.Files, ui.Bytes(s.SourceBytes), ui.Bytes(s.StoredBytes), s.Stored, held, took, copied)
}

// Restored ends a restore.
type Restored struct {
	ID           string   `json:"id"`
	Cluster      string   `json:"cluster"`
	Position     uint64   `json:"position"`
	At           string   `json:"at"` // the position, for people
	Hash         string   `json:"hash,omitempty"`
	Dir          string   `json:"dir"`
	Files        int64    `json:"files"`
	Bytes        int64    `json:"bytes"`
	KeptBytes    int64    `json:"kept_bytes,omitempty"` // of Bytes: there from a run that was cut short
	FetchedBytes int64    `json:"fetched_bytes"`        // read of the archive's frames
	Owner        string   `json:"owner,omitempty"`
	Seconds      float64  `json:"seconds"`
	Before       string   `json:"before,omitempty"` // in place: where what was there lies, below each root
	HeldSeconds  float64  `json:"held_seconds,omitempty"`
	Follows      bool     `json:"follows,omitempty"` // in place: the node was seen beyond the backup's height
	Next         []string `json:"next,omitempty"`    // what is left to do by hand
	// Keys is what of keys and configuration was restored in the same run.
	Keys *KeysRestored `json:"keys,omitempty"`
}

// MessageType implements ui.Event.
func (Restored) MessageType() string { return "restored" }

// Line implements ui.Event.
func (r Restored) Line() string {
	s := fmt.Sprintf("restored %s (%s, %s) into %s: %d files, %s, every hash right, %s",
		r.ID, r.Cluster, r.At, r.Dir, r.Files, ui.Bytes(r.Bytes), ui.Duration(time.Duration(r.Seconds*float64(time.Second))))
	if r.Files == 0 && r.Before != "" { // an undo
		s = fmt.Sprintf("brought back %s into %s, %s", r.ID, r.Dir, ui.Duration(time.Duration(r.Seconds*float64(time.Second))))
	}
	if r.HeldSeconds > 0 {
		s += fmt.Sprintf(", node held %.2f s", r.HeldSeconds)
	}
	if r.Follows {
		s += "; it follows the chain"
	}
	if r.KeptBytes > 0 {
		s += fmt.Sprintf("; %s of it were there already, %s fetched", ui.Bytes(r.KeptBytes), ui.Bytes(r.FetchedBytes))
	}
	for _, n := range r.Next {
		s += "\n  next: " + n
	}
	if r.Keys != nil {
		s += "\n" + r.Keys.Line()
	}
	return s
}
