// Package hint attaches to an error one sentence that says what to do about it.
//
// It is a leaf: every package may use it, and it knows none. An error says what
// went wrong and to which thing; the hint says what the operator does next. The
// command line prints the error on one line and the hint on the next.
//
// A hint can be followed as it stands. Between backticks is what is typed: a
// command, which runs where it is pasted, or a key of eddy.yaml by its whole name
// with its value. Words in capitals there are the reader's to fill in. Of several
// ways the first one is the likeliest. Tests read hints by these rules.
package hint

import (
	"errors"
	"strings"
)

type hinted struct {
	err  error
	hint string
}

func (h *hinted) Error() string { return h.err.Error() }
func (h *hinted) Unwrap() error { return h.err }

// Add wraps err so that Of finds text. A nil err stays nil. Where several hints
// are in a chain the outermost is the one that Of returns: the caller knows more
// of the situation than the callee.
func Add(err error, text string) error {
	if err == nil {
		return nil
	}
	return &hinted{err: err, hint: text}
}

// Of returns the outermost hint in err's chain, or "" where there is none.
func Of(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// Or is err's hint, or text where it has none.
func Or(err error, text string) string {
	if h := Of(err); h != "" {
		return h
	}
	return text
}

// Command is argv between backticks.
func Command(argv ...string) string { return "`" + Shell(argv...) + "`" }

// Shell is argv as a shell reads it back, quoted where it must be.
func Shell(argv ...string) string {
	words := make([]string, len(argv))
	for i, w := range argv {
		words[i] = word(w)
	}
	return strings.Join(words, " ")
}

// word is w as a shell reads it back.
func word(w string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_@%+=:,./-", r)
	}
	if w != "" && !strings.ContainsFunc(w, func(r rune) bool { return !plain(r) }) {
		return w
	}
	return "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
}
