package main

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/ui"
	"github.com/eddy-backup/eddy/observer/cometbft"
	"github.com/eddy-backup/eddy/observer/cometbft/check"
	"github.com/eddy-backup/eddy/observer/control"
	"github.com/eddy-backup/eddy/observer/held"
	"github.com/eddy-backup/eddy/uploader"
)

// load reads the configuration as file, environment and flags give it, and
// demands what the verb needs.
func (a *app) load(need config.Need) (*config.Config, error) {
	c, err := config.Load(a.configFile, os.Environ(), config.Overrides{
		Store: a.store, Region: a.region, Endpoint: a.endpoint, Cluster: a.cluster, Home: a.home, LogFormat: a.logFormat,
	}, need)
	if err != nil || c.Backup.PerNode != "true" || c.Cluster == "" || a.cluster != "" { // a flag names it whole
		return c, err
	}
	node, err := nodeName(c)
	if err != nil {
		return nil, err
	}
	c.Cluster += "." + node
	if err := uploader.CheckName(c.Cluster); err != nil {
		return nil, hint.Add(errorsJoinUsage(fmt.Errorf("backup.per_node: %w", err)), "give the node a shorter name: `keys.node: NAME`")
	}
	return c, nil
}

// nodeName is what this node is called in the store: keys.node, else the host's name
// without its domain.
func nodeName(c *config.Config) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("host name: %w", err)
	}
	short, _, _ := strings.Cut(host, ".")
	node := cmp.Or(c.Keys.Node, short)
	if err := uploader.CheckName(node); err != nil {
		return "", hint.Add(errorsJoinUsage(err), "give the node a name: `keys.node: NAME`")
	}
	return node, nil
}

// openCatalog opens the store and the cluster's catalog in it.
func (a *app) openCatalog(ctx context.Context, c *config.Config) (uploader.Store, *uploader.Catalog, error) {
	store, err := uploader.Open(ctx, uploader.Config{
		URL: c.Store.URL, Region: c.Store.Region, Endpoint: c.Store.Endpoint, PathStyle: c.Store.PathStyle,
		Profile: c.Store.Profile, StorageClass: c.Store.StorageClass,
		SSE: uploader.SSE{Mode: c.Store.SSE.Mode, KMSKeyID: c.Store.SSE.KMSKeyID},
		Log: a.log(c.LogFormat, "store"),
	})
	if err != nil {
		return nil, nil, err
	}
	cat := uploader.NewCatalog(store, c.Cluster)
	if c.Catalog == "omnibus" {
		cat = cat.Omnibus(c.CatalogURL)
	}
	return store, cat, nil
}

// openTrusted is openCatalog for verbs that take a backup for true: named are the
// signers that flags name, and where they name none the configuration's.
func (a *app) openTrusted(ctx context.Context, c *config.Config, named []string) (*uploader.Catalog, error) {
	_, cat, err := a.openCatalog(ctx, c)
	if err != nil {
		return nil, err
	}
	var keys uploader.Keys
	if len(named) == 0 {
		named = c.Signers
	}
	for _, s := range named {
		signer, err := readSigner(s)
		if err != nil {
			return nil, errorsJoinUsage(err)
		}
		keys.Signers = append(keys.Signers, signer)
	}
	// Its own key an eddy knows, where whoever asks may read it.
	if key, err := readSigningKey(c.Sign.KeyFile); err == nil {
		keys.Sign = key
	}
	return cat.With(keys), nil
}

// readSigner takes a public key, or the name of a file that holds one.
func readSigner(s string) (uploader.Signer, error) {
	if signer, err := uploader.ParseSigner(s); err == nil {
		return signer, nil
	}
	b, err := os.ReadFile(s)
	if err != nil {
		return uploader.Signer{}, hint.Add(fmt.Errorf("signer %.100q is no public key, and no file: %w", s, err), "write the key as `eddy config show` has it in sign.public_key where it signs, or name its PEM file")
	}
	signer, err := uploader.ParseSigner(string(b))
	if err != nil {
		return signer, fmt.Errorf("signer %s: %w", s, err)
	}
	return signer, nil
}

// readSigningKey is nil where no file is named.
func readSigningKey(file string) (*uploader.SigningKey, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, hint.Add(fmt.Errorf("sign.key_file: %w", err), "eddy's user must be able to read it; `openssl genpkey -algorithm ed25519` makes a new one, which those who restore must be told of")
	}
	key, err := uploader.ParseSigningKey(b)
	if err != nil {
		return nil, fmt.Errorf("sign.key_file %s: %w", file, err)
	}
	return key, nil
}

// newControl makes the node's control by the configuration: one, or of a chain the
// node's and its app's.
func newControl(c *config.Config) (control.Control, error) {
	if !c.Replica.Chain() {
		return newWay(c, c.Replica.Control.Way, c.Workdir, nil)
	}
	node, err := newWay(c, c.Replica.Control.Way, c.Workdir, func(context.Context) error {
		sign, err := cometbft.SignState(c.Replica.Home)
		if err == nil && !sign.Zero() {
			err = hint.Add(errors.New("the node's key has signed since: it may be a validator now"), "start it by hand, if it should run")
		}
		return err
	})
	if err != nil || !c.Replica.App.Control.Set() {
		return node, err
	}
	app, err := newWay(c, c.Replica.App.Control, filepath.Join(c.Workdir, "app"), nil)
	if err != nil {
		return nil, err
	}
	return control.NewOrdered(node, app), nil
}

// newWay makes the control of one process, with its journal in dir.
func newWay(c *config.Config, k config.Way, dir string, mayStart func(context.Context) error) (control.Control, error) {
	swap := "" // only a chain's restore leaves the start of its node to eddy
	if c.Replica.Chain() {
		swap = filepath.Join(c.Replica.Home, ".eddy", "swap.json")
	}
	switch {
	case k.Supervise != "":
		return control.NewSupervise(k.Supervise), nil
	case k.Systemd.Unit != "":
		return control.NewSystemd(control.SystemdConfig{
			Unit: k.Systemd.Unit, Rights: k.Systemd.Rights, Sockets: c.Replica.Kind == "swarm",
			Dir: dir, SwapFile: swap, MayStart: mayStart,
		})
	case k.Docker.Container != "":
		return control.NewDocker(control.DockerConfig{
			Container: k.Docker.Container, Host: dockerHost(k.Docker.Socket),
			Dir: dir, SwapFile: swap, MayStart: mayStart,
		})
	}
	return control.NewExec(control.ExecConfig{
		Stop: k.Exec.Stop, Start: k.Exec.Start, Status: k.Exec.Status,
		Dir: dir, SwapFile: swap, MayStart: mayStart,
	})
}

// dockerHost is where the engine listens: the configured socket, else what
// docker's own command line would use.
func dockerHost(socket string) string {
	if filepath.IsAbs(socket) {
		return "unix://" + socket
	}
	return cmp.Or(socket, os.Getenv("DOCKER_HOST"), control.DefaultDockerHost)
}

// replica is the observed node as the job wants it.
type replica struct {
	*cometbft.Replica
	control control.Control
	workdir job.Workdir
}

func newReplica(c *config.Config) (*replica, error) {
	ctl, err := newControl(c)
	if err != nil {
		return nil, err
	}
	roots := maps.Clone(c.Roots)
	if home := c.Replica.App.Home; home != "" {
		if roots == nil {
			roots = map[string]string{}
		}
		roots["app"] = home // checked to be free
	}
	r, err := cometbft.New(cometbft.Options{
		Home: c.Replica.Home, RPC: c.Replica.RPC, Witnesses: c.Replica.Witnesses, ChainID: c.Replica.ChainID,
		ExtraRoots: roots, Include: c.Include, Control: ctl,
		StopTimeout: c.Replica.Control.Timeout.D(), HoldDeadline: c.Replica.Control.Deadline.D(),
		Trusted: trusted(c), Offline: offline(c.Check.Memory.Bytes()),
	})
	if err != nil {
		return nil, err
	}
	return &replica{Replica: r, control: ctl, workdir: job.Workdir{Dir: c.Workdir}}, nil
}

// offline looks into dumps by a process of this program, with memory bytes for it;
// 0: the default.
func offline(memory int64) cometbft.Offline {
	return cometbft.Offline{Argv: []string{"/proc/self/exe", check.Verb}, Memory: uint64(memory)}
}

// trusted is the block that the configuration pins; nil: none.
func trusted(c *config.Config) *cometbft.Trusted {
	t := c.Attest.Trusted
	hash, err := hex.DecodeString(t.Hash)
	if err != nil || t.Height == 0 { // a wrong hash is a mistake of the configuration
		return nil
	}
	return &cometbft.Trusted{Height: int64(t.Height), Hash: hash, Period: t.Period.D(), File: filepath.Join(c.Workdir, "trust.json")}
}

// Recover finishes what a restore left that died, then what a backup did.
func (r *replica) Recover(ctx context.Context) (bool, error) {
	roots, err := r.Roots(ctx)
	if err != nil {
		return false, err
	}
	did, err := job.FinishSwap(ctx, r, roots, r.workdir)
	if err != nil {
		return did != "", err
	}
	acted, err := r.control.Recover(ctx)
	return acted || did != "", held.Error(err)
}

func (r *replica) Facts(ctx context.Context) (job.Facts, error) {
	f, err := r.Replica.Facts(ctx)
	return job.Facts{Engines: f.Engines, Pruning: f.Pruning, Indexer: f.Indexer}, err
}

// newBackup makes one backup job by the configuration.
func (a *app) newBackup(ctx context.Context, c *config.Config, t *teller, label string) (*job.Backup, error) {
	store, cat, err := a.openCatalog(ctx, c)
	if err != nil {
		return nil, err
	}
	key, err := readSigningKey(c.Sign.KeyFile)
	if err != nil {
		return nil, err
	}
	cat = cat.With(uploader.Keys{Sign: key})
	rep, err := a.newSource(c)
	if err != nil {
		return nil, err
	}
	roots, err := rep.Roots(ctx)
	if err != nil {
		return nil, err
	}
	sealing, err := newSealing(c)
	if err != nil {
		return nil, err
	}
	t.stagesIn(roots)
	return &job.Backup{
		Sealing: sealing,
		Replica: rep, Store: store, Catalog: cat, Workdir: job.Workdir{Dir: c.Workdir}, Cluster: c.Cluster,
		Label: label, Version: version, Host: t.host,
		CopyFallback: c.Stage.Fallback == "copy",
		WhenBehind:   job.WhenBehind{Wait: c.Backup.WhenBehind.Wait(), Skip: c.Backup.WhenBehind.Skip()},
		AttestWait:   c.Attest.Wait.D(), Attested: c.Backup.Require.Attested, Opened: c.Backup.Require.Opened,
		WhenBusy:     job.WhenBehind{Wait: c.Backup.WhenBusy.Wait(), Skip: c.Backup.WhenBusy.Skip()},
		HoldDeadline: c.Replica.Control.Deadline.D(),
		Level:        c.Backup.Level, VolumeSize: c.Backup.VolumeSize.Bytes(),
		Events: a.ui, Watch: t, Reason: reason, Now: time.Now,
	}, nil
}

// confirm asks before something is destroyed. Without a terminal it needs --yes.
func (a *app) confirm(question, want string) error {
	if a.yes {
		return nil
	}
	if !ui.IsTerminal(a.in) {
		return hint.Add(fmt.Errorf("%s: %w", question, job.ErrNotConfirmed), "say --yes, there is no terminal to ask on")
	}
	fmt.Fprintf(a.err, "%s\ntype %q to go on: ", question, want)
	var got string
	if _, err := fmt.Fscanln(a.in, &got); err != nil || got != want {
		return fmt.Errorf("%s: %w", question, job.ErrNotConfirmed)
	}
	return nil
}
