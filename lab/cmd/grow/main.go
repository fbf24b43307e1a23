// Command grow fills a directory with databases like those of a chain that has
// run for long. They are for timing: no block in them is valid.
//
//	grow --dir HOME/data --size 3GB [--engine goleveldb|pebbledb]
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/eddy-backup/eddy/lab"
	"github.com/eddy-backup/eddy/lab/grow"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o := grow.Options{Size: 3e9}
	fl := flag.NewFlagSet("grow", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.StringVar(&o.Dir, "dir", "", "put the databases into `DIR` (needed)")
	fl.StringVar(&o.Engine, "engine", "goleveldb", "goleveldb or pebbledb")
	fl.StringVar(&o.Prefix, "prefix", "grown-", "begin each database's name with `P`")
	fl.Uint64Var(&o.Seed, "seed", 1, "seed of keys and values")
	fl.Var((*lab.Size)(&o.Size), "size", "stop at `SIZE` on disk: 3GB, 500MiB, bytes")
	if err := fl.Parse(args); err != nil {
		return 2
	}
	if o.Dir == "" || fl.NArg() > 0 {
		fl.Usage()
		return 2
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		fmt.Fprintln(stderr, "grow:", err)
		return 1
	}
	begin, said := time.Now(), time.Now()
	o.Progress = func(n int64) {
		if time.Since(said) > 5*time.Second {
			said = time.Now()
			fmt.Fprintf(stderr, "grow: %d of %d MB\n", n/1e6, o.Size/1e6)
		}
	}
	res, err := grow.Run(ctx, o)
	if err != nil {
		fmt.Fprintln(stderr, "grow:", err)
		return 1
	}
	fmt.Fprintf(stdout, "%d bytes in %d files, %s, %.1f s\n", res.OnDisk, res.Files, o.Engine, time.Since(begin).Seconds())
	return 0
}
