// Package hint attaches to an error one sentence that says what to do about it.
//
// It is a leaf: every package may use it, and it knows none. An error says what
// went wrong and to which thing; the hint says what the operator does next. The
// command line prints the error on one line and the hint on the next.
package hint

import "errors"

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
