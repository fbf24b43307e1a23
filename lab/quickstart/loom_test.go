//go:build root

package quickstart

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/lab"
)

const loomHome = "/home/loom"

// newLoomHost is a machine with an observer in the layout of a Loom chain, which the
// user loom runs under loom.service, and the settings of its old backup.sh. What
// runs is a program that stands for loom: a real CometBFT node below chaindata, and
// app.db held open beside it.
func newLoomHost(t *testing.T) *lab.Machine {
	t.Helper()
	self, err := os.Executable()
	must(t, err)
	m := bootHost(t, self)
	released, err := filepath.Glob("../../dist/eddy-*-linux-amd64")
	must(t, err)
	if len(released) != 1 {
		t.Fatalf("no release: %v (`make dist` makes it)", released)
	}
	in := func(name string) string { return filepath.Join(m.Root, name) }
	must(t, os.Rename(in(programs+"/"+filepath.Base(self)), in(programs+"/loom")))
	out, err := exec.CommandContext(t.Context(), "cp", released[0], in(programs+"/eddy")).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	newChain(t, released[0], in("/var/lib/chain"), "default", 1, 46657, 46656)
	// All nodes share the machine's network: this one has its ports on loopback.
	edit(t, in("/var/lib/chain/observer-0/config/config.toml"), "tcp://0.0.0.0:46657", "tcp://127.0.0.1:46657")
	put(t, m, "/etc/systemd/system/validator@.service", `[Service]
ExecStart=`+programs+`/eddy node run --home /var/lib/chain/validator-%i
`)
	put(t, m, "/etc/systemd/system/loom.service", `[Unit]
Description=Loom

[Service]
User=loom
WorkingDirectory=`+loomHome+`
ExecStart=`+programs+`/loom run
Restart=always
RestartSec=3

[Install]
WantedBy=multi-user.target
`)
	must(t, m.Script(t.Context(), `set -euo pipefail
useradd --create-home loom
cd `+loomHome+`
mv /var/lib/chain/observer-0 chaindata
cp chaindata/config/genesis.json genesis.json
echo 'RPCListenAddress: "tcp://127.0.0.1:46657"' >loom.yml
cat >backup.sh <<'END'
#!/usr/bin/env bash
SERVICE_NAME="loom.service"
START_DIRECTORY="`+loomHome+`"
PORT="46657"
STOP_TIMEOUT="300"
SHOULD_STOP_SERVICE="true"
BACKUP_METHOD="rsyncBasedBackup"
S3BUCKET="s3://`+bucket+`/eddy"
S3BUCKET_REGION="us-east-1"
systemctl stop $SERVICE_NAME
END
chown -R loom: .
systemctl daemon-reload
systemctl start validator@0 validator@1
systemctl enable --now loom
`, "/root", func(line string) { t.Log(line) }))
	return m
}

// loomWords are the names that a reader of the Loom page puts into the commands of
// quickstart-systemd.md.
var loomWords = strings.NewReplacer("/home/wasm/.wasmd", loomHome, "wasmd", "loom", "wasm", "loom")

// TestLoom types docs/quickstart-loom.md, and at the places where it says so the
// steps of quickstart-systemd.md.
func TestLoom(t *testing.T) {
	step := func(heading string) (found []block) {
		for _, b := range readPage(t, "quickstart-systemd.md") {
			if strings.HasPrefix(b.Heading, heading) {
				b.Text = loomWords.Replace(b.Text)
				found = append(found, b)
			}
		}
		return found
	}
	own := readPage(t, "quickstart-loom.md")
	if len(own) != 2 || own[0].Heading != "From backup.sh" || own[1].Heading != "Restore" {
		t.Fatalf("the page has other blocks: %+v", own)
	}
	m := newLoomHost(t)
	release(t, m, "/root/release")
	said := typeBlocks(t, m, slices.Concat(
		step("1."), step("3.")[1:], own[:1], step("4."), step("5."), step("6."), own[1:], step("8."),
	), "/root/release")
	for _, want := range []string{
		"found  home        " + loomHome + "  (--home)", "found  unit        loom.service",
		"found  witness     http://" + witnesses[0] + ":46657", "READY",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("nothing printed %q", want)
		}
	}
	warned(t, lastDoctor(said), "retention")

	restored := filepath.Join(m.Root, "/var/lib/eddy/restored")
	isBack(t, newest(t, filepath.Join(m.Root, "srv/s3", bucket, "eddy/loom")), restored)
	for _, name := range []string{"app.db/CURRENT", "chaindata/data/blockstore.db/CURRENT"} {
		if _, err := os.Stat(filepath.Join(restored, name)); err != nil {
			t.Error(err)
		}
	}
	isWell(t, m, loomHome, "loom.service", "eddy.service")
}
