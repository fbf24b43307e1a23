package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

const (
	killedAt = 90 // per cent of the upload
	atMost   = 15 // per cent that the run after it may read and send
)

// Resume kills a first backup of o.Size bytes when nine tenths of it have been
// sent, runs eddy again, and prints what that run has read and sent: by eddy's own
// counters, and as the store has seen it. It returns an error where that is too
// much, or the backup does not restore.
//
// Where the second run is another eddy, which may encode in another way, no more
// than what was missing and one volume, the open one, may be sent.
func Resume(ctx context.Context, o Options) (err error) {
	o.one = true
	w, err := newWorld(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.stop(), clean(o.Dir)) }()

	// How much will be stored is known from a backup of the same node under another
	// name, of which nothing can be used again.
	s := w.setups[plain]
	var out verdicts
	if err := w.good(ctx, s, &out); err != nil {
		return err
	}
	again := &setup{
		name: "resumed", home: s.home, real: s.real, rpc: s.rpc, control: s.control,
		stored: s.stored, sentBefore: w.liar.stored(),
	}
	if err := w.configure(again); err != nil {
		return err
	}
	s.watch.stop()
	w.setups[plain], again.watch = again, watch(ctx, again)
	before := w.liar.received()

	e, err := w.start(again, "backup")
	if err != nil {
		return err
	}
	if !w.reachWithin(ctx, again, e, sentPercent(killedAt), w.limit()) {
		_, eerr := e.term() // or what we have mounted would be in use
		return errors.Join(fmt.Errorf("the upload did not come to %d %%:\n%s", killedAt, e.tail()), eerr)
	}
	if err := signal(e.pid(), syscall.SIGKILL); err != nil {
		return err
	}
	<-e.done
	first := w.liar.received() - before
	if o.Upgraded != "" {
		w.o.Eddy = o.Upgraded
	}
	if err := w.good(ctx, again, &out); err != nil {
		return err
	}
	if len(out.found) > 0 {
		return errors.New(strings.Join(out.found, "\n"))
	}
	second := w.liar.received() - before - first
	m, err := w.show(ctx, again)
	if err != nil {
		return err
	}
	if len(m.Runs) != 2 {
		return fmt.Errorf("the manifest tells of %d runs, there were 2", len(m.Runs))
	}
	run, missing := m.Runs[1], m.Sizes.Stored-first
	percent := func(part, of int64) float64 { return 100 * float64(part) / float64(max(of, 1)) }
	read, sent, seen := percent(run.Read, m.Sizes.Source), percent(run.Sent, m.Sizes.Stored), percent(second, m.Sizes.Stored)
	next := "the next run"
	if o.Upgraded != "" {
		next = "the next run, of another version,"
	}
	fmt.Fprintf(o.Out, "chaos: a backup of %.0f MB, %.0f MB in volumes of %s, killed when %.0f MB were sent: %s read %.0f MB (%.1f %%) and sent %.0f MB (%.1f %%); %.0f MB (%.1f %%) came to the store\n",
		mega(m.Sizes.Source), mega(m.Sizes.Stored), o.Volume, mega(first), next, mega(run.Read), read, mega(run.Sent), sent, mega(second), seen)
	most := missing + inFlight*partSize
	if o.Upgraded != "" { // and the open volume, which is at most the largest
		most = 0
		for _, v := range m.Volumes {
			most = max(most, v.Size)
		}
		most += missing + inFlight*partSize
	}
	if second > most {
		return fmt.Errorf("%d bytes were missing, %d were to be sent at most, %d were", missing, most, second)
	}
	// In a small backup the parts in flight alone are more than that.
	if large := m.Sizes.Stored > 20*inFlight*partSize; large && o.Upgraded == "" && (read >= atMost || sent >= atMost || seen >= atMost) {
		return fmt.Errorf("the run after the kill was to read and send less than %d %%", atMost)
	}
	return nil
}

// show is what `eddy show latest` says.
func (w *world) show(ctx context.Context, s *setup) (m manifestDoc, err error) {
	cmd := exec.CommandContext(ctx, w.o.Eddy, "show", "latest", "--config", s.config, "--json")
	cmd.Env, cmd.Stderr = w.env, os.Stderr
	b, err := cmd.Output()
	if err != nil {
		return m, fmt.Errorf("eddy show: %w", err)
	}
	var line struct{ Manifest *manifestDoc }
	if err := json.Unmarshal(b, &line); err != nil || line.Manifest == nil {
		return m, fmt.Errorf("eddy show printed %q (%w)", b, err)
	}
	return *line.Manifest, nil
}

func mega(n int64) float64 { return float64(n) / 1e6 }

// clean removes the directory, and says what of ours is left running or mounted.
func clean(dir string) error {
	var errs []error
	for _, l := range leftovers(dir) {
		errs = append(errs, fmt.Errorf("left behind: %s", l))
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}
