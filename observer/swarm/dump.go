package swarm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/observer"
)

// Where things stand in a dump.
const (
	stateDir  = "swarm"      // the manager's state, as it lay in DATA_ROOT/swarm
	listsDir  = "inventory"  // what the engine said of the swarm's objects
	sumsName  = "SHA256SUMS" // of every other file, as it was read
	nodeFile  = "certificates/swarm-node.key"
	certFile  = "certificates/swarm-node.crt"
	rootFile  = "certificates/swarm-root-ca.crt"
	localFile = "docker-state.json"
	peersFile = "state.json"
)

const (
	maxSmall = 4 << 20 // bytes of a file that is read at once
	maxFiles = 100_000 // of a dump
)

// dump is what a dump says of itself.
type dump struct {
	Note   observer.Note
	Local  localState
	Peers  []peer
	Cert   *x509.Certificate // its O is the swarm's id, its CN the node's, its OU the role
	Key    nodeKey
	Opened opened
	Log    *raftLog
}

// localState is docker-state.json: how the engine was told to join.
type localState struct{ LocalAddr, RemoteAddr, ListenAddr, AdvertiseAddr, DataPathAddr string }

// peer is a manager in state.json, to which a node that starts connects.
type peer struct {
	NodeID string `json:"node_id"`
	Addr   string `json:"addr"`
}

func (d *dump) cluster() string {
	if len(d.Cert.Subject.Organization) == 0 {
		return ""
	}
	return d.Cert.Subject.Organization[0]
}

func (d *dump) nodeID() string { return d.Cert.Subject.CommonName }

func (d *dump) role() string {
	if len(d.Cert.Subject.OrganizationalUnit) == 0 {
		return ""
	}
	return strings.TrimPrefix(d.Cert.Subject.OrganizationalUnit[0], "swarm-")
}

// advertised is the host at which the raft log has the node for good; "" of none.
func (d *dump) advertised() string {
	host, _, err := net.SplitHostPort(d.Log.Self.Addr)
	if err != nil {
		return ""
	}
	return host
}

// position is where the dump is.
func (d *dump) position() observer.Position {
	return observer.Position{
		Kind: Kind, Incarnation: d.cluster(), Epoch: d.Log.Term, Index: d.Log.Commit, Time: d.Note.State.Taken, Consistency: "stopped",
		Marks: map[string]string{"last_index": fmt.Sprint(d.Log.LastIndex), "last_term": fmt.Sprint(d.Log.LastTerm), "node": d.nodeID()},
	}
}

// damage is what is wrong with a dump, in a line. Other errors mean that it could not be
// read.
type damage struct{ error }

func (d damage) Unwrap() error { return d.error }

func damaged(what string, err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var p *fs.PathError
	if errors.As(err, &p) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return damage{fmt.Errorf("%s: %w", what, err)}
}

// readDump reads and proves all of a dump in dir, with the keys that are held. Where
// none opens it the error has errKey; what could be told without is in the dump.
func readDump(ctx context.Context, dir string, keys []UnlockKey) (*dump, error) {
	d := &dump{}
	if err := checkSums(ctx, dir); err != nil {
		return d, damaged(sumsName, err)
	}
	var err error
	if d.Note, err = observer.ReadNote(dir); err != nil {
		return d, damaged(observer.NoteName, err)
	}
	names, err := filepath.Glob(filepath.Join(dir, listsDir, "*.json"))
	if err != nil {
		return d, err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			return d, err
		}
		if !json.Valid(b) {
			return d, damaged(listsDir+"/"+filepath.Base(name), errors.New("it is no JSON"))
		}
	}
	return d, d.readState(ctx, filepath.Join(dir, stateDir), keys)
}

// readState reads a manager's state, a dump's or one that lies where an engine looks
// for it.
func (d *dump) readState(ctx context.Context, dir string, keys []UnlockKey) error {
	if err := readJSON(filepath.Join(dir, localFile), &d.Local); err != nil {
		return damaged(localFile, err)
	}
	if err := readJSON(filepath.Join(dir, peersFile), &d.Peers); err != nil {
		return damaged(peersFile, err)
	}
	if err := d.readCert(dir); err != nil {
		return err
	}
	b, err := readSmall(filepath.Join(dir, nodeFile))
	if err != nil {
		return damaged(nodeFile, err)
	}
	if d.Key, err = parseNodeKey(b); err != nil {
		return damaged(nodeFile, err)
	}
	var locked error
	if d.Opened, err = d.Key.open(keys); errors.Is(err, errKey) {
		locked = fmt.Errorf("%s (%s %d): %w", nodeFile, headVersion, d.Key.Version, err)
	} else if err != nil {
		return damaged(nodeFile, err)
	} else if pub, ok := d.Cert.PublicKey.(*ecdsa.PublicKey); !ok || !pub.Equal(d.Opened.tls) {
		return damaged(certFile, errors.New("it is not the certificate of the node's key"))
	}
	if d.Log, err = readLog(ctx, dir, d.Opened.keys()); err != nil {
		return damaged("the raft log", err)
	}
	if d.Log.Self.NodeID != d.nodeID() {
		return damaged("the raft log", fmt.Errorf("it is of node %s, the certificate of %s", d.Log.Self.NodeID, d.nodeID()))
	}
	return locked
}

// readCert reads the node's certificate, and proves that the swarm's CA has signed it.
func (d *dump) readCert(dir string) error {
	roots, err := readCerts(filepath.Join(dir, rootFile))
	if err != nil {
		return damaged(rootFile, err)
	}
	chain, err := readCerts(filepath.Join(dir, certFile))
	if err != nil {
		return damaged(certFile, err)
	}
	d.Cert = chain[0]
	// When all were valid: one that has lapsed is told, and is no damage. A node's is
	// made to be valid an hour before it was signed.
	when := d.Cert.NotBefore
	for _, c := range append(slices.Clone(roots), chain...) {
		if c.NotBefore.After(when) {
			when = c.NotBefore
		}
	}
	pool, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range roots {
		if err := c.CheckSignatureFrom(c); err != nil {
			return damaged(rootFile, err)
		}
		pool.AddCert(c)
	}
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	_, err = d.Cert.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: when.Add(time.Second), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		return damaged(certFile, err)
	}
	if d.cluster() == "" || d.nodeID() == "" {
		return damaged(certFile, errors.New("it names no swarm"))
	}
	return nil
}

func readCerts(file string) (all []*x509.Certificate, err error) {
	b, err := readSmall(file)
	if err != nil {
		return nil, err
	}
	for len(bytes.TrimSpace(b)) > 0 {
		block, rest := pem.Decode(b)
		if block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("it is no certificate")
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all, b = append(all, c), rest
	}
	if len(all) == 0 {
		return nil, errors.New("it is empty")
	}
	return all, nil
}

func readSmall(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSmall+1))
	if err == nil && len(b) > maxSmall {
		err = fmt.Errorf("it has more than %d bytes", maxSmall)
	}
	return b, err
}

func readJSON(file string, into any) error {
	b, err := readSmall(file)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return errors.New("it is no such JSON: " + err.Error())
	}
	return nil
}

// checkSums compares every file of a dump with what was read at its capture: the list
// must name all, and nothing else may be there.
func checkSums(ctx context.Context, dir string) error {
	f, err := os.Open(filepath.Join(dir, sumsName))
	if err != nil {
		return err
	}
	defer f.Close()
	listed := map[string]bool{sumsName: true}
	lines := bufio.NewScanner(io.LimitReader(f, 16<<20))
	for lines.Scan() {
		sum, name, ok := strings.Cut(lines.Text(), "  ")
		if !ok || !filepath.IsLocal(name) || listed[name] || len(listed) > maxFiles {
			return errors.New("it is no list of checksums")
		}
		listed[name] = true
		got, err := sumOf(ctx, filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if got != sum {
			return fmt.Errorf("%s is not what was read when the node stood still", name)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	if st, err := f.Stat(); err != nil || st.Size() == 0 || len(listed) == 1 {
		return errors.Join(err, errors.New("it is empty"))
	}
	var last [1]byte
	st, err := f.Stat()
	if err == nil {
		_, err = f.ReadAt(last[:], st.Size()-1)
	}
	if err != nil || last[0] != '\n' {
		return errors.Join(err, errors.New("it is cut short"))
	}
	return filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case e.IsDir() && e.Name() == ".eddy":
			return fs.SkipDir // of the stage itself
		case e.IsDir() || listed[filepath.ToSlash(rel)]:
			return nil
		}
		return fmt.Errorf("%q is not in it", rel)
	})
}

func sumOf(ctx context.Context, file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, &patient{ctx, f}); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// patient reads until its ctx is done.
type patient struct {
	ctx context.Context
	r   io.Reader
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.ctx.Err(); err != nil {
		return 0, err
	}
	return p.r.Read(b)
}

// stateFiles are the files of a manager's state, by their names with slashes: all but
// what is being made, and eddy's own.
func stateFiles(dir string) (names []string, err error) {
	err = filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		switch {
		case err != nil:
			return err
		case e.IsDir() || !e.Type().IsRegular() || leftOut(e.Name()):
			return nil
		case len(names) == maxFiles:
			return fmt.Errorf("%s has more than %d files", dir, maxFiles)
		}
		names = append(names, filepath.ToSlash(rel))
		return nil
	})
	slices.Sort(names)
	return names, err
}
