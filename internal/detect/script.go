package detect

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Script is what the settings of Loom's backup script mean to eddy.
type Script struct {
	Unit, Home, Store, Region Fact
	RPC                       Fact
	Timeout, Deadline         Fact // "300s"
	// Notes tell of settings that eddy does otherwise.
	Notes []string
}

// scriptNames are the settings that the script knows beside those that are read
// one by one.
var scriptNames = []string{
	"PROCESS_NAME", "SHOULD_KICK_SERVICE", "KICK_TIMEOUT", "MAXIMUM_NUMBER_OF_KICKS", "SIGUSR1_WAIT_SECONDS",
	"HEIGHT_GRACE", "HEIGHT_BEHIND_GRACE", "SHOULD_RESTART_SERVICE_IF_BEHIND", "SHOULD_TERMINATE_BACKUP_IF_BEHIND", "SHOULD_WAIT_UNTIL_CAUGHT_UP",
	"SHOULD_START_SERVICE_IF_NOT_STARTED", "WAIT_SECONDS_AFTER_STARTUP",
	"BACKUP_DATA", "SHOULD_CLEAN_TMP", "TMP_LOCATION", "BACKUP_METHOD", "SHOULD_COMPRESS", "FILENAME",
}

// ReadScript reads the NAME=value lines of a settings file of that script, or of
// the script itself. Nothing of it is run: a value that a shell would have to
// compute is not taken. file is its name, for people.
func ReadScript(file, text string) (Script, error) {
	all := assignments(text)
	var s Script
	known := 0
	note := func(format string, a ...any) { s.Notes = append(s.Notes, fmt.Sprintf(format, a...)) }
	get := func(name string) (string, bool) {
		a, ok := all[name]
		if !ok {
			return "", false
		}
		known++
		if a.computed {
			note("%s in %s is computed by the shell: not taken", name, file)
			return "", false
		}
		return a.text, a.text != ""
	}
	from := func(name, value string) Fact { return Fact{value, name + " in " + file} }

	if v, ok := get("SERVICE_NAME"); ok {
		s.Unit = from("SERVICE_NAME", v)
	}
	if v, ok := get("START_DIRECTORY"); ok {
		if filepath.IsAbs(v) {
			s.Home = from("START_DIRECTORY", filepath.Clean(v))
		} else {
			note("START_DIRECTORY in %s is no absolute path: not taken", file)
		}
	}
	if v, ok := get("PORT"); ok {
		if n, err := strconv.Atoi(v); err == nil && n > 0 && n < 65536 {
			s.RPC = from("PORT", fmt.Sprintf("http://127.0.0.1:%d", n))
		} else {
			note("PORT in %s is no port: not taken", file)
		}
	}
	if v, ok := get("STOP_TIMEOUT"); ok {
		if n, err := strconv.Atoi(v); err == nil && n > 0 && n <= 3600 {
			s.Timeout = from("STOP_TIMEOUT", fmt.Sprintf("%ds", n))
			if n >= 600 { // the deadline's default; the hold begins with the stop
				s.Deadline = Fact{fmt.Sprintf("%ds", n+300), "longer than the time-out"}
			}
		} else {
			note("STOP_TIMEOUT in %s is no number of seconds up to 3600: not taken", file)
		}
	}
	if v, ok := get("S3BUCKET"); ok {
		switch bucket := strings.TrimRight(v, "/"); {
		case strings.HasPrefix(bucket, "s3://your-"):
			note("S3BUCKET in %s is still the script's example: not taken", file)
		case !strings.HasPrefix(bucket, "s3://") || strings.Contains(bucket, "@"):
			note("S3BUCKET in %s does not begin with s3://: not taken", file)
		default:
			s.Store = from("S3BUCKET", bucket)
		}
	}
	if v, ok := get("S3BUCKET_REGION"); ok && s.Store.Value != "" {
		s.Region = from("S3BUCKET_REGION", v)
	}
	for _, o := range []struct{ name, value, note string }{
		{"SHOULD_STOP_SERVICE", "false", "the node is held still for a moment all the same: what is copied from a running node may not restore"},
		{"SHOULD_UPLOAD", "false", "every backup of eddy goes to the store"},
		{"SHOULD_SIGUSR1_SERVICE", "true", "eddy sends the node no signal"},
		{"SHOULD_SHUTDOWN", "true", "eddy does not shut the machine down"},
	} {
		if v, ok := get(o.name); ok && v == o.value {
			note("%s was %s: %s", o.name, o.value, o.note)
		}
	}
	for _, name := range []string{"STUFF_TO_BACKUP", "BACKUP_CONFIG"} {
		if _, ok := all[name]; ok {
			known++
			note("what %s lists is not used: eddy finds the databases itself; `eddy keys backup` keeps configuration and keys, encrypted", name)
			break
		}
	}
	var unused []string
	for _, name := range scriptNames {
		if _, ok := all[name]; ok {
			known++
			unused = append(unused, name)
		}
	}
	if len(unused) > 0 {
		slices.Sort(unused)
		note("no longer needed: %s", strings.Join(unused, ", "))
	}
	if known == 0 {
		return Script{}, hint.Add(fmt.Errorf("%s: %w", file, errNoScript), "name the file with the lines S3BUCKET=..., SERVICE_NAME=..., often ~/.backup_config or backup.sh itself")
	}
	return s, nil
}

var errNoScript = errors.New("it has none of the settings of Loom's backup.sh")
