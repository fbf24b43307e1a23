package demo

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// processes are those that the demo started; it ends no others.
type processes struct{ running map[string]*process }

type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
	err  error // valid after done
}

func newProcesses() *processes { return &processes{running: map[string]*process{}} }

// start runs a program in the background in a process group of its own, its
// output in DIR/NAME.log.
func (p *processes) start(name, dir string, argv ...string) error {
	path := filepath.Join(dir, name+".log")
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close() // the child has its own descriptor
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	pr := &process{cmd: cmd, log: path, done: make(chan struct{})}
	go func() { pr.err = cmd.Wait(); close(pr.done) }()
	p.running[name] = pr
	return nil
}

// stop ends a program as its manager would, and fails when it does not end well.
func (p *processes) stop(name string, within time.Duration) error {
	pr := p.running[name]
	if err := pr.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-pr.done:
		delete(p.running, name)
		if pr.err != nil {
			return fmt.Errorf("%s ended badly: %w%s", name, pr.err, lastLines(pr.log))
		}
		return nil
	case <-time.After(within):
		return fmt.Errorf("%s does not stop within %s", name, within)
	}
}

// killAll kills every process group that was started and waits for its leader.
func (p *processes) killAll() {
	for _, pr := range p.running {
		// The group is killed, not the leader alone: a supervisor's node is in it
		// or dies with its parent. A group that is gone already is no error.
		syscall.Kill(-pr.cmd.Process.Pid, syscall.SIGKILL) //nolint:errcheck
	}
	for name, pr := range p.running {
		<-pr.done
		delete(p.running, name)
	}
}

func (p *processes) tail(name string) string {
	if pr := p.running[name]; pr != nil {
		return lastLines(pr.log)
	}
	return ""
}

func lastLines(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return "\n" + strings.Join(lines[max(0, len(lines)-5):], "\n")
}

// run runs a program to its end and returns its stdout.
func (d *Demo) run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 30 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s%s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(out.String()), strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// eddy runs the binary with the demo's configuration.
func (d *Demo) eddy(ctx context.Context, args ...string) (string, error) {
	return d.run(ctx, d.o.Eddy, append([]string{"--config", d.config}, args...)...)
}

// eddyJSON runs eddy with --json and decodes the message of the wanted type.
func (d *Demo) eddyJSON(ctx context.Context, want string, into any, args ...string) error {
	out, err := d.eddy(ctx, append([]string{"--json"}, args...)...)
	if err != nil {
		return err
	}
	sc := bufio.NewScanner(strings.NewReader(out))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var m struct {
			Type string `json:"message_type"`
		}
		if err := json.Unmarshal(sc.Bytes(), &m); err != nil {
			return fmt.Errorf("eddy printed what is no JSON: %q", sc.Text())
		}
		if m.Type == want {
			return json.Unmarshal(sc.Bytes(), into)
		}
	}
	return fmt.Errorf("eddy %s printed no %s", strings.Join(args, " "), want)
}
