package scripts_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
)

const (
	cluster = "gaia-main"
	id      = "20261120T235500Z-auto-0a1b2c"
)

// source is what the backup holds: names that tar, sha256sum and the shell like
// to trip over, a file in each volume, a file across both.
var source = map[string]string{
	"data/blockstore.db/000001.ldb": strings.Repeat("block", 40_000),
	"data/blockstore.db/CURRENT":    "MANIFEST-000002\n",
	"data/state.db/big.ldb":         strings.Repeat("0123456789abcdef", 30_000),
	"data/odd name\nwith\\both":     "odd",
	"data/empty":                    "",
	"wasm/state/code":               "code",
}

// backup is a store with one backup, made with tar and zstd alone.
type backup struct{ dir string }

func (b backup) path(name string) string { return filepath.Join(b.dir, cluster, "data", id, name) }
func (b backup) latest() string          { return filepath.Join(b.dir, cluster, "latest.txt") }

// objects makes a backup's objects by name: the tar stream is cut into three
// frames in two volumes.
func objects(t *testing.T, files map[string]string) map[string]string {
	t.Helper()
	tree := t.TempDir()
	writeTree(t, tree, files)
	tar := sh(t, tree, nil, "find . -mindepth 1 -printf '%P\\0' | sort -z | tar --null --no-recursion -T - -c --format=pax --owner=4242 --group=4242 --numeric-owner")
	cut1, cut2 := len(tar)/3/512*512+100, len(tar)*2/3
	frame := func(p []byte) string { return string(sh(t, tree, p, "zstd -1 -c --check")) }
	return map[string]string{
		"vol-0000.tar.zst": frame(tar[:cut1]) + frame(tar[cut1:cut2]),
		"vol-0001.tar.zst": frame(tar[cut2:]),
		"SHA256SUMS.zst":   string(sh(t, tree, nil, "find * -type f -print0 | xargs -0 sha256sum | zstd -c")),
		"manifest.json":    "{}",
	}
}

// sourceObjects are those of source, which most tests use.
var (
	sourceOnce    sync.Once
	sourceObjects map[string]string
)

func newBackup(t *testing.T, files map[string]string) backup {
	t.Helper()
	var made map[string]string
	if reflect.DeepEqual(files, source) {
		sourceOnce.Do(func() { sourceObjects = objects(t, source) })
		made = sourceObjects
	} else {
		made = objects(t, files)
	}
	b := backup{dir: t.TempDir()}
	pointer := "id " + id + "\n"
	for _, name := range slices.Sorted(maps.Keys(made)) {
		write(t, b.path(name), made[name])
		if strings.HasPrefix(name, "vol-") {
			pointer += fmt.Sprintf("%d %s/data/%s/%s\n", len(made[name]), cluster, id, name)
		}
	}
	b.point(t, pointer)
	return b
}

// point writes latest.txt with a right checksum.
func (b backup) point(t *testing.T, text string) {
	t.Helper()
	write(t, b.latest(), fmt.Sprintf("%ssha256 %x\n", text, sha256.Sum256([]byte(text))))
}

func (b backup) pointer(t *testing.T) string {
	t.Helper()
	text := read(t, b.latest())
	return text[:strings.LastIndex(text, "sha256 ")]
}

// result of a run of the script.
type result struct {
	code   int
	output string
}

func restore(t *testing.T, env []string, args ...string) result {
	t.Helper()
	tmp := t.TempDir()
	cmd := exec.Command("bash", append([]string{"restore-latest.sh"}, args...)...)
	cmd.Env = append(append(os.Environ(), "TMPDIR="+tmp), env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 && cmd.ProcessState.Exited() {
		t.Errorf("left in TMPDIR: %v, %v", left, err)
	}
	return result{cmd.ProcessState.ExitCode(), string(out)}
}

func (b backup) restore(t *testing.T, home string, args ...string) result {
	t.Helper()
	return restore(t, nil, append([]string{"--store", "file://" + b.dir, "--cluster", cluster, "--home", home}, args...)...)
}

// live is a home that has run: a key with its state, old data, config.
func live(t *testing.T) string {
	t.Helper()
	home := t.TempDir()
	writeTree(t, home, map[string]string{
		"data/old.db/CURRENT":               "old",
		"data/priv_validator_state.json":    `{"height": "900", "round": 2, "step": 3}`,
		"data/snapshots/100/1/0":            "chunk",
		"config/priv_validator_key.json":    "key",
		"config/config.toml":                "moniker = 1",
		"keyring-file/me.info":              "secret",
		"cosmovisor/current/bin/chaind.txt": "binary",
	})
	return home
}

func TestRestoreIntoEmptyHome(t *testing.T) {
	b := newBackup(t, source)
	web := httptest.NewServer(http.FileServer(http.Dir(b.dir)))
	t.Cleanup(web.Close)
	for name, args := range map[string][]string{
		"file":          {"--store", "file://" + b.dir},
		"file and id":   {"--store", "file://" + b.dir + "/", "--id", id},
		"curl":          {"--store", web.URL},
		"curl and id":   {"--store", web.URL, "--id", id},
		"unasked yes":   {"--store", "file://" + b.dir, "--yes"},
		"explicit user": {"--store", "file://" + b.dir, "--owner", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if os.Getuid() != 0 && name == "explicit user" {
				args = args[:2] // only root may name an owner
			}
			home := t.TempDir()
			got := restore(t, nil, append(args, "--cluster", cluster, "--home", home)...)
			if got.code != 0 {
				t.Fatalf("exit code %d\n%s", got.code, got.output)
			}
			wantTree(t, home, source)
			if strings.Contains(got.output, "old data") {
				t.Errorf("speaks of old data:\n%s", got.output)
			}
		})
	}
}

// What is replaced is kept, what is not in the backup stays, the sign state is
// carried over.
func TestRestoreOverLiveHome(t *testing.T) {
	b := newBackup(t, source)
	home := live(t)
	before := tree(t, home)

	if got := b.restore(t, home, "--dry-run"); got.code != 0 || !strings.Contains(got.output, "dry run: nothing was changed") {
		t.Fatalf("dry run: exit code %d\n%s", got.code, got.output)
	}
	wantTree(t, home, before)

	if got := b.restore(t, home); got.code != 16 {
		t.Fatalf("without --yes: exit code %d, want 16\n%s", got.code, got.output)
	}
	wantTree(t, home, before)

	if got := b.restore(t, home, "--yes"); got.code != 0 {
		t.Fatalf("exit code %d\n%s", got.code, got.output)
	}
	want := map[string]string{}
	for name, content := range before {
		if rest, ok := strings.CutPrefix(name, "data/"); ok {
			want[".eddy/before-"+id+"/data/"+rest] = content
		} else {
			want[name] = content
		}
	}
	for name, content := range source {
		want[name] = content
	}
	want["data/priv_validator_state.json"] = before["data/priv_validator_state.json"]
	wantTree(t, home, want)
	if st, err := os.Stat(filepath.Join(home, "data", "snapshots")); err != nil || !st.IsDir() {
		t.Errorf("data/snapshots: %v", err)
	}
	if got := b.restore(t, home, "--yes"); got.code != 1 || !strings.Contains(got.output, "was restored here before") {
		t.Errorf("the same again: exit code %d\n%s", got.code, got.output)
	}
	wantTree(t, home, want)
}

// The highest sign state wins, wherever in the home it lies.
func TestRestoreCarriesHighestSignState(t *testing.T) {
	const higher = `{"height":"900","round":2,"step":3,"signature":"AA=="}`
	for name, states := range map[string]map[string]string{
		"own":             {"data/priv_validator_state.json": higher, ".eddy/before-x/data/priv_validator_state.json": `{"height":"899","round":9,"step":3}`},
		"set aside":       {"data/priv_validator_state.json": `{"height":"0","round":0,"step":0}`, ".eddy/before-x/data/priv_validator_state.json": higher},
		"round decides":   {"data/priv_validator_state.json": `{"height":"900","round":1,"step":3}`, ".eddy/before-x/data/priv_validator_state.json": higher},
		"step decides":    {"data/priv_validator_state.json": `{"height":"900","round":2,"step":2}`, ".eddy/before-x/data/priv_validator_state.json": higher},
		"ten beats nine":  {"data/priv_validator_state.json": `{"height":"99","round":0,"step":0}`, ".eddy/before-x/data/priv_validator_state.json": higher},
		"only set aside":  {".eddy/before-x/data/priv_validator_state.json": higher, "config/priv_validator_key.json": "key"},
		"with line feeds": {"data/priv_validator_state.json": "{\n  \"height\": \"5\",\n  \"round\": 0,\n  \"step\": 1\n}\n", ".eddy/before-x/data/priv_validator_state.json": higher},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			writeTree(t, home, states)
			b := newBackup(t, map[string]string{"data/a": "a"})
			if got := b.restore(t, home, "--yes"); got.code != 0 {
				t.Fatalf("exit code %d\n%s", got.code, got.output)
			}
			if got := read(t, filepath.Join(home, "data/priv_validator_state.json")); got != higher {
				t.Errorf("sign state %s, want %s", got, higher)
			}
		})
	}
}

// A validator's configuration that lies among the data (Loom) is no archive's
// and must survive the swap.
func TestRestoreKeepsConfigInsideData(t *testing.T) {
	home := t.TempDir()
	writeTree(t, home, map[string]string{"chaindata/data/x": "old", "chaindata/config/priv_validator.json": "key"})
	b := newBackup(t, map[string]string{"chaindata/data/x": "new"})
	if got := b.restore(t, home, "--yes"); got.code != 0 {
		t.Fatalf("exit code %d\n%s", got.code, got.output)
	}
	for name, want := range map[string]string{"chaindata/data/x": "new", "chaindata/config/priv_validator.json": "key"} {
		if got := read(t, filepath.Join(home, name)); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

// Whatever is wrong, the script says so with its exit code and the home is as it
// was, to the byte.
func TestRestoreRefuses(t *testing.T) {
	flip := func(path string, at int) func(*testing.T, backup, string) {
		return func(t *testing.T, b backup, _ string) {
			data := []byte(read(t, b.path(path)))
			data[(at+len(data))%len(data)] ^= 1
			write(t, b.path(path), string(data))
		}
	}
	for name, c := range map[string]struct {
		harm func(t *testing.T, b backup, home string)
		args []string
		code int
		says string
	}{
		"flipped bit in a frame":  {harm: flip("vol-0000.tar.zst", 400), code: 13, says: "could not be extracted"},
		"flipped bit in the sums": {harm: flip("SHA256SUMS.zst", -20), code: 13, says: "SHA256SUMS"},
		"flipped bit in latest": {harm: func(t *testing.T, b backup, _ string) {
			write(t, b.latest(), strings.Replace(read(t, b.latest()), "auto", "autp", 1))
		}, code: 13, says: "latest.txt is damaged"},
		"volume cut short":         {harm: func(t *testing.T, b backup, _ string) { cut(t, b.path("vol-0001.tar.zst"), -1) }, code: 13, says: "bytes, not"},
		"last volume missing":      {harm: func(t *testing.T, b backup, _ string) { remove(t, b.path("vol-0001.tar.zst")) }, code: 13, says: "is missing"},
		"last volume missing, id":  {harm: func(t *testing.T, b backup, _ string) { remove(t, b.path("vol-0001.tar.zst")) }, args: []string{"--id", id}, code: 13, says: "as it was"},
		"sums missing":             {harm: func(t *testing.T, b backup, _ string) { remove(t, b.path("SHA256SUMS.zst")) }, code: 13, says: "no SHA256SUMS"},
		"latest missing":           {harm: func(t *testing.T, b backup, _ string) { remove(t, b.latest()) }, code: 10, says: "there is no"},
		"unfinished":               {harm: func(t *testing.T, b backup, _ string) { remove(t, b.path("manifest.json")) }, args: []string{"--id", id}, code: 10, says: "there is no backup"},
		"volume at a frame border": {harm: atFrameBorder, code: 13, says: "as it was"},
		"wrong sum":                {harm: sums(func(s string) string { return "0000" + s[4:] }), code: 13, says: "differ from their sums"},
		"a file without a sum":     {harm: sums(func(s string) string { return s[strings.Index(s, "\n")+1:] }), code: 13, says: "files came out"},
		"a sum without a file":     {harm: sums(func(s string) string { return s + strings.Repeat("0", 64) + "  data/none\n" }), code: 13, says: "files came out"},
		"a sum that is none":       {harm: sums(func(s string) string { return "x" + s }), code: 13, says: "as it was"},
		"no sums at all":           {harm: sums(func(string) string { return "" }), code: 13, says: "names no file"},
		"sums outside":             {harm: sums(func(s string) string { return s + strings.Repeat("0", 64) + "  data/../../x\n" }), code: 13, says: "outside of the home"},
		"strange volume": {harm: func(t *testing.T, b backup, _ string) {
			b.point(t, strings.Replace(b.pointer(t), "/vol-0001", "/vol-0007", 1))
		}, code: 13, says: "strange volume"},
		"pointer without volumes": {harm: func(t *testing.T, b backup, _ string) { b.point(t, "id "+id+"\n") }, code: 13, says: "no volumes"},
		"pointer with a bad id":   {harm: func(t *testing.T, b backup, _ string) { b.point(t, "id ../../etc\n") }, code: 13, says: "names no backup"},
		"key without sign state": {harm: func(t *testing.T, _ backup, home string) {
			remove(t, filepath.Join(home, "data/priv_validator_state.json"))
		}, code: 12, says: "the floor"},
		"unreadable sign state": {harm: func(t *testing.T, _ backup, home string) {
			write(t, filepath.Join(home, "data/priv_validator_state.json"), "{}")
		}, code: 12, says: "cannot be read as a sign state"},
		"eddy's own swap is open": {harm: func(t *testing.T, _ backup, home string) { write(t, filepath.Join(home, ".eddy/swap.json"), "{}") }, code: 11, says: "in the middle of its swap"},
		"data is a link": {harm: func(t *testing.T, _ backup, home string) {
			if err := errors.Join(os.Rename(filepath.Join(home, "data"), filepath.Join(home, "elsewhere")), os.Symlink("elsewhere", filepath.Join(home, "data"))); err != nil {
				t.Fatal(err)
			}
		}, code: 1, says: "symbolic link"},
		"another cluster":  {args: []string{"--cluster", "other"}, code: 10, says: "there is no"},
		"a bad cluster":    {args: []string{"--cluster", "../x"}, code: 2, says: "only letters"},
		"a bad id":         {args: []string{"--id", "../../x"}, code: 2, says: "not the id"},
		"a bad store":      {args: []string{"--store", "ftp://x"}, code: 2, says: "want s3://"},
		"a bad flag":       {args: []string{"--force"}, code: 2, says: "unknown argument"},
		"a flag cut short": {args: []string{"--id"}, code: 2, says: "needs a value"},
		"no such home":     {args: []string{"--home", "/nonexistent"}, code: 2, says: "not a directory"},
		"no answer":        {args: []string{"--store", "http://127.0.0.1:1"}, code: 14, says: "check the URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBackup(t, source)
			home := live(t)
			if c.harm != nil {
				c.harm(t, b, home)
			}
			before := tree(t, home)
			got := b.restore(t, home, append([]string{"--yes"}, c.args...)...)
			if got.code != c.code || !strings.Contains(got.output, c.says) {
				t.Errorf("exit code %d, want %d with %q\n%s", got.code, c.code, c.says, got.output)
			}
			delete(before, ".eddy/restore.lock")
			wantTree(t, home, before)
		})
	}
}

// What eddy never puts into an archive is not taken out of one either.
func TestRestoreRefusesKeys(t *testing.T) {
	for _, name := range []string{"data/priv_validator_state.json", "config/priv_validator_key.json", "config/node_key.json", ".eddy/x"} {
		home := live(t)
		before := tree(t, home)
		b := newBackup(t, map[string]string{"data/a": "a", name: "{}"})
		if got := b.restore(t, home, "--yes"); got.code != 13 {
			t.Errorf("%s: exit code %d, want 13\n%s", name, got.code, got.output)
		}
		wantTree(t, home, before)
	}
}

// With --signer only what that key has signed is restored, and no file of it can be
// another one: manifest, list of sums and files hang together.
func TestRestoreChecksTheSignature(t *testing.T) {
	keys := t.TempDir()
	sh(t, keys, nil, "for k in ours theirs; do openssl genpkey -algorithm ed25519 -out $k.key && openssl pkey -in $k.key -pubout -out $k.pem; done")
	line := strings.Split(read(t, filepath.Join(keys, "ours.pem")), "\n")[1]
	signed := func(t *testing.T) backup {
		b := newBackup(t, source)
		sums := read(t, b.path("SHA256SUMS.zst"))
		write(t, b.path("manifest.json"), fmt.Sprintf("{\n  \"format\": 1,\n  \"id\": %q,\n  \"cluster\": %q,\n  \"sums\": {\n    \"name\": \"SHA256SUMS.zst\",\n    \"size\": %d,\n    \"sha256\": \"%x\"\n  }\n}\n", id, cluster, len(sums), sha256.Sum256([]byte(sums))))
		sh(t, keys, nil, "openssl pkeyutl -sign -rawin -inkey ours.key -in "+b.path("manifest.json")+" -out "+b.path("manifest.sig"))
		return b
	}
	for name, c := range map[string]struct {
		signer string
		harm   func(t *testing.T, b backup)
		code   int
		said   string
	}{
		"file":           {filepath.Join(keys, "ours.pem"), nil, 0, "is signed"},
		"line":           {line, nil, 0, "is signed"},
		"another key":    {filepath.Join(keys, "theirs.pem"), nil, 13, "not signed by"},
		"no key":         {"nonsense", nil, 2, "neither"},
		"no signature":   {line, func(t *testing.T, b backup) { remove(t, b.path("manifest.sig")) }, 13, "is not signed"},
		"another height": {line, func(t *testing.T, b backup) { write(t, b.path("manifest.json"), read(t, b.path("manifest.json"))+" ") }, 13, "not signed by"},
		"other sums": {line, func(t *testing.T, b backup) {
			write(t, b.path("SHA256SUMS.zst"), string(sh(t, keys, []byte(read(t, b.path("SHA256SUMS.zst"))), "zstd -dc | zstd -5 -c")))
		}, 13, "not the one that its manifest names"},
	} {
		t.Run(name, func(t *testing.T) {
			b := signed(t)
			if c.harm != nil {
				c.harm(t, b)
			}
			home := t.TempDir()
			got := b.restore(t, home, "--signer", c.signer)
			if got.code != c.code || !strings.Contains(got.output, c.said) {
				t.Fatalf("exit code %d, want %d: %s", got.code, c.code, got.output)
			}
			if c.code == 0 {
				wantTree(t, home, source)
			}
		})
	}
}

func TestRestoreRefusesWhileNodeRuns(t *testing.T) {
	b := newBackup(t, source)
	home := live(t)
	before := tree(t, home)
	f, err := os.Open(filepath.Join(home, "data/old.db/CURRENT"))
	if err != nil {
		t.Fatal(err)
	}
	got := b.restore(t, home, "--yes")
	if got.code != 12 || !strings.Contains(got.output, fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("exit code %d, want 12 with our pid\n%s", got.code, got.output)
	}
	wantTree(t, home, before)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := b.restore(t, home, "--yes"); got.code != 0 {
		t.Errorf("after the file was closed: exit code %d\n%s", got.code, got.output)
	}
}

// atFrameBorder cuts the first volume behind its first frame and corrects the
// pointer: to zstd and to the size check the volume is whole.
func atFrameBorder(t *testing.T, b backup, _ string) {
	t.Helper()
	vol := read(t, b.path("vol-0000.tar.zst"))
	magic := "\x28\xb5\x2f\xfd"
	second := strings.Index(vol[4:], magic) + 4
	write(t, b.path("vol-0000.tar.zst"), vol[:second])
	b.point(t, strings.Replace(b.pointer(t), fmt.Sprint(len(vol)), fmt.Sprint(second), 1))
}

// sums rewrites SHA256SUMS.
func sums(edit func(string) string) func(*testing.T, backup, string) {
	return func(t *testing.T, b backup, _ string) {
		t.Helper()
		text := sh(t, "", []byte(read(t, b.path("SHA256SUMS.zst"))), "zstd -dc")
		write(t, b.path("SHA256SUMS.zst"), string(sh(t, "", []byte(edit(string(text))), "zstd -c")))
	}
}

func sh(t *testing.T, dir string, stdin []byte, script string) []byte {
	t.Helper()
	cmd := exec.Command("bash", "-o", "pipefail", "-c", script)
	cmd.Dir, cmd.Stdin = dir, bytes.NewReader(stdin)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, stderr.String())
	}
	return out
}

func tree(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			files[name] = "-> " + target
			return err
		}
		files[name] = read(t, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// wantTree compares all files below dir, the script's lock apart.
func wantTree(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	got := tree(t, dir)
	delete(got, ".eddy/restore.lock")
	for name, w := range want {
		if g, ok := got[name]; !ok {
			t.Errorf("%q is missing", name)
		} else if g != w {
			t.Errorf("%q differs: %.40q, want %.40q", name, g, w)
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%q is too much", name)
		}
	}
}

func writeTree(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		write(t, filepath.Join(dir, name), content)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

func cut(t *testing.T, path string, by int) {
	t.Helper()
	s := read(t, path)
	write(t, path, s[:len(s)+by])
}
