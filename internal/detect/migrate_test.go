package detect

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// loomSettings are those of Loom's backup.sh.
var loomSettings = strings.Fields(`
	SHOULD_STOP_SERVICE STOP_TIMEOUT SERVICE_NAME PROCESS_NAME
	SHOULD_START_SERVICE_IF_NOT_STARTED WAIT_SECONDS_AFTER_STARTUP
	SHOULD_KICK_SERVICE KICK_TIMEOUT MAXIMUM_NUMBER_OF_KICKS PORT
	HEIGHT_GRACE HEIGHT_BEHIND_GRACE SHOULD_RESTART_SERVICE_IF_BEHIND
	SHOULD_TERMINATE_BACKUP_IF_BEHIND SHOULD_WAIT_UNTIL_CAUGHT_UP
	SHOULD_SIGUSR1_SERVICE SIGUSR1_WAIT_SECONDS S3BUCKET S3BUCKET_REGION
	BACKUP_DATA BACKUP_CONFIG STUFF_TO_BACKUP START_DIRECTORY SHOULD_CLEAN_TMP
	TMP_LOCATION BACKUP_METHOD SHOULD_COMPRESS SHOULD_UPLOAD FILENAME SHOULD_SHUTDOWN`)

// Every setting is known to ReadScript and has its row in the page, which names only
// keys of eddy.yaml that there are.
func TestEverySettingHasItsPlace(t *testing.T) {
	if len(loomSettings) != 30 {
		t.Fatalf("%d settings", len(loomSettings))
	}
	page, err := os.ReadFile("../../docs/loom-migrate.md")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := os.ReadFile("../../docs/config.md")
	if err != nil {
		t.Fatal(err)
	}
	key := regexp.MustCompile("`((?:replica|store|backup|keys|notify)\\.[a-z_.]+|include|workdir)`")
	var rows []string
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, " | ")
		name := strings.Trim(strings.TrimPrefix(cells[0], "| "), "`")
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		rows = append(rows, name)
		if len(cells) != 3 || len(cells[2]) < len("Not needed.") {
			t.Errorf("%s: no place", name)
		}
		for _, m := range key.FindAllStringSubmatch(line, -1) {
			if !strings.Contains(string(keys), "\n| `"+m[1]+"` |") {
				t.Errorf("%s: eddy.yaml has no key %s", name, m[1])
			}
		}
	}
	want := slices.Clone(loomSettings)
	slices.Sort(want)
	slices.Sort(rows)
	if !slices.Equal(rows, want) {
		t.Errorf("rows: %v\nwant: %v", rows, want)
	}
	for _, name := range loomSettings {
		if _, err := ReadScript("f", name+"=x\n"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
