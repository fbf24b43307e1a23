package quickstart

import (
	"errors"
	"fmt"
	"strings"
)

// block is what a reader types at one place of a page.
type block struct {
	Line    int // of its first command, counted from 1
	Heading string
	Text    string
}

// blocks takes the fenced blocks marked sh out of a page, in order.
func blocks(page string) ([]block, error) {
	var out []block
	var now *block
	heading, fence, line := "", false, 0
	for text := range strings.Lines(page) {
		line++
		word, isFence := strings.CutPrefix(strings.TrimRight(text, "\r\n"), "```")
		switch {
		case isFence && fence && word == "":
			if now != nil {
				out = append(out, *now)
			}
			fence, now = false, nil
		case isFence && fence:
			return nil, fmt.Errorf("line %d: a block begins inside another", line)
		case isFence:
			fence = true
			if word == "sh" {
				now = &block{Line: line + 1, Heading: heading}
			}
		case now != nil:
			now.Text += text
		case !fence && strings.HasPrefix(text, "#"):
			heading = strings.TrimSpace(strings.TrimLeft(text, "#"))
		}
	}
	switch {
	case fence:
		return nil, errors.New("the last block has no end")
	case len(out) == 0:
		return nil, errors.New("no block marked sh")
	}
	return out, nil
}

// mark begins the line that the script prints before each block.
const mark = "--- line "

// script is what a careful reader does with the blocks: type one after the other
// and stop at the first command that fails.
func script(all []block) string {
	var s strings.Builder
	s.WriteString("set -euo pipefail\n")
	for _, b := range all {
		fmt.Fprintf(&s, "printf '%%s\\n' %s\n%s", quote(fmt.Sprintf("%s%d: %s", mark, b.Line, b.Heading)), b.Text)
	}
	return s.String()
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
