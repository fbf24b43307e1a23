// Command lab runs a program beside the real servers that it needs.
//
//	lab s3 [--server versitygw|minio] [--dir D] [--binary PATH] -- CMD ARG...
//	lab docker [--dir D] -- CMD ARG...
//	lab systemd --root DIR -- CMD ARG...
//
// s3 starts an S3 server on a free loopback port, creates a bucket, puts
// EDDY_LAB_S3_SERVER, _ENDPOINT, _BUCKET, _DATA and the AWS_* variables into CMD's environment, runs CMD with this terminal, and exits with
// CMD's code when the server is stopped and its directory removed. "{endpoint}"
// and "{bucket}" in CMD's arguments stand for the two values.
//
// docker starts a dockerd in namespaces of its own, with DOCKER_HOST and
// EDDY_LAB_DOCKER. It needs root.
//
// systemd boots a copy of the Debian in DIR in a container, puts its root
// directory into CMD's environment as EDDY_LAB_MACHINE_ROOT, and shuts it down
// when CMD has ended. It needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/lab"
)

const usage = `usage: lab s3 [--server versitygw|minio] [--dir DIR] [--binary PATH] -- CMD [ARG...]
       lab docker [--dir DIR] -- CMD [ARG...]
       lab systemd --root DIR -- CMD [ARG...]`

// server is what runs beside the program.
type server interface {
	Environ(base []string) []string
	Exited() <-chan struct{}
	Stop() error
}

var (
	_ server = (*lab.S3)(nil)
	_ server = (*lab.Docker)(nil)
	_ server = (*lab.Machine)(nil)
)

func main() { os.Exit(run(os.Args[1:], os.Stderr)) }

func run(args []string, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprintln(stderr, usage)
		return 2
	}
	fl := flag.NewFlagSet("lab "+args[0], flag.ContinueOnError)
	fl.SetOutput(stderr)
	fl.Usage = func() { fmt.Fprintln(stderr, usage); fl.PrintDefaults() }
	var dir, which, binary, root string
	needsDir := func() {
		fl.StringVar(&dir, "dir", "", "make the server's directory in `DIR` (default: the temporary directory)")
	}
	var start func(context.Context) (server, error)
	switch args[0] {
	case "s3":
		needsDir()
		fl.StringVar(&which, "server", lab.Versitygw, "which server: versitygw or minio")
		fl.StringVar(&binary, "binary", "", "`PATH` of the server (default: in $EDDY_LAB_BIN, else beside this program)")
		start = func(ctx context.Context) (server, error) {
			return lab.StartS3(ctx, lab.S3Options{Server: which, Dir: dir, Binary: binary})
		}
	case "docker":
		needsDir()
		start = func(ctx context.Context) (server, error) { return lab.StartDocker(ctx, dir) }
	case "systemd":
		fl.StringVar(&root, "root", "", "`DIR` with the root directory of a Debian")
		start = func(ctx context.Context) (server, error) { return lab.StartMachine(ctx, root) }
	default:
		fmt.Fprintln(stderr, usage)
		return 2
	}
	if err := fl.Parse(args[1:]); err != nil {
		return 2
	}
	if fl.NArg() == 0 {
		fl.Usage()
		return 2
	}
	code, err := runBeside(start, fl.Args())
	if err != nil {
		fmt.Fprintln(stderr, "lab:", err)
		if code == 0 {
			code = 1
		}
	}
	return code
}

// runBeside returns the program's exit code, and what went wrong with the
// server or with starting the program.
func runBeside(start func(context.Context) (server, error), argv []string) (code int, err error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan struct{})
	go func() { // a signal before the program runs ends the start of the server
		select {
		case <-started:
		case s := <-signals:
			signals <- s
			cancel()
		}
	}()
	beside, err := start(ctx)
	close(started)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, beside.Stop()) }()

	if s3, ok := beside.(*lab.S3); ok {
		fill := strings.NewReplacer("{endpoint}", s3.Endpoint, "{bucket}", s3.Bucket)
		for i := range argv {
			argv[i] = fill.Replace(argv[i])
		}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = beside.Environ(os.Environ())
	if err := cmd.Start(); err != nil {
		return 127, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	exited := beside.Exited()
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGINT && fromTerminal() {
				continue // the terminal has sent it to the program as well
			}
			// An error here means that it ended meanwhile, which done tells.
			_ = cmd.Process.Signal(s)
		case <-exited:
			err = errors.New("the server ended while the program ran")
			exited = nil
		case werr := <-done:
			var exit *exec.ExitError
			if werr != nil && !errors.As(werr, &exit) {
				return 1, errors.Join(err, werr)
			}
			return exitCode(cmd.ProcessState), err
		}
	}
}

// exitCode follows the shells: 128 + signal for a program that was killed.
func exitCode(st *os.ProcessState) int {
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return st.ExitCode()
}

// fromTerminal tells whether this process group is the terminal's foreground
// one, in which case a ctrl-C went to every process of it.
func fromTerminal() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	pgrp, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && pgrp == unix.Getpgrp()
}
