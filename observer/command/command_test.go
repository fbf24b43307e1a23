package command

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/snapshot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func sh(script string) []string { return []string{"sh", "-c", script} }

// taken runs a command as a backup does.
func taken(t *testing.T, o Options) (*Command, *snapshot.Stage, error) {
	t.Helper()
	if o.Timeout == 0 {
		o.Timeout = time.Minute
	}
	c := New(o)
	st, err := snapshot.CreateStage(fsx.FS{}, "20261120T235500Z-auto-0a1b2c", []snapshot.Root{{Path: t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Capture(t.Context(), st); err != nil {
		return c, st, err
	}
	return c, st, st.Seal(t.Context())
}

func TestWhatAProgramPrintsIsTheDump(t *testing.T) {
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte("Seven of Nine\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("EDDY_STORE_URL", "s3://b")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hush")
	var log []string
	c, st, err := taken(t, Options{
		Cluster: "c", Argv: sh(`printf '%s|%s|%s' "$PASS" "$EDDY_STORE_URL" "$AWS_SECRET_ACCESS_KEY"; echo 1 of 2 >&2; echo >&2; printf 'half a line' >&2`),
		Version: sh("echo v3; echo more"), EnvFiles: map[string]string{"PASS": key}, Log: func(l string) { log = append(log, l) },
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := st.Trees()[0].Dir
	if got, err := os.ReadFile(filepath.Join(dir, observer.DumpName)); err != nil || string(got) != "Seven of Nine||" {
		t.Errorf("%q, %v", got, err)
	}
	if !slices.Equal(log, []string{"1 of 2", "half a line"}) {
		t.Errorf("%q", log)
	}
	pos, err := c.Locate(t.Context(), st, observer.State{})
	if err != nil || pos.Kind != Kind || time.Since(pos.Time) > time.Minute || pos.Index != uint64(pos.Time.Unix()) {
		t.Errorf("%+v, %v", pos, err)
	}
	n, err := observer.ReadNote(dir)
	if err != nil || n.State.Version != "v3" || n.State.System != Kind {
		t.Errorf("%+v, %v", n, err)
	}
}

// A bit that flips between the program and the look is found, in whatever form.
func TestFlippedBits(t *testing.T) {
	for name, o := range map[string]Options{
		"any": {Argv: sh("printf 'We are the Borg'")},
		"tar": {Argv: []string{"tar", "-cf", "-", "command.go"}, Expect: Expect{Form: TarForm}},
	} {
		c, st, err := taken(t, o)
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(st.Trees()[0].Dir, observer.DumpName)
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		looked := func(b []byte) []string {
			t.Helper()
			if err := errors.Join(os.Chmod(file, 0o600), os.WriteFile(file, b, 0o600)); err != nil {
				t.Fatal(err)
			}
			out, err := c.Check(t.Context(), st.Trees(), observer.Position{})
			if err != nil {
				t.Fatal(err)
			}
			return out.Findings
		}
		for at := 0; at < len(whole); at += max(1, len(whole)/200) {
			b := bytes.Clone(whole)
			b[at] ^= 1 << (at % 8)
			if len(looked(b)) == 0 {
				t.Errorf("%s: a bit of byte %d is flipped, and nobody sees it", name, at)
			}
		}
		if found := looked(whole); len(found) > 0 {
			t.Errorf("%s: %q", name, found)
		}
	}
}

func TestWhatIsNoDump(t *testing.T) {
	open := filepath.Join(t.TempDir(), "open")
	if err := os.WriteFile(open, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"it fails":            {Options{Argv: sh("echo half; echo no space >&2; exit 3")}, "exit status 3: no space"},
		"it prints nothing":   {Options{Argv: []string{"true"}}, "it printed nothing"},
		"there is none":       {Options{Argv: []string{"/nonexistent/dump"}}, "no such file"},
		"it does not end":     {Options{Argv: sh("echo x; sleep 300"), Timeout: 100 * time.Millisecond}, "has not ended within 100ms and was killed"},
		"a secret for all":    {Options{Argv: sh("echo x"), EnvFiles: map[string]string{"A": open}}, "may be read by others"},
		"a secret that is no": {Options{Argv: sh("echo x"), EnvFiles: map[string]string{"A": "/nonexistent/a"}}, "no such file"},
	} {
		_, st, err := taken(t, c.o)
		if err == nil || !strings.Contains(err.Error(), c.want) || hint.Of(err) == "" {
			t.Errorf("%s: %v, hint %q", name, err, hint.Of(err))
		}
		if _, err := os.Stat(st.Place(observer.DumpName)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: something of it stays: %v", name, err)
		}
	}
}

// A program that is killed takes along what it started.
func TestNothingIsLeftRunning(t *testing.T) {
	pid := filepath.Join(t.TempDir(), "pid")
	_, _, err := taken(t, Options{Argv: sh("sleep 300 & echo $! > " + pid + "; echo x; wait"), Timeout: 300 * time.Millisecond})
	if err == nil {
		t.Fatal("it was not killed")
	}
	b, err := os.ReadFile(pid)
	if err != nil {
		t.Fatal(err)
	}
	for range 100 {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) || bytes.Contains(stat, []byte(") Z ")) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("its child lives")
}

func TestGate(t *testing.T) {
	for script, fit := range map[string]bool{"exit 0": true, "echo not a manager >&2; exit 1": false} {
		err := New(Options{Precheck: sh(script)}).Gate(t.Context(), observer.State{})
		if fit != (err == nil) || !fit && (!errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), "not a manager")) {
			t.Errorf("%s: %v", script, err)
		}
	}
	if err := New(Options{}).Gate(t.Context(), observer.State{}); err != nil {
		t.Error(err)
	}
}

func TestRestoreReadsTheDump(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, observer.DumpName), []byte("the dump"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{}).Target(t.Context(), observer.RestoreTask{}); !errors.Is(err, observer.ErrNotFit) {
		t.Error(err)
	}
	got := filepath.Join(t.TempDir(), "got")
	c := New(Options{Restore: sh("cat > " + got), Timeout: time.Minute})
	if _, err := c.Restore(t.Context(), observer.RestoreTask{Dir: dir}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(got); err != nil || string(b) != "the dump" {
		t.Errorf("%q, %v", b, err)
	}
	c = New(Options{Restore: sh("exit 1"), Timeout: time.Minute})
	if _, err := c.Restore(t.Context(), observer.RestoreTask{Dir: dir}); err == nil {
		t.Error("a restore that failed is none")
	}
}

func tarOf(t testing.TB, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		if err := w.WriteHeader(&tar.Header{Name: n, Size: 3, Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte("abc")); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zipped(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestExpect(t *testing.T) {
	whole := tarOf(t, "./a", "./dir/key.pem")
	gz := zipped(t, whole)
	torn := bytes.Clone(gz)
	torn[len(torn)-5] ^= 1 // of its checksum
	for name, c := range map[string]struct {
		e     Expect
		dump  []byte
		wrong string // "": nothing
	}{
		"anything":              {Expect{Form: AnyForm}, []byte("x"), ""},
		"a tar":                 {Expect{Form: TarForm, Contains: []string{"dir/key.pem"}, Members: 2}, whole, ""},
		"a tar with too few":    {Expect{Form: TarForm, Members: 3}, whole, "2 members, 3 are too few"},
		"a tar without":         {Expect{Form: TarForm, Contains: []string{"a", "b"}}, whole, "it lacks b"},
		"a tar cut in a member": {Expect{Form: TarForm}, whole[:700], "no whole tar"},
		"a tar cut between":     {Expect{Form: TarForm}, whole[:1024], "no whole tar"},
		"a tar without its end": {Expect{Form: TarForm}, whole[:2048], "no whole tar"},
		"an empty tar":          {Expect{Form: TarForm}, tarOf(t), "empty"},
		"an error message":      {Expect{Form: TarForm}, []byte("Error: permission denied\n"), "no whole tar"},
		"a tar.gz":              {Expect{Form: TarGzForm, Members: 2}, gz, ""},
		"a tar.gz cut short":    {Expect{Form: TarGzForm}, gz[:len(gz)-9], "no"},
		"a tar.gz torn":         {Expect{Form: TarGzForm}, torn, "invalid checksum"},
		"no gzip":               {Expect{Form: TarGzForm}, whole, "no gzip"},
		"pgp":                   {Expect{Form: PGPForm}, []byte{0x8c, 0x0d, 4}, ""},
		"pgp, new form":         {Expect{Form: PGPForm}, []byte{0xc1, 0x0d, 4}, ""},
		"pgp, armoured":         {Expect{Form: PGPForm}, []byte("-----BEGIN PGP MESSAGE-----\n"), ""},
		"no pgp":                {Expect{Form: PGPForm}, whole, "no PGP"},
		"pgp of nothing":        {Expect{Form: PGPForm}, nil, "no PGP"},
	} {
		_, finding, err := c.e.look(t.Context(), bytes.NewReader(c.dump))
		if err != nil || (finding == "") != (c.wrong == "") || !strings.Contains(finding, c.wrong) {
			t.Errorf("%s: %q, %v", name, finding, err)
		}
	}
	// What cannot be read is no finding.
	if _, finding, err := (Expect{Form: TarForm}).look(t.Context(), &failing{}); err == nil || finding != "" {
		t.Errorf("%q, %v", finding, err)
	}
}

type failing struct{}

func (*failing) Read([]byte) (int, error) { return 0, syscall.EIO }

// A preset fills in what is not said, and has no secret in an argv.
func TestPresets(t *testing.T) {
	ucp := Options{Timeout: time.Hour}.Preset("ucp", "docker/ucp:3.1.0", []string{"--debug"})
	want := "docker run --rm -i --name ucp --log-driver none -v /var/run/docker.sock:/var/run/docker.sock docker/ucp:3.1.0 backup --no-passphrase --include-logs=false --debug"
	if got := strings.Join(ucp.Argv, " "); got != want || ucp.Expect.Form != TarForm || ucp.Expect.Members != 27 || len(ucp.Precheck) == 0 {
		t.Errorf("%q, %+v", got, ucp)
	}
	dtr := Options{EnvFiles: map[string]string{"UCP_PASSWORD": "/etc/eddy/ucp"}, Argv: []string{"own"}}.Preset("dtr", "docker/dtr:2.6", nil)
	if got := strings.Join(dtr.Restore, " "); got != "docker run --rm -i --log-driver none -e UCP_PASSWORD docker/dtr:2.6 restore" || dtr.Argv[0] != "own" || dtr.Version[1] != "2.6" {
		t.Errorf("%q, %+v", got, dtr)
	}
}

func FuzzExpect(f *testing.F) {
	f.Add("tar", tarOf(f, "a"))
	f.Add("tar.gz", zipped(f, tarOf(f, "a")))
	f.Add("pgp", []byte{0x8c})
	f.Fuzz(func(t *testing.T, form string, b []byte) {
		_, finding, err := Expect{Form: Form(form), Members: 1}.look(t.Context(), bytes.NewReader(b))
		if err != nil {
			t.Error(err)
		}
		if form == "tar" && finding == "" && len(b) < tarEnd+512 {
			t.Errorf("a tar of %d bytes", len(b))
		}
	})
}
