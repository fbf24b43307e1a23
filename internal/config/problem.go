package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Problem is one mistake.
type Problem struct {
	File string // "" where the value is not from a file
	Line int    // 0 where no line of the file is to blame
	Name string // the variable or flag that the value came from
	Key  string // "" where the file as a whole is meant
	What string // what is wrong
	Hint string // what to write instead
}

// String is the problem on one line: "eddy.yaml:3: store.url: what; hint".
func (p Problem) String() string {
	var b strings.Builder
	switch {
	case p.Name != "":
		b.WriteString(p.Name + ": ")
	case p.File != "" && p.Line > 0:
		b.WriteString(p.File + ":" + strconv.Itoa(p.Line) + ": ")
	case p.File != "":
		b.WriteString(p.File + ": ")
	}
	if p.Key != "" {
		b.WriteString(p.Key + ": ")
	}
	b.WriteString(p.What)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// Error is everything that is wrong with a configuration, in the order of the
// file, then of the variables, then of the flags.
type Error struct{ Problems []Problem }

func (e *Error) Error() string {
	if len(e.Problems) == 1 {
		return e.Problems[0].String()
	}
	lines := make([]string, 0, len(e.Problems)+1)
	lines = append(lines, fmt.Sprintf("the configuration has %d problems", len(e.Problems)))
	for _, p := range e.Problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// valueError is a text that its key does not take.
type valueError struct{ what, hint string }

func (e *valueError) Error() string { return e.what }

// quote shows a wrong value: bounded, on one line, and not at all where it looks
// like something with a password in it.
func quote(s string) string {
	const most = 60
	if strings.LastIndexByte(s, '@') > 0 || strings.Contains(s, "://") {
		return "the value (not shown, it may hold a password)"
	}
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "..."
	}
	return strconv.Quote(s)
}

var plainKey = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,40}$`)

// keyText shows a key that a file or a variable made up.
func keyText(key string) string {
	if plainKey.MatchString(key) {
		return key
	}
	return quote(key)
}

// closest returns the candidate that a typing mistake makes of word, or "".
func closest(word string, candidates []string) string {
	best, least := "", min(2, len(word)/2)+1
	for _, c := range candidates {
		if d := distance(strings.ToLower(word), c); d < least {
			best, least = c, d
		}
	}
	return best
}

// distance counts the insertions, deletions, replacements and swaps of
// neighbours that make b of a.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var before, prev, row [65]int
	for j := range row {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev = prev, row
	}
	return prev[len(b)]
}
