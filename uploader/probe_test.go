package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/s3fake"
)

// lacks answers calls as stores do that do not know them.
func lacks(ops ...string) map[string]s3fake.Reply {
	m := map[string]s3fake.Reply{}
	for _, op := range ops {
		m[op] = s3fake.Reply{Status: http.StatusNotImplemented, Code: "NotImplemented"}
	}
	return m
}

// kinds are stores as their users have reported them, imitated; docs/stores.md
// has a row for each.
var kinds = []struct {
	name   string
	quirks s3fake.Quirks
	want   Caps
}{
	{
		"AWS S3",
		s3fake.Quirks{},
		Caps{Conditions: Kept, SmallSums: Kept, PartSums: Kept, WholeSum: Kept, UnequalParts: Kept, PartCopy: Kept, CopySums: Kept, ListUploads: Kept, DeleteMany: Kept, Tags: Kept},
	},
	{
		"Cloudflare R2",
		s3fake.Quirks{EqualParts: true, Refuses: lacks("UploadPartCopy", "PutObjectTagging", "GetObjectLockConfiguration")},
		Caps{Conditions: Kept, SmallSums: Kept, PartSums: Kept, WholeSum: Kept, UnequalParts: Refused, PartCopy: Refused, CopySums: Refused, ListUploads: Kept, DeleteMany: Kept, Tags: Refused},
	},
	{
		"Google Cloud Storage (XML)",
		s3fake.Quirks{
			Checksums: s3fake.SumsPartRefused, Conditions: s3fake.CondIgnored,
			Refuses: lacks("UploadPartCopy", "DeleteObjects", "PutObjectTagging", "GetObjectLockConfiguration"),
		},
		Caps{Conditions: Ignored, SmallSums: Kept, PartSums: Refused, WholeSum: Refused, UnequalParts: Kept, PartCopy: Refused, ListUploads: Kept, DeleteMany: Refused, Tags: Refused},
	},
	{
		"Backblaze B2, until 2025",
		s3fake.Quirks{Checksums: s3fake.SumsRefused, Conditions: s3fake.CondRefused, Refuses: lacks("PutObjectTagging")},
		Caps{Conditions: Refused, SmallSums: Refused, PartSums: Refused, WholeSum: Refused, UnequalParts: Kept, PartCopy: Kept, ListUploads: Kept, DeleteMany: Refused, Tags: Refused},
	},
	{
		"Ceph, older releases",
		s3fake.Quirks{Checksums: s3fake.SumsNo64, Conditions: s3fake.CondIgnored},
		Caps{Conditions: Ignored, SmallSums: Kept, PartSums: Refused, WholeSum: Refused, UnequalParts: Kept, PartCopy: Kept, ListUploads: Kept, DeleteMany: Kept, Tags: Kept},
	},
	{
		"a gateway that ignores checksums",
		s3fake.Quirks{Checksums: s3fake.SumsIgnored, Conditions: s3fake.CondIgnored},
		Caps{Conditions: Ignored, SmallSums: Kept, PartSums: Ignored, WholeSum: Refused, UnequalParts: Kept, PartCopy: Kept, ListUploads: Kept, DeleteMany: Kept, Tags: Kept},
	},
}

// largeBackup is a READY backup of two parts.
func largeBackup(t *testing.T, c *Catalog, label string, height uint64) (id string, body []byte) {
	t.Helper()
	body = content(height, 11*unit)
	m := Manifest{ID: NewID(t0, label), Label: label, Cluster: c.cluster, Incarnation: "aa", Created: t0}
	m.Position.Index, m.Position.Time = height, t0
	o := mustPut(t, c.Store(), c.ObjectKey(m.ID, VolumeName(0)), body)
	m.Volumes = []Volume{{Name: VolumeName(0), Size: o.Size, Checked: o.Checked}}
	if err := c.Commit(t.Context(), m, false); err != nil {
		t.Fatal(err)
	}
	return m.ID, body
}

var notAbilities = cmpopts.IgnoreFields(Caps{}, "Format", "MinReader", "Store", "Endpoint", "Probed", "Delete", "Versioning", "ObjectLock", "LifecycleRead", "Lifecycle")

// Whatever a kind of store lacks, the probe finds it and leaves nothing, and then
// a backup goes up without a call that is refused, comes back, and moves latest.
func TestEveryKindOfStore(t *testing.T) {
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			s, server := fake(t, k.quirks)
			cat := NewCatalog(s, "gaia")
			caps, err := cat.Probe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(k.want, caps, notAbilities); diff != "" {
				t.Error(diff)
			}
			if keys, open := server.Keys(), server.Uploads(); len(keys) > 0 || open > 0 {
				t.Errorf("the probe leaves %v and %d uploads", keys, open)
			}

			// Another process, which has only the file.
			file := filepath.Join(t.TempDir(), "store.json")
			if err := caps.Save(fsx.FS{}, file); err != nil {
				t.Fatal(err)
			}
			before := map[string]int{}
			for _, op := range []string{"PutObject", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"} {
				before[op] = server.Calls(op)
			}
			s = fakeAt(t, server, func(c *Config) { c.PartSize = 5 * unit })
			caps.Endpoint = s.c.Endpoint // the same server, at another address
			if !s.Use(caps) {
				t.Fatal("the result of the probe is refused")
			}
			cat = NewCatalog(s, "gaia")
			first, content := largeBackup(t, cat, "first", 7)
			for op, want := range map[string]int{"CreateMultipartUpload": 1, "UploadPart": 3, "CompleteMultipartUpload": 1} {
				if n := server.Calls(op) - before[op]; n != want {
					t.Errorf("%d calls of %s, want %d: nothing that is known to be refused is tried", n, op, want)
				}
			}
			got, err := readRange(t, s, cat.ObjectKey(first, VolumeName(0)), "", 0, -1)
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("the volume comes back differently: %v", err)
			}
			second := mustBackup(t, cat, t0.Add(time.Hour), "second", 8)
			if b, err := cat.Latest(t.Context()); err != nil || b.ID != second {
				t.Errorf("latest is %s, want %s: %v", b.ID, second, err)
			}
			if _, err := backupIn(t, cat, t0.Add(2*time.Hour), "stale", 7); !errors.Is(err, ErrBackwards) {
				t.Errorf("a lower height: %v", err)
			}
			if err := cat.Delete(t.Context(), first); err != nil {
				t.Error(err)
			}
		})
	}
}

// What the page says of each kind of store is what the probe finds.
func TestStoresPageIsInStep(t *testing.T) {
	page, err := os.ReadFile("../docs/stores.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range kinds {
		if row := pageRow(k.name, k.want); !strings.Contains(string(page), row) {
			t.Errorf("docs/stores.md lacks the row\n%s", row)
		}
	}
}

func pageRow(name string, c Caps) string {
	return fmt.Sprintf("| %s | %s | %s | %s | %s | %s | %s | %s | %s | %s | %s |\n",
		name, c.Conditions, c.SmallSums, c.PartSums, c.WholeSum, c.UnequalParts, c.PartCopy, cell(c.CopySums), c.ListUploads, c.DeleteMany, c.Tags)
}

// cell is empty of what was not asked.
func cell(a Answer) string {
	if a == Unknown {
		return "-"
	}
	return string(a)
}

// A store of which nothing is known gets a backup all the same: what it refuses
// is tried once.
func TestWithoutAProbe(t *testing.T) {
	for _, k := range kinds {
		if k.quirks.Conditions != s3fake.CondKept || k.quirks.Checksums == s3fake.SumsRefused {
			continue // a backup probes first; this is about checksums of volumes
		}
		s, _ := fake(t, k.quirks)
		largeBackup(t, NewCatalog(s, "gaia"), "first", 7)
	}
}

func TestBucketsThatCannotBeUsed(t *testing.T) {
	denied := s3fake.Reply{Status: http.StatusForbidden, Code: "AccessDenied"}
	for name, c := range map[string]struct {
		quirks s3fake.Quirks
		kind   error
		text   string // of the error or its hint
	}{
		"an archive class":     {s3fake.Quirks{Class: "DEEP_ARCHIVE"}, ErrRefused, "set `store.url: s3://BUCKET/PREFIX` to a bucket that keeps"},
		"one without CRC64":    {s3fake.Quirks{Class: "GLACIER", Checksums: s3fake.SumsNo64}, ErrRefused, "set `store.url: s3://BUCKET/PREFIX` to a bucket that keeps"},
		"no right to write":    {s3fake.Quirks{Refuses: map[string]s3fake.Reply{"PutObject": denied}}, ErrRefused, "policy-writer.json"},
		"no right to read":     {s3fake.Quirks{Refuses: map[string]s3fake.Reply{"GetObject": denied}}, ErrRefused, "policy-writer.json"},
		"no right to list":     {s3fake.Quirks{Refuses: map[string]s3fake.Reply{"ListObjectsV2": denied}}, ErrRefused, "policy-writer.json"},
		"no multipart uploads": {s3fake.Quirks{Refuses: lacks("CreateMultipartUpload")}, ErrRefused, "NotImplemented"},
	} {
		t.Run(name, func(t *testing.T) {
			s, server := fake(t, c.quirks)
			_, err := NewCatalog(s, "gaia").Probe(t.Context())
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error()+" "+hint.Of(err), c.text) || hint.Of(err) == "" {
				t.Errorf("%v (hint %q), want %q", err, hint.Of(err), c.text)
			}
			if keys, open := server.Keys(), server.Uploads(); len(keys) > 0 || open > 0 {
				t.Errorf("the probe leaves %v and %d uploads", keys, open)
			}
		})
	}
}

// Credentials that may not delete leave the probe's objects, the same ones each
// time.
func TestProbeWithoutTheRightToDelete(t *testing.T) {
	denied := s3fake.Reply{Status: http.StatusForbidden, Code: "AccessDenied"}
	s, server := fake(t, s3fake.Quirks{Refuses: map[string]s3fake.Reply{"DeleteObjects": denied, "DeleteObject": denied}})
	for range 2 {
		caps, err := NewCatalog(s, "gaia").Probe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if caps.Delete != Refused || !caps.Left || caps.Conditions != Kept {
			t.Errorf("%+v", caps)
		}
		if got, want := server.Keys(), []string{"eddy/gaia/probe/copy", "eddy/gaia/probe/large", "eddy/gaia/probe/small"}; !cmp.Equal(got, want) {
			t.Errorf("%v stay, want %v", got, want)
		}
	}
	// They are no backup.
	if all, err := NewCatalog(s, "gaia").List(t.Context()); err != nil || len(all) > 0 {
		t.Errorf("%v, %v", all, err)
	}
}

func TestProbeThatIsCancelled(t *testing.T) {
	s, server := fake(t, s3fake.Quirks{})
	ctx, cancel := context.WithCancel(t.Context())
	server.Fault = func(c s3fake.Call) *s3fake.Reply {
		if c.Op == "UploadPart" {
			cancel()
		}
		return nil
	}
	if _, err := NewCatalog(s, "gaia").Probe(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if keys, open := server.Keys(), server.Uploads(); len(keys) > 0 || open > 0 {
		t.Errorf("the probe leaves %v and %d uploads", keys, open)
	}
}

func TestProbeOfADirectory(t *testing.T) {
	s := newFileStore(t.TempDir())
	caps, err := NewCatalog(s, "gaia").Probe(t.Context())
	if err != nil || caps.Conditions != Kept || caps.Unguarded() != "" {
		t.Errorf("%+v, %v", caps, err)
	}
	if keys := keysOf(t, s, "", ""); len(keys) > 0 {
		t.Errorf("the probe leaves %v", keys)
	}
}

// A result is used for the very store that was probed, for 30 days.
func TestRecall(t *testing.T) {
	s, _ := fake(t, s3fake.Quirks{Conditions: s3fake.CondRefused})
	caps, err := NewCatalog(s, "gaia").Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "store.json")
	save := func(c Caps) {
		t.Helper()
		if err := c.Save(fsx.FS{}, file); err != nil {
			t.Fatal(err)
		}
	}
	now := caps.Probed
	if _, ok := Recall(s, file, now); ok {
		t.Error("a file that is not there is used")
	}
	save(caps)
	if got, ok := Recall(s, file, now.Add(time.Hour)); !ok || got.Conditions != Refused {
		t.Errorf("%+v, %t", got, ok)
	}
	for name, change := range map[string]func(*Caps){
		"another store":    func(c *Caps) { c.Store = "s3://other" },
		"another endpoint": func(c *Caps) { c.Endpoint = "https://other" },
		"another class":    func(c *Caps) { c.Class = "STANDARD_IA" },
		"another format":   func(c *Caps) { c.Format++ },
		"an old one":       func(c *Caps) { c.Probed = now.Add(-31 * 24 * time.Hour) },
		"one from later":   func(c *Caps) { c.Probed = now.Add(24 * time.Hour) },
	} {
		other := caps
		change(&other)
		save(other)
		if _, ok := Recall(s, file, now.Add(time.Hour)); ok {
			t.Errorf("%s is used", name)
		}
	}
	if err := os.WriteFile(file, []byte(`{"format":1`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, ok := Recall(s, file, now); ok {
		t.Error("a torn file is used")
	}
}

// Without conditional writes eddy looks before it writes, and after.
func TestComparedWrites(t *testing.T) {
	for _, quirk := range []s3fake.Conditions{s3fake.CondRefused, s3fake.CondIgnored} {
		s, server := fake(t, s3fake.Quirks{Conditions: quirk})
		if _, err := NewCatalog(s, "c").Probe(t.Context()); err != nil {
			t.Fatal(err)
		}
		testConditions(t, s)

		// Somebody writes between our look and our write, and after it.
		o := mustPutSmall(t, s, "c/latest.json", "ours", Condition{})
		other := fakeAt(t, server)
		busy := false
		server.Fault = func(c s3fake.Call) *s3fake.Reply {
			if c.Op == "GetObject" && !busy {
				busy = true
				mustPutSmall(t, other, "c/latest.json", "theirs", Condition{})
			}
			return nil
		}
		if _, err := s.PutSmall(t.Context(), "c/latest.json", []byte("ours again"), "text/plain", Condition{IfMatch: o.ETag}); !errors.Is(err, ErrPrecondition) {
			t.Errorf("a write that was overwritten at once: %v", err)
		}
	}
}

func TestFindings(t *testing.T) {
	good := Caps{
		Store: "s3://bucket/eddy", Conditions: Kept, SmallSums: Kept, PartSums: Kept, WholeSum: Kept, UnequalParts: Kept, PartCopy: Kept,
		ListUploads: Kept, DeleteMany: Kept, Delete: Kept, Versioning: Absent, ObjectLock: Absent, LifecycleRead: Kept,
		Lifecycle: []Rule{{ID: "abort", Prefix: "eddy/", AbortDays: 7}},
	}
	for name, c := range map[string]struct {
		by    string
		set   func(*Caps)
		level check.Level
		check string
		said  string
	}{
		"all is well":            {"eddy", func(*Caps) {}, check.OK, "lifecycle", "leave backups alone"},
		"no conditions":          {"eddy", func(c *Caps) { c.Conditions = Refused }, check.Warn, "conditional writes", "refuses"},
		"ignored conditions":     {"eddy", func(c *Caps) { c.Conditions = Ignored }, check.Warn, "conditional writes", "ignores"},
		"no checksums":           {"eddy", func(c *Caps) { c.PartSums, c.WholeSum = Refused, Refused }, check.OK, "checksums", "MD5"},
		"may not delete":         {"eddy", func(c *Caps) { c.Delete = Refused }, check.Fail, "deletion", "may not delete"},
		"need not delete":        {"none", func(c *Caps) { c.Delete = Refused }, check.OK, "deletion", "cannot delete"},
		"locked":                 {"eddy", func(c *Caps) { c.Delete = Ignored }, check.Fail, "deletion", "they stay"},
		"versions for ever":      {"eddy", func(c *Caps) { c.Versioning = Kept }, check.Warn, "old versions", "nothing is ever freed"},
		"versions that end":      {"eddy", func(c *Caps) { c.Versioning = Kept; c.Lifecycle[0].OldDays = 9 }, check.OK, "old versions", "old versions"},
		"it expires backups":     {"eddy", func(c *Caps) { c.Lifecycle[0].ExpireDays = 30 }, check.Fail, "lifecycle", "after 30 days"},
		"of the whole bucket":    {"none", func(c *Caps) { c.Lifecycle[0] = Rule{ID: "x", AbortDays: 7, ExpireDays: 30} }, check.Fail, "lifecycle", "after 30 days"},
		"of a part of ours":      {"none", func(c *Caps) { c.Lifecycle[0] = Rule{ID: "x", Prefix: "eddy/gaia/", AbortDays: 7, ExpireDays: 30} }, check.Fail, "lifecycle", "after 30 days"},
		"of somebody else's":     {"none", func(c *Caps) { c.Lifecycle = append(c.Lifecycle, Rule{Prefix: "logs/", ExpireDays: 30}) }, check.OK, "lifecycle", "leave backups alone"},
		"of what has a tag":      {"none", func(c *Caps) { c.Lifecycle = append(c.Lifecycle, Rule{Tagged: true, ExpireDays: 30}) }, check.OK, "lifecycle", "leave backups alone"},
		"it is meant to":         {"lifecycle", func(c *Caps) { c.Lifecycle[0].ExpireDays = 30 }, check.Warn, "lifecycle", "the last good one too"},
		"it is meant to, but":    {"lifecycle", func(*Caps) {}, check.Warn, "lifecycle", "no rule that deletes"},
		"it archives":            {"none", func(c *Caps) { c.Lifecycle[0].ArchiveDays = 90 }, check.Fail, "lifecycle", "thawed"},
		"it aborts too soon":     {"none", func(c *Caps) { c.Lifecycle[0].AbortDays = 1 }, check.Warn, "lifecycle", "never ends"},
		"nobody aborts":          {"none", func(c *Caps) { c.Lifecycle = nil }, check.Warn, "lifecycle", "no rule ends"},
		"rules are a secret":     {"none", func(c *Caps) { c.LifecycleRead, c.Lifecycle = Refused, nil }, check.Warn, "lifecycle", "may not be read"},
		"may not list uploads":   {"eddy", func(c *Caps) { c.ListUploads = Unknown }, check.Warn, "unfinished uploads", "may not list"},
		"lists no uploads":       {"eddy", func(c *Caps) { c.ListUploads = Refused }, check.OK, "unfinished uploads", "does not list"},
		"lists all uploads only": {"eddy", func(c *Caps) { c.ListUploads = Ignored }, check.OK, "unfinished uploads", "older than a day"},
		"a store without rules":  {"none", func(c *Caps) { c.LifecycleRead, c.Lifecycle = Absent, nil }, check.OK, "lifecycle", "knows no lifecycle rules"},
		"an answer of its own":   {"none", func(c *Caps) { c.LifecycleRead, c.Lifecycle = Unknown, nil }, check.Warn, "lifecycle", "does not tell"},
		"none, and they ought":   {"lifecycle", func(c *Caps) { c.LifecycleRead, c.Lifecycle = Absent, nil }, check.Warn, "lifecycle", "no rule that deletes"},
		"a directory is simpler": {"eddy", func(c *Caps) { c.Store = "file:///srv" }, check.OK, "store", "file:///srv"},
	} {
		t.Run(name, func(t *testing.T) {
			caps := good
			caps.Lifecycle = append([]Rule(nil), good.Lifecycle...)
			c.set(&caps)
			all, found := caps.Findings(c.by), false
			for _, f := range all {
				found = found || f.Name == c.check && f.Level == c.level && strings.Contains(f.Said, c.said)
				if (f.Hint == "") != (f.Level == check.OK) {
					t.Errorf("%s, hint %q", f.Level, f.Hint)
				}
			}
			if !found || check.Worst(all) != c.level {
				t.Errorf("want %s %s: %s, got %+v", c.level, c.check, c.said, all)
			}
		})
	}
}

// The rules are read from the bucket, old and new forms.
func TestLifecycleRules(t *testing.T) {
	s, _ := fake(t, s3fake.Quirks{Versioning: "Enabled", ObjectLock: true, Lifecycle: `
<Rule><ID>old</ID><Prefix>eddy/</Prefix><Status>Enabled</Status><Expiration><Days>30</Days></Expiration></Rule>
<Rule><ID>off</ID><Filter><Prefix></Prefix></Filter><Status>Disabled</Status><Expiration><Days>1</Days></Expiration></Rule>
<Rule><ID>tag</ID><Filter><Tag><Key>k</Key><Value>v</Value></Tag></Filter><Status>Enabled</Status><Expiration><Date>2027-01-01T00:00:00Z</Date></Expiration></Rule>
<Rule><ID>and</ID><Filter><And><Prefix>eddy/x/</Prefix><Tag><Key>k</Key><Value>v</Value></Tag></And></Filter><Status>Enabled</Status><NoncurrentVersionExpiration><NoncurrentDays>5</NoncurrentDays></NoncurrentVersionExpiration></Rule>
<Rule><ID>cold</ID><Filter><Prefix>eddy/</Prefix></Filter><Status>Enabled</Status><Transition><Days>0</Days><StorageClass>DEEP_ARCHIVE</StorageClass></Transition><Transition><Days>9</Days><StorageClass>STANDARD_IA</StorageClass></Transition></Rule>
<Rule><ID>abort</ID><Filter></Filter><Status>Enabled</Status><AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>`})
	caps, err := NewCatalog(s, "gaia").Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := []Rule{
		{ID: "old", Prefix: "eddy/", ExpireDays: 30},
		{ID: "tag", Tagged: true, ExpireDays: 1},
		{ID: "and", Prefix: "eddy/x/", Tagged: true, OldDays: 5},
		{ID: "cold", Prefix: "eddy/", ArchiveDays: 1},
		{ID: "abort", AbortDays: 7},
	}
	if diff := cmp.Diff(want, caps.Lifecycle); diff != "" {
		t.Error(diff)
	}
	if caps.Versioning != Kept || caps.ObjectLock != Kept || caps.LifecycleRead != Kept {
		t.Errorf("%+v", caps)
	}
}
