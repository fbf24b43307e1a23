package uploader

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"
)

func testConditions(t *testing.T, s Store) {
	put := func(body string, c Condition) (Object, error) {
		return s.PutSmall(t.Context(), "k/latest.json", []byte(body), "application/json", c)
	}
	if _, err := put("x", Condition{IfMatch: "0123456789abcdef"}); !errors.Is(err, ErrPrecondition) {
		t.Errorf("match where nothing is: %v, want ErrPrecondition", err)
	}
	one, err := put("one", Condition{IfAbsent: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put("two", Condition{IfAbsent: true}); !errors.Is(err, ErrPrecondition) {
		t.Errorf("absent where something is: %v, want ErrPrecondition", err)
	}
	two, err := put("two", Condition{IfMatch: one.ETag})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := put("three", Condition{IfMatch: one.ETag}); !errors.Is(err, ErrPrecondition) {
		t.Errorf("a stale match: %v, want ErrPrecondition", err)
	}
	got, o, err := s.GetSmall(t.Context(), "k/latest.json", 100)
	if err != nil || string(got) != "two" || o.ETag != two.ETag || o.Size != 3 {
		t.Errorf("it holds %q %+v, %v; want two, %s", got, o, err, two.ETag)
	}
	if _, err := put("four", Condition{}); err != nil {
		t.Errorf("without a condition: %v", err)
	}
}

func testRacers(t *testing.T, s Store) {
	const racers = 16
	var won atomic.Int32
	var winner atomic.Value
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			body := fmt.Sprintf("racer %d", i)
			_, err := s.PutSmall(t.Context(), "race/lease.json", []byte(body), "", Condition{IfAbsent: true})
			switch {
			case err == nil:
				won.Add(1)
				winner.Store(body)
			case !errors.Is(err, ErrPrecondition):
				t.Errorf("racer %d: %v, want ErrPrecondition", i, err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d racers won", won.Load())
	}
	if got, _, err := s.GetSmall(t.Context(), "race/lease.json", 100); err != nil || string(got) != winner.Load() {
		t.Errorf("it holds %q, %v; %q has won", got, err, winner.Load())
	}
}

func testSwap(t *testing.T, s Store) {
	const writers, each = 4, 5
	mustPutSmall(t, s, "swap", "0", Condition{})
	var g errgroup.Group
	for range writers {
		g.Go(func() error {
			for done := 0; done < each; {
				b, o, err := s.GetSmall(t.Context(), "swap", 100)
				if err != nil {
					return err
				}
				var n int
				fmt.Sscan(string(b), &n)
				_, err = s.PutSmall(t.Context(), "swap", []byte(fmt.Sprint(n+1)), "", Condition{IfMatch: o.ETag})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, ErrPrecondition):
					return err
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if b, _, err := s.GetSmall(t.Context(), "swap", 100); err != nil || string(b) != fmt.Sprint(writers*each) {
		t.Errorf("after %d increments it holds %q, %v", writers*each, b, err)
	}
}

func testSmall(t *testing.T, s Store) {
	if _, _, err := s.GetSmall(t.Context(), "s/none", 10); !errors.Is(err, ErrNotFound) {
		t.Errorf("no object: %v, want ErrNotFound", err)
	}
	if _, err := s.Stat(t.Context(), "s/none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("stat of no object: %v, want ErrNotFound", err)
	}
	for _, n := range []int{0, 1, 1000, 6 << 20} { // the last is more than one part
		key := fmt.Sprintf("s/%d", n)
		b := content(uint64(n), n)
		o, err := s.PutSmall(t.Context(), key, b, "", Condition{IfAbsent: true})
		if err != nil {
			t.Fatal(err)
		}
		got, o2, err := s.GetSmall(t.Context(), key, int64(n))
		if err != nil || !bytes.Equal(got, b) || o2.ETag != o.ETag || o.Size != int64(n) {
			t.Errorf("%d bytes: %d came back as %+v, %v; put said %+v", n, len(got), o2, err, o)
		}
		if _, err := s.PutSmall(t.Context(), key, b, "", Condition{IfAbsent: true}); !errors.Is(err, ErrPrecondition) {
			t.Errorf("%d bytes, a second time: %v, want ErrPrecondition", n, err)
		}
		if n == 0 {
			continue
		}
		if _, _, err := s.GetSmall(t.Context(), key, int64(n-1)); !errors.Is(err, ErrDamaged) {
			t.Errorf("a limit of %d for %d bytes: %v, want ErrDamaged", n-1, n, err)
		}
	}
}

func testKeys(t *testing.T, s Store) {
	keys := []string{"a b/c+d", "a/~!'()*", "p%20q/100%", "é/日本", "x=y&z/?#.json", "dots/..x", "dots/x..", "d.e-f_g"}
	for _, key := range keys {
		mustPutSmall(t, s, key, key, Condition{})
	}
	for _, key := range keys {
		if b, _, err := s.GetSmall(t.Context(), key, 100); err != nil || string(b) != key {
			t.Errorf("%q: %q, %v", key, b, err)
		}
	}
	slices.Sort(keys)
	if got := keysOf(t, s, "", ""); !slices.Equal(got, keys) {
		t.Errorf("listed %q, want %q", got, keys)
	}
	if err := s.Delete(t.Context(), keys...); err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, s, "", ""); len(got) != 0 {
		t.Errorf("left: %q", got)
	}
}

func testList(t *testing.T, s Store) {
	if got := keysOf(t, s, "", ""); len(got) != 0 {
		t.Errorf("an empty store lists %q", got)
	}
	if got := keysOf(t, s, "no/such/", "/"); len(got) != 0 {
		t.Errorf("a prefix without objects lists %q", got)
	}
	// "-" sorts before "/": the order of keys is not that of directories.
	all := []string{"a-b/1", "a/1", "a/10", "a/2/x", "a/2/y", "a0", "b/deep/er/z", "ba"}
	for _, key := range all {
		mustPutSmall(t, s, key, key, Condition{})
	}
	for _, c := range []struct {
		prefix, delimiter string
		want              []string
	}{
		{"", "", all},
		{"", "/", []string{"a-b/", "a/", "a0", "b/", "ba"}},
		{"a", "", []string{"a-b/1", "a/1", "a/10", "a/2/x", "a/2/y", "a0"}},
		{"a/", "", []string{"a/1", "a/10", "a/2/x", "a/2/y"}},
		{"a/", "/", []string{"a/1", "a/10", "a/2/"}},
		{"a/1", "", []string{"a/1", "a/10"}},
		{"b", "/", []string{"b/", "ba"}},
		{"b/deep/er/z", "", []string{"b/deep/er/z"}},
		{"c", "", nil},
	} {
		if got := keysOf(t, s, c.prefix, c.delimiter); !slices.Equal(got, c.want) {
			t.Errorf("list %q %q: %q, want %q", c.prefix, c.delimiter, got, c.want)
		}
	}
	for o, err := range s.List(t.Context(), "", "") {
		st, serr := s.Stat(t.Context(), o.Key)
		if err != nil || serr != nil || o.Size != int64(len(o.Key)) || o.ETag != st.ETag || o.Modified.IsZero() {
			t.Errorf("listed %+v, %v; stat says %+v, %v", o, err, st, serr)
		}
		break // and a consumer may leave
	}
}

func testLongList(t *testing.T, s Store, many int) {
	var want []string
	var g errgroup.Group
	g.SetLimit(8)
	for i := range many {
		key := fmt.Sprintf("many/%05d", i)
		want = append(want, key)
		g.Go(func() error {
			_, err := s.PutSmall(t.Context(), key, []byte("x"), "", Condition{})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, s, "many/", ""); !slices.Equal(got, want) {
		t.Errorf("%d keys listed, %d written", len(got), len(want))
	}
	if err := s.Delete(t.Context(), want...); err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, s, "", ""); len(got) != 0 {
		t.Errorf("%d keys left after a delete of all", len(got))
	}
}

func testDelete(t *testing.T, s Store) {
	if err := s.Delete(t.Context()); err != nil {
		t.Errorf("nothing to delete: %v", err)
	}
	if err := s.Delete(t.Context(), "no/such", "key"); err != nil {
		t.Errorf("keys that do not exist: %v", err)
	}
	mustPutSmall(t, s, "d/1/a", "a", Condition{})
	mustPutSmall(t, s, "d/1/b", "b", Condition{})
	mustPutSmall(t, s, "d/2", "2", Condition{})
	if err := s.Delete(t.Context(), "d/1/a", "d/none", "d/1/b"); err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, s, "", ""); !slices.Equal(got, []string{"d/2"}) {
		t.Errorf("left: %q", got)
	}
	mustPutSmall(t, s, "d/1/a", "again", Condition{IfAbsent: true})
	// What is no object is not deleted, and nothing below it either.
	if err := s.Delete(t.Context(), "d/1", "d"); err != nil {
		t.Errorf("keys of directories: %v", err)
	}
	if got := keysOf(t, s, "", ""); !slices.Equal(got, []string{"d/1/a", "d/2"}) {
		t.Errorf("left: %q", got)
	}
}
