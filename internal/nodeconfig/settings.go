package nodeconfig

import "cmp"

// Settings is what of a config.toml tells how a node is reached, and whom it
// reaches.
type Settings struct {
	RPC   string   // rpc.laddr, "" where the file does not say
	Peers []string // p2p.persistent_peers
}

// Parse reads a config.toml, also one with dashes in its names.
func Parse(text string) (Settings, error) {
	all, err := decode(text)
	if err != nil {
		return Settings{}, err
	}
	word := func(table, key, other string) string {
		t, _ := all[table].(map[string]any)
		a, _ := t[key].(string)
		b, _ := t[other].(string)
		return cmp.Or(a, b)
	}
	return Settings{RPC: word("rpc", "laddr", "listen-addr"), Peers: Peers(word("p2p", "persistent_peers", "persistent-peers"))}, nil
}
