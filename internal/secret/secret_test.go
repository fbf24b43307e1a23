package secret

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/hint"
)

func TestRead(t *testing.T) {
	const planted = "hunter2"
	for name, c := range map[string]struct {
		text string
		mode os.FileMode
		want string
		err  string // FILE stands for the file
		hint string
	}{
		"a line":          {text: planted + "\n", mode: 0o600, want: planted},
		"of Windows":      {text: planted + "\r\n", mode: 0o400, want: planted},
		"no line's end":   {text: " " + planted + " ", mode: 0o600, want: " " + planted + " "},
		"nothing":         {mode: 0o600},
		"the largest":     {text: strings.Repeat("x", most), mode: 0o600, want: strings.Repeat("x", most)},
		"for the group":   {text: planted, mode: 0o640, err: "FILE may be read by others (0640)", hint: "`chmod 600 FILE`"},
		"for all":         {text: planted, mode: 0o604, err: "FILE may be read by others (0604)", hint: "`chmod 600 FILE`"},
		"a zero":          {text: planted + "\x00", mode: 0o600, err: "FILE is no password: it is larger than 65536 bytes, or has a zero in it"},
		"one byte larger": {text: strings.Repeat(planted, most)[:most+1], mode: 0o600, err: "FILE is no password: it is larger than 65536 bytes, or has a zero in it"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pass")
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(file, c.mode); err != nil {
				t.Fatal(err)
			}
			got, err := Read(file, "password")
			said := ""
			if err != nil {
				said = err.Error()
			}
			if got != c.want || said != strings.ReplaceAll(c.err, "FILE", file) || hint.Of(err) != strings.ReplaceAll(c.hint, "FILE", file) {
				t.Errorf("%d bytes, %q, hint %q", len(got), said, hint.Of(err))
			}
			if errors.Is(err, ErrExposed) != (c.mode&0o077 != 0) || strings.Contains(said, planted) {
				t.Error(err)
			}
		})
	}
	if _, err := Read(filepath.Join(t.TempDir(), "none"), "password"); !errors.Is(err, fs.ErrNotExist) || hint.Of(err) == "" {
		t.Errorf("no file: %v", err)
	}
}

func TestEnviron(t *testing.T) {
	t.Setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
	t.Setenv("EDDY_STORE_URL", "s3://hunter2")
	t.Setenv("JAVA_HOME", "/opt/java")
	got := Environ()
	if strings.Contains(strings.Join(got, "\n"), "hunter2") || !slices.Contains(got, "JAVA_HOME=/opt/java") {
		t.Errorf("%q", got)
	}
}
