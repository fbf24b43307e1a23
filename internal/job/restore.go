package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// Restore brings one backup back into an absent or empty directory.
type Restore struct {
	Store    uploader.Store
	Catalog  *uploader.Catalog
	Selector string
	Into     string
	Only     []string        // globs; empty: everything
	Owner    *snapshot.Owner // nil: the owner of the target directory or of its nearest parent
	Home     string          // of the live node, whose backups would take what is restored into it; "": not known
	Events   ui.Sink
	Now      func() time.Time
	FS       fsx.FS // makes the changes
}

// ErrNotEmpty: the target of a restore holds something already.
var ErrNotEmpty = errors.New("the target is not empty")

// workName is the directory inside the target in which a restore works until
// every hash has been found right. It lies on the target's own mount, so that
// what is in it can be moved into place by rename.
const workName = ".eddy"

// Run restores. The target shows nothing of the backup before every byte of it
// has been compared with the archive's index; a run that was killed is begun
// anew by the next one.
func (r *Restore) Run(ctx context.Context) (Restored, error) {
	begun := r.Now()
	into, err := filepath.Abs(r.Into)
	if err != nil {
		return Restored{}, err
	}
	sel, err := r.Catalog.Select(ctx, r.Selector)
	if err != nil {
		return Restored{}, err
	}
	if sel.Warning != "" {
		r.Events.Emit(Warning{Text: sel.Warning})
	}
	m := sel.Manifest
	if sel.Status == uploader.StatusNewer {
		return Restored{}, hint.Add(fmt.Errorf("%s: %w", sel.ID, uploader.ErrNewer), "use a newer eddy, or stock tools: README.txt in the store has the commands")
	}
	if m == nil {
		return Restored{}, hint.Add(fmt.Errorf("%w: %s is %s", uploader.ErrNoSuchBackup, sel.ID, sel.Status), "only a READY backup can be restored; `eddy list` shows them")
	}
	if sel.Status != uploader.StatusReady {
		return Restored{}, hint.Add(fmt.Errorf("%w: %s is %s: %s", uploader.ErrDamaged, sel.ID, sel.Status, sel.Text), "restore another backup; `eddy list` shows them")
	}
	if m.System != "cometbft" {
		return Restored{}, hint.Add(fmt.Errorf("backup %s is of a %s, which this eddy cannot restore", m.ID, m.System), "use a newer eddy")
	}
	r.Events.Emit(Phase{ID: m.ID, Phase: "found", Text: fmt.Sprintf("%s: %s at height %d, made by %s of %s", m.ID, m.Cluster, m.Position.Index, m.Versions.Eddy, versionOf(m))})

	target, err := claimTarget(r.FS, into)
	if err != nil {
		return Restored{}, err
	}
	defer target.lock.Unlock()
	owner, ownerText, err := r.owner(into)
	if err != nil {
		return Restored{}, err
	}
	if rel, err := filepath.Rel(r.Home, into); r.Home != "" && err == nil && rel != "." && filepath.IsLocal(rel) {
		r.Events.Emit(Warning{Text: into + " lies in the node's home: backups take it, too, as long as it is there", Hint: "restore to a directory elsewhere, or move it away when you have compared it"})
	}
	vols := r.volumes(m)
	for i, v := range vols {
		ix, err := snapshot.ReadIndex(ctx, v)
		if err != nil {
			return Restored{}, errors.Join(err, target.abandon())
		}
		if want := m.Volumes[i].IndexSHA256; want != "" && ix.SHA256 != want {
			return Restored{}, errors.Join(fmt.Errorf("%w: the index of %s is not the one that the manifest names", snapshot.ErrCorrupt, v.Name), target.abandon())
		}
	}
	rep, err := snapshot.Extract(ctx, vols, snapshot.ExtractOptions{
		FS: r.FS, Dir: target.work, Only: r.Only, Owner: owner, Preflight: true,
		Progress: func(done, total int64) { r.Events.Emit(ui.Progress{What: "restore", Done: done, Total: total}) },
	})
	if err != nil {
		return Restored{}, errors.Join(err, target.abandon())
	}
	if err := target.commit(); err != nil {
		return Restored{}, err
	}
	out := Restored{
		ID: m.ID, Cluster: m.Cluster, Position: m.Position.Index, Hash: m.Position.Hash, Dir: into,
		Files: rep.Files, Bytes: rep.Bytes, Owner: ownerText, Seconds: r.Now().Sub(begun).Seconds(),
		Next: []string{
			"put the node's own config/ beside the data; keys and sign state are never in an archive",
			"keep the priv_validator_state.json that the machine has; a zero one belongs only beside a freshly made key",
		},
	}
	if m.Versions.App != "" || m.Versions.System != "" {
		out.Next = append([]string{"start it with " + versionOf(m)}, out.Next...)
	}
	for _, root := range m.Roots {
		if strings.HasPrefix(root.Prefix, ".eddy-root/") {
			out.Next = append(out.Next, fmt.Sprintf("move %s to where %s was: %s", filepath.Join(into, root.Prefix), root.Name, root.Path))
		}
	}
	return out, nil
}

func versionOf(m *uploader.Manifest) string {
	s := m.System + " " + m.Versions.System
	if m.Versions.App != "" {
		s += ", app " + m.Versions.App
	}
	return s
}

func (r *Restore) volumes(m *uploader.Manifest) []snapshot.VolumeSource {
	vols := make([]snapshot.VolumeSource, len(m.Volumes))
	for i, v := range m.Volumes {
		key := r.Catalog.ObjectKey(m.ID, v.Name)
		vols[i] = snapshot.VolumeSource{
			Name: v.Name, Size: v.Size,
			Open: func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
				// The hash of every frame is checked, so a copy of the store with other
				// ETags will do; the reader itself never joins two versions.
				return r.Store.Open(ctx, key, "", off, n)
			},
		}
	}
	return vols
}

// owner decides whose files the restored ones become. Only root can give files
// away; for anybody else they are his own.
func (r *Restore) owner(into string) (*snapshot.Owner, string, error) {
	if r.Owner != nil {
		if os.Geteuid() != 0 && r.Owner.UID != os.Geteuid() {
			return nil, "", hint.Add(fmt.Errorf("only root can give files to uid %d", r.Owner.UID), "run as root, or leave --owner out")
		}
		return r.Owner, ownerName(r.Owner.UID, r.Owner.GID), nil
	}
	if os.Geteuid() != 0 {
		o := &snapshot.Owner{UID: os.Geteuid(), GID: os.Getegid()}
		return o, ownerName(o.UID, o.GID), nil
	}
	st, err := os.Stat(into) // claimTarget has made it, with its parent's owner
	if err != nil {
		return nil, "", err
	}
	sys := st.Sys().(*syscall.Stat_t)
	o := &snapshot.Owner{UID: int(sys.Uid), GID: int(sys.Gid)}
	return o, ownerName(o.UID, o.GID), nil
}

func ownerName(uid, gid int) string {
	u, g := strconv.Itoa(uid), strconv.Itoa(gid)
	if x, err := user.LookupId(u); err == nil {
		u = x.Username
	}
	if x, err := user.LookupGroupId(g); err == nil {
		g = x.Name
	}
	return u + ":" + g
}

// target is a directory that a restore may fill.
type target struct {
	fs        fsx.FS
	dir, work string
	made      bool
	lock      *fsx.Lock
}

// claimTarget makes dir where it is absent and refuses it where anything but the
// leavings of a killed restore is in it; those are removed.
func claimTarget(fsys fsx.FS, dir string) (*target, error) {
	t := &target{fs: fsys, dir: dir, work: filepath.Join(dir, workName, "restore")}
	names, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := makeLike(fsys, dir); err != nil {
			return nil, hint.Add(fmt.Errorf("make the target: %w", err), "name a directory that eddy's user may create")
		}
		t.made = true
	case err != nil:
		return nil, hint.Add(fmt.Errorf("look at the target: %w", err), "the target must be a directory, absent or empty")
	}
	for _, n := range names {
		if n.Name() != workName && n.Name() != "lost+found" {
			return nil, hint.Add(fmt.Errorf("%s: %w (it holds %s)", dir, ErrNotEmpty, n.Name()), "name an empty or absent directory; nothing was touched")
		}
	}
	if old, err := os.ReadDir(filepath.Join(dir, workName)); err == nil {
		for _, n := range old {
			if n.Name() != "restore" && n.Name() != "restore.lock" {
				return nil, hint.Add(fmt.Errorf("%s: %w (it holds %s/%s, which no restore left)", dir, ErrNotEmpty, workName, n.Name()), "this looks like a live home; name an empty or absent directory")
			}
		}
	}
	if err := fsys.MkdirAll(filepath.Join(dir, workName), 0o700); err != nil {
		return nil, err
	}
	if t.lock, err = fsx.TryLock(filepath.Join(dir, workName, "restore.lock")); err != nil {
		return nil, hint.Add(err, "another restore fills this directory")
	}
	if err := fsys.RemoveAll(t.work); err != nil {
		return nil, errors.Join(err, t.lock.Unlock())
	}
	if err := fsys.Mkdir(t.work, 0o700); err != nil {
		return nil, errors.Join(err, t.lock.Unlock())
	}
	return t, nil
}

// makeLike makes dir and its missing parents, owned like the nearest parent that
// exists: what root restores below gaia's home is gaia's.
func makeLike(fsys fsx.FS, dir string) error {
	parent := filepath.Dir(dir)
	if _, err := os.Stat(parent); errors.Is(err, fs.ErrNotExist) {
		if err := makeLike(fsys, parent); err != nil {
			return err
		}
	}
	if err := fsys.Mkdir(dir, 0o700); err != nil {
		return err
	}
	st, err := os.Stat(parent)
	if err != nil || os.Geteuid() != 0 {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	return fsys.Chown(dir, int(sys.Uid), int(sys.Gid))
}

// commit moves what was extracted into place. Everything is right by now, so a
// kill between two renames leaves a part of a good restore, beside the rest of
// it in the work directory, and the target is refused as not empty.
func (t *target) commit() error {
	names, err := os.ReadDir(t.work)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := t.fs.Rename(filepath.Join(t.work, n.Name()), filepath.Join(t.dir, n.Name())); err != nil {
			return fmt.Errorf("move the restored files into place: %w", err)
		}
	}
	if err := t.fs.RemoveAll(filepath.Join(t.dir, workName)); err != nil {
		return err
	}
	return t.fs.SyncDir(t.dir)
}

func (t *target) abandon() error {
	err := t.fs.RemoveAll(filepath.Join(t.dir, workName))
	if t.made {
		err = errors.Join(err, t.fs.Remove(t.dir))
	}
	return err
}

// ParseOwner reads "user:group" or "uid:gid"; without a group the user's own.
func ParseOwner(s string) (*snapshot.Owner, error) {
	name, group, _ := strings.Cut(s, ":")
	bad := func(what string) error {
		return hint.Add(fmt.Errorf("owner %q: no such %s on this machine", s, what), "write USER:GROUP or UID:GID")
	}
	o := &snapshot.Owner{}
	if u, err := user.Lookup(name); err == nil {
		o.UID, _ = strconv.Atoi(u.Uid)
		o.GID, _ = strconv.Atoi(u.Gid)
	} else if n, err := strconv.Atoi(name); err == nil && n >= 0 {
		o.UID, o.GID = n, n
	} else {
		return nil, bad("user")
	}
	if group == "" {
		return o, nil
	}
	if g, err := user.LookupGroup(group); err == nil {
		o.GID, _ = strconv.Atoi(g.Gid)
	} else if n, err := strconv.Atoi(group); err == nil && n >= 0 {
		o.GID = n
	} else {
		return nil, bad("group")
	}
	return o, nil
}
