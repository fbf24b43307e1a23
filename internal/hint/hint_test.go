package hint

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
)

// A shell that a command is pasted into has the very words.
func TestCommandsAreReadBack(t *testing.T) {
	argv := []string{"printf", `%s\n`, "plain-1.2/x=y:z", "two words", "it's", "", `$HOME "a" \ *`, "#", "~", "-", "é"}
	out, err := exec.Command("sh", "-c", strings.Trim(Command(argv...), "`")).Output()
	if want := strings.Join(argv[2:], "\n") + "\n"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
	if got := Command("systemctl", "start", "gaiad.service"); got != "`systemctl start gaiad.service`" {
		t.Errorf("quoted where it need not be: %s", got)
	}
}

func TestTheOutermostHintStands(t *testing.T) {
	err := fmt.Errorf("b: %w", Add(errors.New("a"), "inner"))
	if Of(err) != "inner" || Of(Add(err, "outer")) != "outer" || Add(err, "x").Error() != "b: a" || Add(nil, "x") != nil {
		t.Errorf("%q, %q", Of(err), Of(Add(err, "outer")))
	}
	if Or(err, "else") != "inner" || Or(errors.New("a"), "else") != "else" || Or(nil, "else") != "else" {
		t.Error(Or(err, "else"))
	}
}
