package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// watcher looks at one replica all the time: is its node up, since when is it not,
// and what does eddy's state say. It keeps a second set of links to each sealed
// stage, which nobody can take away.
type watcher struct {
	s       *setup
	links   string // directory of the links, on the home's filesystem
	every   time.Duration
	stopped context.CancelFunc
	done    chan struct{}

	mu    sync.Mutex
	word  string // of job.json; "" where there is none
	id    string
	pid   int       // of the node
	since time.Time // it is down, the time that it took to stop included
	gone  time.Time // it was seen to be down
	asked time.Time // when the state said holding
	holds []hold
	kept  map[string]bool // stages, by id
	errs  []error

	swap  swapDoc  // of the last look
	wrong []string // of a node that lived in the middle of a swap
}

// hold is a time without a node.
type hold struct {
	all  time.Duration // from the word to stop it to the next process
	down time.Duration // the part of it in which there was no process
}

func watch(ctx context.Context, s *setup) *watcher {
	ctx, cancel := context.WithCancel(ctx)
	w := &watcher{
		s: s, links: s.real + ".kept", every: 2 * time.Millisecond, stopped: cancel,
		done: make(chan struct{}), kept: map[string]bool{}, pid: nodeOf(s.home),
	}
	go w.run(ctx)
	return w
}

func (w *watcher) stop() {
	w.stopped()
	<-w.done
}

func (w *watcher) run(ctx context.Context) {
	defer close(w.done)
	t := time.NewTicker(w.every)
	defer t.Stop()
	for {
		w.look()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (w *watcher) look() {
	word, id := jobState(w.s.workdir)
	swap := readSwap(w.s.real)
	w.mu.Lock()
	pid, old := w.pid, w.word
	w.mu.Unlock()
	if _, ok := look(pid); !ok {
		pid = nodeOf(w.s.home)
	}
	if swap.ID != "" && !readSwap(w.s.real).is(swap) {
		swap = swapDoc{} // nobody knows what pid was before, and what after
	}
	now := time.Now()
	w.mu.Lock()
	w.guardSwap(swap, pid)
	w.word, w.id = word, id
	if word == "holding" && old != word {
		w.asked = now
	}
	down := func() time.Time { // since when
		if w.asked.IsZero() {
			return now
		}
		return w.asked
	}
	switch {
	case pid == 0 && w.since.IsZero():
		w.since, w.gone = down(), now
	case pid != 0 && pid != w.pid:
		if w.since.IsZero() { // it was quick
			w.since, w.gone = down(), now
		}
		w.holds = append(w.holds, hold{now.Sub(w.since), now.Sub(w.gone)})
		w.since, w.asked = time.Time{}, time.Time{}
	}
	w.pid = pid
	keep := (word == "sealed" || word == "uploading") && id != "" && !w.kept[id]
	w.mu.Unlock()
	if keep {
		err := linkTree(filepath.Join(w.s.real, ".eddy", id), filepath.Join(w.links, id))
		w.mu.Lock()
		w.kept[id] = true
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			w.errs = append(w.errs, fmt.Errorf("keep the stage of %s: %w", id, err))
		}
		w.mu.Unlock()
	}
}

// guardSwap notes a node that runs where a swap says that none may: one that has
// been started since it began, or any once names may be moved.
func (w *watcher) guardSwap(now swapDoc, pid int) {
	first := w.swap.ID != now.ID
	w.swap = now
	switch {
	case now.ID == "" || pid == 0:
		return
	case now.Step != "stopping":
	case first || pid == w.pid:
		return // it is being stopped
	}
	wrong := fmt.Sprintf("the node runs as process %d while swap %s is %s", pid, now.ID, now.Step)
	if !slices.Contains(w.wrong, wrong) {
		w.wrong = append(w.wrong, wrong)
	}
}

// takeWrong returns what was noted since the last call.
func (w *watcher) takeWrong() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	wrong := w.wrong
	w.wrong = nil
	return wrong
}

// state is what eddy's own state says now.
func (w *watcher) state() (word, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.word, w.id
}

// up tells whether the node runs, and if not for how long it has not.
func (w *watcher) up() (bool, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since.IsZero() {
		return true, 0
	}
	return false, time.Since(w.since)
}

// takeHolds returns the times that the node was down since the last call.
func (w *watcher) takeHolds() ([]hold, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	holds, err := w.holds, errors.Join(w.errs...)
	w.holds, w.errs = nil, nil
	return holds, err
}

// guardLog is what the guard of the last hold has said, "" where there is none.
func (s *setup) guardLog() (string, error) {
	b, err := os.ReadFile(filepath.Join(s.workdir, "guard.log"))
	return strings.TrimSpace(string(b)), ignoreAbsent(err)
}

// jobState reads workdir/job.json; it is replaced by renames and so never half.
func jobState(workdir string) (word, id string) {
	b, err := os.ReadFile(filepath.Join(workdir, "job.json"))
	if err != nil {
		return "", ""
	}
	var st struct{ State, ID string }
	if json.Unmarshal(b, &st) != nil {
		return "damaged", ""
	}
	return st.State, st.ID
}

// linkTree makes a tree of links to all files of another one. The copy is complete
// or an error is returned.
func linkTree(from, to string) error {
	tmp := to + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return err
	}
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.IsDir() && d.Name() == ".eddy" && rel != ".":
			return fs.SkipDir // the stage's own records
		case d.IsDir():
			return os.MkdirAll(filepath.Join(tmp, rel), 0o700)
		default:
			return os.Link(path, filepath.Join(tmp, rel))
		}
	})
	if err == nil {
		err = os.Rename(tmp, to)
	}
	if errors.Is(err, syscall.ENOENT) {
		return errors.Join(fs.ErrNotExist, os.RemoveAll(tmp))
	}
	return err
}
