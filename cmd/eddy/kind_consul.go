package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/consul"
	"github.com/eddy-backup/eddy/snapshot/bundle"
)

// askedConsul is a Consul, a Nomad or a Vault as the job wants it.
type askedConsul struct {
	asked
	more
	drills observer.Driller
}

// Driller brings a snapshot to life.
func (r askedConsul) Driller() observer.Driller { return r.drills }

// more is what such a source can do beyond what all do that are asked.
type more interface {
	observer.Salvager
	observer.Attester
	Checks(ctx context.Context) []check.Finding
}

// newConsul makes the source of the configured kind. What the configuration does not
// say the variables of the system's own tools do.
func newConsul(c *config.Config) (askedConsul, error) {
	o := consul.Options{
		Kind: c.Replica.Kind, Cluster: c.Cluster,
		Drill: consul.Drill{Command: c.Drill.Command, Check: c.Drill.Check, Timeout: c.Drill.Timeout.D()},
	}
	env := os.Getenv
	var named string
	var secured config.ServerTLS
	switch k := c.Replica; k.Kind {
	case consul.Consul:
		named, secured = k.Consul.Address, k.Consul.TLS
		o.Address, o.Scope, o.Mode, o.MaxLag = env("CONSUL_HTTP_ADDR"), k.Consul.Datacenter, k.Consul.Mode, k.Consul.MaxLag.D()
		o.TokenFile, o.Token = cmp.Or(k.Consul.TokenFile, env("CONSUL_HTTP_TOKEN_FILE")), env("CONSUL_HTTP_TOKEN")
		o.TLS = consul.TLS{
			CAFile: env("CONSUL_CACERT"), CADir: env("CONSUL_CAPATH"), CertFile: env("CONSUL_CLIENT_CERT"), KeyFile: env("CONSUL_CLIENT_KEY"),
			ServerName: env("CONSUL_TLS_SERVER_NAME"), SkipVerify: env("CONSUL_HTTP_SSL_VERIFY") == "false",
		}
	case consul.Nomad:
		named, secured = k.Nomad.Address, k.Nomad.TLS
		o.Address, o.Scope, o.Mode, o.MaxLag = env("NOMAD_ADDR"), cmp.Or(k.Nomad.Region, env("NOMAD_REGION")), k.Nomad.Mode, k.Nomad.MaxLag.D()
		o.TokenFile, o.Token = k.Nomad.TokenFile, env("NOMAD_TOKEN")
		o.TLS = consul.TLS{
			CAFile: env("NOMAD_CACERT"), CADir: env("NOMAD_CAPATH"), CertFile: env("NOMAD_CLIENT_CERT"), KeyFile: env("NOMAD_CLIENT_KEY"),
			ServerName: env("NOMAD_TLS_SERVER_NAME"), SkipVerify: env("NOMAD_SKIP_VERIFY") == "true",
		}
	case consul.Vault:
		named, secured = k.Vault.Address, k.Vault.TLS
		o.Address, o.Namespace = env("VAULT_ADDR"), cmp.Or(k.Vault.Namespace, env("VAULT_NAMESPACE"))
		o.TokenFile, o.Token = k.Vault.TokenFile, env("VAULT_TOKEN")
		o.TLS = consul.TLS{
			CAFile: env("VAULT_CACERT"), CADir: env("VAULT_CAPATH"), CertFile: env("VAULT_CLIENT_CERT"), KeyFile: env("VAULT_CLIENT_KEY"),
			ServerName: env("VAULT_TLS_SERVER_NAME"), SkipVerify: env("VAULT_SKIP_VERIFY") == "true",
		}
	}
	if named == "" && c.Replica.Kind == consul.Consul && env("CONSUL_HTTP_SSL") == "true" && o.Address != "" && !strings.Contains(o.Address, "://") {
		o.Address = "https://" + o.Address
	}
	if named != "" {
		o.Address, o.Named = named, true
	}
	if secured != (config.ServerTLS{}) { // whoever writes one of them means them all
		o.TLS = consul.TLS{CAFile: secured.CAFile, CADir: secured.CADir, CertFile: secured.CertFile, KeyFile: secured.KeyFile, ServerName: secured.ServerName}
	}
	o.Save = func(name string) (consul.Kept, error) { return keepAside(c, name) }
	src, err := consul.New(o)
	if err != nil {
		return askedConsul{}, err
	}
	return askedConsul{asked{src, filepath.Join(c.Workdir, "dump")}, src, src}, nil
}

// aside is a file of the workdir, encrypted to the configured recipients, for what a
// restore replaces.
type aside struct {
	io.WriteCloser // encrypts into f
	fs             fsx.FS
	f              *fsx.File
	path           string
}

func keepAside(c *config.Config, name string) (*aside, error) {
	to, err := readRecipients(c.Encryption)
	if err != nil {
		return nil, err
	}
	if to.Len() == 0 {
		return nil, fmt.Errorf("%w: nobody could open it", bundle.ErrRecipient)
	}
	k := &aside{path: filepath.Join(c.Workdir, name)}
	if k.f, err = k.fs.CreateTemp(c.Workdir, ".aside-"); err != nil {
		return nil, err
	}
	if k.WriteCloser, err = to.Encrypt(k.f); err != nil {
		return nil, errors.Join(err, k.Abort())
	}
	return k, nil
}

// Commit implements consul.Kept.
func (k *aside) Commit() (string, error) {
	err := k.Close()
	if err == nil {
		err = k.f.Sync()
	}
	if err = errors.Join(err, k.f.Close()); err == nil {
		err = k.fs.Rename(k.f.Name(), k.path)
	}
	if err == nil {
		err = k.fs.SyncDir(filepath.Dir(k.path))
	}
	return k.path, err
}

// Abort implements consul.Kept.
func (k *aside) Abort() error { return errors.Join(k.f.Close(), k.fs.Remove(k.f.Name())) }
