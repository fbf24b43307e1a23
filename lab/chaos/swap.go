package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/lab/grow"
)

// more writes to the databases beside the node's own, so that there is something
// new to send, or to bring back.
func (w *world) more(ctx context.Context, s *setup) error {
	seed := w.o.Seed
	if s == w.setups[plain] {
		seed++ // the keys that are there
	}
	_, err := grow.Run(ctx, grow.Options{
		Dir: filepath.Join(s.home, "data"), Engine: "goleveldb", Prefix: grown, Size: w.o.Size / 2, Seed: seed, More: true,
	})
	return err
}

const grown = "grown-"

// portrait is what an exchange of data exchanges whole or not at all, and what it
// must leave.
type portrait struct {
	grown content           // the databases that no node writes to
	dirs  map[string]uint64 // inodes of the directories in data
	stays content           // configuration, keys, sign state
}

func (s *setup) portrait() (p portrait, err error) {
	p = portrait{content{}, map[string]uint64{}, content{}}
	data := filepath.Join(s.real, "data")
	names, err := os.ReadDir(data)
	if err != nil {
		return p, err
	}
	for _, n := range names {
		fi, err := n.Info()
		if err != nil || !n.IsDir() {
			continue // files of a living node come and go
		}
		p.dirs[n.Name()] = fi.Sys().(*syscall.Stat_t).Ino
		if !strings.HasPrefix(n.Name(), grown) {
			continue
		}
		files, err := tree(filepath.Join(data, n.Name()))
		if err != nil {
			return p, err
		}
		for f, sum := range files {
			p.grown[filepath.Join("data", n.Name(), f)] = sum
		}
	}
	if p.stays, err = tree(filepath.Join(s.real, "config")); err != nil {
		return p, err
	}
	delete(p.stays, "addrbook.json") // the node's own
	return p, nil
}

// ofGrown is the part of a backup that a portrait has hashes of.
func (c content) ofGrown() content {
	part := content{}
	for name, sum := range c {
		if strings.HasPrefix(name, "data/"+grown) {
			part[name] = sum
		}
	}
	return part
}

// whole says which of two the live data are: all that was, or all that comes.
func whole(was, now portrait, comes content) (came bool, err error) {
	asWas, asComes := sameDatabases(was.grown, now.grown), sameDatabases(comes, now.grown)
	if asWas != nil && asComes != nil {
		return false, fmt.Errorf("the live data are neither what was there (%w) nor what was to come (%w)", asWas, asComes)
	}
	came = asWas != nil
	for name, ino := range now.dirs {
		old, ok := was.dirs[name]
		switch {
		case ok && came && ino == old:
			return came, fmt.Errorf("data/%s is what was there, the rest is what came", name)
		case ok && !came && ino != old:
			return came, fmt.Errorf("data/%s is another one, the rest is what was there", name)
		}
	}
	for name := range was.dirs {
		if _, ok := now.dirs[name]; !ok && !came {
			return came, fmt.Errorf("data/%s is gone, the rest is what was there", name)
		}
	}
	return came, nil
}

// sameDatabases compares but for the files that no backup takes.
func sameDatabases(want, got content) error {
	less := func(c content) content {
		out := content{}
		for name, sum := range c {
			if b := filepath.Base(name); b != "LOCK" && !strings.HasPrefix(b, "LOG") {
				out[name] = sum
			}
		}
		return out
	}
	return same(less(want), less(got))
}

// readySwap brings a set-up to where a restore in place, or its undo, has something
// to exchange, and remembers what is there and what is to come.
func (w *world) readySwap(ctx context.Context, t *trial, verb []string) (err error) {
	s := t.s
	if err := w.changed(ctx, s, "restore", "--forget"); err != nil {
		return err
	}
	if err := w.more(ctx, s); err != nil {
		return err
	}
	t.comes = s.contents[s.latest.ID].ofGrown()
	if len(t.comes) == 0 {
		return fmt.Errorf("%s was not looked at", s.latest.ID)
	}
	if t.was, err = s.portrait(); err != nil || verb[1] != undo[1] {
		return err
	}
	t.comes = t.was.grown
	if err := w.changed(ctx, s, inPlace...); err != nil {
		return err
	}
	t.was, err = s.portrait()
	return err
}

// changed runs a verb that nothing disturbs.
func (w *world) changed(ctx context.Context, s *setup, verb ...string) error {
	code, said, err := w.run(ctx, s, runTime, verb...)
	if err == nil && code != 0 {
		err = fmt.Errorf("undisturbed, eddy %s exits with %d:\n%s", strings.Join(verb, " "), code, said)
	}
	return err
}

// finishSwap has the next verb that changes something go on with what died, and
// looks at what the node then has.
func (w *world) finishSwap(ctx context.Context, t *trial, r round, code int) error {
	s, out := t.s, t.out
	if !done(code) {
		next := [][]string{{"backup"}, {"restore", "--forget"}, r.verb, daemon}[t.rnd.IntN(4)]
		t.note = strings.TrimSpace(t.note + " then " + strings.Join(next, " "))
		var all string
		if up, _ := s.watch.up(); up && readSwap(s.real).ID == "" {
			// One that was just started is not fit yet; whether it comes is judged below.
			_ = s.follows(ctx)
		}
		if next[0] == daemon[0] {
			if err := w.runOnce(ctx, t); err != nil {
				return err
			}
			code = 0 // or it has said what was wrong
		}
		for try := 0; !done(code); try++ {
			if try == tries {
				out.add("I6: %d undisturbed runs of %s failed:%s", tries, strings.Join(next, " "), all)
				break
			}
			var said string
			var err error
			begun := time.Now()
			if code, said, err = w.run(ctx, s, runTime, next...); err != nil {
				return err
			}
			all += fmt.Sprintf("\n%s\n      exit %d after %.2f s", said, code, time.Since(begun).Seconds())
		}
		if _, err := w.judgeVisible(ctx, s, out); err != nil {
			return err
		}
	}
	if err := s.follows(ctx); err != nil {
		out.stuck++
		out.add("I1: %v", err)
		return nil
	}
	now, err := s.portrait()
	if err != nil {
		return err
	}
	came, err := whole(t.was, now, t.comes)
	if err != nil {
		out.add("I8: %v", err)
	}
	t.note += map[bool]string{true: ": what came", false: ": what was"}[came]
	if err := same(t.was.stays, now.stays); err != nil {
		out.add("I5: configuration and keys: %v", err)
	}
	if err := w.judgeHashes(ctx, s, out); err != nil {
		return err
	}
	// An exchange that went back must not have taken the way to another one.
	if !came && r.verb[1] == undo[1] {
		if err := w.secondUndo(ctx, t); err != nil {
			return err
		}
	}
	if err := w.changed(ctx, s, "restore", "--forget"); err != nil {
		return err
	}
	return s.judgeExchanged(out)
}

// secondUndo brings back what is still kept; where it was forgotten there is nothing.
func (w *world) secondUndo(ctx context.Context, t *trial) error {
	kept, err := filepath.Glob(filepath.Join(t.s.real, ".eddy", "before-*"))
	if err != nil || len(kept) == 0 {
		return err
	}
	code, said, err := w.run(ctx, t.s, runTime, undo...)
	if err != nil {
		return err
	}
	now, err := t.s.portrait()
	if err != nil {
		return err
	}
	if came, err := whole(t.was, now, t.comes); !done(code) || !came || err != nil {
		t.out.add("I6: after one that went back, restore --undo exits with %d (%v), brought back: %t:\n%s", code, err, came, said)
	}
	return nil
}

// judgeExchanged looks at what must be gone when all is done and forgotten.
func (s *setup) judgeExchanged(out *verdicts) error {
	left, err := filepath.Glob(filepath.Join(s.real, ".eddy", "*"))
	if err != nil {
		return err
	}
	for _, f := range append(left, filepath.Join(s.workdir, "restart.json")) {
		switch _, err := os.Lstat(f); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case strings.HasPrefix(filepath.Base(f), "restore-"), filepath.Base(f) == "swap.json~":
			// The next restore would go on with it, or remove it; the next round is none.
			// The copy of a journal means nothing alone.
			if err := os.RemoveAll(f); err != nil {
				return err
			}
		default:
			out.add("I4: %s is left", filepath.Base(f))
		}
	}
	return nil
}

// judgeHashes compares the node's application and blocks with a validator's, at the
// height of the backup and at its own.
func (w *world) judgeHashes(ctx context.Context, s *setup, out *verdicts) error {
	top, _, err := height(ctx, s.rpc)
	if err != nil {
		return err
	}
	for _, h := range []int64{s.latest.Position.Index, top} {
		ours, err := hashes(ctx, s.rpc, h)
		if err != nil {
			out.add("I8: the node does not tell of height %d: %v", h, err)
			continue
		}
		theirs, err := hashes(ctx, w.chain.ValidatorRPC, h)
		if err != nil {
			return err
		}
		if ours != theirs {
			out.add("I8: at height %d the node has %+v, the chain %+v", h, ours, theirs)
		}
	}
	return nil
}

// blockHashes are those of a block and of the application's state before it.
type blockHashes struct{ block, app string }

func hashes(ctx context.Context, rpc string, height int64) (b blockHashes, err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rpc+"/commit?height="+strconv.FormatInt(height, 10), nil)
	if err != nil {
		return b, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return b, err
	}
	defer resp.Body.Close()
	var c struct {
		Result struct {
			SignedHeader struct {
				Header struct {
					AppHash string `json:"app_hash"`
				}
				Commit struct {
					BlockID struct{ Hash string } `json:"block_id"`
				}
			} `json:"signed_header"`
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&c); err != nil {
		return b, err
	}
	b = blockHashes{c.Result.SignedHeader.Commit.BlockID.Hash, c.Result.SignedHeader.Header.AppHash}
	if b.block == "" || b.app == "" {
		return b, fmt.Errorf("commit of height %d: no hash", height)
	}
	return b, nil
}
