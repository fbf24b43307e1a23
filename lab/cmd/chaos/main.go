// Command chaos plays rounds of faults against eddy and says what held.
//
//	chaos --eddy bin/eddy [--rounds N] [--first N] [--seed S] [--only REGEXP] [--size 100MB] [--server minio]
//	chaos --eddy bin/eddy --resume [--upgraded PROGRAM] [--size 3GB] [--volume 256MiB]
//
// The second form kills one backup at nine tenths and says what the next run reads
// and sends.
//
// It mounts, and so needs root and a mount namespace of its own; a process
// namespace, too, whose end is the end of all that it started. `make chaos` sees
// to both. A line of its output names the seed: the same one plays the same rounds.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/eddy-backup/eddy/lab"
	"github.com/eddy-backup/eddy/lab/chaos"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	o := chaos.Options{Out: stdout}
	size, resume := lab.Size(100e6), false
	fl := flag.NewFlagSet("chaos", flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.StringVar(&o.Eddy, "eddy", "", "the `PROGRAM` under test")
	fl.StringVar(&o.Dir, "dir", "", "empty `DIR` to work in (default: in the temporary directory)")
	fl.IntVar(&o.Rounds, "rounds", 0, "how many (default: each once)")
	fl.IntVar(&o.First, "first", 1, "`NUMBER` of the first one, to play one again")
	fl.Uint64Var(&o.Seed, "seed", 1, "of all that is random")
	fl.StringVar(&o.Only, "only", "", "play rounds whose names match `REGEXP`")
	fl.BoolVar(&resume, "resume", false, "kill one backup at nine tenths, and measure the run after it")
	fl.StringVar(&o.Upgraded, "upgraded", "", "with --resume: the `PROGRAM` of the run after the kill")
	fl.StringVar(&o.Server, "server", lab.Versitygw, "the S3 server: versitygw or minio")
	fl.StringVar(&o.Volume, "volume", "40MiB", "eddy's backup.volume_size")
	fl.Var(&size, "size", "of the databases beside the chain's own")
	if err := fl.Parse(args); err != nil || fl.NArg() > 0 || o.First < 1 || o.Eddy == "" {
		fl.Usage()
		return 2
	}
	o.Size = int64(size)
	if err := paths(&o); err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 1
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	play := chaos.Run
	if resume {
		play = chaos.Resume
	}
	if err := play(ctx, o); err != nil {
		fmt.Fprintln(stderr, "chaos:", err)
		return 1
	}
	return 0
}

func paths(o *chaos.Options) (err error) {
	if o.Eddy, err = filepath.Abs(o.Eddy); err != nil {
		return err
	}
	if o.Upgraded != "" {
		if o.Upgraded, err = filepath.Abs(o.Upgraded); err != nil {
			return err
		}
	}
	if o.Dir == "" {
		o.Dir, err = os.MkdirTemp("", "eddy-chaos-")
	} else {
		o.Dir, err = filepath.Abs(o.Dir)
	}
	return err
}
