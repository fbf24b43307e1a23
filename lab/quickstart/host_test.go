//go:build root

package quickstart

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/eddy-backup/eddy/lab"
)

// What the pages take for granted: the reader's node and bucket, by the names
// that the pages use.
const (
	chainID  = "wasm-lab-1"
	home     = "/home/wasm/.wasmd"
	validIP  = "10.0.0.11" // the validator's, which is the observer's only peer
	storeIP  = "10.0.0.21"
	store    = "s3.example.com"
	amazon   = "s3.us-east-1.amazonaws.com" // where a bucket without an endpoint is
	bucket   = "backups"
	keyID    = "AKIAIOSFODNN7EXAMPLE" // the keys of Amazon's own manuals
	keyValue = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
	programs = "/opt/lab" // wasmd, cosmovisor, versitygw
)

// witnesses are those of the other pages: two validators.
var witnesses = []string{validIP, "10.0.0.12"}

// bootHost boots a machine with an S3 store that has a certificate for all of the
// pages' names for it. It puts programs below the directory of that name.
func bootHost(t *testing.T, own ...string) *lab.Machine {
	t.Helper()
	ctx := t.Context()
	servers, root := os.Getenv("EDDY_LAB_BIN"), os.Getenv("EDDY_LAB_ROOT")
	if servers == "" || root == "" {
		t.Fatal("EDDY_LAB_BIN and EDDY_LAB_ROOT must name what `make e2e-quickstart` has made")
	}
	m, err := lab.StartMachine(ctx, root)
	must(t, err)
	t.Cleanup(func() { must(t, m.Stop()) })
	t.Cleanup(func() {
		if t.Failed() {
			out, err := m.Run(context.WithoutCancel(ctx), "journalctl", "--lines=60", "--no-pager")
			t.Logf("the machine's journal: %s(%v)", out, err)
		}
	})

	must(t, os.MkdirAll(filepath.Join(m.Root, programs), 0o755))
	for _, p := range append(own, servers+"/versitygw") {
		out, err := exec.CommandContext(ctx, "cp", "--recursive", p, filepath.Join(m.Root, programs)).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	for _, ip := range append(witnesses, storeIP) {
		_, err := m.RunNet(ctx, "ip", "address", "add", ip+"/32", "dev", "lo")
		must(t, err)
	}
	name, err := m.Run(ctx, "hostname")
	must(t, err)
	put(t, m, "/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 "+name+storeIP+" "+store+" "+bucket+"."+amazon+"\n")
	key, cert := certificate(t, store, bucket+"."+amazon)
	appendTo(t, m, "/etc/ssl/certs/ca-certificates.crt", string(cert))
	put(t, m, "/etc/s3/key.pem", string(key))
	put(t, m, "/etc/s3/cert.pem", string(cert))
	put(t, m, "/etc/systemd/system/s3.service", `[Service]
Environment=ROOT_ACCESS_KEY=`+keyID+` ROOT_SECRET_KEY=`+keyValue+`
ExecStart=`+programs+`/versitygw --quiet --port `+storeIP+`:443 --cert /etc/s3/cert.pem --key /etc/s3/key.pem --region us-east-1 --virtual-domain `+amazon+` posix /srv/s3
`)
	must(t, m.Script(ctx, `set -e
mkdir -p /srv/s3/`+bucket+`
systemctl daemon-reload
systemctl start s3
`, "/root", func(line string) { t.Log(line) }))
	return m
}

// newHost is a machine with a chain of one validator, and an observer of it that
// cosmovisor runs as the user wasm under wasmd.service, as its maker's
// instructions would have it.
func newHost(t *testing.T) *lab.Machine {
	t.Helper()
	ctx := t.Context()
	chain := os.Getenv("EDDY_LAB_WASMD")
	if chain == "" {
		t.Fatal("EDDY_LAB_WASMD must name what `make e2e-quickstart` has made")
	}
	m := bootHost(t, chain+"/.")
	put(t, m, "/etc/systemd/system/validator.service", `[Service]
User=validator
ExecStart=`+programs+`/wasmd start --home /var/lib/validator
`)
	put(t, m, "/etc/systemd/system/wasmd.service", `[Unit]
Description=wasmd
After=network-online.target

[Service]
User=wasm
Environment=DAEMON_NAME=wasmd
Environment=DAEMON_HOME=`+home+`
ExecStart=/usr/local/bin/cosmovisor run start
Restart=always
RestartSec=3
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
`)
	must(t, m.Script(ctx, `set -euo pipefail
# It prints whole genesis files: all of it is shown when something fails, only then.
exec 3>&1 >/root/setup.log 2>&1
trap '[ $? = 0 ] || cat /root/setup.log >&3' EXIT

export PATH=$PATH:`+programs+`
useradd --create-home --home-dir /var/lib/validator validator
useradd --create-home wasm
ln -s `+programs+`/cosmovisor /usr/local/bin/

as() { user=$1; shift; runuser -u "$user" -- env PATH="$PATH" "$@"; }
v=/var/lib/validator
as validator wasmd init validator --chain-id `+chainID+` --home $v
as validator wasmd keys add validator --keyring-backend test --home $v
as validator wasmd genesis add-genesis-account validator 1000000000stake --keyring-backend test --home $v
as validator wasmd genesis gentx validator 500000000stake --chain-id `+chainID+` --keyring-backend test --home $v
as validator wasmd genesis collect-gentxs --home $v
sed -i -e 's|^laddr = "tcp://127.0.0.1:26657"|laddr = "tcp://`+validIP+`:26657"|' \
  -e 's|^laddr = "tcp://0.0.0.0:26656"|laddr = "tcp://`+validIP+`:26666"|' \
  -e 's|^pprof_laddr = .*|pprof_laddr = ""|' -e 's|^timeout_commit = .*|timeout_commit = "3s"|' \
  -e 's|^allow_duplicate_ip = .*|allow_duplicate_ip = true|' $v/config/config.toml
sed -i -e '/^\[grpc/,/^enable/s|^enable = true|enable = false|' -e 's|^minimum-gas-prices = .*|minimum-gas-prices = "0stake"|' $v/config/app.toml

h=`+home+`
as wasm wasmd init observer --chain-id `+chainID+` --home $h
install -m 644 -o wasm -g wasm $v/config/genesis.json $h/config/genesis.json
id=$(as validator wasmd comet show-node-id --home $v)
sed -i "s|^persistent_peers = .*|persistent_peers = \"$id@`+validIP+`:26666\"|" $h/config/config.toml
sed -i 's|^minimum-gas-prices = .*|minimum-gas-prices = "0stake"|' $h/config/app.toml
as wasm mkdir -p $h/cosmovisor/genesis/bin
as wasm ln -s `+programs+`/wasmd $h/cosmovisor/genesis/bin/wasmd
systemctl daemon-reload
systemctl start validator
systemctl enable --now wasmd
`, "/root", func(line string) { t.Log(line) }))
	for height(t, m, "127.0.0.1:26657") < 5 {
		select {
		case <-ctx.Done():
			t.Fatal(ctx.Err())
		case <-time.After(500 * time.Millisecond):
		}
	}
	return m
}

// height asks a node of the machine; -1: it does not answer.
func height(t *testing.T, m *lab.Machine, addr string) int64 {
	t.Helper()
	var s struct {
		SyncInfo struct {
			Height     int64 `json:"latest_block_height,string"`
			CatchingUp bool  `json:"catching_up"`
		} `json:"sync_info"`
	}
	if err := ask(t.Context(), m, addr, "status", &s); err != nil || s.SyncInfo.CatchingUp {
		return -1
	}
	return s.SyncInfo.Height
}

// ask calls a node's RPC.
func ask(ctx context.Context, m *lab.Machine, addr, what string, into any) error {
	text, err := m.RunNet(ctx, "curl", "--silent", "--show-error", "--fail", "--max-time", "5", "http://"+addr+"/"+what)
	if err != nil {
		return err
	}
	var answer struct{ Result json.RawMessage }
	if err := json.Unmarshal([]byte(text), &answer); err != nil {
		return err
	}
	return json.Unmarshal(answer.Result, into)
}

// certificate makes one for names, signed by itself.
func certificate(t *testing.T, names ...string) (key, cert []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &k.PublicKey, k)
	must(t, err)
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func put(t *testing.T, m *lab.Machine, at, text string) {
	t.Helper()
	at = filepath.Join(m.Root, at)
	must(t, os.MkdirAll(filepath.Dir(at), 0o755))
	must(t, os.WriteFile(at, []byte(text), 0o644))
}

func appendTo(t *testing.T, m *lab.Machine, at, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(filepath.Join(m.Root, at)), 0o755))
	f, err := os.OpenFile(filepath.Join(m.Root, at), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	must(t, err)
	_, err = f.WriteString(text)
	must(t, err)
	must(t, f.Close())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
