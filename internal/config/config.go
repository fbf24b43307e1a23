// Package config turns eddy.yaml, EDDY_ variables and flags into values.
//
// It is the only place that knows their names, their defaults and their order:
// a flag wins over the environment, which wins over the file. It finds every
// mistake at once and says of each where it stands and what to write instead. It
// refuses to touch the network, to guess, and to know what the values are used
// for. Its invariants: a Config that Load returns needs no further check; no
// secret is ever part of a problem or of a setting's text.
package config

import (
	"strconv"
	"strings"
	"time"
)

// DefaultFile is read where no other file is named. It may be absent.
const DefaultFile = "/etc/eddy/eddy.yaml"

// Config is what is in force. The yaml tag is a key's name, default what stands
// where nobody says anything, enum the words that it takes. A key tagged secret
// may hold a password or a token.
type Config struct {
	// Cluster names the cluster in the store: 1 to 63 of [A-Za-z0-9_.-].
	Cluster string  `yaml:"cluster"`
	Replica Replica `yaml:"replica"`
	Store   Store   `yaml:"store"`
	// Schedule says when `eddy run` backs up: five cron fields or a descriptor
	// (@daily, @every 6h), in local time unless it begins with CRON_TZ=. Of a replica
	// that is no chain the default is DefaultSchedule.
	Schedule string `yaml:"schedule" default:"@daily"`
	// Workdir holds journals and the job's state, no data. One for each replica.
	Workdir   string    `yaml:"workdir" default:"/var/lib/eddy"`
	Retention Retention `yaml:"retention"`
	// Roots are further directories of the replica that lie outside its home and
	// that its own configuration does not name: name to absolute directory.
	Roots      map[string]string `yaml:"roots"`
	Encryption Encryption        `yaml:"encryption"`
	Keys       Keys              `yaml:"keys"`
	// Include adds files and directories of the home that are left out by
	// default: paths relative to the home, with * and ? as in path.Match.
	Include []string `yaml:"include"`
	Backup  Backup   `yaml:"backup"`
	Stage   Stage    `yaml:"stage"`
	Check   Check    `yaml:"check"`
	Attest  Attest   `yaml:"attest"`
	Verify  Verify   `yaml:"verify"`
	Drill   Drill    `yaml:"drill"`
	Sign    Sign     `yaml:"sign"`
	// Signers are public keys, or PEM files of them. Where any is named, only what
	// one of them has signed is restored or verified.
	Signers []string `yaml:"signers"`
	Notify  Notify   `yaml:"notify"`
	// Catalog is a list of the backups in the form of others, beside eddy's own.
	Catalog string `yaml:"catalog" default:"none" enum:"none,omnibus"`
	// CatalogURL is where those who read it can fetch the store's objects; "": the
	// bucket's own address.
	CatalogURL string `yaml:"catalog_url"`
	// LogFormat is the form of the log on stderr.
	LogFormat string `yaml:"log_format" default:"console" enum:"console,json"`

	origins map[string]Origin
}

// DefaultSchedule is when a replica that is no chain is backed up where nobody says
// it: at night, for a member stands still for it, or serves a dump.
const DefaultSchedule = "0 3 * * *"

// Replica is the node that is backed up.
type Replica struct {
	// Kind is the system that runs there.
	Kind string `yaml:"kind" default:"cometbft" enum:"cometbft,command,consul,etcd,nomad,swarm,vault,zookeeper"`
	// Home is the node's home directory, the one with config and data in it.
	Home string `yaml:"home"`
	// RPC is the replica's own RPC address, http or https.
	RPC string `yaml:"rpc" secret:"true"`
	// Witnesses are RPC addresses of other nodes of the same chain. They tell
	// whether the replica has caught up.
	Witnesses []string `yaml:"witnesses" secret:"true"`
	// ChainID is the chain that the replica must be on; "": the one of its genesis.
	ChainID string  `yaml:"chain_id"`
	Control Control `yaml:"control"`
	App     App     `yaml:"app"`
	Command Command `yaml:"command"`
	Consul  Consul  `yaml:"consul"`
	Etcd    Etcd    `yaml:"etcd"`
	Nomad   Nomad   `yaml:"nomad"`
	Vault   Vault   `yaml:"vault"`

	Zookeeper Zookeeper `yaml:"zookeeper"`
	Swarm     Swarm     `yaml:"swarm"`
}

// App is the replica's application where it is a process of its own, behind
// proxy_app. It is stopped after the node and started before it.
type App struct {
	// Home is the directory with its data; "": it lies in the node's home, or is
	// named by roots.
	Home    string `yaml:"home"`
	Control Way    `yaml:"control"`
}

// Control is how the node is stopped and started, and how long that may take.
type Control struct {
	Way `yaml:",inline"`
	// Timeout is how long the node may take to stop by itself.
	Timeout Duration `yaml:"timeout" default:"120s"`
	// Deadline is how long the whole hold may last, the node's stop included;
	// after it the guard starts the node.
	Deadline Duration `yaml:"deadline" default:"10m"`
}

// Way is what stops and starts a process: one of these.
type Way struct {
	// Supervise is the socket of the `eddy supervise` that is the node's parent.
	Supervise string  `yaml:"supervise"`
	Systemd   Systemd `yaml:"systemd"`
	Docker    Docker  `yaml:"docker"`
	Exec      Exec    `yaml:"exec"`
}

// Systemd is a node that is a service of systemd.
type Systemd struct {
	// Unit is its name, with or without .service.
	Unit string `yaml:"unit"`
	// Rights is how an eddy that is not root may stop and start it.
	Rights string `yaml:"rights" default:"polkit" enum:"polkit,sudo"`
}

// Docker is a node that is a container.
type Docker struct {
	// Container is its name or its id.
	Container string `yaml:"container"`
	// Socket is the engine's: a path, or tcp://host:port for a proxy before it;
	// "": what DOCKER_HOST says, else /var/run/docker.sock.
	Socket string `yaml:"socket"`
}

// Exec is three commands, each an argv without a shell.
type Exec struct {
	Stop  []string `yaml:"stop"`
	Start []string `yaml:"start"`
	// Status exits 0 while the node runs, 3 while it is stopped.
	Status []string `yaml:"status"`
}

// Store is where the backups are kept. Credentials come from the AWS chain only.
type Store struct {
	// URL is s3://bucket/prefix or file:///directory.
	URL    string `yaml:"url"`
	Region string `yaml:"region"`
	// Endpoint is the S3 address of a store other than AWS, http or https.
	Endpoint string `yaml:"endpoint"`
	// PathStyle puts the bucket into the path instead of the host name; auto does
	// so where an endpoint is given.
	PathStyle string `yaml:"path_style" default:"auto" enum:"auto,true,false"`
	// Profile is a profile of the shared AWS configuration.
	Profile string `yaml:"profile"`
	// StorageClass is that of the volumes; "": the bucket's default.
	StorageClass string `yaml:"storage_class"`
	SSE          SSE    `yaml:"sse"`
	// Price is what a GB (10^9 bytes) costs a month, "0.023 USD"; "": unknown. It
	// is for estimates only.
	Price string `yaml:"price"`
}

// PerGBMonth takes Price apart; 0 where it is unknown.
func (s Store) PerGBMonth() (amount float64, currency string) {
	text, currency, _ := strings.Cut(s.Price, " ")
	amount, err := strconv.ParseFloat(text, 64)
	if err != nil { // "": check has refused everything else
		return 0, ""
	}
	return amount, currency
}

// SSE is encryption by the bucket.
type SSE struct {
	// Mode is the algorithm; "": whatever the bucket does by default.
	Mode string `yaml:"mode" enum:",AES256,aws:kms"`
	// KMSKeyID is a KMS key's id or ARN; "": the account's default key.
	KMSKeyID string `yaml:"kms_key_id"`
}

// Retention says who deletes old backups.
type Retention struct {
	// By is eddy, the bucket's lifecycle, or nobody.
	By string `yaml:"by" default:"none" enum:"eddy,lifecycle,none"`
	// Last is how many READY backups eddy keeps; 0 where By is not eddy.
	Last int `yaml:"last"`
}

// Backup is how a backup is made.
type Backup struct {
	// Level is the zstd level of the archives, 1 (fast) to 19 (small).
	Level int `yaml:"level" default:"1"`
	// VolumeSize is how many bytes of the plan go into one volume.
	VolumeSize Size `yaml:"volume_size" default:"256GiB"`
	// PerNode: each node that backs up has backups of its own, of the cluster
	// CLUSTER.NODE in the store.
	PerNode string `yaml:"per_node" default:"false" enum:"true,false"`
	// WhenBehind says what becomes of a backup whose replica has not caught up.
	WhenBehind WhenBehind `yaml:"when_behind" default:"wait 15m"`
	// WhenBusy says what becomes of a backup whose cluster another eddy works on.
	WhenBusy WhenBehind `yaml:"when_busy" default:"fail"`
	// WhenStopped says what becomes of a backup whose replica somebody stopped.
	WhenStopped string  `yaml:"when_stopped" default:"refuse" enum:"refuse"`
	Require     Require `yaml:"require"`
}

// Require is what a backup must have before it becomes the latest.
type Require struct {
	// Attested is how many witnesses must agree with it, where there are any that
	// can be asked; 0: none.
	Attested int `yaml:"attested" default:"1"`
	// Opened is how much of the dump must have been opened and checked: what this
	// eddy can open, all, part, or none.
	Opened string `yaml:"opened" default:"possible" enum:"possible,all,part,none"`
}

// Check is how a dump is looked into before it is sent.
type Check struct {
	// Memory is what the process may have that opens the databases.
	Memory Size `yaml:"memory" default:"1GiB"`
}

// Attest is how the witnesses are asked about a backup.
type Attest struct {
	// Wait is how long those are waited for who cannot say yet: what proves a state
	// stands in the next block.
	Wait    Duration `yaml:"wait" default:"60s"`
	Trusted Trusted  `yaml:"trusted"`
}

// Trusted is a block that somebody looked up by other means, and to which the
// witnesses' blocks must lead back.
type Trusted struct {
	// Height is its height; 0: no block is pinned.
	Height int `yaml:"height"`
	// Hash is its hash, 64 hex digits.
	Hash string `yaml:"hash"`
	// Period is how long its validators are believed: less than their stake binds
	// them.
	Period Duration `yaml:"period" default:"336h"`
}

// Drill is how a backup is brought to life.
type Drill struct {
	// Command is an argv that runs a node; "{home}" in it stands for the copy's
	// home. Empty: as the node itself is run, without what would get in its way.
	Command []string `yaml:"command"`
	// Blocks is how many blocks after the backup must be executed.
	Blocks int `yaml:"blocks" default:"20"`
	// Timeout bounds the node's part of a drill; fetching the backup is not in it.
	Timeout Duration `yaml:"timeout" default:"30m"`
	// Isolated gives the copy no network: eddy hands out blocks that it has fetched
	// by RPC. Else it gets them from peers.
	Isolated string `yaml:"isolated" default:"true" enum:"true,false"`
	// Peers are id@host:port; empty: the persistent peers of the node, and the node.
	Peers []string `yaml:"peers"`
	// Check is an argv that must succeed beside the living copy.
	Check []string `yaml:"check"`
	// Dir is the scratch directory; "": drill in the workdir.
	Dir string `yaml:"dir"`
}

// Encryption says who can open what eddy encrypts.
type Encryption struct {
	// Recipients are public keys: of age, or of ssh (ed25519 and rsa).
	Recipients []string `yaml:"recipients"`
	// RecipientsFile holds more of them, one a line; "": none.
	RecipientsFile string `yaml:"recipients_file"`
}

// Keys is how a node's keys and configuration are kept: apart from its data, and
// encrypted.
type Keys struct {
	// Node is the node's name in the store; "": the host's.
	Node string `yaml:"node"`
	// Preset is what kind of node it is; auto: what its home looks like.
	Preset string `yaml:"preset" default:"auto" enum:"auto,cosmos-sdk,loom,cometbft,swarm,etcd,zookeeper,consul"`
	// Include and Exclude are patterns of files and directories, absolute or below the
	// home, that go into a bundle, or do not. Exclude wins.
	Include []string `yaml:"include"`
	Exclude []string `yaml:"exclude"`
	// ValidatorKey takes the validator key along, and with it its sign state.
	ValidatorKey string `yaml:"validator_key" default:"false" enum:"true,false"`
	// Schedule says when `eddy run` makes a bundle: as Config.Schedule; "": never.
	Schedule string `yaml:"schedule"`
	// Keep is how many bundles of each node an expiry leaves.
	Keep int `yaml:"keep" default:"10"`
}

// Stage is how the stage is filled.
type Stage struct {
	// Fallback allows copying what cannot be linked.
	Fallback string `yaml:"fallback" default:"none" enum:"none,copy"`
}

// Verify says when `eddy run` proves what the store has.
type Verify struct {
	// ReadData is when every byte of the latest backup is read back: as Schedule; "":
	// never.
	ReadData string `yaml:"read_data"`
	// Open: what was read back is looked into, too.
	Open string `yaml:"open" default:"true" enum:"true,false"`
	// Dir is where what is looked into lies meanwhile; "": in the workdir.
	Dir string `yaml:"dir"`
	// Drill is when the latest backup is brought to life: as Schedule; "": never.
	Drill string `yaml:"drill"`
}

// Sign is how manifests are signed.
type Sign struct {
	// KeyFile is an ed25519 key in PEM (PKCS #8); "": nothing is signed.
	KeyFile string `yaml:"key_file"`
}

// Notify says who hears what became of runs.
type Notify struct {
	// OnSuccess and OnFailure are commands, each an argv without a shell.
	OnSuccess []string `yaml:"on_success"`
	OnFailure []string `yaml:"on_failure"`
	// PingURL is a dead man's switch, http or https.
	PingURL string `yaml:"ping_url" secret:"true"`
	// Textfile is a file for node_exporter's textfile collector, named *.prom.
	Textfile string `yaml:"textfile"`
}

// Need says which values a verb cannot do without. Needs are joined with |.
type Need uint

// What the verbs need.
const (
	NeedNothing Need = 0
	// NeedStore: store.url.
	NeedStore Need = 1 << 0
	// NeedCluster: cluster.
	NeedCluster Need = 1 << 1
	// NeedReplica: replica.home, replica.rpc, replica.control, workdir.
	NeedReplica Need = 1 << 2
	// NeedSchedule: schedule.
	NeedSchedule Need = 1 << 3

	// NeedHome: replica.home, workdir.
	NeedHome Need = 1 << 4

	// NeedRecipients: encryption.recipients or encryption.recipients_file.
	NeedRecipients Need = 1 << 5

	NeedCatalog = NeedStore | NeedCluster   // one cluster's backups
	NeedBackup  = NeedCatalog | NeedReplica // to make a backup
	NeedRun     = NeedBackup | NeedSchedule // to make them for ever
	NeedDrill   = NeedCatalog | NeedHome    // to bring one to life

	NeedKeys = NeedCatalog | NeedHome | NeedRecipients // to make a bundle of keys
)

// Overrides are the values of flags; "" means that the flag was not given.
type Overrides struct {
	Store, Region, Endpoint, Cluster, Home, LogFormat string
}

// flags pairs each flag with its key, in the order of the problems.
func (o Overrides) flags() []struct{ flag, key, text string } {
	return []struct{ flag, key, text string }{
		{"--store", "store.url", o.Store},
		{"--region", "store.region", o.Region},
		{"--endpoint", "store.endpoint", o.Endpoint},
		{"--cluster", "cluster", o.Cluster},
		{"--home", "replica.home", o.Home},
		{"--log-format", "log_format", o.LogFormat},
	}
}

// Bounds of values that would otherwise fail much later.
const (
	minVolume  = 64 << 10  // bytes; smaller ones are only indexes
	maxVolume  = 256 << 30 // bytes; larger ones need parts that break the bound on memory
	maxLevel   = 19        // above it zstd needs another window than every decoder allows
	maxHold    = 6 * time.Hour
	unitGuards = 12 * time.Second // how long before the deadline systemd's guard begins
	minTimeout = time.Second
	maxAttest  = time.Hour
	maxSocket  = 107 // bytes of sun_path without its NUL

	maxDrillBlocks = 1000
	maxDrill       = 24 * time.Hour
)
