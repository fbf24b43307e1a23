package job

import (
	"fmt"
	"time"

	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/uploader"
)

// Verified ends a proof.
type Verified struct {
	ID       string `json:"id"`
	Cluster  string `json:"cluster"`
	Position uint64 `json:"position"`
	At       string `json:"at"` // the position, for people
	Hash     string `json:"hash,omitempty"`
	By       string `json:"by"`              // quick, sample, read-data
	Grade    string `json:"grade,omitempty"` // sampled, verified, failed
	Key      string `json:"key,omitempty"`   // of the grade, where one was written
	// Attested is how many witnesses agree, as the manifest has it or as they said when
	// they were asked again; Attest is what they said then.
	Attested string           `json:"attested,omitempty"`
	Attest   *uploader.Attest `json:"attest,omitempty"`
	VerifyReport
	Findings []uploader.Finding `json:"findings,omitempty"`
	Warnings bool               `json:"warnings,omitempty"` // there were some
	Seconds  float64            `json:"seconds"`
}

// MessageType implements ui.Event.
func (Verified) MessageType() string { return "verified" }

// Line implements ui.Event.
func (r Verified) Line() string {
	head := fmt.Sprintf("%s: %s at %s", r.ID, r.Cluster, r.At)
	took := ui.Duration(time.Duration(r.Seconds * float64(time.Second)))
	switch r.Grade {
	case uploader.GradeFailed:
		s := fmt.Sprintf("FAILED %s: %d finding(s), %s", head, len(r.Findings), took)
		for i, f := range r.Findings {
			if i == 10 {
				return s + fmt.Sprintf("\n  and %d more", len(r.Findings)-i)
			}
			s += fmt.Sprintf("\n  %s: %s", f.Stage, f)
		}
		return s
	case uploader.GradeVerified:
		return fmt.Sprintf("VERIFIED %s: every byte read back, %d files, %d frames, %s, every hash right, %s, %s", head, r.Files, r.Frames, ui.Bytes(r.BytesRead), r.opened(), took)
	case uploader.GradeSampled:
		return fmt.Sprintf("SAMPLED %s: %d of %d frames read back (%s, seed %d), every hash right, %s", head, r.FramesRead, r.Frames, r.Share, r.Seed, took)
	}
	return fmt.Sprintf("looks right %s: %d volume(s), %d files, known by %s; list, index, hashes and manifest agree; no frame was read, %s", head, r.Volumes, r.Files, r.Compared, took)
}

// opened says how much was looked into.
func (r Verified) opened() string {
	if r.Check != nil && r.Check.Grade != "" {
		return "opened: " + r.Opened + " (" + r.Check.Grade + ")"
	}
	if r.Opened == "" {
		return "encrypted: not opened"
	}
	return "opened: " + r.Opened
}
