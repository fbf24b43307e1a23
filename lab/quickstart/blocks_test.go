package quickstart

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestBlocks(t *testing.T) {
	page := "# A\ntext\n```sh\none\n# not a heading\ntwo\n```\n## B `x`\n```\nprinted\n```\n```sh\ncat <<'E'\n  it's\nE\n```\n"
	got, err := blocks(page)
	if err != nil {
		t.Fatal(err)
	}
	want := []block{{4, "A", "one\n# not a heading\ntwo\n"}, {13, "B `x`", "cat <<'E'\n  it's\nE\n"}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %+v, want %+v", got, want)
	}
	for name, page := range map[string]string{
		"no end": "```sh\nx\n", "none": "# A\n```\nx\n```\n", "nested": "```sh\n```sh\n```\n",
	} {
		if got, err := blocks(page); err == nil {
			t.Errorf("%s: got %+v, want an error", name, got)
		}
	}
}

func TestScriptStopsAtTheFirstFailure(t *testing.T) {
	s := script([]block{{3, "it's one", "echo a | cat\n"}, {9, "two", "false | true\necho b\n"}})
	out, err := exec.Command("bash", "-c", s).CombinedOutput()
	if want := "--- line 3: it's one\na\n--- line 9: two\n"; string(out) != want || err == nil {
		t.Errorf("printed %q (%v), want %q and a failure", out, err, want)
	}
}

// No machine has all pages typed into it; all must at least be bash.
func TestPagesAreBash(t *testing.T) {
	pages, err := filepath.Glob("../../docs/quickstart-*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal(pages, err)
	}
	for _, page := range pages {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		all, err := blocks(string(b))
		if err != nil {
			t.Errorf("%s: %v", page, err)
			continue
		}
		cmd := exec.Command("bash", "-n")
		cmd.Stdin = strings.NewReader(script(all))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", page, err, out)
		}
	}
}
