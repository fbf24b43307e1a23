package config

import (
	"net/url"
	"path/filepath"
	"strings"
	"time"
)

// Consul is a server, or a client agent, that gives snapshots.
type Consul struct {
	// Address is http, https or unix; "": CONSUL_HTTP_ADDR, else http://127.0.0.1:8500.
	Address string `yaml:"address"`
	// Datacenter is asked instead of the agent's own.
	Datacenter string `yaml:"datacenter"`
	// Mode is who may answer: auto is any server that is close enough to its leader,
	// and else the leader.
	Mode string `yaml:"mode" default:"auto" enum:"auto,consistent,stale"`
	// MaxLag is how long ago a server that does not lead may have heard the leader.
	MaxLag Duration `yaml:"max_lag" default:"5s"`
	// TokenFile, of mode 0600, holds the token; "": CONSUL_HTTP_TOKEN_FILE, else
	// CONSUL_HTTP_TOKEN.
	TokenFile string    `yaml:"token_file"`
	TLS       ServerTLS `yaml:"tls"`
}

// Nomad is as Consul.
type Nomad struct {
	// Address is http, https or unix; "": NOMAD_ADDR, else http://127.0.0.1:4646.
	Address string `yaml:"address"`
	// Region is asked instead of the agent's own.
	Region string   `yaml:"region"`
	Mode   string   `yaml:"mode" default:"auto" enum:"auto,consistent,stale"`
	MaxLag Duration `yaml:"max_lag" default:"5s"`
	// TokenFile, of mode 0600, holds the token; "": NOMAD_TOKEN.
	TokenFile string    `yaml:"token_file"`
	TLS       ServerTLS `yaml:"tls"`
}

// Vault is one that keeps its data by raft itself.
type Vault struct {
	// Address is http or https; "": VAULT_ADDR, else https://127.0.0.1:8200.
	Address string `yaml:"address"`
	// TokenFile, of mode 0600, holds the token; "": VAULT_TOKEN.
	TokenFile string `yaml:"token_file"`
	// Namespace is the one that the token is of; "": VAULT_NAMESPACE.
	Namespace string    `yaml:"namespace"`
	TLS       ServerTLS `yaml:"tls"`
}

// ServerTLS is what a connection to a server needs beside the certificates of the
// system.
type ServerTLS struct {
	CAFile string `yaml:"ca_file"`
	CADir  string `yaml:"ca_dir"`
	// CertFile and KeyFile are the client's own, where the server wants one.
	CertFile   string `yaml:"cert_file"`
	KeyFile    string `yaml:"key_file"`
	ServerName string `yaml:"server_name"`
}

// checkConsul checks the sections of the three that are asked by HTTP.
func (l *loader) checkConsul() {
	r := l.c.Replica
	for _, k := range []struct {
		section, address, token string
		lag                     Duration
		tls                     ServerTLS
		port                    string
	}{
		{"replica.consul", r.Consul.Address, r.Consul.TokenFile, r.Consul.MaxLag, r.Consul.TLS, "8500"},
		{"replica.nomad", r.Nomad.Address, r.Nomad.TokenFile, r.Nomad.MaxLag, r.Nomad.TLS, "4646"},
		{"replica.vault", r.Vault.Address, r.Vault.TokenFile, Duration(time.Second), r.Vault.TLS, "8200"},
	} {
		if k.address != "" && !l.bad[k.section+".address"] {
			l.server(k.section+".address", k.address, k.port)
		}
		l.absolute(k.section+".token_file", k.token)
		if d := k.lag.D(); !l.bad[k.section+".max_lag"] && (d < 100*time.Millisecond || d > time.Hour) {
			l.problem(k.section+".max_lag", k.lag.String()+" is out of range", "servers hear their leader many times a second: 5s is a good bound")
		}
		tls := k.section + ".tls"
		for _, f := range []struct{ key, path string }{{"ca_file", k.tls.CAFile}, {"ca_dir", k.tls.CADir}, {"cert_file", k.tls.CertFile}, {"key_file", k.tls.KeyFile}} {
			l.absolute(tls+"."+f.key, f.path)
		}
		if (k.tls.CertFile == "") != (k.tls.KeyFile == "") && !l.badBelow(tls) {
			l.problem(tls+".cert_file", "a certificate and its key belong together", "set cert_file and key_file")
		}
	}
}

// server checks the address of an API. What it holds of a password is never said.
func (l *loader) server(key, text, port string) {
	write := "write http://HOST:" + port + " or https://HOST:" + port
	if path, ok := strings.CutPrefix(text, "unix://"); ok {
		if !filepath.IsAbs(path) {
			l.problem(key, "not the absolute path of a socket", "write unix:///run/SOCKET")
		}
		return
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		l.problem(key, "not an address", write)
	case u.User != nil:
		l.problem(key, "holds credentials", "a token stands in token_file; "+write)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		l.problem(key, "ends in a path, a query or a fragment", write)
	}
}
