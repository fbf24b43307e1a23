package config

import (
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/netresearch/go-cron"
)

var (
	// placeholder is what a template leaves to fill in, and the bucket names that
	// everybody's examples use.
	placeholder = regexp.MustCompile(`(?i)change-?me|^s3://(my|your|example)-?bucket\b`)

	nameText  = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,63}$`)
	chainText = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)
	// containerText is the engine's own rule for names.
	containerText = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
	hostText      = regexp.MustCompile(`^([A-Za-z0-9_.-]+|\[[0-9A-Fa-f:]+\]):[0-9]{1,5}$`)
	classText     = regexp.MustCompile(`^[A-Z0-9_]{1,40}$`)
	// unitText are the characters of systemd's names; otherUnit are units that
	// are no services.
	unitText  = regexp.MustCompile(`^[A-Za-z0-9:_.\\][A-Za-z0-9:_.\\@-]{0,199}$`)
	otherUnit = regexp.MustCompile(`\.(target|timer|socket|path|slice|scope|mount|automount|swap|device)$`)
	// bucketText is wider than AWS's rule: older and other stores allow more.
	bucketText = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]$`)
	priceText  = regexp.MustCompile(`^[0-9]{1,6}(\.[0-9]{1,6})?( [A-Za-z]{1,8})?$`)
	hashText   = regexp.MustCompile(`^[0-9A-Fa-f]{64}$`)
	peerText   = regexp.MustCompile(`^[0-9a-fA-F]{40}@[^@,\s]+:[0-9]{1,5}$`)
	keyFile    = regexp.MustCompile(`^(priv_validator_.*|node_key\.json|keyring-.*)$`)
)

// placeholderLeft is what is said of a value that nobody has filled in.
const placeholderLeft = "still the template's placeholder"

// check looks at the values in force: first at each alone, then at what they
// mean together. A key with a problem is not looked at again.
func (l *loader) check(need Need) {
	for _, f := range l.fields {
		if l.bad[f.key] {
			continue
		}
		for _, e := range f.elements() {
			switch {
			case placeholder.MatchString(e.text):
				l.problem(e.key, placeholderLeft, "write your own value")
			case f.enum != nil && !slices.Contains(f.enum, e.text):
				l.problem(f.key, "unknown value "+quote(e.text), wordsHint(f.enum))
			}
		}
	}
	if !l.broken {
		l.required(need)
	}
	l.checkNames()
	l.checkKind()
	l.checkReplica()
	l.checkControl()
	l.checkStore()
	l.checkCatalog()
	l.checkBackup()
	l.checkAttest()
	l.checkDrill()
	l.checkNotify()
	l.checkSigning()
	l.checkKeys(need)
	l.checkPlaces()
}

func wordsHint(words []string) string {
	words = slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" })
	if len(words) == 1 {
		return words[0] + " is the only one that this eddy knows"
	}
	return "write one of: " + strings.Join(words, ", ")
}

// required demands what the verb needs.
func (l *loader) required(need Need) {
	c := l.c
	for _, r := range []struct {
		need Need
		key  string
		set  bool
	}{
		{NeedCluster, "cluster", c.Cluster != ""},
		{NeedReplica | NeedHome, "replica.home", c.Replica.Home != "" || !c.Replica.Chain()},
		{NeedReplica, "replica.rpc", c.Replica.RPC != "" || !c.Replica.Chain()},
		{NeedReplica, "replica.command.argv", c.Replica.Kind != "command" || len(c.Replica.Command.Argv) > 0 || c.Replica.Command.Preset != ""},
		{NeedReplica | NeedHome, "replica.zookeeper.config", c.Replica.Kind != "zookeeper" || c.Replica.Zookeeper.Config != "" || c.Replica.Zookeeper.DataDir != ""},
		{NeedStore, "store.url", c.Store.URL != ""},
		{NeedReplica | NeedHome, "workdir", c.Workdir != ""},
		{NeedSchedule, "schedule", c.Schedule != ""},
	} {
		if need&r.need != 0 && !r.set && !l.excused(r.key) {
			l.problem(r.key, "missing", l.missingHint(r.key))
		}
	}
	if need&NeedReplica != 0 && c.Replica.Controlled() && !c.Replica.Control.Set() && !l.badBelow("replica.control") && !l.excused("replica.control") {
		l.problem("replica.control", "missing", "say how the node is stopped and started: supervise: /run/eddy/node.sock, systemd: {unit: NAME}, docker: {container: NAME}, or exec: {stop: [...], start: [...], status: [...]}")
	}
}

func (l *loader) badBelow(section string) bool {
	for key := range l.bad {
		if strings.HasPrefix(key, section+".") || key == section {
			return true
		}
	}
	return false
}

// excused tells that something was said already of the key or a section that
// it belongs to.
func (l *loader) excused(key string) bool {
	for ; key != ""; key = key[:max(0, strings.LastIndexByte(key, '.'))] {
		if l.bad[key] {
			return true
		}
	}
	return false
}

func (l *loader) missingHint(key string) string {
	ways := []string{}
	for _, x := range (Overrides{}).flags() {
		if x.key == key {
			ways = append(ways, "say "+x.flag)
		}
	}
	ways = append(ways, "set "+l.byKey[key].env())
	if l.exists {
		return strings.Join(append(ways, "write it into "+l.path), ", or ")
	}
	return strings.Join(append(ways, "write "+l.path+" with `eddy config init`"), ", or ")
}

func (e Exec) empty() bool { return len(e.Stop)+len(e.Start)+len(e.Status) == 0 }

// Set tells whether the process is controlled at all.
func (k Way) Set() bool { return len(k.ways()) > 0 }

// ways are the ways of control that are set; one of them is right.
func (k Way) ways() (set []string) {
	for _, w := range []struct {
		name string
		set  bool
	}{
		{"supervise", k.Supervise != ""},
		{"systemd", k.Systemd.Unit != ""},
		{"docker", k.Docker != Docker{}},
		{"exec", !k.Exec.empty()},
	} {
		if w.set {
			set = append(set, w.name)
		}
	}
	return set
}

func (l *loader) checkNames() {
	c := l.c
	if n := c.Cluster; n != "" && !l.bad["cluster"] && (!nameText.MatchString(n) || n == "." || n == "..") {
		l.problem("cluster", quote(n)+" cannot name a cluster", "use 1 to 63 of letters, digits, _ . -")
	}
	if n := c.Replica.ChainID; n != "" && !l.bad["replica.chain_id"] && !chainText.MatchString(n) {
		l.problem("replica.chain_id", quote(n)+" cannot be a chain id", "copy it from the node's genesis.json")
	}
}

func (l *loader) checkReplica() {
	r := l.c.Replica
	l.absolute("replica.home", r.Home)
	if !l.bad["replica.home"] && r.Home != "" && filepath.Clean(r.Home) == "/" {
		l.problem("replica.home", "the root directory is no node's home", "name the directory with config and data in it")
	}
	own := ""
	if r.RPC != "" && !l.bad["replica.rpc"] {
		own = l.rpc("replica.rpc", r.RPC)
	}
	if l.bad["replica.witnesses"] {
		return
	}
	seen := map[string]string{}
	for i, w := range r.Witnesses {
		key := fmt.Sprintf("replica.witnesses[%d]", i)
		host := l.rpc(key, w)
		switch {
		case host == "":
		case host == own:
			l.problem(key, "this is the replica itself", "a witness is another node of the chain: name its RPC address")
		case seen[host] != "":
			l.problem(key, "the same node as "+seen[host], "remove one of the two")
		default:
			seen[host] = key
		}
	}
}

// rpc checks an RPC address and returns its host and port, or "" after a problem.
// Its text never appears: it may hold a password or a token.
func (l *loader) rpc(key, text string) string {
	u, err := url.Parse(text)
	base, _, _ := strings.Cut(key, "[")
	switch {
	case err != nil || u.Opaque != "" || u.Scheme == "" || u.Host == "":
		l.problem(key, "not an address", "write http://host:26657")
	case u.Scheme == "tcp":
		l.problem(key, "tcp:// is the node's own notation", "write http:// instead")
	case u.Scheme != "http" && u.Scheme != "https":
		l.problem(key, "neither http nor https", "write http://host:26657")
	case u.Hostname() == "":
		l.problem(key, "no host", "write http://host:26657")
	case u.User != nil && !l.fromFile[base]:
		l.problem(key, "holds credentials", "put the address into a file of mode 0600 and name it in "+l.byKey[base].env()+"_FILE")
	case u.RawQuery != "" || u.Fragment != "":
		l.problem(key, "ends in a query or a fragment", "write scheme, host, port and path only")
	default:
		return hostPort(u)
	}
	return ""
}

// hostPort names the node behind an address, the usual forms of this machine
// alike. Other addresses of 127/8 are other listeners: test chains use them.
func hostPort(u *url.URL) string {
	host, port := strings.ToLower(u.Hostname()), u.Port()
	switch host {
	case "localhost", "127.0.0.1", "::1", "0.0.0.0", "::":
		host = "this machine"
	}
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	p := strings.TrimSuffix(u.Path, "/")
	return host + ":" + port + p
}

func (l *loader) checkControl() {
	const section = "replica.control"
	k := l.c.Replica.Control
	l.checkWay(section, k.Way)
	if !l.bad[section+".timeout"] && k.Timeout.D() < minTimeout {
		l.problem(section+".timeout", k.Timeout.String()+" is too short for any node to stop", "write 120s or more")
	}
	switch {
	case l.bad[section+".deadline"]:
	case k.Deadline.D() > maxHold:
		l.problem(section+".deadline", k.Deadline.String()+" holds the node for too long", "a hold takes seconds; write at most "+Duration(maxHold).String())
	case !l.bad[section+".timeout"] && k.Deadline <= k.Timeout:
		l.problem(section+".deadline", fmt.Sprintf("%s is not longer than the timeout, %s", k.Deadline, k.Timeout), "the hold begins with the node's own stop: allow for both")
	}
	systemd := k.Systemd.Unit != "" || l.c.Replica.App.Control.Systemd.Unit != ""
	if systemd && k.Timeout < k.Deadline && !l.bad[section+".timeout"] && !l.bad[section+".deadline"] && k.Deadline.D() <= k.Timeout.D()+unitGuards {
		l.problem(section+".deadline", fmt.Sprintf("%s leaves systemd's guard no time after the timeout, %s", k.Deadline, k.Timeout), fmt.Sprintf("it needs %s: write more than both together", Duration(unitGuards)))
	}
	const app = "replica.app"
	a := l.c.Replica.App
	l.checkWay(app+".control", a.Control)
	l.absolute(app+".home", a.Home)
	switch way := a.Control.ways(); {
	case l.badBelow(app):
	case a.Home != "" && len(way) == 0:
		l.problem(app+".control", "missing", "say how the app is stopped and started, as for the node: what it writes must stand still, too")
	case a.Home != "" && path.Clean(a.Home) == path.Clean(l.c.Replica.Home):
		l.problem(app+".home", "this is the node's home", "remove it: what lies there is backed up anyway")
	case a.Home != "" && l.c.Roots["app"] != "":
		l.problem("roots.app", "the name of the app's home", "give this root another name")
	case len(way) > 0 && reflect.DeepEqual(a.Control, k.Way):
		l.problem(app+".control."+way[0], "the same as the node's", "remove replica.app where one control stops both")
	}
}

// checkWay checks how one process is stopped and started.
func (l *loader) checkWay(section string, k Way) {
	if w := k.ways(); len(w) > 1 {
		l.problem(section+"."+w[0], "set beside "+strings.Join(w[1:], " and "), "a process is controlled in one way: leave only that")
	}
	l.absolute(section+".supervise", k.Supervise)
	if !l.bad[section+".supervise"] && len(k.Supervise) > maxSocket {
		l.problem(section+".supervise", fmt.Sprintf("%d bytes are too long for a socket's path", len(k.Supervise)), fmt.Sprintf("at most %d: put it below /run", maxSocket))
	}
	if u := k.Systemd.Unit; u != "" && !l.bad[section+".systemd.unit"] && (!unitText.MatchString(u) || otherUnit.MatchString(u)) {
		l.problem(section+".systemd.unit", quote(u)+" cannot be a service", "write its name as systemctl list-units --type=service shows it")
	}
	l.checkDocker(section+".docker", k.Docker)
	for _, a := range []struct {
		key  string
		argv []string
	}{{section + ".exec.stop", k.Exec.Stop}, {section + ".exec.start", k.Exec.Start}, {section + ".exec.status", k.Exec.Status}} {
		switch {
		case k.Exec.empty() || l.bad[a.key]:
		case len(a.argv) == 0:
			l.problem(a.key, "missing", "exec needs stop, start and status: without each of them a held node might not come back")
		default:
			l.argv(a.key, a.argv)
		}
	}
}

func (l *loader) checkDocker(section string, d Docker) {
	switch name := d.Container; {
	case l.bad[section+".container"]:
	case name == "" && d.Socket != "":
		l.problem(section+".container", "missing", "name the node's container; docker ps lists them")
	case name != "" && !containerText.MatchString(name):
		l.problem(section+".container", quote(name)+" cannot be a container", "write its name or its id; docker ps lists them")
	}
	host, tcp := strings.CutPrefix(d.Socket, "tcp://")
	switch {
	case l.bad[section+".socket"]:
	case !tcp:
		l.absolute(section+".socket", d.Socket)
	case !hostText.MatchString(host):
		l.problem(section+".socket", "not an address", "write a path, or tcp://host:port of a proxy without TLS on this machine")
	}
}

// argv refuses a command that could not be run.
func (l *loader) argv(key string, argv []string) {
	switch {
	case argv[0] == "":
		l.problem(key, "names no program", "write [program, argument, ...]")
	case strings.Contains(argv[0], "/") && !filepath.IsAbs(argv[0]):
		l.problem(key, quote(argv[0])+" is a relative path", "write it from the root: it is run from another directory")
	case len(argv) == 1 && strings.Contains(argv[0], " "):
		l.problem(key, "one word with spaces in it", "no shell reads it: write [program, argument, ...]")
	}
}

func (l *loader) checkStore() {
	s := l.c.Store
	isFile := l.checkStoreURL(s.URL)
	if s.Endpoint != "" && !l.bad["store.endpoint"] {
		u, err := url.Parse(s.Endpoint)
		switch {
		case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
			l.problem("store.endpoint", "not an address", "write https://host or http://host:port")
		case u.User != nil:
			l.problem("store.endpoint", "holds credentials", "remove them: credentials come from the AWS chain (AWS_ACCESS_KEY_ID, a profile, a role)")
		case u.RawQuery != "" || u.Fragment != "":
			l.problem("store.endpoint", "ends in a query or a fragment", "write scheme, host and port only")
		}
	}
	switch class := s.StorageClass; {
	case class == "" || l.bad["store.storage_class"]:
	case class == "GLACIER" || class == "DEEP_ARCHIVE":
		l.problem("store.storage_class", class+" cannot be read without thawing it for hours", "use STANDARD, STANDARD_IA or GLACIER_IR")
	case !classText.MatchString(class):
		l.problem("store.storage_class", quote(class)+" is no storage class", "write it in capitals, as in STANDARD_IA")
	}
	if s.SSE.KMSKeyID != "" && s.SSE.Mode != "aws:kms" && !l.badBelow("store.sse") {
		l.problem("store.sse.kms_key_id", "set without sse.mode aws:kms", "write mode: aws:kms, or remove the key")
	}
	if s.Price != "" && !l.bad["store.price"] && !priceText.MatchString(s.Price) {
		l.problem("store.price", quote(s.Price)+" is no price", "write what a GB costs a month: 0.023 USD")
	}
	if !isFile {
		return
	}
	for _, key := range []string{"store.region", "store.endpoint", "store.profile", "store.storage_class", "store.sse.mode", "store.sse.kms_key_id"} {
		// A --store file:// beside a file that describes a bucket is no mistake.
		if f := l.byKey[key]; f.value.String() != "" && !l.bad[key] && l.c.origins[key].Source == l.c.origins["store.url"].Source {
			l.problem(key, "means nothing for a file:// store", "remove it")
		}
	}
}

func (l *loader) checkCatalog() {
	c := l.c
	const key = "catalog_url"
	if l.bad[key] || l.bad["catalog"] || l.bad["store.url"] {
		return
	}
	u, err := url.Parse(c.CatalogURL)
	switch {
	// A --store file:// beside a file that describes a bucket is no mistake.
	case c.CatalogURL == "" && c.Catalog != "none" && strings.HasPrefix(c.Store.URL, "file:") && c.origins["catalog"].Source == c.origins["store.url"].Source:
		l.problem(key, "missing beside a store that is a directory", "write the address under which others can fetch what is in it, https://host/path")
	case c.CatalogURL == "":
	case c.Catalog == "none":
		l.problem(key, "means nothing without catalog", "write catalog: omnibus, or remove it")
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		l.problem(key, "not an address", "write https://host/path, as others fetch objects of the store")
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		l.problem(key, "holds more than host and path", "everybody reads it: credentials, queries and fragments do not belong here")
	}
}

// checkStoreURL tells whether the store is a directory.
func (l *loader) checkStoreURL(text string) (isFile bool) {
	const key = "store.url"
	if text == "" || l.bad[key] {
		return false
	}
	u, err := url.Parse(text)
	if strings.HasPrefix(text, "/") {
		l.problem(key, "a path is not a URL", "write file:// before it")
		return false
	}
	switch {
	case err != nil || u.Opaque != "" || u.Scheme == "":
		l.problem(key, "not a URL", "write s3://bucket/prefix or file:///directory")
	case u.Scheme != "s3" && u.Scheme != "file":
		l.problem(key, "neither s3:// nor file://", "write s3://bucket/prefix; a store's own address is store.endpoint")
	case u.User != nil:
		l.problem(key, "holds credentials", "remove them: credentials come from the AWS chain (AWS_ACCESS_KEY_ID, a profile, a role)")
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		l.problem(key, "ends in a query or a fragment", "region, endpoint and the like are keys of their own below store")
	case u.Scheme == "file" && u.Host != "":
		l.problem(key, "names a host", "a directory's URL has three slashes: file:///srv/backups")
	case u.Scheme == "file" && (u.Path == "" || path.Clean(u.Path) == "/"):
		l.problem(key, "names no directory", "write file:///srv/backups")
	case u.Scheme == "file":
		return true
	case !bucketText.MatchString(u.Host):
		l.problem(key, "names no possible bucket", "3 to 63 of lower-case letters, digits, dots and hyphens")
	case u.Path != "" && u.Path != "/" && path.Clean(u.Path) != strings.TrimSuffix(u.Path, "/"):
		l.problem(key, "has an odd prefix", "no empty part, no . and no .. between the slashes")
	}
	return false
}

func (l *loader) checkBackup() {
	c := l.c
	l.schedule("schedule", c.Schedule)
	l.schedule("verify.read_data", c.Verify.ReadData)
	l.schedule("verify.drill", c.Verify.Drill)
	r := c.Retention
	switch {
	case l.badBelow("retention"):
	case r.By == "eddy" && l.c.origins["retention.last"].Source == FromDefault:
		l.problem("retention.last", "missing beside by: eddy", "say how many backups eddy keeps, 3 for instance")
	case r.By == "eddy" && r.Last < 1:
		l.problem("retention.last", fmt.Sprintf("%d keeps nothing", r.Last), "write 1 or more")
	case r.By != "eddy" && l.c.origins["retention.last"].Source != FromDefault:
		l.problem("retention.last", "set, but eddy deletes nothing while by is "+r.By, "write by: eddy, or remove it")
	}
	if b := c.Backup; !l.bad["backup.level"] && (b.Level < 1 || b.Level > maxLevel) {
		l.problem("backup.level", fmt.Sprintf("%d is no level", b.Level), fmt.Sprintf("write 1 (fast) to %d (small)", maxLevel))
	}
	if m := c.Check.Memory; !l.bad["check.memory"] && (m < 64<<20 || m > 64<<30) {
		l.problem("check.memory", m.String()+" is out of range", "write 64MiB to 64GiB")
	}
	if v := c.Backup.VolumeSize; !l.bad["backup.volume_size"] && (v < minVolume || v > maxVolume) {
		l.problem("backup.volume_size", v.String()+" is out of range", fmt.Sprintf("write %s to %s", Size(minVolume), Size(maxVolume)))
	}
	if l.bad["include"] {
		return
	}
	for i, p := range c.Include {
		key := fmt.Sprintf("include[%d]", i)
		_, err := path.Match(p, "x")
		switch {
		case p == "" || path.Clean(p) != strings.TrimSuffix(p, "/") || p == ".":
			l.problem(key, quote(p)+" names nothing", "write a path below the home, without . and ..")
		case path.IsAbs(p):
			l.problem(key, quote(p)+" is not relative to the home", "write it from the home on; directories outside belong under roots")
		case p == ".." || strings.HasPrefix(p, "../"):
			l.problem(key, quote(p)+" leads out of the home", "directories outside belong under roots")
		case err != nil:
			l.problem(key, quote(p)+" is no pattern", "close the bracket, or write \\[ for one")
		case keyFile.MatchString(path.Base(p)):
			l.problem(key, quote(p)+" is a key or a sign state", "keys never travel in an archive: remove it")
		}
	}
}

func (l *loader) checkAttest() {
	c, t := l.c, l.c.Attest.Trusted
	if w := c.Attest.Wait.D(); !l.bad["attest.wait"] && (w < 0 || w > maxAttest) {
		l.problem("attest.wait", c.Attest.Wait.String()+" is out of range", "write 0s to "+Duration(maxAttest).String()+": it comes before the upload")
	}
	const trusted = "attest.trusted"
	switch {
	case l.badBelow(trusted):
	case t.Height < 0:
		l.problem(trusted+".height", fmt.Sprintf("%d is no height", t.Height), "write that of a block that you have looked up")
	case t.Hash != "" && !hashText.MatchString(t.Hash):
		l.problem(trusted+".hash", quote(t.Hash)+" is no block's hash", "write its 64 hex digits")
	case t.Height > 0 && t.Hash == "":
		l.problem(trusted+".hash", "missing beside a height", "write the hash of the block at that height")
	case t.Height == 0 && t.Hash != "":
		l.problem(trusted+".height", "missing beside a hash", "write the height of that block")
	case t.Period.D() < time.Hour:
		l.problem(trusted+".period", t.Period.String()+" is too short", "write somewhat less than the chain's unbonding time: 336h where that is 21 days")
	}
	n, witnesses := c.Backup.Require.Attested, len(c.Replica.Witnesses)
	switch {
	case l.badBelow("backup.require"), l.bad["replica.witnesses"]:
	case n < 0:
		l.problem("backup.require.attested", fmt.Sprintf("%d is no number of witnesses", n), "write 0 where none need agree")
	case witnesses > 0 && n > witnesses:
		l.problem("backup.require.attested", fmt.Sprintf("%d must agree of %d witnesses", n, witnesses), "name more of them in replica.witnesses, or demand fewer")
	}
}

// schedule refuses what is no schedule, or never comes.
func (l *loader) schedule(key, text string) {
	if text == "" || l.bad[key] {
		return
	}
	// Fixed, so that the verdict does not depend on the day; leap years follow.
	from := time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)
	switch s, err := cron.ParseStandard(text); {
	case err != nil:
		l.problem(key, quote(text)+" is no schedule", `write five cron fields ("0 3 * * *") or @hourly, @daily, @weekly, @every 6h`)
	case s.Next(from).IsZero():
		l.problem(key, quote(text)+" never comes", "name a day that exists")
	}
}

// publicKey is a public ed25519 key on one line: what stands before the key itself
// is the same in all of them.
var publicKey = regexp.MustCompile(`^MCowBQYDK2VwAyEA[A-Za-z0-9+/]{43}=$`)

func (l *loader) checkSigning() {
	l.absolute("sign.key_file", l.c.Sign.KeyFile)
	if l.bad["signers"] {
		return
	}
	for i, s := range l.c.Signers {
		if !publicKey.MatchString(s) && !filepath.IsAbs(s) {
			l.problem(fmt.Sprintf("signers[%d]", i), quote(s)+" is no public key", "write it as `eddy config show` has it in sign.public_key where it signs, or the absolute path of its PEM file")
		}
	}
}

// drillPlaces are the words of which a drill's command must have one, for the copy's
// place. An engine of a Swarm is told it in options of its own.
func drillPlaces(kind string) []string {
	switch kind {
	case "swarm":
		return []string{""}
	case "zookeeper":
		return []string{"{home}", "{config}"}
	}
	return []string{"{home}"}
}

func (l *loader) checkDrill() {
	d := l.c.Drill
	for _, a := range []struct {
		key  string
		argv []string
	}{{"drill.command", d.Command}, {"drill.check", d.Check}} {
		if len(a.argv) > 0 && !l.bad[a.key] {
			l.argv(a.key, a.argv)
		}
	}
	if text := strings.Join(d.Command, " "); text != "" && !l.bad["drill.command"] && !slices.ContainsFunc(drillPlaces(l.c.Replica.Kind), func(p string) bool { return strings.Contains(text, p) }) {
		l.problem("drill.command", "says nowhere {home}", `write where the copy's home belongs: [gaiad, start, --home, "{home}"]`)
	}
	if n := d.Blocks; !l.bad["drill.blocks"] && (n < 1 || n > maxDrillBlocks) {
		l.problem("drill.blocks", fmt.Sprintf("%d is out of range", n), fmt.Sprintf("write 1 to %d; 20 is a good number", maxDrillBlocks))
	}
	if t := d.Timeout.D(); !l.bad["drill.timeout"] && (t < minTimeout || t > maxDrill) {
		l.problem("drill.timeout", d.Timeout.String()+" is out of range", "write 30m, or what the node needs for its start and the blocks")
	}
	for i, p := range d.Peers {
		if !l.bad["drill.peers"] && !peerText.MatchString(p) {
			l.problem(fmt.Sprintf("drill.peers[%d]", i), quote(p)+" is no peer", "write id@host:port, as persistent_peers has it")
		}
	}
	if len(d.Peers) > 0 && d.Isolated == "true" && !l.bad["drill.isolated"] && !l.bad["drill.peers"] {
		l.problem("drill.peers", "set while the copy has no network", "write isolated: false beside it, or remove it")
	}
	l.absolute("drill.dir", d.Dir)
	l.absolute("verify.dir", l.c.Verify.Dir)
}

func (l *loader) checkNotify() {
	n := l.c.Notify
	for _, a := range []struct {
		key  string
		argv []string
	}{{"notify.on_success", n.OnSuccess}, {"notify.on_failure", n.OnFailure}} {
		if len(a.argv) > 0 && !l.bad[a.key] {
			l.argv(a.key, a.argv)
		}
	}
	if n.PingURL != "" && !l.bad["notify.ping_url"] {
		u, err := url.Parse(n.PingURL)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
			l.problem("notify.ping_url", "not an address", "write https://host/path, as your dead man's switch shows it")
		}
	}
	l.absolute("notify.textfile", n.Textfile)
	if n.Textfile != "" && !l.bad["notify.textfile"] && filepath.Ext(n.Textfile) != ".prom" {
		l.problem("notify.textfile", quote(n.Textfile)+" does not end in .prom", "node_exporter reads no other files: write /var/lib/node_exporter/textfile/eddy.prom")
	}
}
