package uploader

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// readmeScript is what lies between the two scissors of README.txt.
func readmeScript(t *testing.T, readme string) string {
	t.Helper()
	_, rest, ok := strings.Cut(readme, "#--8<-- from here\n")
	s, _, ok2 := strings.Cut(rest, "#--8<-- to here\n")
	if !ok || !ok2 {
		t.Fatalf("no scissors in\n%s", readme)
	}
	return s
}

func bash(t *testing.T, dir, text string, env ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "bash", "-c", text)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func sh(t *testing.T, dir, text string) {
	t.Helper()
	if out, err := bash(t, dir, "set -euo pipefail; "+text); err != nil {
		t.Fatalf("%s: %v\n%s", text, err, out)
	}
}

func read(t *testing.T, elem ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elem...))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// archived makes a READY backup of two volumes with the stock tools.
func archived(t *testing.T, c *Catalog) Manifest {
	t.Helper()
	tree := t.TempDir()
	sh(t, tree, `mkdir -p data/app.db 'wasm dir' .eddy-root/x; head -c 300000 /dev/urandom > data/app.db/000001.ldb; echo new > data/state
		echo w > 'wasm dir/a b'; echo r > .eddy-root/x/f
		find . -type f -printf '%P\0' | xargs -0 sha256sum | zstd -q > ../sums.zst; tar -c $(ls -A | grep -v ' ') 'wasm dir' | zstd -q > ../a.tar.zst
		split -b 100000 -d -a 4 ../a.tar.zst ../vol-`)
	m := manifestAt(t, c, t0, "stock", 7)
	m.Volumes = nil
	vols, err := filepath.Glob(filepath.Join(tree, "..", "vol-*"))
	if err != nil || len(vols) < 2 {
		t.Fatalf("%v, %v", vols, err)
	}
	for i, v := range vols {
		body := read(t, v)
		put(t, c, c.ObjectKey(m.ID, VolumeName(i)), body)
		m.Volumes = append(m.Volumes, Volume{Name: VolumeName(i), Size: int64(len(body))})
	}
	sums := read(t, tree, "..", "sums.zst")
	put(t, c, c.ObjectKey(m.ID, SumsName), sums)
	m.Sums = &SumsRef{Name: SumsName, Size: int64(len(sums))}
	if err := c.Commit(t.Context(), m, false); err != nil {
		t.Fatal(err)
	}
	return m
}

func oldHome(t *testing.T) string {
	t.Helper()
	home := filepath.Join(t.TempDir(), "a home")
	if err := os.Mkdir(home, 0o700); err != nil {
		t.Fatal(err)
	}
	sh(t, home, `mkdir -p data config; echo old > data/state; echo '{"height":"9"}' > data/priv_validator_state.json; echo key > config/k`)
	return home
}

func wantRestored(t *testing.T, home string) {
	t.Helper()
	for name, want := range map[string]string{
		"data/state": "new\n", "data/priv_validator_state.json": "{\"height\":\"9\"}\n", "config/k": "key\n", "wasm dir/a b": "w\n", ".eddy-root/x/f": "r\n",
	} {
		if got := read(t, home, name); got != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	old, err := filepath.Glob(filepath.Join(home, ".eddy-old-*", "data", "state"))
	if err != nil || len(old) != 1 || read(t, old[0]) != "old\n" {
		t.Errorf("what was there is at %v, %v", old, err)
	}
	if _, err := os.Stat(filepath.Join(home, ".eddy-new")); err == nil {
		t.Error("the working directory is left")
	}
}

// The commands of README.txt are run as they stand.
func TestReadmeRestoresWithStockTools(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "it's a store")
	c := NewCatalog(newFileStore(dir), "test")
	archived(t, c)
	text := readmeScript(t, read(t, dir, "test", readmeName))
	home := oldHome(t)
	if out, err := bash(t, t.TempDir(), text, "home="+home); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantRestored(t, home)
}

// The one volume of an encrypted backup has a name of its own, and stock tools find it
// by latest.txt.
func TestReadmeOpensAnEncryptedBackup(t *testing.T) {
	dir := t.TempDir()
	c := NewCatalog(newFileStore(dir), "test")
	tree := t.TempDir()
	sh(t, tree, `age-keygen -o id 2>/dev/null; echo secret >dump; tar -c dump | zstd -q | age -r "$(age-keygen -y id)" -o sealed`)
	m := manifestAt(t, c, t0, "sealed", 7)
	body := read(t, tree, "sealed")
	put(t, c, c.ObjectKey(m.ID, SealedName), body)
	m.Volumes = []Volume{{Name: SealedName, Size: int64(len(body)), SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte(body)))}}
	m.Encryption = &Encryption{Scheme: "age", Recipients: []string{"age:0"}}
	if err := c.Commit(t.Context(), m, false); err != nil {
		t.Fatal(err)
	}
	text := readmeScript(t, read(t, dir, "test", readmeName))
	home := t.TempDir()
	if out, err := bash(t, t.TempDir(), text, "home="+home, "identity="+filepath.Join(tree, "id")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := read(t, home, "dump"); got != "secret\n" {
		t.Fatalf("dump is %q", got)
	}
}

func TestReadmeTouchesNothingWhereAnythingIsWrong(t *testing.T) {
	for name, harm := range map[string]func(t *testing.T, dir, id string){
		"flipped bit": func(t *testing.T, dir, id string) {
			p := filepath.Join(dir, "test", "data", id, VolumeName(1))
			b := []byte(read(t, p))
			b[len(b)/2] ^= 1
			if err := os.WriteFile(p, b, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"volume gone": func(t *testing.T, dir, id string) { sh(t, dir, "rm test/data/"+id+"/"+VolumeName(2)) },
		"sums gone":   func(t *testing.T, dir, id string) { sh(t, dir, "rm test/data/"+id+"/"+SumsName) },
		"pointer cut": func(t *testing.T, dir, _ string) { sh(t, dir, "sed -i '3d' test/latest.txt") },
		"pointer without a sum": func(t *testing.T, dir, _ string) {
			sh(t, dir, "sed -i '$d' test/latest.txt")
		},
		"pointer gone": func(t *testing.T, dir, _ string) { sh(t, dir, "rm test/latest.txt") },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := NewCatalog(newFileStore(dir), "test")
			m := archived(t, c)
			text := readmeScript(t, read(t, dir, "test", readmeName))
			harm(t, dir, m.ID)
			home := oldHome(t)
			if out, err := bash(t, t.TempDir(), text, "home="+home); err == nil {
				t.Fatalf("it succeeded\n%s", out)
			}
			if got := read(t, home, "data/state"); got != "old\n" {
				t.Fatalf("the live data is %q", got)
			}
			if got := read(t, home, "data/priv_validator_state.json"); got != "{\"height\":\"9\"}\n" {
				t.Fatalf("the sign state is %q", got)
			}
		})
	}
}

// aws stands for the aws command line: it checks what it is told and reads a
// directory.
const awsStub = `#!/bin/bash
[ "$*" = "s3 cp --only-show-errors --endpoint-url http://127.0.0.1:9 --region r1 ${*: -2:1} -" ] || { echo "told: $*" >&2; exit 9; }
cat "$STORE/${8#s3://b/pre/fix/}"
`

func TestReadmeOfABucket(t *testing.T) {
	dir := t.TempDir()
	archived(t, NewCatalog(newFileStore(dir), "test"))
	s := &s3Store{c: Config{Region: "r1", Endpoint: "http://user:secret@127.0.0.1:9"}, bucket: "b", prefix: "pre/fix"}
	readme := NewCatalog(s, "test").readme()
	for _, want := range []string{
		"eddy restore latest --into DIR --store s3://b/pre/fix --cluster test --endpoint http://127.0.0.1:9 --region r1\n",
		"aws s3 ls --endpoint-url http://127.0.0.1:9 --region r1 s3://b/pre/fix/test/data/\n",
		`http://127.0.0.1:9/b/pre/fix/"$1"; }`, "--aws-sigv4 aws:amz:r1:s3",
		"THE SIGN STATE",
	} {
		if !strings.Contains(readme, want) {
			t.Errorf("it lacks %q", want)
		}
	}
	if strings.Contains(readme, "secret") || strings.Contains(readme, "%!") {
		t.Errorf("README.txt:\n%s", readme)
	}
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "aws"), []byte(awsStub), 0o700); err != nil {
		t.Fatal(err)
	}
	home := oldHome(t)
	if out, err := bash(t, t.TempDir(), readmeScript(t, readme), "home="+home, "STORE="+dir, "PATH="+bin+":"+os.Getenv("PATH")); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	wantRestored(t, home)
	amazon := NewCatalog(&s3Store{bucket: "b"}, "test").readme()
	if !strings.Contains(amazon, `https://b.s3.us-east-1.amazonaws.com/"$1"`) || !strings.Contains(amazon, "aws s3 cp --only-show-errors s3://b/\"$1\" -") {
		t.Errorf("README.txt of a bucket of AWS:\n%s", amazon)
	}
}

func TestReadmeIsWrittenOnlyWhenItChanges(t *testing.T) {
	c := testCatalog(t)
	mustBackup(t, c, t0, "one", 1)
	first, err := c.Store().Stat(t.Context(), c.readmeKey())
	if err != nil {
		t.Fatal(err)
	}
	mustBackup(t, c, t0, "two", 2)
	if o, err := c.Store().Stat(t.Context(), c.readmeKey()); err != nil || o.ETag != first.ETag {
		t.Fatalf("written again: %+v, %v", o, err)
	}
	put(t, c, c.readmeKey(), "of an older eddy")
	mustBackup(t, c, t0, "three", 3)
	b, _, err := c.Store().GetSmall(t.Context(), c.readmeKey(), 1<<20)
	if err != nil || !bytes.Equal(b, []byte(c.readme())) {
		t.Fatalf("%q, %v", b, err)
	}
}
