package detect

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// properties are what `systemctl show` is asked for.
const properties = "Id,LoadState,ActiveState,UnitFileState,User,WorkingDirectory,ExecStart,Environment,EnvironmentFiles,MainPID,FragmentPath,DropInPaths"

// readUnits asks systemd for all its services: those that are loaded and those
// that are only installed. Without systemd the error is ErrNotFound.
func readUnits(ctx context.Context) ([]Unit, error) {
	if _, err := os.Stat("/run/systemd/system"); err != nil { // as sd_booted(3) asks
		return nil, ErrNotFound
	}
	list, err := systemctl(ctx, "list-unit-files", "--type=service", "--no-legend", "--plain", "--full")
	if err != nil {
		return nil, err
	}
	args := []string{"show", "--property=" + properties, "--", "*.service"}
	for line := range strings.Lines(string(list)) {
		if name, _, _ := strings.Cut(line, " "); strings.HasSuffix(name, ".service") && !strings.Contains(name, "@.") {
			args = append(args, name)
		}
	}
	out, err := systemctl(ctx, args...)
	if err != nil {
		return nil, err
	}
	return parseUnits(string(out), os.ReadFile), nil
}

func systemctl(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "systemctl", append([]string{"--no-pager"}, args...)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "SYSTEMD_COLORS=0")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		said, _, _ := bytes.Cut(bytes.TrimSpace(exit.Stderr), []byte("\n"))
		err = fmt.Errorf("systemctl %s: %s", args[0], said)
	}
	return out, err
}

// parseUnits reads the blocks of `systemctl show`, one for each unit, with an
// empty line between them. A unit that is there twice is taken once.
func parseUnits(text string, readFile func(string) ([]byte, error)) (units []Unit) {
	seen := map[string]bool{}
	for block := range strings.SplitSeq(text, "\n\n") {
		u := Unit{Env: map[string]string{}}
		var files []string
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
			switch key {
			case "Id":
				u.Name = value
			case "LoadState":
				u.Load = value
			case "ActiveState":
				u.Active = value
			case "UnitFileState":
				u.File = value
			case "User":
				u.User = value
			case "WorkingDirectory":
				u.Dir = strings.TrimPrefix(value, "!") // "!": it may be missing
			case "ExecStart":
				u.Argv = execArgv(value) // of several the last is the service itself
			case "Environment":
				for name, v := range environ(quotedWords(value)) {
					u.Env[name] = v
				}
			case "EnvironmentFiles":
				name, _, _ := strings.Cut(value, " (ignore_errors=")
				files = append(files, name)
			case "FragmentPath", "DropInPaths":
				u.Files = append(u.Files, quotedWords(value)...)
			case "MainPID":
				u.PID, _ = strconv.Atoi(value) // 0 where it is none
			}
		}
		if u.Name == "" || seen[u.Name] {
			continue
		}
		seen[u.Name] = true
		u.Files = append(u.Files, files...)
		for _, f := range files { // they win over Environment=
			b, err := readFile(f)
			if err != nil || len(b) > 1<<20 {
				continue // not ours to read, or optional
			}
			for name, v := range assignments(string(b)) {
				if kept(name) {
					u.Env[name] = v.text
				}
			}
		}
		units = append(units, u)
	}
	return units
}

// execArgv reads the command of "{ path=P ; argv[]=A B ; ignore_errors=no ; ...".
// systemctl joins the words with spaces; a word that has one itself comes apart.
func execArgv(value string) []string {
	_, rest, ok := strings.Cut(value, "argv[]=")
	if !ok {
		return nil
	}
	argv, _, _ := strings.Cut(rest, " ; ignore_errors=")
	return strings.Fields(argv)
}

// quotedWords splits what systemctl has quoted: words with spaces stand in double
// quotes, with backslashes before quotes, backslashes, dollars and backticks.
func quotedWords(s string) (words []string) {
	var b strings.Builder
	in, any := false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
			any = true
		case c == '"':
			in, any = !in, true
		case c == ' ' && !in:
			if any {
				words = append(words, b.String())
			}
			b.Reset()
			any = false
		default:
			b.WriteByte(c)
			any = true
		}
	}
	if any {
		words = append(words, b.String())
	}
	return words
}
