package snapshot

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"slices"
	"unicode/utf8"

	"github.com/eddy-backup/eddy/internal/fsx"
)

// maxListingLine bounds a line of the listing: name and link of 4096 bytes, each
// byte escaped to six.
const maxListingLine = 64 << 10

// merge yields sorted sequences as one.
func merge(sources []iter.Seq2[Entry, error]) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		type head struct {
			e    Entry
			next func() (Entry, error, bool)
		}
		var heads []head
		for _, src := range sources {
			next, stop := iter.Pull2(src)
			defer stop()
			e, err, ok := next()
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if ok {
				heads = append(heads, head{e, next})
			}
		}
		for len(heads) > 0 {
			least := 0 // a run holds 65,536 entries, so there are few heads
			for i := range heads {
				if archiveOrder(heads[i].e, heads[least].e) < 0 {
					least = i
				}
			}
			if !yield(heads[least].e, nil) {
				return
			}
			e, err, ok := heads[least].next()
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if !ok {
				heads = slices.Delete(heads, least, least+1)
				continue
			}
			heads[least].e = e
		}
	}
}

// checked passes a sorted sequence on, refuses a name that comes twice, and ends
// with ctx.
func checked(ctx context.Context, in iter.Seq2[Entry, error]) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		var last string
		n := 0
		for e, err := range in {
			if err == nil && n > 0 && e.Name == last {
				err = fmt.Errorf("%q was taken twice", e.Name)
			}
			if n++; err == nil && n%1024 == 0 {
				err = ctx.Err()
			}
			if !yield(e, err) || err != nil {
				return
			}
			last = e.Name
		}
	}
}

// listedEntry is an entry in the listing. Names are bytes: one that is no UTF-8
// stands in base64, because JSON would replace what it cannot hold.
type listedEntry struct {
	Entry
	NameB64 []byte `json:"name_b64,omitempty"`
	LinkB64 []byte `json:"link_b64,omitempty"`
}

func listed(e Entry) listedEntry {
	l := listedEntry{Entry: e}
	if !utf8.ValidString(e.Name) {
		l.Name, l.NameB64 = "", []byte(e.Name)
	}
	if !utf8.ValidString(e.Link) {
		l.Link, l.LinkB64 = "", []byte(e.Link)
	}
	return l
}

func parseListed(line []byte) (Entry, error) {
	var l listedEntry
	if err := json.Unmarshal(line, &l); err != nil {
		return Entry{}, fmt.Errorf("stage listing: %w", err)
	}
	if l.NameB64 != nil {
		l.Name = string(l.NameB64)
	}
	if l.LinkB64 != nil {
		l.Link = string(l.LinkB64)
	}
	return l.Entry, nil
}

// writeLines writes entries to a new file, and the same bytes to sum.
func writeLines(fsys fsx.FS, file string, entries iter.Seq2[Entry, error], sum io.Writer) (err error) {
	f, err := fsys.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<18)
	for e, err := range entries {
		if err != nil {
			return err
		}
		line, err := json.Marshal(listed(e))
		if err != nil {
			return err
		}
		line = append(line, '\n')
		if len(line) > maxListingLine {
			return fmt.Errorf("%.60q...: the name is too long", e.Name)
		}
		sum.Write(line)
		if _, err := w.Write(line); err != nil {
			return err
		}
	}
	return w.Flush()
}

// readLines reads entries back. The bytes go to sum as well, where it is set.
func readLines(file string, sum io.Writer) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		f, err := os.Open(file)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer f.Close()
		var r io.Reader = f
		if sum != nil {
			r = io.TeeReader(f, sum)
		}
		sc := bufio.NewScanner(r)
		sc.Buffer(make([]byte, 0, maxListingLine), maxListingLine+1)
		for sc.Scan() {
			e, err := parseListed(sc.Bytes())
			if !yield(e, err) || err != nil {
				return
			}
		}
		if err := sc.Err(); err != nil {
			yield(Entry{}, err)
		}
	}
}
