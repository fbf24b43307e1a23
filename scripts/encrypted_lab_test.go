//go:build lab

package scripts_test

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestRestoreRefusesAnEncryptedBackup(t *testing.T) {
	for name, c := range map[string]struct {
		harm func(t *testing.T, b backup, home string)
		// args has "other" where the identity that opens nothing stands, nil the right one.
		args []string
		code int
		says string
	}{
		"no identity":    {args: []string{}, code: 2, says: "-i FILE"},
		"wrong identity": {args: []string{"-i", "other"}, code: 2, says: "sealed for others"},
		"no such file":   {args: []string{"-i", "/nonexistent"}, code: 2, says: "cannot be read"},
		"flipped bit": {harm: func(t *testing.T, b backup, _ string) {
			s := []byte(read(t, b.path(sealedVolume)))
			s[len(s)-30] ^= 1
			write(t, b.path(sealedVolume), string(s))
		}, code: 13, says: "as it was"},
		"another one for the same identity": {harm: func(t *testing.T, b backup, _ string) {
			manifest := read(t, b.path("manifest.json"))
			i := strings.Index(manifest, `"sha256": "`) + len(`"sha256": "`)
			write(t, b.path("manifest.json"), manifest[:i]+strings.Repeat("0", 64)+manifest[i+64:])
		}, code: 13, says: "not what its manifest names"},
		"manifest without a sum": {harm: func(t *testing.T, b backup, _ string) {
			write(t, b.path("manifest.json"), strings.Replace(read(t, b.path("manifest.json")), `"sha256"`, `"x"`, 1))
		}, code: 13, says: "does not say of what"},
		"of another size": {harm: func(t *testing.T, b backup, _ string) {
			write(t, b.path(sealedVolume), read(t, b.path(sealedVolume))+"x")
		}, code: 13, says: "bytes, not"},
		"another scheme": {harm: func(t *testing.T, b backup, _ string) {
			write(t, b.path("manifest.json"), strings.Replace(read(t, b.path("manifest.json")), `"age",`, `"pgp",`, 1))
		}, code: 1, says: "does not know"},
		"newer": {harm: func(t *testing.T, b backup, _ string) {
			write(t, b.path("manifest.json"), strings.Replace(read(t, b.path("manifest.json")), `reader": 1`, `reader": 2`, 1))
		}, code: 1, says: "newer eddy"},
		"a file less": {harm: func(t *testing.T, b backup, _ string) {
			write(t, b.path("manifest.json"), strings.Replace(read(t, b.path("manifest.json")), `"files": 2`, `"files": 3`, 1))
		}, code: 13, says: "2 files came out"},
		"not confirmed": {harm: func(t *testing.T, _ backup, home string) { write(t, filepath.Join(home, "dump"), "mine") }, code: 16, says: "--yes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b, identity, other := newSealed(t)
			home := t.TempDir()
			if c.harm != nil {
				c.harm(t, b, home)
			}
			args := []string{"-i", identity}
			if c.args != nil {
				args = c.args
			}
			for i, a := range args {
				if a == "other" {
					args[i] = other
				}
			}
			before := tree(t, home)
			got := b.restore(t, home, args...)
			if got.code != c.code || !strings.Contains(got.output, c.says) {
				t.Errorf("exit code %d, want %d with %q\n%s", got.code, c.code, c.says, got.output)
			}
			wantTree(t, home, before)
		})
	}
}
