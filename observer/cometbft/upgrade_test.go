package cometbft

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

func TestIsUpgrading(t *testing.T) {
	for name, tc := range map[string]struct {
		plan string // "": no file
		due  bool
	}{
		"no plan":           {"", false},
		"due":               {`{"name":"v2","height":101,"info":""}`, true},
		"due, quoted":       {`{"name":"v2","height":"101"}`, true},
		"carried out":       {`{"name":"v2","height":100}`, false},
		"planned":           {`{"name":"v2","height":102}`, false},
		"nothing in it":     {`{}`, false},
		"cut short":         {`{"name":"v2","hei`, false},
		"no height":         {`{"name":"v2","height":-1}`, false},
		"more than a chain": {`{"name":"v2","height":99999999999999999999}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			if err := os.Mkdir(filepath.Join(home, "data"), 0o700); err != nil {
				t.Fatal(err)
			}
			if tc.plan != "" {
				if err := os.WriteFile(filepath.Join(home, "data", "upgrade-info.json"), []byte(tc.plan), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			r := &Replica{o: Options{Home: home}}
			err := r.isUpgrading(observer.State{Position: observer.Position{Index: 100}})
			if !tc.due {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if !errors.Is(err, observer.ErrBehind) || !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), `"v2"`) || hint.Of(err) == "" {
				t.Fatalf("%v, hint %q", err, hint.Of(err))
			}
		})
	}
}
