package uploader

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/eddy-backup/eddy/internal/check"
)

// minAbortDays is how long a half-sent upload must at least be let alone: the
// longest upload must fit.
const minAbortDays = 7

// Findings is what a probe means for backups. by says who deletes old backups:
// "eddy", "lifecycle" or "none", as retention.by does.
func (c Caps) Findings(by string) []check.Finding {
	if !strings.HasPrefix(c.Store, "s3:") {
		return []check.Finding{check.Good("store", c.Store+" takes, gives, lists and deletes")}
	}
	out := []check.Finding{
		check.Good("store", c.Store+" takes and gives small objects, uploads in parts, ranges and lists"),
		c.conditions(), c.checksums(), check.Good("store's extras", c.extras()), c.uploads(), c.deletion(by),
	}
	if f, ok := c.oldVersions(by); ok {
		out = append(out, f)
	}
	return append(out, c.lifecycle(by)...)
}

func (c Caps) conditions() check.Finding {
	const name = "conditional writes"
	if said := c.Unguarded(); said != "" {
		return check.Finding{
			Name: name, Level: check.Warn, Said: said,
			Hint: "let only one eddy write to this cluster, which is enough: backups themselves have names of their own and cannot collide; or use a store that keeps conditions, by the table in docs/stores.md",
		}
	}
	return check.Good(name, "of two writers of latest one wins")
}

func (c Caps) checksums() check.Finding {
	const name = "checksums"
	switch {
	case c.PartSums == Kept && c.WholeSum == Kept:
		return check.Good(name, "the store checks every part and the whole volume (CRC64NVME)")
	case c.PartSums == Kept:
		return check.Good(name, "the store checks every part (CRC64NVME) and tells no checksum of the whole: of each volume some parts are read back")
	case c.PartSums == Ignored:
		return check.Good(name, "the store does not look at CRC64NVME: parts go with their MD5")
	case c.WholeSum == Kept:
		return check.Good(name, "the store takes no CRC64NVME and makes its own: parts go with their MD5, the whole volume is compared")
	default:
		return check.Good(name, "the store takes no CRC64NVME: parts go with their MD5, and of each volume some are read back")
	}
}

// uploads speaks of what a dead upload leaves.
func (c Caps) uploads() check.Finding {
	const name = "unfinished uploads"
	switch {
	case c.Sweeps():
		return check.Good(name, "eddy finds and aborts its own that are older than a day")
	case c.ListUploads == Refused:
		return check.Good(name, UnsweptText)
	default:
		return check.Finding{
			Name: name, Level: check.Warn, Said: "these credentials may not list unfinished uploads: what a dead one left stays until a lifecycle rule ends it",
			Hint: "grant s3:ListBucketMultipartUploads on the bucket, as deploy/s3/policy-writer.json does",
		}
	}
}

// UnsweptText is what a store costs that does not list unfinished uploads.
const UnsweptText = "the store does not list unfinished uploads: what a dead one left stays until a lifecycle rule, or the store itself, ends it"

// extras is what eddy can do without.
func (c Caps) extras() string {
	word := func(a Answer) string {
		if a == Unknown {
			return "not known"
		}
		return string(a)
	}
	lock := word(c.ObjectLock)
	if c.ObjectLock == Refused { // to read it takes a right that no writer needs
		lock = word(Unknown)
	}
	return fmt.Sprintf("checksums of small objects %s, parts of unequal size %s, copies inside the bucket %s, their checksums %s, deletion of many at once %s, tags %s, object lock %s",
		word(c.SmallSums), word(c.UnequalParts), word(c.PartCopy), word(c.CopySums), word(c.DeleteMany), word(c.Tags), lock)
}

func (c Caps) deletion(by string) check.Finding {
	const name = "deletion"
	switch {
	case c.Delete == Kept && by == "eddy":
		return check.Good(name, "eddy may delete what retention no longer keeps")
	case c.Delete == Kept:
		return check.Good(name, "these credentials may delete; retention.by is "+by+", so eddy run never does")
	case by == "eddy" && c.Delete == Ignored:
		return check.Finding{
			Name: name, Level: check.Fail, Said: "the store says that objects are deleted, and they stay",
			Hint: "set `retention: {by: none}`, or end the object lock or legal hold that the bucket has",
		}
	case by == "eddy":
		return check.Finding{
			Name: name, Level: check.Fail, Said: "retention.by is eddy, and these credentials may not delete",
			Hint: "grant them deploy/s3/policy-retention.json beside the writer's policy, or set `retention: {by: none}`",
		}
	default:
		return check.Good(name, "these credentials cannot delete, as a writer's should not; the probe's small objects stay below <cluster>/probe/")
	}
}

// oldVersions speaks of buckets on which a deletion frees nothing.
func (c Caps) oldVersions(by string) (check.Finding, bool) {
	const name = "old versions"
	if c.Versioning != Kept {
		return check.Finding{}, false
	}
	ends := false
	for _, r := range c.ours() {
		ends = ends || r.OldDays > 0
	}
	if by == "none" || ends {
		return check.Good(name, "the bucket keeps what is replaced or deleted as old versions"), true
	}
	return check.Finding{
		Name: name, Level: check.Warn, Said: "the bucket keeps deleted backups as old versions, and no lifecycle rule ends those: nothing is ever freed",
		Hint: "add a rule with NoncurrentVersionExpiration, its prefix " + c.prefix(),
	}, true
}

// prefix is what all keys of the store begin with: "eddy/", or "".
func (c Caps) prefix() string {
	_, prefix, _ := strings.Cut(strings.TrimPrefix(c.Store, "s3://"), "/")
	if prefix != "" {
		prefix += "/"
	}
	return prefix
}

// ours are the rules that touch something below the store's prefix.
func (c Caps) ours() []Rule {
	prefix := c.prefix()
	var out []Rule
	for _, r := range c.Lifecycle {
		if !r.Tagged && (strings.HasPrefix(prefix, r.Prefix) || strings.HasPrefix(r.Prefix, prefix)) {
			out = append(out, r)
		}
	}
	return out
}

func (c Caps) lifecycle(by string) []check.Finding {
	const name = "lifecycle"
	switch c.LifecycleRead {
	case Refused:
		return []check.Finding{{
			Name: name, Level: check.Warn, Said: "the bucket's lifecycle rules may not be read: one that expires or archives backups would not be seen",
			Hint: "grant s3:GetLifecycleConfiguration on the bucket, as deploy/s3/policy-writer.json does",
		}}
	case Unknown:
		return []check.Finding{{
			Name: name, Level: check.Warn, Said: "the store does not tell whether the bucket has lifecycle rules",
			Hint: "look at them with the store's own tools: none may expire or archive what is below the store's prefix",
		}}
	case Absent:
		if by == "lifecycle" {
			return []check.Finding{noExpiry()}
		}
		return []check.Finding{check.Good(name, "the store knows no lifecycle rules: none deletes backups, none ends what a dead upload left")}
	}
	var out []check.Finding
	bad := func(l check.Level, todo, format string, args ...any) {
		out = append(out, check.Finding{Name: name, Level: l, Said: fmt.Sprintf(format, args...), Hint: todo})
	}
	expires, aborts := false, false
	for _, r := range c.ours() {
		if r.ArchiveDays > 0 {
			bad(check.Fail, fmt.Sprintf("take Transition out of rule %q, or let it move to GLACIER_IR", r.ID), "rule %q moves backups after %d days to a class that must be thawed for hours before a restore", r.ID, r.ArchiveDays)
		}
		switch {
		case r.ExpireDays == 0:
		case by == "lifecycle":
			expires = true
			bad(check.Warn, "set `retention: {by: eddy, last: 7}`, which never deletes the newest, and take Expiration out of the rule; else see to it that somebody is told when backups stop (docs/alarms.md)", "rule %q deletes backups after %d days, the last good one too", r.ID, r.ExpireDays)
		default:
			bad(check.Fail, fmt.Sprintf("take Expiration out of rule %q, or set `retention: {by: lifecycle}` if it is meant", r.ID), "rule %q deletes backups, and latest, after %d days; retention.by is %s", r.ID, r.ExpireDays, by)
		}
		if r.AbortDays > 0 {
			aborts = true
			if r.AbortDays < minAbortDays {
				bad(check.Warn, fmt.Sprintf("let DaysAfterInitiation of rule %q be %d", r.ID, minAbortDays), "rule %q aborts uploads after %d days: a longer one never ends", r.ID, r.AbortDays)
			}
		}
	}
	if by == "lifecycle" && !expires {
		out = append(out, noExpiry())
	}
	if !aborts {
		bad(check.Warn, "merge deploy/s3/lifecycle.json into the bucket's rules, with the prefix "+cmp.Or(c.prefix(), `""`), "no rule ends uploads that nobody has finished: what a dead one left is paid for, unseen")
	}
	if len(out) == 0 {
		out = append(out, check.Good(name, "the bucket's rules leave backups alone"))
	}
	return out
}

func noExpiry() check.Finding {
	return check.Finding{
		Name: "lifecycle", Level: check.Warn, Said: "retention.by is lifecycle, and the bucket has no rule that deletes old backups",
		Hint: "set `retention: {by: eddy, last: 7}`, or add such a rule",
	}
}
