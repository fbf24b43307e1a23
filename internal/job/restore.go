package job

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
	"github.com/eddy-backup/eddy/uploader"
)

// Restore brings one backup back into an absent or empty directory.
type Restore struct {
	Store    uploader.Store
	Catalog  *uploader.Catalog
	Selector string
	// AcceptFailed restores a backup that failed a proof, too.
	AcceptFailed bool

	proves bool   // what is restored is another proof, and a failed one is no reason against it
	sum    string // of the manifest that was found, hex
	Into   string
	Only   []string        // globs; empty: everything
	Owner  *snapshot.Owner // nil: the owner of the target directory or of its nearest parent
	// Unseal opens an encrypted archive; nil: no key was given.
	Unseal Unseal
	// Keys are restored behind the data, into the same directory as the node's home;
	// nil: data alone.
	Keys *KeysRestore
	Home string // of the live node, whose backups would take what is restored into it; "": not known
	// Host is what the store is told of who restores in place; "": it is told nothing.
	Host   string
	Events ui.Sink
	Now    func() time.Time
	FS     fsx.FS // makes the changes
}

// ErrNotEmpty: the target of a restore holds something already.
var ErrNotEmpty = errors.New("the target is not empty")

// Run restores. The target shows nothing of the backup before every byte of it
// has been compared with the archive's index; what a run that failed or was killed
// has fetched is not fetched again by the next one.
func (r *Restore) Run(ctx context.Context) (Restored, error) {
	m, err := r.find(ctx)
	if err != nil {
		return Restored{}, err
	}
	return r.fill(ctx, m)
}

// fill restores one backup that was found.
func (r *Restore) fill(ctx context.Context, m *uploader.Manifest) (done Restored, err error) {
	begun := r.Now()
	into, err := filepath.Abs(r.Into)
	if err != nil {
		return Restored{}, err
	}
	target, err := claimTarget(r.FS, into, m.ID)
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
	var place *keysPlace
	var keys decided
	if r.Keys != nil {
		r.Keys.Home = into
		if place, err = r.Keys.claim(); err == nil {
			defer func() { err = errors.Join(err, place.leave()) }()
			keys, err = r.Keys.decide(ctx)
		}
		if err != nil {
			return Restored{}, errors.Join(err, target.abandon(err))
		}
	}
	vols, closing, err := r.volumes(ctx, m, target.sealed)
	if err != nil {
		return Restored{}, errors.Join(err, target.abandon(err))
	}
	defer func() { _ = closing() }() // it was read only
	var rep snapshot.Report
	if target.placing { // all was right already, and a part of it is in its place
		rep.Bytes, rep.Files, err = snapshot.Measure(ctx, vols, r.Only)
		rep.KeptBytes = rep.Bytes
	} else {
		rep, err = snapshot.Extract(ctx, vols, snapshot.ExtractOptions{
			FS: r.FS, Dir: target.work, Journal: target.journal, Only: r.Only, Owner: owner, Preflight: true,
			Progress: r.progress,
		})
	}
	if err != nil {
		return Restored{}, errors.Join(err, target.abandon(err))
	}
	if err := target.commit(m.ID); err != nil {
		return Restored{}, err
	}
	if r.Keys != nil {
		if err = place.stage(ctx, keys, ""); err == nil {
			_, err = place.finish()
		}
		if err != nil {
			return Restored{}, hint.Add(fmt.Errorf("the data are in %s; keys and configuration: %w", into, err), "mend what is said and run it again: the data are not fetched again")
		}
	}
	if err := target.done(); err != nil {
		return Restored{}, err
	}
	out := restored(m, rep)
	out.Dir, out.Owner, out.Seconds = into, ownerText, r.Now().Sub(begun).Seconds()
	if m.System != "cometbft" {
		return out, nil
	}
	if r.Keys != nil {
		k := keys.done()
		out.Keys = &k
	} else {
		out.Next = []string{
			"put the node's own config/ beside the data; keys and sign state are never in an archive",
			"keep the priv_validator_state.json that the machine has; a zero one belongs only beside a freshly made key",
		}
	}
	if m.Versions.App != "" || m.Versions.System != "" {
		out.Next = append([]string{"start it with " + madeBy(m).Program()}, out.Next...)
	}
	for _, root := range m.Roots {
		if strings.HasPrefix(root.Prefix, ".eddy-root/") {
			out.Next = append(out.Next, fmt.Sprintf("move %s to where %s was: %s", filepath.Join(into, root.Prefix), root.Name, root.Path))
		}
	}
	return out, nil
}

// find selects the backup, which must be one that can be restored.
func (r *Restore) find(ctx context.Context) (*uploader.Manifest, error) {
	sel, err := r.Catalog.Select(ctx, r.Selector)
	if err != nil {
		return nil, err
	}
	if sel.Warning != "" {
		r.Events.Emit(Warning{Text: sel.Warning})
	}
	r.sum = sel.ManifestSHA256()
	if g := sel.Failed; g != nil && !r.proves {
		why := fmt.Sprintf("%s failed its proof (%s) at %s: %s", sel.ID, g.By, g.Given.UTC().Format(time.RFC3339), g.Why())
		if !r.AcceptFailed {
			return nil, hint.Add(fmt.Errorf("%w: %s", uploader.ErrFailed, why), "`eddy restore verified` takes the newest that passed; --accept-failed takes this one all the same, and still refuses every byte that is wrong")
		}
		r.Events.Emit(Warning{Text: why, Hint: "it is restored because --accept-failed says so"})
	}
	m := sel.Manifest
	if sel.Status == uploader.StatusNewer {
		return nil, hint.Add(fmt.Errorf("%s: %w", sel.ID, uploader.ErrNewer), "use a newer eddy, or stock tools: README.txt in the store has the commands")
	}
	if m == nil {
		return nil, hint.Add(fmt.Errorf("%w: %s is %s", uploader.ErrNoSuchBackup, sel.ID, sel.Status), "only a READY backup can be restored; `eddy list` shows them")
	}
	if sel.Status == uploader.StatusSalvage {
		r.Events.Emit(Warning{Text: sel.ID + " is a salvage: what one member had when the cluster had lost its quorum; the newest writes may be missing", Hint: "where other members' salvages or backups are there, compare their terms and indexes first: `eddy list`"})
	} else if sel.Status != uploader.StatusReady {
		return nil, hint.Add(fmt.Errorf("%w: %s is %s: %s", uploader.ErrDamaged, sel.ID, sel.Status, sel.Text), "restore another backup; `eddy list` shows them")
	}
	if err := r.signed(ctx, sel); err != nil {
		return nil, err
	}
	r.Events.Emit(Phase{ID: m.ID, Phase: "found", Text: fmt.Sprintf("%s: %s at %s, made by %s of %s", m.ID, m.Cluster, PositionOf(m), m.Versions.Eddy, madeBy(m).Program())})
	return m, nil
}

// signed refuses what is not signed as it should be, and says of all else what is
// known of who made it.
func (r *Restore) signed(ctx context.Context, b uploader.Backup) error {
	s, err := r.Catalog.Signature(ctx, b)
	if err != nil {
		return err
	}
	if text := unknownSigner(b.ID, s); text != "" {
		r.Events.Emit(Warning{Text: text, Hint: "--signer KEY takes only what that key has signed"})
	}
	return nil
}

// unknownSigner is what to say of a signature that proves nothing, "" of one that
// does.
func unknownSigner(id string, s uploader.Signature) string {
	switch {
	case s.Known:
		return ""
	case s.Signer == "":
		return id + " is not signed: who may write to the store may have made it"
	default:
		return id + " is signed by " + s.Signer + ", a key that was not named here"
	}
}

func (r *Restore) progress(done, total int64) {
	r.Events.Emit(ui.Progress{What: "restore", Done: done, Total: total})
}

// restored is what a restore says of a backup and its extraction.
func restored(m *uploader.Manifest, rep snapshot.Report) Restored {
	return Restored{
		ID: m.ID, Cluster: m.Cluster, Position: m.Position.Index, At: PositionOf(m).String(), Hash: m.Position.Hash,
		Files: rep.Files, Bytes: rep.Bytes, KeptBytes: rep.KeptBytes, FetchedBytes: rep.Fetched,
	}
}

// madeBy is the state of the replica that a backup was made of, as far as its
// manifest tells it.
func madeBy(m *uploader.Manifest) observer.State {
	return observer.State{Cluster: m.Cluster, System: m.System, Version: m.Versions.System, App: m.Versions.App}
}

// volumesOf are those of a backup, to read from.
func volumesOf(c *uploader.Catalog, m *uploader.Manifest) []snapshot.VolumeSource {
	vols := make([]snapshot.VolumeSource, len(m.Volumes))
	for i, v := range m.Volumes {
		key := c.ObjectKey(m.ID, v.Name)
		vols[i] = snapshot.VolumeSource{
			Name: v.Name, Size: v.Size,
			Open: func(ctx context.Context, off, n int64) (io.ReadCloser, error) {
				// The hash of every frame is checked, so a copy of the store with other
				// ETags will do; the reader itself never joins two versions.
				return c.Store().Open(ctx, key, "", off, n)
			},
		}
	}
	return vols
}

// volumes are those of the backup, each with the index that the manifest names; an
// encrypted one is fetched into a file first. closing ends their use.
func (r *Restore) volumes(ctx context.Context, m *uploader.Manifest, file string) (vols []snapshot.VolumeSource, closing func() error, err error) {
	if m.Encryption != nil {
		return unsealed(ctx, r.FS, r.Catalog, m, file, r.Unseal)
	}
	vols, err = r.plain(ctx, m)
	return vols, func() error { return nil }, err
}

func (r *Restore) plain(ctx context.Context, m *uploader.Manifest) ([]snapshot.VolumeSource, error) {
	vols := volumesOf(r.Catalog, m)
	for i, v := range m.Volumes {
		ix, err := snapshot.ReadIndex(ctx, vols[i])
		if err != nil {
			return nil, err
		}
		if want := v.IndexSHA256; want != "" && ix.SHA256 != want {
			return nil, fmt.Errorf("%w: the index of %s is not the one that the manifest names", snapshot.ErrCorrupt, v.Name)
		}
	}
	return vols, nil
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
