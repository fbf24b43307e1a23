package bundle

import (
	"os"
	"path/filepath"
	"slices"
)

// rule is a line of a preset: files, by a pattern as in filepath.Match, below the
// home or absolute. A directory stands for all regular files below it.
type rule struct {
	glob  string
	class Class
}

// preset is what a kind of node has beside its data. Databases, logs, programs and
// address books are in none.
type preset struct {
	name string
	// signs are names below the home of which any that is there tells the kind.
	signs []string
	files []rule
}

// presets in the order in which they are tried: the more particular first.
var presets = []preset{
	{
		"loom",
		[]string{"chaindata/config", "loom.yml", "loom.yaml"},
		[]rule{
			{"loom.yml", Config},
			{"loom.yaml", Config},
			{"config/loom.yml", Config},
			{"genesis.json", Config},
			{"chaindata/config/*.toml", Config}, // keys and genesis by config.toml
		},
	},
	{
		"cosmos-sdk",
		[]string{"config/app.toml", "config/client.toml", "cosmovisor"},
		[]rule{
			{"config/*.toml", Config}, // config, app, client, and those of the chain's own parts
			{"config/genesis.json", Config},
			{"config/node_key.json", NodeKey},
			{"config/bls_key.json", ValidatorKey}, // Babylon
			{"config/bls_password.txt", ValidatorKey},
			{"data/upgrade-info.json", Config},
			{"cosmovisor/config.toml", Config},
			{"cosmovisor/*/upgrade-info.json", Config},
			{"cosmovisor/upgrades/*/upgrade-info.json", Config},
		},
	},
	{
		"cometbft",
		[]string{"config/config.toml", "config/genesis.json"},
		[]rule{
			{"config/config.toml", Config},
			{"config/genesis.json", Config},
			{"config/node_key.json", NodeKey},
		},
	},
	{
		"swarm", // of the engine's data root: the managers' state is a backup of its own
		[]string{"swarm/docker-state.json"},
		[]rule{
			{"swarm/docker-state.json", Config},
			{"swarm/certificates", NodeKey},
			{"/etc/docker/daemon.json", Config},
			{"/etc/docker/key.json", NodeKey},
			{"/etc/docker/certs.d", Config},
		},
	},
	{
		"zookeeper", // of dataDir
		[]string{"myid", "version-2"},
		[]rule{
			{"myid", NodeKey},
			{"initialize", Config},
			{"/etc/zookeeper/conf/*", Config}, // with Debian a link
			{"/etc/zookeeper/*.cfg", Config},
		},
	},
	{
		"consul", // of data_dir
		[]string{"serf", "checkpoint-signature"},
		[]rule{
			{"node-id", NodeKey},
			{"serf/*.keyring", Config},
			{"/etc/consul.d", Config},
			{"/etc/consul", Config},
		},
	},
	{
		"etcd", // of data-dir; with kubeadm what the API server needs to read it again
		[]string{"member"},
		[]rule{
			{"/etc/etcd", Config},
			{"/etc/default/etcd", Config},
			{"/etc/etcd.env", Config},
			{"/etc/kubernetes/pki", Config},
			{"/etc/kubernetes/*.conf", Config},
			{"/etc/kubernetes/manifests", Config},
			{"/etc/kubernetes/enc*", Config}, // EncryptionConfiguration, by its usual names
		},
	},
}

// PresetNames are the kinds that are known, as `keys.preset` takes them.
func PresetNames() (names []string) {
	for _, p := range presets {
		names = append(names, p.name)
	}
	return names
}

// detect tells the kind of a node by its home.
func detect(home string) (preset, bool) {
	for _, p := range presets {
		if slices.ContainsFunc(p.signs, func(sign string) bool {
			_, err := os.Stat(filepath.Join(home, sign))
			return err == nil
		}) {
			return p, true
		}
	}
	return preset{}, false
}
