package arch

// module is the path of the main module. lab/ is another one, held to nothing.
const module = "github.com/eddy-backup/eddy"

// leaves may be imported by everybody and import nothing of the module.
var leaves = []string{"internal/fsx", "internal/hint", "internal/crc", "internal/check"}

// row is what one package may import of the module, leaves apart, and what it
// must never import of anybody. "x/..." stands for x and all below it. Tests are
// free to import what they need.
type row struct {
	pkg     string
	imports []string
	never   []string
}

var (
	network = []string{"net"}
	stores  = []string{"github.com/aws"}
	cluster = []string{"github.com/cometbft/cometbft", "github.com/cometbft/cometbft-db"}
)

// table is the order of the house: cmd -> job -> {observer -> snapshot, uploader}.
var table = []row{
	// No network: what an archive is does not depend on where it goes.
	{pkg: "snapshot", never: join(network, stores, cluster)},
	// What it seals goes wherever somebody else brings it.
	{pkg: "snapshot/bundle", imports: []string{"snapshot"}, never: join(network, stores, cluster)},
	// No cluster: what it sends are pieces of bytes.
	{pkg: "uploader", never: cluster},
	// No bucket.
	{pkg: "observer", imports: []string{"snapshot"}, never: stores},
	{pkg: "observer/control", never: join(stores, cluster)},
	{pkg: "observer/held", imports: []string{"observer", "observer/control", "snapshot"}, never: join(stores, cluster)},
	{pkg: "observer/cometbft", imports: []string{"observer", "observer/control", "observer/held", "observer/cometbft/check", "observer/cometbft/engine", "snapshot"}, never: stores},
	// What kind of server it runs it does not know.
	{pkg: "observer/alone", never: join([]string{"net/http"}, stores, cluster)},
	{pkg: "observer/etcd", imports: []string{"internal/secret", "observer", "observer/alone", "snapshot"}, never: join(stores, cluster)},
	{pkg: "observer/swarm", imports: []string{"observer", "observer/alone", "observer/control", "observer/held", "snapshot"}, never: join(stores, cluster)},
	{pkg: "observer/command", imports: []string{"internal/secret", "observer", "snapshot"}, never: join(network, stores, cluster)},
	{pkg: "observer/consul", imports: []string{"internal/secret", "observer", "observer/alone", "snapshot"}, never: join(stores, cluster)},
	{pkg: "observer/zookeeper", imports: []string{"internal/secret", "observer", "observer/alone", "observer/control", "observer/held", "snapshot"}, never: join(stores, cluster)},
	// Files and keys: what they mean is for others.
	{pkg: "observer/cometbft/engine", never: join(network, stores, cluster)},
	// Offline: it proves what files alone can prove.
	{pkg: "observer/cometbft/check", imports: []string{"observer/cometbft/engine"}, never: join(network, stores)},
	{pkg: "observer/cometbft/node", never: stores},
	{pkg: "observer/cometbft/drill", imports: []string{"observer", "observer/cometbft", "snapshot"}, never: stores},
	// The only place where observer, snapshot and uploader meet. It knows them by
	// their contracts: no kind of system, no way of control, no protocol.
	{pkg: "internal/job", imports: []string{"observer", "snapshot", "snapshot/bundle", "uploader", "internal/ui"}, never: join(network, stores, cluster)},
	// A function of what was seen: it asks nobody.
	{pkg: "internal/recovery", imports: []string{"observer"}, never: join([]string{"net/http", "os"}, stores, cluster)},
	{pkg: "internal/config", never: join(stores, cluster, []string{"net/http"})},
	// It edits a node's file and knows no node.
	{pkg: "internal/nodeconfig", never: join(stores, cluster, []string{"net/http"})},
	// It looks at a machine; what a home holds it asks those who back it up.
	{pkg: "internal/detect", imports: []string{"internal/config", "internal/nodeconfig", "observer/cometbft"}, never: join(stores, cluster)},
	// Who the nodes of a chain are, by files alone.
	{pkg: "internal/roster", imports: []string{"internal/nodeconfig"}, never: join(stores, cluster, []string{"net/http"})},
	{pkg: "internal/secret", never: join(network, stores, cluster)},
	{pkg: "internal/ui", never: join(network, stores, cluster)},
	// The demo plays an operator: it runs the binary. Of the rest it takes only
	// what writes the homes of its chain.
	{pkg: "internal/demo", imports: []string{"observer/cometbft/node", "scripts"}, never: join(stores, cluster)},
	{pkg: "internal/alarm", never: join(stores, cluster)},
	{pkg: "internal/arch"},
	// It has tests only.
	{pkg: "internal/crash"},
	// For tests: no row allows to import it.
	{pkg: "internal/s3fake", never: join(stores, cluster)},
	{pkg: "internal/leak", imports: []string{"uploader"}, never: join(stores, cluster)},
	// Files that the binary carries along, and files that an operator copies.
	{pkg: "scripts", never: network},
	{pkg: "deploy", never: network},
	// The wiring: here, and only here, kinds, controls and stores are chosen.
	{pkg: "cmd/eddy", imports: []string{
		"internal/alarm", "internal/config", "internal/demo", "internal/detect", "internal/job", "internal/nodeconfig", "internal/recovery", "internal/roster", "internal/secret", "internal/ui",
		"observer", "observer/cometbft", "observer/cometbft/check", "observer/cometbft/drill", "observer/cometbft/node",
		"observer/command",
		"observer/consul",
		"observer/etcd",
		"observer/swarm",
		"observer/zookeeper",
		"observer/control", "observer/held", "snapshot", "snapshot/bundle", "uploader",
	}, never: join(stores, cluster)},
}

// homes says where a module of somebody else's is used: one that is replaced
// one day is then replaced in one place.
var homes = map[string][]string{
	"github.com/aws":                 {"uploader"},
	"github.com/cometbft":            {"observer/cometbft", "observer/cometbft/check", "observer/cometbft/drill", "observer/cometbft/node"},
	"github.com/spf13/cobra":         {"cmd/eddy"},
	"github.com/netresearch/go-cron": {"internal/config", "cmd/eddy"},
	"go.etcd.io/etcd":                {"observer/etcd"},
	"go.yaml.in/yaml/v3":             {"internal/config"},
	"github.com/godbus/dbus":         {"observer/control"},
	"filippo.io/age":                 {"snapshot/bundle"},
	"golang.org/x/crypto":            {"observer/swarm", "snapshot/bundle"},
	"github.com/pelletier/go-toml":   {"internal/nodeconfig"},
	"golang.org/x/term":              {"internal/ui", "cmd/eddy"},
}

// testOnly are modules that must not get into the binary.
var testOnly = []string{
	"testing", "net/http/httptest",
	"github.com/prometheus/common", "github.com/rogpeppe/go-internal", "pgregory.net/rapid", "go.uber.org/goleak", "github.com/google/go-cmp", "github.com/stretchr/testify",
}

// effects are the packages that change files by an fsx.FS only, so that a crash
// can be played at every change.
var effects = []string{"snapshot", "snapshot/bundle", "internal/job", "uploader"}

func join(lists ...[]string) []string {
	var out []string
	for _, l := range lists {
		out = append(out, l...)
	}
	return out
}
