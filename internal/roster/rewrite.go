package roster

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/nodeconfig"
)

// Rewrite is what the files of one node are to say.
type Rewrite struct {
	// Self is the id of the node whose files they are: it is in none of its lists.
	Self    string
	Members Members
	// ListObservers puts observers into lists as well.
	ListObservers bool
	// DropOthers takes out whom the members do not know.
	DropOthers bool
	// Hosts are to be written otherwise, wherever they stand: pairs of old and new.
	Hosts [][2]string
}

// Edit is a file with what it is to become.
type Edit struct {
	File
	New *nodeconfig.Edited
}

// Plan decides about each file, in the order of files. notes are what people should
// know: whom a list names that nobody knows, and what cannot be changed.
func (r Rewrite) Plan(files []File) (edits []Edit, notes []string, err error) {
	if len(r.Members) > 0 {
		if err := r.Members.Validate(); err != nil {
			return nil, nil, err
		}
		for _, m := range r.Members {
			switch {
			case m.ID == r.Self || m.Observer && !r.ListObservers:
			case m.ID == "":
				return nil, nil, hint.Add(fmt.Errorf("%w: the node id of %s is not known", ErrInventory, m.Name), "`eddy keys backup` on it puts its id into the store; or write `"+m.Name+": id@host:port`, or say --node-key "+m.Name+"=FILE")
			case m.Host == "":
				return nil, nil, hint.Add(fmt.Errorf("%w: nothing says where %s is dialled%s", ErrInventory, m.Name, r.unknown(files)), "write it down, `"+m.Name+": host:port`, and name the file with --inventory")
			}
		}
	}
	p := pass{Rewrite: r, old: map[string]string{}}
	for _, f := range files {
		for _, l := range f.Lists {
			p.learn(l)
		}
	}
	for _, f := range files {
		if len(r.Members) > 0 {
			for _, l := range f.Lists {
				if l.Odd != "" {
					p.note("%s:%d: %s is left as it is: %s", f.Path, l.Line, l.Key, l.Odd)
				}
			}
		}
		e, err := nodeconfig.Relist(f.Form, f.Text, func(l nodeconfig.List) string { return p.value(f, l) })
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %w", f.Path, err)
		}
		for _, h := range r.Hosts {
			e.ReplaceHost(h[0], h[1])
		}
		if _, err := nodeconfig.Lists(f.Form, e.String()); err != nil {
			return nil, nil, fmt.Errorf("%s would be broken by it: %w", f.Path, err)
		}
		edits = append(edits, Edit{f, e})
	}
	return edits, p.notes, nil
}

// unknown tells of addresses whose ids are of nobody that is known: perhaps those of
// the machines before they got their keys.
func (r Rewrite) unknown(files []File) string {
	var out []string
	for _, f := range files {
		for _, l := range f.Lists {
			for _, p := range peersOf(l) {
				if _, ok := r.Members.ByID(p.ID); !ok && l.Use == nodeconfig.Dial && !slices.Contains(out, p.Addr) {
					out = append(out, p.Addr)
				}
			}
		}
	}
	if len(out) == 0 {
		return ""
	}
	return "; the lists name " + strings.Join(out, ", ") + " by ids of nobody that is known"
}

// pass is one run over the files of a node.
type pass struct {
	Rewrite
	old   map[string]string // id that a list has for a member, to the member's
	some  bool              // a list names somebody to dial
	notes []string
}

func (p *pass) note(form string, a ...any) {
	if s := fmt.Sprintf(form, a...); !slices.Contains(p.notes, s) {
		p.notes = append(p.notes, s)
	}
}

// learn finds out which ids of a list stand for a member that has another one: a
// machine that was there before its keys came.
func (p *pass) learn(l nodeconfig.List) {
	for _, q := range peersOf(l) {
		p.some = p.some || l.Use == nodeconfig.Dial
		if _, ok := p.Members.ByID(q.ID); ok || q.Addr == "" {
			continue
		}
		if m, ok := p.Members.byAddr(q.Addr); ok && m.ID != "" {
			p.old[q.ID] = m.ID
		}
	}
}

// value is what a list is to say.
func (p *pass) value(f File, l nodeconfig.List) string {
	if len(p.Members) == 0 {
		return l.Value
	}
	proto, port := "", "26656"
	if f.Form == nodeconfig.Loom {
		proto, port = "tcp://", "46656"
	}
	there := peersOf(l)
	for i, q := range there {
		_, entry, err := net.SplitHostPort(q.Addr)
		if i == 0 && err == nil {
			proto, port = q.Proto, entry
		}
	}
	var out []string
	done := map[string]bool{}
	add := func(q nodeconfig.Peer) {
		if !done[q.ID] {
			done[q.ID] = true
			out = append(out, q.String())
		}
	}
	for _, q := range there {
		id := cmp.Or(p.old[q.ID], q.ID)
		m, known := p.Members.ByID(id)
		switch {
		case id == p.Self:
		case l.Use == nodeconfig.IDs:
			add(nodeconfig.Peer{ID: id})
		case known && m.Observer && !p.ListObservers:
			p.note("%s:%d: %s is an observer, and comes out of %s", f.Path, l.Line, m.Name, l.Key)
		case known:
			_, entry, _ := net.SplitHostPort(q.Addr)
			add(nodeconfig.Peer{Proto: q.Proto, ID: id, Addr: m.addr(entry)})
		case p.DropOthers && l.Use == nodeconfig.Dial:
		default:
			if l.Use == nodeconfig.Dial {
				p.note("%s:%d: %s of %s is nobody that is known, and stays", f.Path, l.Line, q, l.Key)
			}
			add(q)
		}
	}
	// A list that is empty stays so where another one is used.
	fill := l.Use == nodeconfig.Dial && (len(there) > 0 || !p.some && f.Form == nodeconfig.TOML)
	for _, m := range p.Members {
		if fill && m.ID != p.Self && (!m.Observer || p.ListObservers) {
			add(nodeconfig.Peer{Proto: proto, ID: m.ID, Addr: m.addr(port)})
		}
	}
	now := strings.Join(out, ",")
	if slices.Equal(out, nodeconfig.Peers(l.Value)) {
		return l.Value // only blanks would differ
	}
	return now
}
