package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	pageBlock = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	pageVerb  = regexp.MustCompile(`(?m)(?:^|[ /])eddy ([a-z][^|;>&\n]*)`)
)

// tryWords tells whether eddy would take the words, without running anything.
func tryWords(words []string) error {
	cmd, rest, err := (&app{}).rootCommand().Find(words)
	if err == nil {
		err = cmd.ParseFlags(rest)
	}
	if err == nil {
		err = cmd.ValidateArgs(cmd.Flags().Args())
	}
	if err == nil && !cmd.Runnable() {
		err = errors.New("it does nothing")
	}
	return err
}

// pageInline are commands of eddy between backticks.
var pageInline = regexp.MustCompile("`(eddy [a-z][^`]*)`")

// So do the pages that lead from other words to ours.
func TestTablesNameWhatThereIs(t *testing.T) {
	for _, page := range []string{"symptoms.md", "dcos.md", "runbooks/docker-enterprise.md", "recover.md"} {
		text, err := os.ReadFile(filepath.Join("../../docs", page))
		if err != nil {
			t.Fatal(err)
		}
		seen := pageInline.FindAllStringSubmatch(string(text), -1)
		for _, m := range seen {
			words := strings.Fields(strings.TrimSuffix(m[1], " ..."))[1:]
			if len(words) == 1 && words[0] == "restore" { // named, not typed
				continue
			}
			if err := tryWords(words); err != nil {
				t.Errorf("%s: %s: %v", page, m[1], err)
			}
		}
		if len(seen) < 2 {
			t.Errorf("%s: only %d commands of eddy were found in it", page, len(seen))
		}
	}
}

// The quick starts name verbs, flags and arguments that there are.
func TestPagesNameWhatThereIs(t *testing.T) {
	pages, err := filepath.Glob("../../docs/quickstart-*.md")
	if err != nil || len(pages) < 3 {
		t.Fatal(pages, err)
	}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for _, block := range pageBlock.FindAllStringSubmatch(string(text), -1) {
			for _, m := range pageVerb.FindAllStringSubmatch(strings.ReplaceAll(block[1], "\\\n", ""), -1) {
				seen++
				if err := tryWords(strings.Fields(m[1])); err != nil {
					t.Errorf("%s: eddy %s: %v", filepath.Base(page), m[1], err)
				}
			}
		}
		if seen == 0 {
			t.Errorf("%s: no command of eddy was found in it", filepath.Base(page))
		}
	}
}
