package job

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// Doctor looks at all that a backup will need, and changes nothing of the node: in
// each root a trial link is made and removed, in the store a few objects below the
// cluster's probe/. Construct it with all fields set that are known; what is not
// there is not looked at.
type Doctor struct {
	Roots        []snapshot.Root
	CopyFallback bool
	Workdir      Workdir
	Cluster      string
	Catalog      *uploader.Catalog
	// DataSize tells how many bytes the node's data have, for a first estimate.
	DataSize func(context.Context) (int64, error)

	RetentionBy string  // eddy, lifecycle or none
	Keep        int     // READY backups, where RetentionBy is eddy
	PerMonth    int     // backups that the schedule makes in 30 days
	GBMonth     float64 // price of 10^9 bytes a month; 0: unknown
	Currency    string

	Now func() time.Time
}

// Run calls show for each finding, in order, as soon as it is known.
func (d *Doctor) Run(ctx context.Context, show func(check.Finding)) {
	// A directory of the workdir's own is made with the first backup, as that is.
	own := filepath.Clean(d.Workdir.Dir) + string(filepath.Separator)
	d.Roots = slices.DeleteFunc(slices.Clone(d.Roots), func(r snapshot.Root) bool { return strings.HasPrefix(r.Path, own) && !exists(r.Path) })
	for _, r := range d.Roots {
		show(d.links(r))
	}
	for _, f := range d.disks() {
		show(f)
	}
	show(d.workdir())
	if d.Catalog != nil {
		d.store(ctx, show)
	}
}

// verdict makes a finding of an error; todo stands where the error has no hint.
func verdict(name string, l check.Level, err error, todo string) check.Finding {
	return check.Finding{Name: name, Level: l, Said: err.Error(), Hint: hint.Or(err, todo)}
}

// links tries whether files of a root can be staged: mount and rights are not
// guessed.
func (d *Doctor) links(r snapshot.Root) check.Finding {
	const name = "links"
	err := snapshot.TryRoot(d.Workdir.FS, uploader.NewID(d.Now(), "doctor"), r)
	switch {
	case err == nil:
		return check.Good(name, "files of "+r.Path+" can be linked into "+filepath.Join(r.Path, snapshot.StageDir))
	case d.CopyFallback:
		f := verdict(name, check.Warn, err, "let eddy run as the node's user, on one mount with the data")
		f.Said += "; they are copied while the node stands still (stage.fallback)"
		return f
	default:
		return verdict(name, check.Fail, err, "run eddy as the node's user; the stage must lie on the mount of the data")
	}
}

// What must be free, in bytes. A stage is links and small copies, but while it
// stands the node cannot free what it compacts away.
const (
	leastFree   = 256 << 20
	wantedFree  = 2 << 30
	leastInodes = 10_000
)

// disks looks at the filesystem of each root, each once.
func (d *Doctor) disks() []check.Finding {
	const name = "disk space"
	var out []check.Finding
	seen := map[uint64]bool{}
	for _, r := range d.Roots {
		mount, err := fsx.MountID(r.Path)
		if err == nil && seen[mount] {
			continue
		}
		seen[mount] = true
		free, inodes, ferr := fsx.FreeBytes(r.Path)
		if err = errors.Join(err, ferr); err != nil {
			out = append(out, verdict(name, check.Fail, err, "look at the filesystem of "+r.Path))
			continue
		}
		todo := fmt.Sprintf("free %s more on the filesystem of %s, or make it larger: while a backup is sent, what the node compacts away stays on the disk", missing(wantedFree-free), r.Path)
		said := fmt.Sprintf("%s free on the filesystem of %s", ui.Bytes(free), r.Path)
		switch {
		case free < leastFree:
			out = append(out, check.Finding{Name: name, Level: check.Fail, Said: "only " + said, Hint: todo})
		case inodes >= 0 && inodes < leastInodes:
			out = append(out, check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("only %d inodes free on the filesystem of %s: a stage has one directory for each of the node's", inodes, r.Path), Hint: fmt.Sprintf("remove %d files or more from the filesystem of %s, or make it anew with more inodes: %s counts them", leastInodes-inodes, r.Path, hint.Command("df", "-i", r.Path))})
		case free < wantedFree:
			out = append(out, check.Finding{Name: name, Level: check.Warn, Said: "only " + said, Hint: todo})
		default:
			out = append(out, check.Good(name, said))
		}
	}
	return out
}

// workdir tries whether journals can be written. A directory that is not there
// yet is not made.
func (d *Doctor) workdir() check.Finding {
	const name, todo = "workdir", "look at the disk, or set `workdir: DIR` to a directory that eddy's user may write to"
	dir := d.Workdir.Dir
	st, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		parent := filepath.Dir(dir)
		for !exists(parent) {
			parent = filepath.Dir(parent)
		}
		if err := unix.Access(parent, unix.W_OK|unix.X_OK); err != nil {
			return check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("%s is not there, and eddy's user may not create it in %s", dir, parent), Hint: d.Workdir.byRoot()}
		}
		return check.Good(name, dir+" will be created")
	}
	if err == nil && !st.IsDir() {
		err = hint.Add(fmt.Errorf("%s is no directory", dir), "set `workdir: DIR` to one, or remove the file")
	}
	if err == nil {
		var f *fsx.File
		if f, err = d.Workdir.FS.CreateTemp(dir, ".doctor-"); err == nil {
			err = errors.Join(f.Close(), d.Workdir.FS.Remove(f.Name()))
		}
		if errors.Is(err, fs.ErrPermission) {
			err = hint.Add(err, d.Workdir.byRoot())
		}
	}
	if err != nil {
		return verdict(name, check.Fail, err, todo)
	}
	free, _, err := fsx.FreeBytes(dir)
	switch {
	case err != nil:
		return verdict(name, check.Fail, err, todo)
	case free < leastFree/4:
		return check.Finding{Name: name, Level: check.Fail, Said: fmt.Sprintf("only %s free on the filesystem of %s", ui.Bytes(free), dir), Hint: fmt.Sprintf("free %s more there, or make it larger, or set `workdir: DIR` to a directory elsewhere: journals of uploads grow with the number of files", missing(leastFree/4-free))}
	}
	_, serr := d.Workdir.State()
	last, err := d.Workdir.Last()
	if err := errors.Join(serr, err); err != nil {
		return verdict(name, check.Fail, err, todo)
	}
	if last.Cluster != "" && last.Cluster != d.Cluster {
		return check.Finding{Name: name, Level: check.Warn, Said: fmt.Sprintf("%s is that of cluster %s", dir, last.Cluster), Hint: "each replica needs a workdir of its own: name another one; if the cluster was renamed, the next backup makes this right"}
	}
	return check.Good(name, dir+" can be written")
}

// missing writes how much room is lacking, in whole MiB: to free that much is enough.
func missing(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

// store probes the store, then asks what is in it.
func (d *Doctor) store(ctx context.Context, show func(check.Finding)) {
	const todo = "look at the store's settings; docs/stores.md says what eddy needs of one"
	caps, err := d.Catalog.Probe(ctx)
	if err != nil {
		show(verdict("store", check.Fail, err, todo))
		return
	}
	for _, f := range caps.Findings(d.RetentionBy) {
		show(f)
	}
	if exists(d.Workdir.Dir) {
		if err := caps.Save(d.Workdir.FS, d.Workdir.path(capsFile)); err != nil {
			show(verdict("workdir", check.Fail, err, d.Workdir.byRoot()))
		}
	}
	all, err := d.Catalog.List(ctx)
	if err != nil {
		show(verdict("backups", check.Fail, err, todo))
		return
	}
	show(d.backups(all))
	show(d.cost(ctx, all, caps))
}

func (d *Doctor) backups(all []uploader.Backup) check.Finding {
	const name = "backups"
	ready := 0
	for _, b := range all {
		if b.Status == uploader.StatusDamaged {
			return check.Finding{Name: name, Level: check.Warn, Said: b.ID + " is damaged: " + b.Text, Hint: "somebody deletes or changes objects: look at the bucket's rules and at who may write; " + hint.Command("eddy", "delete", b.ID) + " removes what is left, and `eddy backup` makes a whole one"}
		}
		if b.Status == uploader.StatusReady {
			ready++
		}
	}
	if ready == 0 {
		return check.Good(name, "none yet")
	}
	return check.Good(name, fmt.Sprintf("%d READY", ready))
}
