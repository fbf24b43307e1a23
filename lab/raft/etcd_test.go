//go:build e2e

package raft

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestEtcd: a learner is backed up under load, everything is destroyed, and all of
// it comes back on every member.
func TestEtcd(t *testing.T) {
	c := newEtcds(t, "m1", "m2", "m3", "m4")
	voters := c.names[:3]
	for _, n := range voters {
		c.start(n, "new", voters...)
	}
	leader := c.leader(voters...)
	fixed := map[string]string{}
	for i := range etcdKeys {
		key := fmt.Sprintf("/registry/pods/default/p%04d", i)
		fixed[key] = strings.Repeat(key, 20)
		_, err := c.put(t.Context(), voters[i%3], key, fixed[key])
		c.must(err)
	}
	fixed["/registry/secrets/drones"] = etcdSecret
	rev, err := c.put(t.Context(), "m1", "/registry/secrets/drones", etcdSecret)
	c.must(err)
	for i := range 50 {
		key := fmt.Sprintf("/registry/pods/default/p%04d", i)
		c.must(c.call(t.Context(), "m1", "/v3/kv/deleterange", map[string]string{"key": b64(key)}, new(etcdHeader)))
		delete(fixed, key)
	}
	c.must(c.call(t.Context(), "m1", "/v3/kv/compaction", map[string]any{"revision": rev + 20, "physical": true}, new(etcdHeader)))
	c.learner("m4", voters...)

	conf := c.config("eddy", c.endpoints("m4", "m1", "m2", "m3")+"\n    canary: /registry/secrets/drones")
	c.contains(c.run(0, "-c", conf, "doctor"), ", 0 FAIL")
	load, steady := c.load(voters...), c.steady(leader, voters...)
	time.Sleep(time.Second)
	begun := time.Now()
	said := c.run(0, "-c", conf, "backup")
	took := time.Since(begun)
	asked := steady()
	load.end()
	c.contains(said, "nothing stopped", "attested: 3 of 3", "encrypted to 1 recipient")
	m := regexp.MustCompile(`READY .*revision (\d+)`).FindStringSubmatch(said)
	if m == nil {
		t.Fatal(said)
	}
	at, err := strconv.ParseInt(m[1], 10, 64)
	c.must(err)
	c.nowhere(c.dir+"/bucket", c.dir+"/work-eddy")
	show := c.run(0, "-c", conf, "show", "latest")
	c.contains(show, `"registry/pods": 350`, `"registry/secrets": 1`, `"system": "3.6`, `"hash_kind": "hashkv"`)
	dump := filepath.Join(c.dir, "out")
	c.run(0, "-c", conf, "restore", "latest", "--into", dump, "-i", c.identity())
	c.sameHash(dump, said)

	// It comes to life by itself.
	drilled := c.run(0, "-c", conf, "drill", "-i", c.identity())
	c.contains(drilled, "DRILLED", "with the dump's hashkv", "the canary is there", "it takes writes")
	if left, err := filepath.Glob(filepath.Join(c.dir, "work-eddy", "drill*")); err != nil || len(left) > 1 { // its lock
		t.Errorf("the drill left %q (%v)", left, err)
	}

	// A live member is not restored over, nor beside.
	var restores []string
	for _, n := range voters {
		restores = append(restores, c.config("restore-"+n, c.endpoints("m4", "m1", "m2", "m3")+fmt.Sprintf("\n    restore: {name: %s, data_dir: %s}", n, c.data(n))))
	}
	c.contains(c.run(12, "-c", restores[0], "restore", "latest", "--yes", "-i", c.identity()), "somebody answers at")
	c.killAll()
	c.contains(c.run(12, "-c", restores[0], "restore", "latest", "--yes", "-i", c.identity()), "holds a member's data", "--overwrite-live")
	old, err := os.ReadFile(filepath.Join(c.data("m1"), "member/snap/db"))
	c.must(err)
	c.must(os.RemoveAll(c.data("m2")))
	c.must(os.RemoveAll(c.data("m3")))
	for i := range voters {
		out := c.run(0, "-c", restores[i], "restore", "latest", "--yes", "--overwrite-live", "-i", c.identity())
		c.contains(out, "on all members together", "--new-incarnation")
	}
	aside, err := filepath.Glob(filepath.Join(c.data("m1"), ".eddy-before-*/member/snap/db"))
	c.must(err)
	if len(aside) != 1 {
		t.Fatalf("what was there is not kept: %q", aside)
	}
	if b, err := os.ReadFile(aside[0]); err != nil || !bytes.Equal(b, old) {
		t.Errorf("what was there is not kept as it was: %v", err)
	}
	c.nowhere(c.dir+"/bucket", c.dir+"/work-eddy", c.dir+"/work-restore-m1")
	for _, n := range voters {
		c.start(n, "new", voters...)
	}
	c.leader(voters...)
	proven := 0
	for _, n := range voters {
		proven = load.prove(c.all(n), fixed, at)
	}
	s, err := c.status(t.Context(), "m1")
	c.must(err)
	if now, err := strconv.ParseInt(s.Header.Revision, 10, 64); err != nil || now <= at+999_999_999 {
		t.Errorf("revision %s after a restore of %d", s.Header.Revision, at)
	}
	_, err = c.put(t.Context(), "m2", "after", "the restore")
	c.must(err)
	if got := c.all("m3")["after"]; got != "the restore" {
		t.Errorf("a write after the restore: %q", got)
	}
	// The new cluster is another one; that is said once.
	fresh := c.config("fresh", c.endpoints(c.names[(c.index(c.leader(voters...))+1)%3], "m1", "m2", "m3"))
	c.contains(c.run(0, "-c", fresh, "backup", "--new-incarnation"), "attested: 2 of 2")
	c.contains(c.run(0, "-c", fresh, "drill", "-i", c.identity()), "DRILLED")                 // of a raised revision
	bad := c.config("canary", c.endpoints("m1")+"\n    canary: /registry/pods/default/p0001") // it was deleted
	c.contains(c.run(15, "-c", bad, "drill", "-i", c.identity()), "FAILED", "it is not there")
	fmt.Printf("etcd: learner of 3+1, backup in %.1f s under load, stopped 0 s, revision %d; the leader stayed through %d questions; 3 members restored, %d keys proven on each, writes accepted\n",
		took.Seconds(), at, asked, proven)
}

func (c *etcds) index(name string) int {
	for i, n := range c.names {
		if n == name {
			return i
		}
	}
	return -1
}

// prove compares what is there with what was written up to a revision.
func (l *etcdLoad) prove(got, fixed map[string]string, at int64) (n int) {
	l.c.t.Helper()
	want := map[string]string{}
	for k, v := range fixed {
		want[k] = v
	}
	for rev, key := range l.acked {
		if rev <= at {
			want[key] = "v" + key
		} else if _, ok := got[key]; ok {
			l.c.t.Errorf("%s of revision %d is in a backup of %d", key, rev, at)
		}
	}
	for k, v := range want {
		if got[k] != v {
			l.c.t.Errorf("%s: %.40q, not %.40q", k, got[k], v)
		}
	}
	for k := range got {
		if _, ok := want[k]; !ok && !strings.HasPrefix(k, "load/") { // a write whose answer was lost
			l.c.t.Errorf("%s came from nowhere", k)
		}
	}
	return len(want)
}

// sameHash compares eddy's hash of a dump with etcdutl's, of a copy: it writes to it.
func (c *etcds) sameHash(dir, said string) {
	c.t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "dump"))
	c.must(err)
	file := filepath.Join(c.dir, "copy.db")
	c.must(os.WriteFile(file, b, 0o600))
	out, err := exec.Command(filepath.Join(c.bin, "etcdutl"), "hashkv", file, "-w", "json").Output()
	c.must(err)
	var h struct{ Hash uint32 }
	c.must(json.Unmarshal(out, &h))
	if show := c.run(0, "-c", filepath.Join(c.dir, "eddy.yaml"), "show", "latest"); !strings.Contains(strings.ToLower(show), fmt.Sprintf("%08x", h.Hash)) {
		c.t.Errorf("etcdutl says %08x of the dump:\n%s\n%s", h.Hash, show, said)
	}
}

// TestEtcdGates: who must not be backed up is refused, on a cluster that lives; and
// what is left when the quorum is lost is kept all the same, marked.
func TestEtcdGates(t *testing.T) {
	c := newEtcds(t, "m1", "m2", "m3", "m4")
	voters := c.names[:3]
	for _, n := range voters {
		c.start(n, "new", voters...)
	}
	leader := c.leader(voters...)
	follower := voters[(c.index(leader)+1)%3]
	for i := range 20 {
		_, err := c.put(t.Context(), "m1", fmt.Sprintf("k%d", i), etcdSecret)
		c.must(err)
	}

	c.contains(c.run(12, "-c", c.config("leads", c.endpoints(append([]string{leader}, voters...)...)), "backup"), "leads the cluster", "follower first")
	any := c.config("any", c.endpoints(append([]string{leader}, voters...)...)+"\n    member: any")
	c.contains(c.run(0, "-c", any, "backup"), "attested: 2 of 2")
	c.contains(c.run(0, "-c", any, "backup"), "unchanged")
	c.contains(c.run(12, "-c", c.config("gone", "    endpoints: [http://127.0.0.1:1]"), "backup"), "does not answer")

	// A learner tells nothing of the others.
	c.learner("m4", voters...)
	alone := c.config("alone", c.endpoints("m4"))
	learner := c.config("learner", c.endpoints("m4", "m1", "m2", "m3"))
	c.contains(c.run(12, "-c", alone, "backup"), "no voter answers")
	c.contains(c.run(0, "-c", learner, "backup"), "attested: 3 of 3")

	// One voter holds another value than all others, as a bad disk makes it.
	third := voters[(c.index(leader)+2)%3]
	_, err := c.put(t.Context(), "m1", "planted", "efficiency-0")
	c.must(err)
	time.Sleep(time.Second) // it is in the database, and not only in the log
	c.kill(third)
	db := filepath.Join(c.data(third), "member/snap/db")
	b, err := os.ReadFile(db)
	c.must(err)
	if !bytes.Contains(b, []byte("efficiency-0")) {
		t.Fatal("the value is not in the database")
	}
	c.must(os.WriteFile(db, bytes.ReplaceAll(b, []byte("efficiency-0"), []byte("efficiency-1")), 0o600))
	c.start(third, "existing", c.names...)
	c.leader(voters...)
	c.contains(c.run(3, "-c", learner, "backup"), "attested: 2 of 3", "witness "+third+" lies", "its data may be damaged")
	_, err = c.put(t.Context(), "m1", "planted", "efficiency-2")
	c.must(err)
	c.contains(c.run(15, "-c", c.config("damaged", c.endpoints(third, "m1", "m2", "m3")), "backup"), "another history than the dump")

	// Two of three are dead.
	c.kill(leader, third)
	lost := c.config("lost", c.endpoints(follower, leader, third))
	out := c.run(12, "-c", lost, "backup")
	c.contains(out, "the quorum is lost: 1 of 3 voters answer, 2 must", "--salvage")
	out = c.run(0, "-c", lost, "backup", "--salvage")
	c.contains(out, "SALVAGED", "revision 23")
	// And the learner by itself.
	c.kill(follower)
	c.contains(c.run(0, "-c", alone, "backup", "--salvage", "--label", "learner"), "SALVAGED", "revision 23")
	list := c.run(0, "-c", lost, "list")
	if strings.Count(list, "SALVAGE") != 2 || strings.Count(list, "READY") != 3 {
		t.Error(list)
	}
	c.nowhere(c.dir+"/bucket", c.dir+"/work-lost", c.dir+"/work-alone", c.dir+"/work-any")
	fmt.Println("etcd: refused were the leader, a member that does not answer, a learner without voters, a lost quorum, a member with damaged data, which other voters told; salvaged were a lone voter and a lone learner")
}

// certificates makes a CA and one pair of it, for servers and clients.
func (c *etcds) certificates() (ca, cert, key string) {
	c.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	c.must(err)
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "etcd"}, NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, private.Public(), private)
	c.must(err)
	raw, err := x509.MarshalECPrivateKey(private)
	c.must(err)
	cert, key = filepath.Join(c.dir, "tls.crt"), filepath.Join(c.dir, "tls.key")
	c.must(os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	c.must(os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw}), 0o600))
	return cert, cert, key
}

// TestEtcdLogin: TLS on both sides, a user with a password, and a learner, which logs
// nobody in.
func TestEtcdLogin(t *testing.T) {
	const password = "resistance-is-futile-1"
	c := newEtcds(t, "m1", "m2")
	ca, cert, key := c.certificates()
	c.tls, c.more = true, []string{"--cert-file", cert, "--key-file", key, "--trusted-ca-file", ca}
	c.start("m1", "new", "m1")
	ctl := func(args ...string) error {
		out, err := exec.Command(filepath.Join(c.bin, "etcdctl"), append([]string{"--endpoints", c.client("m1"), "--cacert", ca, "--cert", cert, "--key", key, "--command-timeout", "2s"}, args...)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("etcdctl %v: %w: %s", args, err, out)
		}
		return err
	}
	for i := 0; ; i++ {
		err := ctl("put", "drones", etcdSecret)
		if err == nil {
			break
		}
		if i == 20 {
			t.Fatal(err)
		}
		time.Sleep(200 * time.Millisecond)
	}
	c.must(ctl("member", "add", "m2", "--learner", "--peer-urls", c.peer("m2")))
	c.start("m2", "existing", "m1", "m2")
	c.must(ctl("user", "add", "root:"+password))
	c.must(ctl("user", "grant-role", "root", "root"))
	c.must(ctl("auth", "enable"))
	pass := filepath.Join(c.dir, "pass")
	tls := fmt.Sprintf("\n    tls: {ca: %s, cert: %s, key: %s}", ca, cert, key)
	login := tls + fmt.Sprintf("\n    user: root\n    password_file: %s", pass)

	c.must(os.WriteFile(pass, []byte(password+"\n"), 0o644))
	conf := c.config("login", c.endpoints("m2", "m1")+login)
	c.contains(c.run(12, "-c", conf, "backup"), "may be read by others")
	c.must(os.WriteFile(pass, []byte("wrong\n"), 0o600))
	c.must(os.Chmod(pass, 0o600))
	c.contains(c.run(12, "-c", conf, "backup"), "log in as root", "authentication failed")
	c.contains(c.run(12, "-c", c.config("nobody", c.endpoints("m2", "m1")+tls), "backup"), "replica.etcd.user")
	c.contains(c.run(12, "-c", c.config("noca", c.endpoints("m2", "m1")), "backup"), "replica.etcd.tls.ca")
	c.must(os.WriteFile(pass, []byte(password+"\n"), 0o600))
	out := c.run(0, "-c", conf, "backup")
	c.contains(out, "attested: 1 of 1", "READY")
	// The variables of etcdctl do as well.
	c.must(ctl("--user", "root:"+password, "put", "more", "1"))
	t.Setenv("ETCDCTL_ENDPOINTS", c.client("m2")+","+c.client("m1"))
	t.Setenv("ETCDCTL_CACERT", ca)
	t.Setenv("ETCDCTL_CERT", cert)
	t.Setenv("ETCDCTL_KEY", key)
	t.Setenv("ETCDCTL_USER", "root:"+password)
	more := c.run(0, "-c", c.config("environment", "    max_lag: 100"), "backup")
	c.contains(more, "attested: 1 of 1", "READY")
	out += more
	if strings.Contains(out, password) {
		t.Error("the password is in what eddy says")
	}
	fmt.Println("etcd: backed up over TLS and with a login, a learner and a voter")
}
