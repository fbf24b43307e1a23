package consul

import (
	"context"
	"net/http"
	"strings"

	"github.com/eddy-backup/eddy/observer"
)

// The kinds of positions, and the systems of manifests.
const (
	Consul = "consul"
	Nomad  = "nomad"
	Vault  = "vault"
)

// system is what one of the three has of its own.
type system struct {
	kind, title string
	address     string // where it listens when nobody says anything
	token       string // the header that carries the token
	rights      string // what the token needs, behind "the token needs"
	// snapshot is the path that gives one; it is given back there by method.
	snapshot, method string
	// meta begins the headers of an answer that say how old it is; "": it has none,
	// and no answer of those who do not lead.
	meta string
	// sums are the members of the archive beside meta.json and state.bin.
	sums []string
	// records: what state.bin holds can be counted.
	records bool
	// scope is the parameter that names the part of a federation which is asked.
	scope string

	describe func(context.Context, *api) (observer.State, error)
	// holds looks at what lives there.
	holds func(context.Context, *api) (holdings, error)
}

// holdings are what a restore would replace.
type holdings struct {
	what  string // for people
	keys  int    // of Consul
	fresh bool
}

// systemOf is nothing for a kind that is none of the three.
func systemOf(kind string) (system, bool) {
	switch kind {
	case Consul:
		return system{
			kind: Consul, title: "Consul", address: "http://127.0.0.1:8500", token: "X-Consul-Token",
			rights:   "acl:write: who may take a snapshot may read every token in it (no lesser right exists)",
			snapshot: "/v1/snapshot", method: http.MethodPut, meta: "X-Consul-", sums: []string{"SHA256SUMS"}, records: true, scope: "dc",
			describe: describeConsul, holds: consulHolds,
		}, true
	case Nomad:
		return system{
			kind: Nomad, title: "Nomad", address: "http://127.0.0.1:4646", token: "X-Nomad-Token",
			rights:   "to be a management token",
			snapshot: "/v1/operator/snapshot", method: http.MethodPut, meta: "X-Nomad-", sums: []string{"SHA256SUMS"}, scope: "region",
			describe: describeNomad, holds: nomadHolds,
		}, true
	case Vault:
		return system{
			kind: Vault, title: "Vault", address: "https://127.0.0.1:8200", token: "X-Vault-Token",
			rights:   "`read` on sys/storage/raft/snapshot, and `update` on it and on sys/storage/raft/snapshot-force for a restore",
			snapshot: "/v1/sys/storage/raft/snapshot", method: http.MethodPost, sums: []string{"SHA256SUMS", "SHA256SUMS.sealed"},
			describe: describeVault, holds: vaultHolds,
		}, true
	}
	return system{}, false
}

// set is a key of the system's own section of eddy.yaml, for hints.
func (s system) set(key, value string) string {
	return "`" + strings.Join([]string{"replica", s.kind, key}, ".") + ": " + value + "`"
}
