package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	// slack is what the way from eddy's word to ours may take.
	slack = 3 * time.Second
	// runTime is what a run may take once nothing disturbs it any more.
	runTime = 2 * time.Minute
	// longTime is the same for a backup as large as Resume's.
	longTime = 20 * time.Minute
	// tries is how often an undisturbed run may fail: whoever was killed may leave
	// a store that has to be waited for.
	tries = 3
	// keep is how many backups of a cluster are left in the bucket.
	keep = 2
)

// Run plays the rounds and prints a line for each, and a last one. It returns an
// error where an invariant did not hold, or where it could not play.
func Run(ctx context.Context, o Options) (err error) {
	var only *regexp.Regexp
	if only, err = regexp.Compile(o.Only); err != nil {
		return err
	}
	var list []round
	for _, r := range rounds() {
		if only.MatchString(r.where() + " " + title(r)) {
			list = append(list, r)
		}
	}
	if len(list) == 0 {
		return fmt.Errorf("no round is named like %q", o.Only)
	}
	if o.Rounds == 0 {
		o.Rounds = len(list)
	}
	begun := time.Now()
	w, err := newWorld(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop(), clean(o.Dir)) }()
	for _, s := range w.setups { // what is normal, first
		var out verdicts
		if err := w.good(ctx, s, &out); err != nil {
			return err
		}
		if len(out.found) > 0 {
			return fmt.Errorf("without any fault, %s: %s", s.name, strings.Join(out.found, "; "))
		}
	}
	t := &tally{out: o.Out}
	fmt.Fprintf(o.Out, "chaos: %d rounds with seed %d; %.0f MB a backup, ready after %.0f s\n", o.Rounds, o.Seed, mega(w.setups[0].stored), time.Since(begun).Seconds())
	for i := o.First - 1; i < o.First-1+o.Rounds; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		r := list[i%len(list)]
		out, err := w.play(ctx, r, rand.New(rand.NewPCG(o.Seed, uint64(i))))
		if err != nil {
			return fmt.Errorf("round %d, %s: %w", i+1, title(r), err)
		}
		t.line(i+1, r, out)
	}
	return t.end(time.Since(begun))
}

func title(r round) string {
	verb := "backup"
	if r.verb != nil {
		verb = r.verb[0]
	}
	if r.swap {
		verb = map[bool]string{true: "undo", false: "restore in place"}[r.verb[1] == undo[1]]
	}
	return verb + " " + r.name
}

// outcome is what a round came to.
type outcome struct {
	verdicts
	note    string
	missed  bool
	held    time.Duration // the longest of all holds
	why     string        // where that was long
	again   int64         // bytes sent again after a kill
	killed  bool
	seconds float64
}

// play is one round: disturb, heal, run again until it is good, look.
func (w *world) play(ctx context.Context, r round, rnd *rand.Rand) (out outcome, err error) {
	begun, s := time.Now(), w.setups[r.on]
	t := &trial{w: w, s: s, rnd: rnd, out: &out.verdicts}
	if err := s.follows(ctx); err != nil {
		return out, err
	}
	for try := 0; ; try++ {
		w.liar.forget()
		s.sentBefore = w.liar.stored()
		verb, err := w.verb(ctx, t, r)
		if err != nil {
			return out, err
		}
		if t.e, err = w.start(s, verb...); err != nil {
			return out, err
		}
		ferr := r.fault(ctx, t)
		if err := w.heal(); err != nil {
			return out, errors.Join(ferr, err)
		}
		if ferr != nil && !errors.Is(ferr, errMissed) {
			return out, ferr
		}
		code, err := t.e.end(runTime)
		if err != nil {
			out.add("%v\n%s", err, t.e.tail())
		}
		if err := w.judgeUp(ctx, s, r, &out.verdicts); err != nil {
			return out, err
		}
		if t.guarded, err = s.guardLog(); err != nil {
			return out, err
		}
		if errors.Is(ferr, errMissed) && try == 0 {
			continue // there is always a next block: another backup, or another try
		}
		out.missed = ferr != nil
		out.note = strings.TrimSpace(fmt.Sprintf("%s exit %d", t.note, code))
		if out.missed {
			out.add("%v\n%s", ferr, t.e.tail())
		}
		if _, err := w.judgeVisible(ctx, s, &out.verdicts); err != nil {
			return out, err
		}
		t.note = out.note
		if err := w.finish(ctx, t, r, code); err != nil {
			return out, err
		}
		if r.past {
			if err := w.finishPast(ctx, t); err != nil {
				return out, err
			}
		}
		out.note = t.note
		break
	}
	if len(t.deaths) > 0 {
		if out.again, err = w.sentAgain(ctx, s, t.deaths); err != nil {
			return out, err
		}
		out.killed = true
		if resumes && out.again > inFlight*partSize {
			out.add("I7: %d bytes were sent again, %d parts of %d were in flight at most", out.again, inFlight, partSize)
		}
	}
	holds, err := s.watch.takeHolds()
	if err != nil {
		return out, err
	}
	for _, wrong := range s.watch.takeWrong() {
		out.add("I8: %s", wrong)
	}
	for _, h := range holds {
		if h.all > out.held && h.all > deadline/3 {
			out.why = fmt.Sprintf("it was gone %.2f s after the word to stop it, and was back %.2f s later; its guard said: %s",
				(h.all - h.down).Seconds(), h.down.Seconds(), strings.ReplaceAll(t.guarded, "\n", "\n      "))
		}
		out.held = max(out.held, h.all)
	}
	if out.held > deadline+slack && !r.orphaned {
		out.stuck++
		out.add("I1: the node was down for %.1f s, its deadline is %s", out.held.Seconds(), deadline)
	}
	if err := s.follows(ctx); err != nil {
		out.stuck++
		out.add("I1: %v", err)
	}
	if err := w.judgeSign(s, &out.verdicts); err != nil {
		return out, err
	}
	if err := w.trim(ctx, s); err != nil {
		return out, err
	}
	out.seconds = time.Since(begun).Seconds()
	return out, nil
}

// verb is the command line of a round.
func (w *world) verb(ctx context.Context, t *trial, r round) ([]string, error) {
	if r.past {
		if err := w.past(ctx, t.s); err != nil {
			return nil, err
		}
	}
	switch {
	case r.verb != nil && r.verb[0] == daemon[0]:
		return r.verb, w.more(ctx, t.s)
	case r.verb == nil:
		return []string{"backup"}, w.more(ctx, t.s)
	case r.swap:
		return r.verb, w.readySwap(ctx, t, r.verb)
	case r.verb[0] == "restore":
		t.target = filepath.Join(w.into.mount, "back")
		return append(r.verb, "--into", t.target), os.RemoveAll(filepath.Join(w.into.backing, "back"))
	case r.verb[0] == "delete":
		v, err := w.bucket.view(ctx, t.s.name)
		for ; err == nil && len(v.manifests) < 2; v, err = w.bucket.view(ctx, t.s.name) {
			if err := w.good(ctx, t.s, t.out); err != nil {
				return nil, err
			}
		}
		if err != nil {
			return nil, err
		}
		t.s.doomed = v.ids()[0]
		return []string{"delete", t.s.doomed}, nil
	}
	return r.verb, nil
}

// judgeUp waits for a node that is down until it is up, or too late.
func (w *world) judgeUp(ctx context.Context, s *setup, r round, out *verdicts) error {
	if r.orphaned {
		return nil
	}
	for {
		up, since := s.watch.up()
		if up {
			return nil
		}
		if since > deadline+slack {
			out.stuck++
			out.add("I1: the node has been down for %.1f s", since.Seconds())
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// finish brings a verb that was disturbed to its good end.
func (w *world) finish(ctx context.Context, t *trial, r round, code int) error {
	s, out := t.s, t.out
	switch {
	case r.verb == nil && done(code):
		v, err := w.judgeVisible(ctx, s, out)
		if err != nil {
			return err
		}
		return w.judgeSwept(ctx, s, v, out)
	case r.verb == nil:
		return w.good(ctx, s, out)
	case r.verb[0] == daemon[0]:
		return w.goodRun(ctx, t)
	case r.past:
		return nil // what is left is done by finishPast
	case r.swap:
		return w.finishSwap(ctx, t, r, code)
	case r.verb[0] == "restore":
		return w.finishRestore(ctx, t, code)
	case r.verb[0] == "delete":
		if code, said, err := w.run(ctx, s, runTime, "delete", s.doomed); err != nil {
			return err
		} else if v, err := w.bucket.view(ctx, s.name); err != nil {
			return err
		} else if _, there := v.manifests[s.doomed]; there {
			out.add("I6: delete exits with %d and leaves the backup:\n%s", code, said)
		}
		delete(s.judged, s.doomed)
		// What its manifest no longer names goes after a week; we do not have it.
		return w.bucket.remove(ctx, path.Join(prefix, s.name, "data", s.doomed))
	}
	code, said, err := w.run(ctx, s, runTime, r.verb...)
	if err == nil && !done(code) {
		out.add("I6: %s exits with %d:\n%s", r.verb[0], code, said)
	}
	return err
}

// limit is what an undisturbed backup may take.
func (w *world) limit() time.Duration {
	if w.o.one {
		return longTime
	}
	return runTime
}

func done(code int) bool { return code == 0 || code == 3 } // 3: with warnings

// good backs up, undisturbed, until that works, and looks at everything.
func (w *world) good(ctx context.Context, s *setup, out *verdicts) error {
	for try := 1; ; try++ {
		if up, _ := s.watch.up(); up { // else eddy itself is to start it
			if err := s.follows(ctx); err != nil { // a node that has just been started is not fit
				out.stuck++
				out.add("I1: %v", err)
			}
		}
		code, said, err := w.run(ctx, s, w.limit(), "backup")
		if err != nil {
			return err
		}
		if done(code) {
			break
		}
		if try == tries {
			out.add("I6: %d undisturbed runs failed, the last with %d:\n%s", tries, code, said)
			// The rounds to come are not about what is stuck here.
			if code, said, err = w.run(ctx, s, runTime, "backup", "--fresh"); err != nil || !done(code) {
				return fmt.Errorf("a fresh backup exits with %d (%w):\n%s", code, err, said)
			}
			break
		}
	}
	v, err := w.judgeVisible(ctx, s, out)
	if err != nil {
		return err
	}
	if v.latest == nil {
		return fmt.Errorf("%s has no latest.json after a good run", s.name)
	}
	s.stored = v.manifests[v.latest.ID].Sizes.Stored
	return w.judgeSwept(ctx, s, v, out)
}

// finishRestore restores until that works, and compares what came.
func (w *world) finishRestore(ctx context.Context, t *trial, code int) error {
	for try := 0; !done(code); try++ {
		if try == tries {
			t.out.add("I6: %d undisturbed restores failed, the last with %d", tries, code)
			return nil
		}
		var said string
		var err error
		if code, said, err = w.run(ctx, t.s, runTime, "restore", "latest", "--into", t.target); err != nil {
			return fmt.Errorf("%w\n%s", err, said)
		}
	}
	dir := filepath.Join(w.into.backing, filepath.Base(t.target))
	got, err := tree(dir)
	if err != nil {
		return err
	}
	want := t.s.contents[t.s.latest.ID]
	if len(want) == 0 {
		return fmt.Errorf("%s was not looked at", t.s.latest.ID)
	}
	if err := same(want, got); err != nil {
		t.out.lost++
		t.out.add("I8: what restore made is not %s: %v", t.s.latest.ID, err)
	}
	return os.RemoveAll(dir)
}

// trim deletes what is too much, by eddy.
func (w *world) trim(ctx context.Context, s *setup) error {
	v, err := w.bucket.view(ctx, s.name)
	if err != nil {
		return err
	}
	ids := v.ids()
	for _, id := range ids[:max(0, len(ids)-keep)] {
		if id == s.latest.ID {
			continue
		}
		s.doomed = id
		if code, said, err := w.run(ctx, s, runTime, "delete", id); err != nil || !done(code) {
			return fmt.Errorf("delete %s: exit %d (%w)\n%s", id, code, err, said)
		}
		delete(s.judged, id)
		delete(s.contents, id)
	}
	return os.RemoveAll(s.watch.links)
}
