package snapshot

import (
	"cmp"
	"path"
	"strings"
)

// archiveOrder is the order of an archive: directories, parents first, so that a
// stream cut short never leaves a file in a directory with wider rights than it
// had; then linked files by root and path; then all other files and symlinks
// likewise; CURRENT files last, so that a database cut short does not open.
func archiveOrder(a, b Entry) int {
	if c := cmp.Compare(class(a), class(b)); c != 0 {
		return c
	}
	if a.Type != TypeDir { // a root's directory may lie in a directory of another root
		if c := cmp.Compare(a.Root, b.Root); c != 0 {
			return c
		}
	}
	return comparePaths(a.Name, b.Name)
}

func class(e Entry) int {
	switch {
	case e.Type == TypeDir:
		return 0
	case e.Treatment == Linked:
		return 1
	case path.Base(e.Name) == "CURRENT":
		return 3
	default:
		return 2
	}
}

// comparePaths compares byte by byte, but "/" comes before everything, so that a
// directory's content follows it, and runs of digits are compared as numbers.
func comparePaths(a, b string) int {
	for a != "" && b != "" {
		if isDigit(a[0]) && isDigit(b[0]) {
			na, nb := digits(a), digits(b)
			va, vb := strings.TrimLeft(na, "0"), strings.TrimLeft(nb, "0")
			if c := cmp.Or(cmp.Compare(len(va), len(vb)), cmp.Compare(va, vb), cmp.Compare(len(na), len(nb))); c != 0 {
				return c
			}
			a, b = a[len(na):], b[len(nb):]
			continue
		}
		if a[0] != b[0] {
			if a[0] == '/' {
				return -1
			}
			if b[0] == '/' {
				return 1
			}
			return cmp.Compare(a[0], b[0])
		}
		a, b = a[1:], b[1:]
	}
	return cmp.Compare(len(a), len(b))
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func digits(s string) string {
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	return s[:n]
}
