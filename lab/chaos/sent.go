package chaos

import (
	"context"
	"path"
)

// sentAgain is how much of what the store had taken when eddy was killed has come
// once more, or is in no backup: of several deaths, after the worst.
func (w *world) sentAgain(ctx context.Context, s *setup, deaths []map[partID]sent) (worst int64, err error) {
	v, err := w.bucket.view(ctx, s.name)
	if err != nil {
		return 0, err
	}
	inUse := map[string]bool{}
	for id, m := range v.manifests {
		for _, vol := range m.Volumes {
			inUse[path.Join(w.bucket.name, v.dir, "data", id, vol.Name)] = true
		}
	}
	deaths = append(deaths, w.liar.ledger())
	for i, death := range deaths[:len(deaths)-1] {
		var sum int64
		for id, was := range death {
			switch {
			case !inUse[id.key]:
				sum += was.acked
			case was.acked > 0:
				sum += deaths[i+1][id].bytes - was.bytes
			}
		}
		worst = max(worst, sum)
	}
	return worst, nil
}

// resumes says that eddy goes on with an upload whose process was killed.
const resumes = true
