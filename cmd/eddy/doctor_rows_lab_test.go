//go:build lab

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/s3fake"
	"github.com/eddy-backup/eddy/observer/cometbft/node"
)

// put is a case whose fault stands in eddy.yaml.
func put(settings ...string) func(*clinic) { return func(c *clinic) { c.put(settings...) } }

// bucket is a case whose fault is the store's.
func bucket(q s3fake.Quirks) func(*clinic) { return func(c *clinic) { c.bucket(q) } }

const abortRule = `<Rule><ID>a</ID><Filter><Prefix>eddy/</Prefix></Filter><Status>Enabled</Status><AbortIncompleteMultipartUpload><DaysAfterInitiation>7</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>`

// ruleWith is abortRule with one more thing in it.
func ruleWith(xml string) s3fake.Quirks {
	return s3fake.Quirks{Lifecycle: strings.Replace(abortRule, "<Abort", xml+"<Abort", 1)}
}

// actions are the calls of the S3 API by the right that each needs.
var actions = map[string][]string{
	"s3:PutObject":                        {"PutObject", "CreateMultipartUpload", "UploadPart", "UploadPartCopy", "CompleteMultipartUpload"},
	"s3:GetObject":                        {"GetObject", "HeadObject"},
	"s3:ListBucket":                       {"ListObjectsV2"},
	"s3:AbortMultipartUpload":             {"AbortMultipartUpload"},
	"s3:ListMultipartUploadParts":         {"ListParts"},
	"s3:ListBucketMultipartUploads":       {"ListMultipartUploads"},
	"s3:DeleteObject":                     {"DeleteObject", "DeleteObjects"},
	"s3:GetLifecycleConfiguration":        {"GetBucketLifecycleConfiguration"},
	"s3:GetBucketVersioning":              {"GetBucketVersioning"},
	"s3:GetBucketObjectLockConfiguration": {"GetObjectLockConfiguration"},
	"s3:PutObjectTagging":                 {"PutObjectTagging"},
}

// granted is a bucket whose credentials have the rights of these policies of
// deploy/s3, and no others.
func (c *clinic) granted(policies ...string) s3fake.Quirks {
	q := s3fake.Quirks{Lifecycle: abortRule, Refuses: map[string]s3fake.Reply{}}
	for _, calls := range actions {
		for _, call := range calls {
			q.Refuses[call] = s3fake.Reply{Status: http.StatusForbidden, Code: "AccessDenied"}
		}
	}
	for _, name := range policies {
		text, err := os.ReadFile(filepath.Join("../..", name))
		must(c.t, err)
		for _, action := range regexp.MustCompile(`"(s3:\w+)"`).FindAllSubmatch(text, -1) {
			for _, call := range actions[string(action[1])] {
				delete(q.Refuses, call)
			}
		}
	}
	return q
}

// has is a case in which the credentials have only these policies. It is followed
// by granting the one that the hint names.
func has(policies ...string) (func(*clinic), func(*clinic, []string)) {
	return func(c *clinic) { c.bucket(c.granted(policies...)) },
		func(c *clinic, m []string) { c.bucket(c.granted(append(slices.Clone(policies), m[1])...)) }
}

// without takes an element, m[1], out of the rule m[2].
func without(c *clinic, m []string) {
	q := c.quirk
	rule := regexp.MustCompile(`(?s)<Rule><ID>` + m[2] + `</ID>.*?</Rule>`)
	element := regexp.MustCompile(`(?s)<` + m[1] + `>.*</` + m[1] + `>`)
	q.Lifecycle = rule.ReplaceAllStringFunc(q.Lifecycle, func(r string) string { return element.ReplaceAllString(r, "") })
	c.bucket(q)
}

// merge adds the rules of the file m[1], with the prefix m[2].
func merge(c *clinic, m []string) {
	var file struct {
		Rules []struct {
			ID, Status                     string
			Filter                         struct{ Prefix string }
			AbortIncompleteMultipartUpload struct{ DaysAfterInitiation int }
		}
	}
	text, err := os.ReadFile(filepath.Join("../..", m[1]))
	must(c.t, err)
	must(c.t, json.Unmarshal(text, &file))
	q := c.quirk
	for _, r := range file.Rules {
		q.Lifecycle += fmt.Sprintf("<Rule><ID>%s</ID><Filter><Prefix>%s</Prefix></Filter><Status>%s</Status><AbortIncompleteMultipartUpload><DaysAfterInitiation>%d</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>",
			r.ID, m[2], r.Status, r.AbortIncompleteMultipartUpload.DaysAfterInitiation)
	}
	c.bucket(q)
}

// inPlace writes another witness in place of the one that the hint names.
func inPlace(c *clinic, m []string) {
	for _, w := range []string{c.with("$VALIDATOR"), c.with("$OTHER")} {
		if !strings.Contains(c.now, w) {
			c.now = strings.Replace(c.now, m[1], w, 1)
			return
		}
	}
	c.t.Fatal("no witness is left")
}

const anotherWitness = `write the RPC address of another node of the chain in place of (\S+) in replica\.witnesses`

func brokenSetups() []broken {
	noWrite, grantWrite := has("deploy/s3/policy-restorer.json", "deploy/s3/policy-retention.json")
	noDelete, grantDelete := has("deploy/s3/policy-writer.json")
	noRules, grantRules := has("deploy/s3/policy-restorer.json", "deploy/s3/policy-retention.json")
	return []broken{
		{
			name: "wrong chain", harm: put("replica.chain_id: other-1"), level: check.Fail, check: "chain", said: "on chain script-1, the configuration says other-1",
			hint: "^set `replica.chain_id: script-1`",
		},
		{
			name: "home of another node", harm: func(c *clinic) {
				h, err := node.Init(node.Options{Home: filepath.Join(c.dir, "stranger"), ChainID: "stranger-1"})
				must(c.t, err)
				c.put("replica.home: " + h.Dir)
			}, level: check.Fail, check: "chain", said: "the genesis in .* is of chain stranger-1",
			hint: "^set `replica.home: DIR` to the home of the node at http", fill: []string{"DIR", "$HOME"},
		},
		{
			name: "node that does not answer", harm: put("replica.rpc: http://127.0.0.1:1"), level: check.Fail, check: "node", said: "RPC http://127.0.0.1:1 does not answer",
			hint: "^set `replica.rpc: http[^`]+`, as .*config.toml has it",
		},
		{
			name: "node that is down", harm: func(c *clinic) { c.byCommands() }, level: check.Fail, check: "node", said: "does not answer",
			hint: "^start it: `[^`]+`",
		},
		{
			name: "node that somebody stopped", harm: func(c *clinic) { c.byCommands() }, level: check.Fail, check: "control", said: "the node is stopped",
			hint: "^start it: `[^`]+`",
		},
		{
			name: "validator", harm: func(c *clinic) {
				c.witness(func(b []byte) []byte { return b })
				c.put("replica.home: $VHOME", "replica.rpc: $VALIDATOR")
			}, level: check.Fail, check: "validator", said: "is a validator .voting power",
			hint: "set `replica.home: DIR` and `replica.rpc: URL`", fill: []string{"DIR", "$HOME", "URL", "$RPC"},
		},
		{
			name: "no witnesses", harm: put("replica.witnesses: []"), level: check.Warn, check: "witnesses", said: "none are named",
			hint: "^set `replica.witnesses: [^`]+`", fill: []string{"URL1", "$VALIDATOR", "URL2", "$OTHER"},
		},
		{
			name: "one witness", harm: put("replica.witnesses: [$OTHER]"), level: check.Warn, check: "witnesses", said: "only one is named",
			hint: "^set `replica.witnesses: [^`]+`", fill: []string{"URL1", "$OTHER", "URL2", "$VALIDATOR"},
		},
		{
			name: "a dead witness", harm: put("replica.witnesses: [$VALIDATOR, http://127.0.0.1:1]"), level: check.Warn, check: "witnesses", said: "http://127.0.0.1:1 does not answer",
			hint: anotherWitness, by: inPlace,
		},
		{
			name: "dead witnesses only", harm: put("replica.witnesses: [http://127.0.0.1:1, http://127.0.0.1:2]"), level: check.Fail, check: "witnesses", said: "does not answer",
			hint: anotherWitness, by: inPlace,
		},
		{name: "witness of another chain", harm: func(c *clinic) {
			c.witness(func(b []byte) []byte {
				return bytes.ReplaceAll(b, []byte(`"network":"script-1"`), []byte(`"network":"other-1"`))
			})
		}, level: check.Fail, check: "witnesses", said: "is on chain other-1, the node on script-1", hint: anotherWitness, by: inPlace},
		// The clock of this machine is not ours to set: instead of it the chain's is
		// set, by a timedatectl that takes nothing but what the hint says.
		{name: "clock that is slow", harm: func(c *clinic) {
			must(c.t, os.MkdirAll(filepath.Join(c.dir, "bin"), 0o700))
			c.write("bin/timedatectl", "#!/bin/sh\n[ \"$*\" = 'set-ntp true' ] && touch "+c.dir+"/clock-is-set\n")
			hour := time.Now().Add(time.Hour).UTC().Format(time.RFC3339Nano)
			blockTime := regexp.MustCompile(`"latest_block_time":"[^"]*"`)
			c.witness(func(b []byte) []byte {
				if _, err := os.Stat(filepath.Join(c.dir, "clock-is-set")); err == nil {
					return b
				}
				return blockTime.ReplaceAll(b, []byte(`"latest_block_time":"`+hour+`"`))
			})
		}, level: check.Fail, check: "clock", said: "behind the chain's newest block", hint: "as root: `[^`]+`"},
		{
			name: "stop time-out", harm: put("replica.control.timeout: 30s"), level: check.Warn, check: "stop time-out", said: "30s to stop",
			hint: "^set `replica.control.timeout: 2m`",
		},
		{
			name: "supervise that is not there", harm: put("replica.home: $SPARE", "replica.rpc: $SRPC", "replica.control.supervise: $DIR/nobody.sock"),
			level: check.Fail, check: "control", said: "nobody.sock", hint: "^start the node with `(eddy supervise [^`]+)`", by: func(c *clinic, m []string) {
				log, err := os.Create(filepath.Join(c.dir, "supervise.log"))
				must(c.t, err)
				cmd := exec.Command("sh", "-c", "exec "+c.with(strings.NewReplacer("HOME", "$SPARE", "CMD", "eddy node run --home $SPARE").Replace(m[1])))
				cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setpgid: true}
				must(c.t, cmd.Start())
				c.t.Cleanup(func() { kill(cmd) })
			},
		},
		{name: "home that is none", harm: func(c *clinic) {
			must(c.t, os.MkdirAll(filepath.Join(c.dir, "empty"), 0o700))
			c.put("replica.home: $DIR/empty")
		}, level: check.Fail, check: "home", said: "neither data nor", hint: "^set `replica.home: DIR`", fill: []string{"DIR", "$HOME"}},
		{name: "pex", harm: func(c *clinic) {
			file := filepath.Join(c.home.Dir, "config", "config.toml")
			b, err := os.ReadFile(file)
			must(c.t, err)
			c.t.Cleanup(func() { must(c.t, os.WriteFile(file, b, 0o600)) })
			if !bytes.Contains(b, []byte("pex = false")) {
				c.t.Fatal("pex is on in a healthy node")
			}
			must(c.t, os.WriteFile(file, bytes.Replace(b, []byte("pex = false"), []byte("pex = true"), 1), 0o600))
		}, level: check.Warn, check: "hidden", said: "pex is on", hint: "^`eddy config init [^`]+`"},
		{name: "stage on another mount", harm: func(c *clinic) {
			shm, err := os.MkdirTemp("/dev/shm", "eddy-doctor-")
			must(c.t, err)
			link := filepath.Join(c.home.Dir, ".eddy")
			c.t.Cleanup(func() { os.RemoveAll(shm); os.Remove(link) })
			must(c.t, os.Symlink(shm, link))
		}, level: check.Fail, check: "links", said: "on another mount", hint: "^`rm [^`]+`: eddy makes a plain directory there"},
		{name: "open hold", harm: func(c *clinic) {
			c.byCommands()
			c.write("state/hold.json", `{"format":1,"min_reader":1,"kind":"hold","control":"exec","purpose":"backup","pid":4194305}`+"\n")
			c.t.Cleanup(func() { os.RemoveAll(filepath.Join(c.dir, "bucket")) })
		}, level: check.Warn, check: "open hold", said: "for a backup", hint: "`eddy backup` starts the node"},
		{name: "open hold of another control", harm: func(c *clinic) {
			c.write("state/hold.json", `{"format":1,"min_reader":1,"kind":"hold","control":"exec","purpose":"backup","pid":4194305}`+"\n")
		}, level: check.Warn, check: "open hold", said: "by control exec; the configuration names another: supervise", hint: "see to it that the node runs, then `rm [^`]+`"},
		{name: "workdir that is a file", harm: func(c *clinic) {
			c.write("file", "")
			c.put("workdir: $DIR/file")
		}, level: check.Fail, check: "workdir", said: "no directory", hint: "^set `workdir: DIR` to one", fill: []string{"DIR", "$DIR/state"}},
		{
			name: "nobody deletes", harm: put("retention: {by: none}"), level: check.Warn, check: "retention", said: "nobody deletes old ones",
			hint: "^set `retention: [^`]+`",
		},
		{name: "store that is below a file", harm: func(c *clinic) {
			c.write("file", "")
			c.put("store.url: file://$DIR/file/bucket")
		}, level: check.Fail, check: "store", said: "store refuses", hint: "^a part of \\S+/file/bucket is a file: set `store.url: [^`]+`", fill: []string{"file:///DIR", "file://$DIR/bucket"}},
		{name: "no such bucket", harm: func(c *clinic) {
			c.bucket(s3fake.Quirks{Lifecycle: abortRule})
			c.put("store.url: s3://bucke/eddy")
		}, level: check.Fail, check: "store", said: "NoSuchBucket", hint: "set `store.url: s3://BUCKET/PREFIX`", fill: []string{"BUCKET", "bucket", "PREFIX", "eddy"}},
		{name: "archive class", harm: func(c *clinic) {
			c.bucket(s3fake.Quirks{Lifecycle: abortRule})
			c.put("store.storage_class: COLD")
		}, level: check.Fail, check: "store", said: "at once, and must be thawed", hint: "^set `store.storage_class: STANDARD`"},
		{
			name: "bucket that archives", harm: bucket(s3fake.Quirks{Class: "GLACIER", Lifecycle: abortRule}), level: check.Fail, check: "store", said: "at once, and must be thawed",
			hint: "^set `store.url: [^`]+` to a bucket that keeps objects readable", fill: []string{"BUCKET", "good", "PREFIX", "eddy"},
		},
		{
			name: "no conditional writes", harm: bucket(s3fake.Quirks{Conditions: s3fake.CondIgnored, Lifecycle: abortRule}), level: check.Warn, check: "conditional writes", said: "ignores the conditions",
			hint: "or use a store that keeps conditions, by the table in (docs/stores.md)", by: func(c *clinic, m []string) {
				page, err := os.ReadFile(filepath.Join("../..", m[1]))
				must(c.t, err)
				if !bytes.Contains(page, []byte("| store | conditional writes |")) {
					c.t.Errorf("%s has no such table", m[1])
				}
				c.put("store.url: s3://good/eddy")
			},
		},
		{name: "no right to write", harm: noWrite, level: check.Fail, check: "store", said: "AccessDenied", hint: "grant them (deploy/s3/\\S+.json)", by: grantWrite},
		{name: "no right to delete", harm: noDelete, level: check.Fail, check: "deletion", said: "may not delete", hint: "grant them (deploy/s3/\\S+.json)", by: grantDelete},
		{name: "no right to see the rules", harm: func(c *clinic) {
			noRules(c)
			q := c.quirk
			for _, call := range append(actions["s3:PutObject"], actions["s3:AbortMultipartUpload"]...) {
				delete(q.Refuses, call)
			}
			c.bucket(q)
		}, level: check.Warn, check: "lifecycle", said: "may not be read", hint: "grant s3:GetLifecycleConfiguration on the bucket, as (deploy/s3/\\S+.json) does", by: grantRules},
		{name: "no right to delete, and none wanted", harm: noDelete, level: check.Fail, check: "deletion", said: "may not delete", hint: "or set `retention: [^`]+`", only: true},
		{
			name: "rule that deletes backups", harm: bucket(ruleWith("<Expiration><Days>30</Days></Expiration>")), level: check.Fail, check: "lifecycle",
			said: "deletes backups, and latest, after 30 days", hint: `^take (Expiration) out of rule "(a)"`, by: without,
		},
		{
			name: "rule that archives backups", harm: bucket(ruleWith("<Transition><Days>30</Days><StorageClass>GLACIER</StorageClass></Transition>")), level: check.Fail, check: "lifecycle",
			said: "must be thawed", hint: `^take (Transition) out of rule "(a)"`, by: without,
		},
		{
			name: "rule that aborts too early", harm: bucket(s3fake.Quirks{Lifecycle: strings.Replace(abortRule, ">7<", ">1<", 1)}), level: check.Warn, check: "lifecycle",
			said: "aborts uploads after 1 days", hint: `^let (DaysAfterInitiation) of rule "a" be (\d+)$`, by: func(c *clinic, m []string) {
				q := c.quirk
				q.Lifecycle = strings.Replace(q.Lifecycle, "<"+m[1]+">1<", "<"+m[1]+">"+m[2]+"<", 1)
				c.bucket(q)
			},
		},
		{
			name: "no abort rule", harm: bucket(s3fake.Quirks{}), level: check.Warn, check: "lifecycle", said: "no rule ends uploads",
			hint: "^merge (deploy/s3/lifecycle.json) into the bucket's rules, with the prefix (\\S+)$", by: merge,
		},
	}
}

// Set-ups that only root can break.
func brokenByRoot() []broken {
	// small is a case with a filesystem that is too small. Freed is what the hint
	// says, by making it larger.
	small := func(setting string) func(*clinic) {
		return func(c *clinic) {
			dir := filepath.Join(c.t.TempDir(), "small")
			must(c.t, os.Mkdir(dir, 0o755))
			must(c.t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
			c.t.Cleanup(func() { must(c.t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
			c.put(strings.ReplaceAll(setting, "$SMALL", dir))
		}
	}
	larger := func(c *clinic, m []string) {
		dir := regexp.MustCompile(`/\S+/small`).FindString(c.now)
		var st syscall.Statfs_t
		must(c.t, syscall.Statfs(dir, &st))
		more, err := strconv.ParseInt(m[1], 10, 64)
		must(c.t, err)
		c.shell(fmt.Sprintf("mount -o remount,size=%d %s", int64(st.Blocks)*st.Bsize+more<<20, dir))
	}
	// nobody lets user 65534 run eddy, which needs the way to all that it looks at.
	nobody := func(c *clinic) {
		exe, err := exec.LookPath("eddy")
		must(c.t, err)
		real, err := filepath.EvalSymlinks(exe)
		must(c.t, err)
		must(c.t, exec.Command("sh", "-c", `chmod -R a+rX "$0"; mkdir -p "$0/.eddy" "$1/bucket"; chown -R 65534 "$0/.eddy" "$1/bucket" "$1/state"
			for p; do while [ "$p" != / ]; do chmod a+x "$p"; p=$(dirname "$p"); done; done`, c.home.Dir, c.dir, c.home.Dir, exe, real).Run())
		c.uid = 65534
		c.t.Cleanup(func() { must(c.t, os.RemoveAll(filepath.Join(c.home.Dir, ".eddy"))) })
	}
	return []broken{
		{
			name: "another user", harm: nobody, level: check.Fail, check: "links", said: "cannot be linked", hint: `^run eddy as the user who owns the files \(uid (\d+)\)`,
			by: func(c *clinic, m []string) {
				uid, err := strconv.ParseUint(m[1], 10, 32)
				must(c.t, err)
				c.uid = uint32(uid)
			},
		},
		{name: "workdir that may not be made", harm: func(c *clinic) {
			nobody(c)
			c.put("workdir: $DIR/closed/state")
			dir := filepath.Join(c.dir, "closed")
			must(c.t, os.Mkdir(dir, 0o755))
			c.t.Cleanup(func() { must(c.t, os.RemoveAll(dir)) })
		}, level: check.Fail, check: "workdir", said: "may not create it", hint: "^as root: `install [^`]+`", only: true},
		{name: "workdir of somebody else", harm: func(c *clinic) {
			nobody(c)
			c.put("workdir: $DIR/theirs")
			must(c.t, os.Mkdir(filepath.Join(c.dir, "theirs"), 0o755))
		}, level: check.Fail, check: "workdir", said: "permission denied", hint: "^as root: `install [^`]+`", only: true},
		{name: "store of somebody else", harm: func(c *clinic) {
			nobody(c)
			c.put("store.url: file://$DIR/locked")
			must(c.t, os.Mkdir(filepath.Join(c.dir, "locked"), 0o755))
		}, level: check.Fail, check: "store", said: "permission denied", hint: "as root: `install [^`]+`$", only: true},
		{name: "stages of somebody else", harm: func(c *clinic) {
			nobody(c)
			c.uid = 0
			home := filepath.Join(c.dir, "nobodys") // the replica's, once it was root's
			must(c.t, exec.Command("sh", "-c", `cp -a "$0" "$1" && rm -rf "$1/.eddy" && mkdir "$1/.eddy" && chown -R 65534 "$1" && chown 0 "$1/.eddy" && chmod 700 "$1/.eddy"`, c.home.Dir, home).Run())
			c.put("replica.home: " + home)
			c.uid = 65534
		}, level: check.Fail, check: "links", said: "permission denied", hint: "^as root: `chown -R 65534 [^`]+/.eddy`", only: true},
		{
			name: "full disk", harm: small("roots.small: $SMALL"), level: check.Fail, check: "disk space", said: "only .* free on the filesystem of .*/small",
			hint: `^free (\d+) MiB more on the filesystem of \S+/small, or make it larger`, by: larger,
		},
		{
			name: "full workdir", harm: small("workdir: $SMALL"), level: check.Fail, check: "workdir", said: "only .* free",
			hint: `^free (\d+) MiB more there, or make it larger`, by: larger,
		},
	}
}
