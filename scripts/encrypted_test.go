package scripts_test

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
)

const sealedVolume = "vol-0000.tar.zst.age"

// dump is what an encrypted backup holds.
var dump = map[string]string{"dump": noise(4000), "dump.json": "{}"}

// noise is text that does not get much smaller.
func noise(n int) string {
	var s strings.Builder
	for sum := sha256.Sum256(nil); s.Len() < n; sum = sha256.Sum256(sum[:]) {
		fmt.Fprintf(&s, "%x", sum)
	}
	return s.String()
}

// newSealed is a store with one encrypted backup, made with tar, zstd and age, and the
// file of the identity that opens it; other opens nothing.
func newSealed(t *testing.T) (b backup, identity, other string) {
	t.Helper()
	tree, keys := t.TempDir(), t.TempDir()
	writeTree(t, tree, dump)
	sh(t, keys, nil, "age-keygen -o id 2>/dev/null; age-keygen -o other 2>/dev/null; age-keygen -y id >to")
	b = backup{dir: t.TempDir()}
	b.seal(t, string(sh(t, tree, nil, "tar -c -- * | zstd -c --check | age -R "+filepath.Join(keys, "to"))))
	return b, filepath.Join(keys, "id"), filepath.Join(keys, "other")
}

// seal stores sealed bytes with manifest and pointer.
func (b backup) seal(t *testing.T, sealed string) {
	t.Helper()
	write(t, b.path(sealedVolume), sealed)
	write(t, b.path("manifest.json"), fmt.Sprintf(`{
  "format": 1,
  "min_reader": 1,
  "id": %q,
  "cluster": %q,
  "sizes": {
    "source": 4034,
    "stored": %d,
    "files": %d
  },
  "volumes": [
    {
      "name": %q,
      "size": %d,
      "sha256": "%x"
    }
  ],
  "encryption": {
    "scheme": "age",
    "recipients": [
      "age:0123456789abcdef"
    ]
  }
}
`, id, cluster, len(sealed), len(dump), sealedVolume, len(sealed), sha256.Sum256([]byte(sealed))))
	b.point(t, fmt.Sprintf("id %s\n%d %s/data/%s/%s\n", id, len(sealed), cluster, id, sealedVolume))
}

func TestRestoreOpensAnEncryptedBackup(t *testing.T) {
	b, identity, other := newSealed(t)
	web := httptest.NewServer(http.FileServer(http.Dir(b.dir)))
	t.Cleanup(web.Close)
	for name, args := range map[string][]string{
		"latest":         {"-i", identity},
		"by id":          {"--id", id, "--identity", identity},
		"one of two":     {"-i", other, "-i", identity},
		"curl":           {"--store", web.URL, "-i", identity},
		"curl and by id": {"--store", web.URL, "--id", id, "-i", identity},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			got := b.restore(t, home, args...)
			if got.code != 0 || strings.Contains(got.output, "sign state") {
				t.Fatalf("exit code %d\n%s", got.code, got.output)
			}
			wantTree(t, home, dump)
		})
	}
}

// A restore that breaks off, by an error of the store or by a kill, is gone on with:
// no part is fetched a second time.
func TestRestoreGoesOn(t *testing.T) {
	const part, lost = 400, 3 * 400
	for _, how := range []string{"refused", "killed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			b, identity, _ := newSealed(t)
			size := len(read(t, b.path(sealedVolume)))
			if size <= lost+part {
				t.Fatalf("the volume has %d bytes only", size)
			}
			var broken atomic.Bool
			var sent atomic.Int64
			var script atomic.Pointer[os.Process]
			broken.Store(true)
			files := http.FileServer(http.Dir(b.dir))
			web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, sealedVolume) {
					if broken.Load() && strings.HasPrefix(r.Header.Get("Range"), fmt.Sprintf("bytes=%d-", lost)) {
						if how == "killed" {
							_ = script.Load().Kill() // its end is what is looked at
						}
						w.WriteHeader(http.StatusForbidden)
						return
					}
					sent.Add(1)
				}
				files.ServeHTTP(w, r)
			}))
			t.Cleanup(web.Close)

			home := t.TempDir()
			args := []string{"restore-latest.sh", "--store", web.URL, "--cluster", cluster, "--home", home, "-i", identity}
			cmd := exec.Command("bash", args...)
			cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir(), fmt.Sprintf("RESTORE_PART=%d", part))
			var out strings.Builder
			cmd.Stdout, cmd.Stderr = &out, &out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			script.Store(cmd.Process)
			_ = cmd.Wait() // it must not end well
			if code := cmd.ProcessState.ExitCode(); how == "refused" && (code != 14 || !strings.Contains(out.String(), "goes on where it broke off")) || code == 0 {
				t.Fatalf("exit code %d\n%s", code, out.String())
			}
			kept, err := filepath.Glob(filepath.Join(home, ".eddy", "fetch-"+id, sealedVolume+".*00"))
			if err != nil || len(kept) < 1 {
				t.Fatalf("kept: %v, %v\n%s", kept, err, out.String())
			}

			broken.Store(false)
			sent.Store(0)
			got := restore(t, []string{fmt.Sprintf("RESTORE_PART=%d", part)}, args[1:]...)
			if got.code != 0 || !strings.Contains(got.output, "fetched by an earlier run") {
				t.Fatalf("exit code %d\n%s", got.code, got.output)
			}
			if want := int64((size+part-1)/part - len(kept)); sent.Load() > want {
				t.Errorf("%d parts were fetched, %d were missing", sent.Load(), want)
			}
			wantTree(t, home, dump)
		})
	}
}

// A Loom home has its sign state below chaindata, or in the old key file; neither is
// lost, and neither goes back.
func TestRestoreOfALoomHome(t *testing.T) {
	const key = `{"address":"AA","last_height":"%d","last_round":"0","last_step":3,"last_signature":"AA==","priv_key":{"type":"x","value":"y"}}`
	files := map[string]string{"chaindata/data/x": "new", "app.db/CURRENT": "new"}
	for name, c := range map[string]struct {
		home map[string]string
		want string
		code int
	}{
		"state file": {map[string]string{"chaindata/data/priv_validator_state.json": `{"height":"7","round":0,"step":3}`}, "chaindata/data/priv_validator_state.json", 0},
		"set aside": {map[string]string{
			".eddy/before-x/chaindata/data/priv_validator_state.json": `{"height":"7","round":0,"step":3}`,
			"chaindata/config/priv_validator_key.json":                "{}",
		}, "chaindata/data/priv_validator_state.json", 0},
		"key without a state": {map[string]string{"chaindata/config/priv_validator_key.json": "{}"}, "", 12},
		"old key file":        {map[string]string{"chaindata/config/priv_validator.json": fmt.Sprintf(key, 9)}, "chaindata/config/priv_validator.json", 0},
		"old key file, ahead of its copy": {map[string]string{
			"chaindata/config/priv_validator.json":                fmt.Sprintf(key, 9),
			".eddy/before-x/chaindata/config/priv_validator.json": fmt.Sprintf(key, 9),
			".eddy/before-y/chaindata/config/priv_validator.json": fmt.Sprintf(key, 8),
		}, "chaindata/config/priv_validator.json", 0},
		"old key file behind its copy": {map[string]string{
			"chaindata/config/priv_validator.json":                fmt.Sprintf(key, 9),
			".eddy/before-x/chaindata/config/priv_validator.json": fmt.Sprintf(key, 10),
		}, "", 12},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			writeTree(t, home, c.home)
			before := tree(t, home)
			b := newBackup(t, files)
			got := b.restore(t, home, "--yes")
			if got.code != c.code {
				t.Fatalf("exit code %d, want %d\n%s", got.code, c.code, got.output)
			}
			if c.code != 0 {
				wantTree(t, home, before)
				return
			}
			after := tree(t, home)
			var states []string
			for _, s := range before {
				states = append(states, s)
			}
			if got := after[c.want]; !strings.Contains(strings.Join(states, "\n"), got) || got == "" || strings.Contains(got, `"8"`) {
				t.Errorf("%s is %q", c.want, got)
			}
			if after["chaindata/data/x"] != "new" || after["app.db/CURRENT"] != "new" {
				t.Errorf("restored: %v", after)
			}
		})
	}
}
