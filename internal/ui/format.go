package ui

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// Bytes writes a size for people: 1.5 GiB.
func Bytes(n int64) string {
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, unit := float64(n)/1024, "KiB"
	for _, next := range []string{"MiB", "GiB", "TiB", "PiB"} {
		if v < 1023.95 { // or it would be written as 1024.0
			break
		}
		v, unit = v/1024, next
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// Duration writes a time for people, to the second above a minute.
func Duration(d time.Duration) string {
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// Ago writes how long ago something was, roughly: 5 min ago, 2 h ago, 3 d ago.
func Ago(d time.Duration) string {
	switch {
	case d < time.Minute: // and clocks that differ
		return "just now"
	case d < time.Hour:
		return fmt.Sprintf("%d min ago", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", d/time.Hour)
	default:
		return fmt.Sprintf("%d d ago", d/(24*time.Hour))
	}
}

// Rows is a table whose columns are as wide as they must be.
type Rows struct {
	rows [][]string
}

// Table begins a table with its headings.
func Table(head ...string) *Rows { return &Rows{rows: [][]string{head}} }

// Row adds a line. Characters that would break the table or steer a terminal
// are replaced.
func (t *Rows) Row(cells ...string) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = printable(c, "")
	}
	t.rows = append(t.rows, row)
}

// Len is the number of lines below the headings.
func (t *Rows) Len() int { return len(t.rows) - 1 }

// String is the table, a line feed behind every line.
func (t *Rows) String() string {
	var width []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len([]rune(c)))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		var line strings.Builder
		for i, c := range row {
			fmt.Fprintf(&line, "%-*s  ", width[i], c)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	return b.String()
}

// printable replaces what could steer a terminal: much of what is shown was
// written by others, into a bucket or by a node. Runes in keep stay.
func printable(s, keep string) string {
	return strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) || strings.ContainsRune(keep, c) {
			return c
		}
		return '?'
	}, s)
}
