// Command bench measures what eddy promises, against the tools that one would
// use without it: the time a node is held against cp -a, and wall time, CPU and
// memory of a backup against tar | zstd | aws s3 cp, on the same data and the
// same local S3 server, in turns; what the check of a backup adds to it; the memory of
// reading one back; and that of a backup of a million tables.
//
//	bench --eddy bin/eddy [--size 3GB] [--runs 5] [--engines goleveldb,pebbledb]
//
// It prints medians and ratios with the versions of everything that took part.
// It judges no figure: it fails only where something could not be run.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/eddy-backup/eddy/lab"
)

// options of a run of all measurements.
type options struct {
	eddy    string
	dir     string
	size    int64
	runs    int
	tables  int
	engines []string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o := options{size: 3e9}
	var engines string
	fl := flag.NewFlagSet("bench", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.StringVar(&o.eddy, "eddy", "bin/eddy", "`PATH` of eddy")
	fl.StringVar(&o.dir, "dir", "", "work in `DIR`, which needs six times --size (default: the temporary directory)")
	fl.Var((*lab.Size)(&o.size), "size", "`SIZE` of the databases on disk")
	fl.IntVar(&o.runs, "runs", 5, "`N` measurements each, of which the median is printed")
	fl.StringVar(&engines, "engines", "goleveldb,pebbledb", "database engines, by comma; empty: only --tables")
	fl.IntVar(&o.tables, "tables", 1_000_000, "`N` tables of the database whose backup's memory is measured; 0: none is")
	if err := fl.Parse(args); err != nil {
		return 2
	}
	o.engines = strings.FieldsFunc(engines, func(r rune) bool { return r == ',' })
	if fl.NArg() > 0 || o.runs < 1 {
		fl.Usage()
		return 2
	}
	if err := measureAll(ctx, o, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "bench:", err)
		return 1
	}
	return 0
}

func measureAll(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	if o.eddy, err = filepath.Abs(o.eddy); err != nil {
		return err
	}
	if o.dir, err = os.MkdirTemp(o.dir, "eddy-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.dir)) }()
	head, err := versions(ctx, o.eddy)
	if err != nil {
		return err
	}
	store, err := lab.StartS3(ctx, lab.S3Options{Dir: o.dir})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Stop()) }()
	var results []result
	for _, engine := range o.engines {
		r, err := measure(ctx, o, engine, store, stderr)
		if err != nil {
			return fmt.Errorf("%s: %w", engine, err)
		}
		results = append(results, r)
	}
	var many tablesResult
	if o.tables > 0 {
		fmt.Fprintf(stderr, "bench: %d tables\n", o.tables)
		if many, err = manyTables(ctx, o, o.tables); err != nil {
			return fmt.Errorf("%d tables: %w", o.tables, err)
		}
	}
	fmt.Fprintln(stdout, head)
	for _, r := range results {
		r.print(stdout)
	}
	if o.tables > 0 {
		many.print(stdout)
	}
	return nil
}

// result is what was measured with one engine: a sample for each run.
type result struct {
	engine string
	bytes  int64 // of the data that cp and tar read
	files  int
	held   []float64 // seconds, beyond the node's own stop and start
	cp     []float64 // seconds
	eddy   []usage
	check  []float64 // seconds of each backup
	verify int64     // bytes of memory of `eddy verify --read-data`
	pipe   []usage
	sums   []summary
}

func (r result) print(w io.Writer) {
	last := r.sums[len(r.sums)-1]
	fmt.Fprintf(w, "\n%s: %d MB in %d files; eddy read %d MB, stored %d MB; tar | zstd stored %d MB; median of %d\n",
		r.engine, r.bytes/1e6, r.files, last.SourceBytes/1e6, last.StoredBytes/1e6, r.pipe[len(r.pipe)-1].stored/1e6, len(r.held))
	row := func(what string, ours []float64, unit, than string, theirs []float64, bar string) {
		a, b := median(ours), median(theirs)
		fmt.Fprintf(w, "  %-26s %8.2f %-4s %-20s %8.2f %-4s ratio %6.3f  (bar %s)   %s | %s\n",
			what, a, unit, than, b, unit, a/b, bar, list(ours), list(theirs))
	}
	wall := func(u usage) float64 { return u.wall }
	cpu := func(u usage) float64 { return u.cpu }
	row("held beyond stop and start", r.held, "s", "cp -a", r.cp, "0.10")
	row("wall, whole backup", each(r.eddy, wall), "s", "tar | zstd | aws", each(r.pipe, wall), "1.10")
	sending := each(r.eddy, wall)
	for i := range sending {
		sending[i] -= r.sums[i].Held
	}
	row("wall, less the hold", sending, "s", "tar | zstd | aws", each(r.pipe, wall), "1.10")
	row("client CPU", each(r.eddy, cpu), "s", "tar | zstd | aws", each(r.pipe, cpu), "1.10")
	less := each(r.eddy, wall)
	for i := range less {
		less[i] -= r.check[i]
	}
	row("wall, whole backup", each(r.eddy, wall), "s", "without its check", less, "1.10, or 5 s more")
	rss := each(r.eddy, func(u usage) float64 { return float64(u.rss) / (1 << 20) })
	fmt.Fprintf(w, "  %-26s %8.2f MiB  largest of all runs %42s (bar 256)    %s\n", "peak memory", slices.Max(rss), "", list(rss))
	fmt.Fprintf(w, "  %-26s %8.2f MiB (bar 256)\n", "verify --read-data, memory", float64(r.verify)/(1<<20))
	stops := make([]string, len(r.sums))
	for i, s := range r.sums {
		stops[i] = fmt.Sprintf("%.2f = %.2f + %.3f + %.2f", s.Held, s.Stop, s.Stage, s.Start)
	}
	fmt.Fprintf(w, "  held = stop + stage + start: %s\n", strings.Join(stops, "; "))
}

func each(us []usage, f func(usage) float64) []float64 {
	out := make([]float64, len(us))
	for i, u := range us {
		out[i] = f(u)
	}
	return out
}

func median(x []float64) float64 {
	s := slices.SortedFunc(slices.Values(x), cmp.Compare)
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

func list(x []float64) string {
	s := make([]string, len(x))
	for i, v := range x {
		s[i] = fmt.Sprintf("%.2f", v)
	}
	return strings.Join(s, " ")
}
