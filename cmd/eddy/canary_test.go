package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/eddy-backup/eddy/uploader"
)

// birds are the secrets of one script, by name, and everything that eddy and its
// children let out while they were there.
type birds struct {
	secrets map[string]string

	mu   sync.Mutex
	argv map[string]bool // command lines of this machine's processes
}

// canary plant: secrets wherever eddy may be given one, each found nowhere else.
// canary run CODE PROG ARGS...: as exits, and what it prints is kept in out/.
// canary check: none of the secrets is in what was printed, in a file of the
// script's directory, in an object of the store, packed or not, or was in the
// command line of a process. The directory secrets/ is where they may be.
func (c *chain) canary(ts *testscript.TestScript, _ bool, args []string) {
	switch args[0] {
	case "plant":
		c.plant(ts)
	case "run":
		c.sing(ts, args[1], args[2:])
	case "check":
		c.listen(ts)
	}
}

func fatal(ts *testscript.TestScript, err error) {
	if err != nil {
		ts.Fatalf("%v", err)
	}
}

func (c *chain) plant(ts *testscript.TestScript) {
	b := &birds{secrets: map[string]string{}, argv: map[string]bool{}}
	secret := func(name string) string {
		b.secrets[name] = "canary" + rand.Text()
		return b.secrets[name]
	}
	file := func(name, text string) string {
		p := filepath.Join(ts.MkAbs("secrets"), name)
		fatal(ts, os.WriteFile(p, []byte(text), 0o600))
		return p
	}
	withUser := func(address, name string) string {
		u, err := url.Parse(address)
		fatal(ts, err)
		u.User = url.UserPassword("me", secret(name))
		b.secrets[name+" in a header"] = base64.StdEncoding.EncodeToString([]byte("me:" + b.secrets[name]))
		return u.String()
	}
	// The store: a bucket of its own has its own keys.
	if ts.Getenv("EDDY_LAB_S3_ENDPOINT") == "" {
		ts.Setenv("AWS_ACCESS_KEY_ID", secret("access key"))
		ts.Setenv("AWS_SECRET_ACCESS_KEY", secret("secret key"))
	} else {
		b.secrets["access key"], b.secrets["secret key"] = ts.Getenv("AWS_ACCESS_KEY_ID"), ts.Getenv("AWS_SECRET_ACCESS_KEY")
	}
	ts.Setenv("TOKEN", secret("session token"))
	ts.Setenv("WRONG_KEY", secret("wrong secret key"))
	ts.Setenv("URL_WITH_PASSWORD", "s3://me:"+secret("password in store.url")+"@bucket")
	ts.Setenv("ENDPOINT_WITH_PASSWORD", withUser("http://127.0.0.1:1", "password in store.endpoint"))
	ts.Setenv("REFUSING", refusing(ts))
	// The node and its witnesses.
	ts.Setenv("EDDY_REPLICA_RPC_FILE", file("rpc", withUser(ts.Getenv("RPC"), "password of the RPC")))
	ts.Setenv("EDDY_REPLICA_WITNESSES_FILE", file("witnesses", withUser(ts.Getenv("VALIDATOR_RPC"), "password of a witness")+","+
		withUser("http://127.0.0.1:1/"+secret("token of a dead witness"), "password of a dead witness")))
	dead := withUser("http://127.0.0.1:1/"+secret("token of a dead RPC"), "password of a dead RPC")
	ts.Setenv("DEAD_RPC", file("dead-rpc", dead))
	// The switch.
	ts.Setenv("EDDY_NOTIFY_PING_URL_FILE", file("ping", withUser(ts.Getenv("KEEPER"), "password of the ping")+"/"+secret("token of the ping")))
	ts.Setenv("BROKEN_PING", file("broken-ping", ts.Getenv("KEEPER")+"/broken/"+secret("token of a broken ping")))
	ts.Setenv("DEAD_PING", file("dead-ping", "http://127.0.0.1:1/"+secret("token of a dead ping")))
	ts.Setenv("PING_THAT_IS_NONE", "ftp://127.0.0.1/"+secret("token of a wrong ping"))
	// The home: what is planted there, and the keys that every node has.
	home := ts.Getenv("HOME_DIR")
	fatal(ts, os.WriteFile(filepath.Join(home, "config", "client.toml"), []byte("token = \""+secret("configuration of the node")+"\"\n"), 0o600))
	for _, name := range []string{"priv_validator_key.json", "node_key.json"} {
		text, err := os.ReadFile(filepath.Join(home, "config", name))
		fatal(ts, err)
		var key struct {
			Priv struct{ Value string } `json:"priv_key"`
		}
		fatal(ts, json.Unmarshal(text, &key))
		raw, err := base64.StdEncoding.DecodeString(key.Priv.Value)
		fatal(ts, err)
		b.secrets[name], b.secrets[name+", decoded"] = key.Priv.Value, string(raw)
	}
	c.mu.Lock()
	if c.birds == nil {
		c.birds = map[string]*birds{}
	}
	c.birds[ts.MkAbs(".")] = b
	c.mu.Unlock()

	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.watch(ctx) })
	ts.Defer(func() { cancel(); wg.Wait() })
}

// refusing starts a store that refuses everything and repeats what it was sent,
// as S3 does with a request whose signature it does not find right.
func refusing(ts *testscript.TestScript) string {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(http.StatusForbidden)
		fmt.Fprintf(w, `<?xml version="1.0"?><Error><Code>SignatureDoesNotMatch</Code><Message>The request signature we calculated does not match.</Message><AWSAccessKeyId>%s</AWSAccessKeyId><CanonicalRequest>x-amz-security-token:%s</CanonicalRequest></Error>`,
			r.Header.Get("Authorization"), r.Header.Get("X-Amz-Security-Token"))
	}))
	ts.Defer(s.Close)
	return s.URL
}

// watch notes the command lines of all processes until ctx ends.
func (b *birds) watch(ctx context.Context) {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		files, err := filepath.Glob("/proc/[0-9]*/cmdline")
		if err != nil {
			panic(err) // the pattern is right
		}
		for _, f := range files {
			line, err := os.ReadFile(f)
			if err != nil {
				continue // it has ended
			}
			b.mu.Lock()
			b.argv[string(line)] = true
			b.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (c *chain) birdsOf(ts *testscript.TestScript) *birds {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.birds[ts.MkAbs(".")]
}

func (c *chain) sing(ts *testscript.TestScript, code string, argv []string) {
	c.commands()["exits"](ts, false, append([]string{code}, argv...))
	fatal(ts, os.MkdirAll(ts.MkAbs("out"), 0o700))
	f, err := os.OpenFile(filepath.Join(ts.MkAbs("out"), "all"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	fatal(ts, err)
	_, err = fmt.Fprintf(f, "$ %s\n%s%s", strings.Join(argv, " "), ts.ReadFile("stdout"), ts.ReadFile("stderr"))
	fatal(ts, errors.Join(err, f.Close()))
}

func (c *chain) listen(ts *testscript.TestScript) {
	b := c.birdsOf(ts)
	if bucket := ts.Getenv("EDDY_LAB_S3_BUCKET"); bucket != "" {
		fatal(ts, fetch(uploader.Config{URL: "s3://" + bucket + "/canary", Endpoint: ts.Getenv("EDDY_LAB_S3_ENDPOINT")}, ts.MkAbs("bucket")))
	}
	found := map[string]bool{} // secrets that were found where they may be
	files, packed := 0, 0
	fatal(ts, filepath.WalkDir(ts.MkAbs("."), func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		body, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		files++
		rel, _ := filepath.Rel(ts.MkAbs("."), p)
		if strings.HasSuffix(p, ".zst") {
			packed++
			plain, err := unpack(body)
			if err != nil {
				return fmt.Errorf("%s: %w", rel, err)
			}
			body = append(body, plain...)
		}
		for name, s := range b.secrets {
			switch {
			case !bytes.Contains(body, []byte(s)):
			case strings.HasPrefix(rel, "secrets/"):
				found[name] = true
			default:
				ts.Logf("%s stands in %s", name, rel)
				found["!"] = true
			}
		}
		return nil
	}))
	b.mu.Lock()
	defer b.mu.Unlock()
	for line := range b.argv {
		for name, s := range b.secrets {
			if strings.Contains(line, s) {
				ts.Logf("%s stood in the command line of %q", name, strings.ReplaceAll(line, "\x00", " "))
				found["!"] = true
			}
		}
	}
	if found["!"] {
		ts.Fatalf("secrets were let out")
	}
	// The search itself finds what is there, in all the places that there should be.
	if len(found) < 8 || files < 30 || packed < 4 || len(b.argv) < 10 {
		ts.Fatalf("the search saw too little: %d secrets where they may be, %d files, %d packed ones, %d command lines", len(found), files, packed, len(b.argv))
	}
	ts.Logf("%d secrets in none of %d files (%d packed) and %d command lines", len(b.secrets), files, packed, len(b.argv))
}

func unpack(b []byte) ([]byte, error) {
	r, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// fetch brings all objects of a store into a directory.
func fetch(c uploader.Config, dir string) error {
	ctx := context.Background()
	store, err := uploader.Open(ctx, c)
	if err != nil {
		return err
	}
	for o, err := range store.List(ctx, "", "") {
		if err != nil {
			return err
		}
		r, err := store.Open(ctx, o.Key, "", 0, -1)
		if err != nil {
			return err
		}
		body, err := io.ReadAll(r)
		p := filepath.Join(dir, filepath.FromSlash(o.Key))
		err = errors.Join(err, r.Close(), os.MkdirAll(filepath.Dir(p), 0o700), os.WriteFile(p, body, 0o600))
		if err != nil {
			return err
		}
	}
	return nil
}
