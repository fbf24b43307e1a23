package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/internal/secret"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/etcd"
)

// etcdSource is a cluster of etcd, which others of its members attest.
type etcdSource struct {
	asked
	observer.Attester
	observer.Salvager
	drills observer.Driller
}

// Driller brings a dump to life.
func (r etcdSource) Driller() observer.Driller { return r.drills }

func newEtcdSource(c *config.Config) (job.Replica, error) {
	r, err := newEtcd(c)
	if err != nil {
		return nil, err
	}
	return etcdSource{asked{r, filepath.Join(c.Workdir, "dump")}, r, r, r}, nil
}

// newEtcd makes the cluster that the configuration describes; etcdctl's variables
// fill in what it leaves out.
func newEtcd(c *config.Config) (*etcd.Etcd, error) {
	k := c.Replica.Etcd
	o := etcd.Options{
		Cluster: c.Cluster, Endpoints: k.Endpoints, Any: k.Member == "any",
		TLS:  etcd.TLS{CA: k.TLS.CA, Cert: k.TLS.Cert, Key: k.TLS.Key, ServerName: k.TLS.ServerName},
		User: k.User, MaxLag: k.MaxLag, Timeout: k.Timeout.D(), Etcdutl: k.Etcdutl, Etcd: k.Etcd,
		Restore: etcd.Target{
			Name: k.Restore.Name, DataDir: k.Restore.DataDir, InitialCluster: k.Restore.InitialCluster,
			Advertise: k.Restore.Advertise, Token: k.Restore.Token,
		},
		Drill: etcd.Drill{Canary: k.Canary, Timeout: c.Drill.Timeout.D()},
	}
	if text := os.Getenv("ETCDCTL_ENDPOINTS"); len(o.Endpoints) == 0 && text != "" {
		o.Endpoints = strings.Split(text, ",")
	}
	if o.TLS == (etcd.TLS{}) {
		o.TLS = etcd.TLS{CA: os.Getenv("ETCDCTL_CACERT"), Cert: os.Getenv("ETCDCTL_CERT"), Key: os.Getenv("ETCDCTL_KEY")}
	}
	user, password, _ := strings.Cut(os.Getenv("ETCDCTL_USER"), ":")
	if o.User == "" {
		o.User = user
	}
	o.Password = func() (string, error) {
		switch {
		case k.PasswordFile != "":
			return secret.Read(k.PasswordFile, "password")
		case os.Getenv("ETCDCTL_PASSWORD") != "":
			return os.Getenv("ETCDCTL_PASSWORD"), nil
		case password != "":
			return password, nil
		}
		return "", hint.Add(errors.New("no password for user "+o.User), "set `replica.etcd.password_file: /etc/eddy/etcd.pass`, a file of mode 0600, or ETCDCTL_PASSWORD")
	}
	if k.Restore.Owner != "" {
		owner, err := job.ParseOwner(k.Restore.Owner)
		if err != nil {
			return nil, errorsJoinUsage(hint.Add(err, "write USER:GROUP into replica.etcd.restore.owner"))
		}
		o.Restore.Owner = owner
	}
	return etcd.New(o), nil
}
