package uploader

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// The kinds of grades. Each is given once something was proven, or found wrong,
// after the backup was READY.
const (
	GradeSampled  = "sampled"  // a share of the frames was read back and decoded
	GradeVerified = "verified" // every byte was read back, every hash found right
	GradeDrilled  = "drilled"  // it was restored, and a node went on from it
	GradeAttested = "attested" // other members agreed with it, later than the manifest says
	GradeFailed   = "failed"   // a proof was tried, and the backup is to blame
)

// The ways by which a grade is come to.
const (
	ByQuick    = "quick"
	BySample   = "sample"
	ByReadData = "read-data"
	ByDrill    = "drill"
	ByAttest   = "attest"
)

// Grade is what somebody proved of a backup, or found wrong with it, at a time. It
// is an object of its own beside the manifest, written once.
type Grade struct {
	Format    int       `json:"format"`
	MinReader int       `json:"min_reader"`
	ID        string    `json:"id"` // of the backup
	Kind      string    `json:"kind"`
	By        string    `json:"by"` // quick, sample, read-data, drill, attest
	Given     time.Time `json:"given"`
	Seconds   float64   `json:"seconds"` // that the proof took
	Eddy      string    `json:"eddy"`
	Host      string    `json:"host"`
	// ManifestSHA256 is of the manifest's bytes as they were read, hex.
	ManifestSHA256 string    `json:"manifest_sha256,omitempty"`
	Findings       []Finding `json:"findings,omitempty"` // what is wrong; of a failed one only
	FindingsMore   int       `json:"findings_more,omitempty"`
	// Report is what the proof says of itself: how far it went, and what it measured.
	Report json.RawMessage `json:"report,omitempty"`
}

// Finding is something that is not as it should be.
type Finding struct {
	Stage  string `json:"stage"`  // which part of the proof found it
	Object string `json:"object"` // name below data/<id>/
	Text   string `json:"text"`
}

// String is a finding on one line.
func (f Finding) String() string {
	if f.Object == "" || strings.HasPrefix(f.Text, f.Object) {
		return f.Text
	}
	return f.Object + ": " + f.Text
}

const (
	maxGrade     = 1 << 20 // bytes
	maxFindings  = 100     // in a grade; the rest is counted
	readFailed   = 8       // failed grades of a backup that a listing reads at most
	gradesPrefix = "grades/"
)

func gradeKinds() []string {
	return []string{GradeSampled, GradeVerified, GradeDrilled, GradeAttested, GradeFailed}
}

// DecodeGrade reads a grade of at most 1 MiB.
func DecodeGrade(b []byte) (*Grade, error) {
	if len(b) > maxGrade {
		return nil, fmt.Errorf("%w: a grade has at most %d bytes, this has %d", ErrDamaged, maxGrade, len(b))
	}
	if err := readable("grade", b); err != nil {
		return nil, err
	}
	var g Grade
	if err := json.Unmarshal(b, &g); err != nil {
		return nil, fmt.Errorf("%w: grade: %w", ErrDamaged, err)
	}
	if !validID(g.ID) || !slices.Contains(gradeKinds(), g.Kind) || g.Given.IsZero() {
		return nil, fmt.Errorf("%w: grade %.40q of %.80q", ErrDamaged, g.Kind, g.ID)
	}
	return &g, nil
}

// PutGrade writes a grade, and returns its key. Grades are never written over: of
// two in the same second the later counts as given in the next. It fills in Format
// and MinReader, and cuts the findings to what fits.
func (c *Catalog) PutGrade(ctx context.Context, g Grade) (key string, err error) {
	g.Format, g.MinReader = manifestFormat, manifestMinReader
	g.Given = g.Given.UTC().Truncate(time.Second)
	if n := len(g.Findings); n > maxFindings {
		g.Findings, g.FindingsMore = g.Findings[:maxFindings], g.FindingsMore+n-maxFindings
	}
	for range 60 {
		body, err := json.MarshalIndent(g, "", "  ")
		if err != nil {
			return "", fmt.Errorf("grade of %s: %w", g.ID, err)
		}
		if _, err := DecodeGrade(body); err != nil {
			return "", fmt.Errorf("a grade that no reader would accept: %w", err)
		}
		key = c.gradeKey(g.ID, g.Given.Format(idTime)+"-"+g.Kind)
		_, err = c.store.PutSmall(ctx, key, append(body, '\n'), "application/json", Condition{IfAbsent: true})
		if errors.Is(err, ErrPrecondition) {
			g.Given = g.Given.Add(time.Second)
			continue
		}
		return key, err
	}
	return "", fmt.Errorf("grade of %s: %w", g.ID, ErrPrecondition)
}

// Grade reads a grade of a backup by its name, as Backup.Grades has it.
func (c *Catalog) Grade(ctx context.Context, id, name string) (*Grade, error) {
	key := c.gradeKey(id, name)
	b, _, err := c.store.GetSmall(ctx, key, maxGrade)
	if err != nil {
		return nil, err
	}
	g, err := DecodeGrade(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", key, err)
	}
	if g.ID != id || gradeTime(name, g.Kind).IsZero() {
		return nil, fmt.Errorf("%w: %s: it is a grade %s of %s", ErrDamaged, key, g.Kind, g.ID)
	}
	return g, nil
}

func (c *Catalog) gradeKey(id, name string) string {
	return c.ObjectKey(id, gradesPrefix+name+".json")
}

// standing makes of the names of grades what stands today. A failure stands until
// a proof that goes at least as far has passed since: a drill for one that a drill
// found, other members' word for what they denied, else every byte read back. Only grades that failed are read.
func (c *Catalog) standing(ctx context.Context, b *Backup) error {
	var failed []string
	for _, name := range b.Grades {
		for kind, last := range map[string]*time.Time{GradeVerified: &b.Verified, GradeSampled: &b.Sampled, GradeDrilled: &b.Drilled, GradeAttested: &b.Attested} {
			if at := gradeTime(name, kind); at.After(*last) {
				*last = at
			}
		}
		if !gradeTime(name, GradeFailed).IsZero() {
			failed = append(failed, name)
		}
	}
	slices.Sort(failed) // by time
	slices.Reverse(failed)
	for i, name := range failed {
		at := gradeTime(name, GradeFailed)
		if i == readFailed || b.Drilled.After(at) && b.Verified.After(at) && b.Attested.After(at) {
			break // all others are older still
		}
		g, err := c.Grade(ctx, b.ID, name)
		switch {
		case errors.Is(err, ErrNotFound): // deleted since it was listed
			continue
		case errors.Is(err, ErrDamaged), errors.Is(err, ErrNewer):
			// That it failed is in its name.
			g = &Grade{ID: b.ID, Kind: GradeFailed, Given: at, Findings: []Finding{{Text: err.Error()}}}
		case err != nil:
			return err
		}
		cure := b.Verified
		switch g.By {
		case ByDrill:
			cure = b.Drilled
		case ByAttest:
			cure = b.Attested
		}
		if cure.After(at) {
			continue
		}
		b.Failed = g
		return nil
	}
	return nil
}

// Why is what a failed grade says, on one line.
func (g *Grade) Why() string {
	switch n := len(g.Findings) + g.FindingsMore; {
	case n == 0:
		return "it does not say why"
	case n == 1:
		return g.Findings[0].String()
	default:
		return fmt.Sprintf("%s (and %d more)", g.Findings[0], n-1)
	}
}

// gradeTime is when a grade of a kind was given, by its name
// (20261120T235500Z-verified); the zero time for all other names.
func gradeTime(name, kind string) time.Time {
	when, ok := strings.CutSuffix(name, "-"+kind)
	if !ok {
		return time.Time{}
	}
	at, err := time.Parse(idTime, when)
	if err != nil {
		return time.Time{}
	}
	return at
}

// LastVerified is when a backup that is still there, and has not failed since, was
// last read back whole, the zero time where none was. It reads no manifest.
func (c *Catalog) LastVerified(ctx context.Context) (time.Time, error) {
	found, err := c.objects(ctx, c.dataPrefix())
	if err != nil {
		return time.Time{}, err
	}
	var last time.Time
	for _, d := range found {
		if _, ok := d.sizes[manifestName]; !ok {
			continue // deleted, or half of it
		}
		if err := c.standing(ctx, &d.Backup); err != nil {
			return time.Time{}, err
		}
		if d.Failed == nil && d.Verified.After(last) {
			last = d.Verified
		}
	}
	return last, nil
}
