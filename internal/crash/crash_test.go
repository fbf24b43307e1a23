//go:build crash

package crash

import (
	"flag"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
)

func TestMain(m *testing.M) {
	for k, v := range map[string]string{
		"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true",
		"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
	} {
		must(os.Setenv(k, v))
	}
	must(os.Unsetenv("AWS_CA_BUNDLE")) // nobody is spoken to, and it is read for each process
	debug.SetGCPercent(400)            // thousands of small worlds
	os.Exit(m.Run())
}

var every = flag.Int("every", 1, "play only one effect in so many")

// tempDir is in memory where that can be: syncs then cost nothing.
func tempDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "eddy-crash-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// within runs f in a bubble with a clock of its own, on a new world.
func within(t *testing.T, p planted, f func(*testing.T, *world)) (w *world) {
	dir := tempDir(t)
	synctest.Test(t, func(t *testing.T) {
		w = newWorld(dir, p)
		f(t, w)
	})
	return w
}

// effects plays a scenario undisturbed and names what it does.
func (sc scenario) effects(t *testing.T, p planted) (names, found []string) {
	w := within(t, p, func(t *testing.T, w *world) { names = sc.play(t, w, stop{}).seen })
	if i := slices.Index(names, sc.until+" 1"); i >= 0 {
		names = names[:i]
	}
	return names, w.found
}

var (
	seed  = flag.Uint64("seed", 0, "play this seed only, with all violations shown")
	seeds = flag.Int("seeds", 60, "how many seeds to play for each verb")
)

// Several parts at once, requests in any order, a process or a machine that dies
// anywhere, and any change that was not made durable lost: by chance, and again with
// the same seed.
func TestSeeds(t *testing.T) {
	var runs, violations atomic.Int64
	for _, sc := range scenarios {
		for i := range uint64(*seeds) {
			n := i + 1
			if *seed != 0 {
				if n = *seed; i > 0 {
					break
				}
			}
			t.Run(fmt.Sprintf("%s/seed %d", sc.name, n), func(t *testing.T) {
				t.Parallel()
				runs.Add(1)
				for _, v := range within(t, planted{}, func(t *testing.T, w *world) { sc.seeded(t, w, n) }).found {
					violations.Add(1)
					t.Errorf("%s (again: -run TestSeeds -seed %d)", v, n)
				}
			})
		}
	}
	t.Cleanup(func() {
		fmt.Printf("crash: seeds 1 to %d of %d verbs, %d runs, %d invariant violations\n", *seeds, len(scenarios), runs.Load(), violations.Load())
	})
}

// Every effect of every verb: the process dies before it, after it, in the middle
// of it.
func TestEveryEffect(t *testing.T) {
	everyEffect(t, "x 3 variants", before, after, torn)
}

// Every effect is refused, with the process alive; and at every effect the power
// fails.
func TestEveryRefusal(t *testing.T) {
	everyEffect(t, "refused, and cut off from power", refused, power)
}

func everyEffect(t *testing.T, what string, hows ...variant) {
	var effects, runs, violations atomic.Int64
	for _, sc := range scenarios {
		names, found := sc.effects(t, planted{})
		again, _ := sc.effects(t, planted{})
		if diff := cmp.Diff(names, again); diff != "" {
			t.Fatalf("%s: two runs differ, so a failure could not be played again:\n%s", sc.name, diff)
		}
		if len(found) > 0 {
			t.Fatalf("%s, undisturbed: %q", sc.name, found)
		}
		effects.Add(int64(len(names)))
		for _, how := range hows {
			for i, name := range names {
				if i%*every != 0 {
					continue
				}
				s := stop{name, how}
				t.Run(sc.name+"/"+s.String(), func(t *testing.T) {
					t.Parallel()
					runs.Add(1)
					for _, v := range within(t, planted{}, func(t *testing.T, w *world) { sc.play(t, w, s) }).found {
						violations.Add(1)
						t.Error(v)
					}
				})
			}
		}
	}
	t.Cleanup(func() {
		fmt.Printf("crash: %d effects %s, %d runs, %d invariant violations\n", effects.Load(), what, runs.Load(), violations.Load())
	})
}
