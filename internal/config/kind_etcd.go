package config

import (
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Etcd is a cluster of etcd, and the member of it that is backed up.
type Etcd struct {
	// Endpoints are client URLs. The first is the member that is backed up; a learner
	// first, then voters.
	Endpoints []string `yaml:"endpoints"`
	// Member any takes a learner, else the follower that is furthest, of all endpoints.
	Member string  `yaml:"member" default:"first" enum:"first,any"`
	TLS    EtcdTLS `yaml:"tls"`
	User   string  `yaml:"user"`
	// PasswordFile is of mode 0600.
	PasswordFile string `yaml:"password_file"`
	// MaxLag is how many entries of the raft log the member may be behind the leader.
	MaxLag int `yaml:"max_lag" default:"1000"`
	// Timeout is how long the snapshot may take.
	Timeout Duration `yaml:"timeout" default:"10m"`
	// Etcdutl makes data directories; Etcd is what a drill runs. Names in PATH, or
	// absolute paths.
	Etcdutl string `yaml:"etcdutl" default:"etcdutl"`
	Etcd    string `yaml:"etcd" default:"etcd"`
	// Canary is a key that a drill must find.
	Canary  string      `yaml:"canary"`
	Restore EtcdRestore `yaml:"restore"`
}

// EtcdTLS names files in PEM.
type EtcdTLS struct {
	CA   string `yaml:"ca"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
	// ServerName is whom the servers' certificates name; "": the endpoint's host.
	ServerName string `yaml:"server_name"`
}

// EtcdRestore is the member that a restore on this host makes.
type EtcdRestore struct {
	Name    string `yaml:"name"`
	DataDir string `yaml:"data_dir"`
	// InitialCluster is NAME=URL of all members; empty: the voters of the backup.
	InitialCluster []string `yaml:"initial_cluster"`
	// Advertise are this member's peer URLs; empty: those of InitialCluster.
	Advertise []string `yaml:"initial_advertise_peer_urls"`
	// Token is the new cluster's; "": made of the backup.
	Token string `yaml:"token"`
	// Owner is USER:GROUP of the data directory; "": who has it now.
	Owner string `yaml:"owner"`
}

func (l *loader) checkEtcd() {
	const section = "replica.etcd"
	c := l.c.Replica.Etcd
	for i, e := range c.Endpoints {
		key := fmt.Sprintf("%s.endpoints[%d]", section, i)
		switch {
		case l.bad[section+".endpoints"]:
		case strings.Contains(e, "@"): // what stands before it may be a password, and is not repeated
			l.problem(key, "holds a user", "write https://HOST:2379, and the user into user and password_file")
		case !isURL(e, true):
			l.problem(key, quote(e)+" is no client URL", "write https://HOST:2379")
		}
	}
	l.absolute(section+".tls.ca", c.TLS.CA)
	l.absolute(section+".tls.cert", c.TLS.Cert)
	l.absolute(section+".tls.key", c.TLS.Key)
	l.absolute(section+".password_file", c.PasswordFile)
	l.absolute(section+".restore.data_dir", c.Restore.DataDir)
	switch {
	case l.badBelow(section + ".tls"):
	case c.TLS.Cert != "" && c.TLS.Key == "":
		l.problem(section+".tls.key", "missing beside a certificate", "name the file of its key")
	case c.TLS.Key != "" && c.TLS.Cert == "":
		l.problem(section+".tls.cert", "missing beside a key", "name the file of its certificate")
	}
	if c.MaxLag < 1 && !l.bad[section+".max_lag"] {
		l.problem(section+".max_lag", fmt.Sprintf("%d is out of range", c.MaxLag), "write 1000, or how many entries may be missing")
	}
	if t := c.Timeout.D(); !l.bad[section+".timeout"] && (t < minTimeout || t > 24*time.Hour) {
		l.problem(section+".timeout", t.String()+" is out of range", "write what a snapshot needs at most, 10m for instance")
	}
	for key, program := range map[string]string{"etcdutl": c.Etcdutl, "etcd": c.Etcd} {
		if key = section + "." + key; !l.bad[key] {
			l.argv(key, []string{program})
		}
	}
	for i, m := range c.Restore.InitialCluster {
		name, u, ok := strings.Cut(m, "=")
		if !l.bad[section+".restore.initial_cluster"] && (!ok || name == "" || !isURL(u, false)) {
			l.problem(fmt.Sprintf("%s.restore.initial_cluster[%d]", section, i), quote(m)+" is no member", "write NAME=https://HOST:2380")
		}
	}
	for i, u := range c.Restore.Advertise {
		if !l.bad[section+".restore.initial_advertise_peer_urls"] && !isURL(u, false) {
			l.problem(fmt.Sprintf("%s.restore.initial_advertise_peer_urls[%d]", section, i), quote(u)+" is no peer URL", "write https://HOST:2380")
		}
	}
}

// isURL tells whether text is http or https with a host and a port; etcd's clients
// take HOST:PORT as well.
func isURL(text string, short bool) bool {
	if short && !strings.Contains(text, "://") {
		text = "http://" + text
	}
	u, err := url.Parse(text)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "" && u.Port() != "" && u.User == nil && strings.Trim(u.Path, "/") == ""
}
