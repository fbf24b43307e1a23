package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// verdicts are what a round has done to the invariants: nothing, one hopes.
type verdicts struct {
	lost  int // a backup that does not restore, or is gone
	stuck int // a node that stayed down
	found []string
}

func (v *verdicts) add(format string, args ...any) {
	v.found = append(v.found, fmt.Sprintf(format, args...))
}

// invariants are the names of what did not hold, each once.
func (v *verdicts) invariants() []string {
	var names []string
	for _, f := range v.found {
		name, _, _ := strings.Cut(f, ":")
		if len(name) != 2 || name[0] != 'I' {
			name = "other"
		}
		if !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// judgeVisible looks at every backup that can be seen and has not been looked at:
// each must restore byte for byte.
func (w *world) judgeVisible(ctx context.Context, s *setup, out *verdicts) (*view, error) {
	v, err := w.bucket.view(ctx, s.name)
	if err != nil {
		return nil, err
	}
	for _, id := range v.ids() {
		if etag := v.objects[path.Join("data", id, "manifest.json")].etag; s.judged[id] != etag {
			if s.judged[id] != "" {
				out.lost++
				out.add("I2: the manifest of %s was written again", id)
			}
			if err := w.judgeArchive(ctx, s, v, id); err != nil {
				out.lost++
				out.add("I2: %s is visible and does not restore: %v", id, err)
			}
			s.judged[id] = etag
		}
		for _, vol := range v.manifests[id].Volumes {
			if v.objects[path.Join("data", id, vol.Name)].size != vol.Size {
				out.lost++
				out.add("I2: %s is visible, its %s is not", id, vol.Name)
			}
		}
	}
	for id := range s.judged {
		if _, ok := v.manifests[id]; ok {
			continue
		}
		delete(s.judged, id)
		if !s.mayGo(id) {
			out.lost++
			out.add("I3: backup %s is gone", id)
		}
	}
	s.judgeLatest(v, out)
	return v, nil
}

// judgeArchive compares a backup with its own lists, and with the stage that it was
// made from.
func (w *world) judgeArchive(ctx context.Context, s *setup, v *view, id string) error {
	got, err := w.bucket.archive(ctx, v, id, s.secrets)
	if err != nil {
		return err
	}
	kept := filepath.Join(s.watch.links, id)
	want, err := tree(kept)
	if err != nil {
		return fmt.Errorf("the stage was not kept: %w", err)
	}
	if err := same(want, got); err != nil {
		return fmt.Errorf("against the stage: %w", err)
	}
	s.contents[id] = got
	return os.RemoveAll(kept)
}

// judgeLatest: latest never moves back, and names what is there.
func (s *setup) judgeLatest(v *view, out *verdicts) {
	l := v.latest
	if l == nil {
		if s.latest.ID != "" {
			out.add("I3: latest.json is gone")
		}
		return
	}
	switch {
	case l.Seq < s.latest.Seq || l.Incarnation == s.latest.Incarnation && l.Position.Index < s.latest.Position.Index:
		out.add("I3: latest moved back from %s to %s", s.latest.ID, l.ID)
	case l.Seq == s.latest.Seq && l.ID != s.latest.ID:
		out.add("I3: latest moved from %s to %s without a new number", s.latest.ID, l.ID)
	}
	if _, ok := v.manifests[l.ID]; !ok {
		out.lost++
		out.add("I2: latest names %s, which is not READY", l.ID)
	}
	s.latest = *l
}

// judgeSwept looks at what must be gone after a good run.
func (w *world) judgeSwept(ctx context.Context, s *setup, v *view, out *verdicts) error {
	uploads, err := w.bucket.uploads(ctx)
	if err != nil {
		return err
	}
	for _, key := range uploads {
		if strings.HasPrefix(key, v.dir+"/") {
			out.add("I4: the upload of %s is still open", key)
		}
	}
	for _, pattern := range []string{"job.json", "attempt.json", "hold.json", "upload-*", "sums-*", "*.tmp*"} {
		found, err := filepath.Glob(filepath.Join(s.workdir, pattern))
		if err != nil {
			return err
		}
		for _, f := range found {
			out.add("I4: %s is left in the workdir", filepath.Base(f))
			if err := os.Remove(f); err != nil { // or every later round would say so, too
				return err
			}
		}
	}
	stages, err := os.ReadDir(filepath.Join(s.real, ".eddy"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, st := range stages {
		if st.IsDir() {
			out.add("I4: stage %s is left", st.Name())
		}
	}
	for key := range v.objects {
		switch {
		case strings.HasPrefix(key, "probe/"):
			out.add("I4: %s is left", key)
		case strings.HasPrefix(key, "runs/"):
			var run struct{ Status string }
			if err := w.bucket.json(ctx, path.Join(v.dir, key), &run); err != nil {
				return err
			}
			if run.Status != "ERROR" {
				out.add("I4: %s says %s, and nothing runs", key, run.Status)
			}
		}
	}
	if err := w.bucket.latestText(ctx, v); err != nil {
		out.add("I3: %v", err)
	}
	return nil
}

// signState is priv_validator_state.json.
type signState struct {
	Height int64 `json:"height,string"`
	Round  int64 `json:"round"`
	Step   int64 `json:"step"`
}

func (a signState) below(b signState) bool {
	if a.Height != b.Height {
		return a.Height < b.Height
	}
	if a.Round != b.Round {
		return a.Round < b.Round
	}
	return a.Step < b.Step
}

// judgeSign: no sign state goes down, not the replica's and not a validator's.
func (w *world) judgeSign(s *setup, out *verdicts) error {
	homes := []string{s.real}
	for _, v := range w.chain.Validators {
		homes = append(homes, v.Home)
	}
	if s.sign == nil {
		s.sign = map[string]signState{}
	}
	for _, home := range homes {
		b, err := os.ReadFile(filepath.Join(home, "data", "priv_validator_state.json"))
		if err != nil {
			return err
		}
		var now signState
		if err := json.Unmarshal(b, &now); err != nil {
			return fmt.Errorf("the sign state of %s: %w", home, err)
		}
		if now.below(s.sign[home]) {
			out.add("I5: the sign state of %s went down, %+v to %+v", home, s.sign[home], now)
		}
		s.sign[home] = now
	}
	return nil
}

// privateKeys are those of a home, as they stand in its files.
func privateKeys(home string) ([][]byte, error) {
	var all [][]byte
	for _, name := range []string{"priv_validator_key.json", "node_key.json"} {
		b, err := os.ReadFile(filepath.Join(home, "config", name))
		if err != nil {
			return nil, err
		}
		var f struct {
			PrivKey struct{ Value string } `json:"priv_key"`
		}
		if err := json.Unmarshal(b, &f); err != nil || len(f.PrivKey.Value) < 32 || len(f.PrivKey.Value) > overlap {
			return nil, fmt.Errorf("%s of %s holds no key (%w)", name, home, err)
		}
		all = append(all, []byte(f.PrivKey.Value))
	}
	return all, nil
}
