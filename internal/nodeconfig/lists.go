package nodeconfig

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Form is how a file writes its lists of peers.
type Form string

// The forms.
const (
	TOML    Form = "config.toml" // and app.toml, client.toml, which have none
	Loom    Form = "loom.yml"
	Service Form = "service" // a unit, a drop-in, an environment or compose file, a script
)

// Use is what a node does with a list of peers.
type Use string

// The uses.
const (
	Dial Use = "dial" // it keeps connections to them: persistent_peers, loom's peers
	Seed Use = "seed" // it asks them for addresses
	IDs  Use = "ids"  // ids without addresses: private_peer_ids, unconditional_peer_ids
)

// List is one list of peers of a file.
type List struct {
	Key   string // as the file writes it: p2p.persistent_peers, --peers, PersistentPeers
	Use   Use
	Line  int // counted from 1; 0: config.toml does not have the key
	Value string
	// Odd says why the value cannot be read, or replaced, where it stands; "" where it can.
	Odd string

	from, to int // of the value, bytes
}

// Peer is one of a list: an id, and unless the list has ids only, where it is dialled.
type Peer struct {
	Proto string // "tcp://" or ""
	ID    string // lower case
	Addr  string // host:port
}

func (p Peer) String() string {
	if p.Addr == "" {
		return p.ID
	}
	return p.Proto + p.ID + "@" + p.Addr
}

var peerID40 = regexp.MustCompile(`^[0-9a-f]{40}$`)

// ValidID tells whether a text is a node's id: 40 hex digits.
func ValidID(id string) bool { return peerID40.MatchString(strings.ToLower(id)) }

// ParsePeer reads one entry of a list.
func ParsePeer(s string) (Peer, bool) {
	rest, tcp := strings.CutPrefix(s, "tcp://")
	id, addr, _ := strings.Cut(rest, "@")
	p := Peer{ID: strings.ToLower(id), Addr: addr}
	if tcp {
		p.Proto = "tcp://"
	}
	return p, ValidID(id) && (addr == "" && !tcp || peerText.MatchString(s))
}

// listKeys are the lists by what they are called in any form, without regard to case,
// dots and dashes.
var listKeys = map[string]Use{
	"p2p_persistent_peers": Dial, "persistent_peers": Dial, "peers": Dial, "persistentpeers": Dial,
	"p2p_seeds": Seed, "seeds": Seed,
	"p2p_private_peer_ids": IDs, "p2p_unconditional_peer_ids": IDs,
}

func useOf(key string) Use {
	return listKeys[strings.ToLower(strings.NewReplacer(".", "_", "-", "_").Replace(key))]
}

var (
	// loomList is a word at the top level of loom.yml, with its value on the same line.
	loomList = regexp.MustCompile(`(?im)^(peers|persistentpeers|persistent_peers)[ \t]*:[ \t]*(?:"([^"\n]*)"|'([^'\n]*)'|([^"'\s#][^\s#]*)?)[ \t]*(#.*)?\r?$`)
	loomKey  = regexp.MustCompile(`(?im)^(peers|persistentpeers|persistent_peers)[ \t]*:`)
	// serviceList is a flag of a command, or a variable of its environment.
	serviceList = regexp.MustCompile(`(?m)(?:^|[\s"'=])(--?(?:p2p[.])?(?:persistent[_-]peers|peers|seeds)|--?p2p[.](?:private|unconditional)[_-]peer[_-]ids)(?:(?:=|[ \t]+(?:\\\r?\n[ \t]*)?)` + serviceValue + `|["',]|[ \t\r]*$)` +
		`|(?:^|[\s"'])([A-Z][A-Z0-9_]*_(?:P2P_PERSISTENT_PEERS|P2P_SEEDS|P2P_PRIVATE_PEER_IDS|P2P_UNCONDITIONAL_PEER_IDS))(?:=|:[ \t]*)` + serviceValue)
)

const serviceValue = `(?:"([^"\n]*)"|'([^'\n]*)'|([^\s"'\\]*))`

// Lists finds the lists of peers of a file. Of a config.toml the first is always
// persistent_peers, whether it is there or not.
func Lists(form Form, text string) ([]List, error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	switch form {
	case TOML:
		return tomlLists(text)
	case Loom:
		var all []List
		for _, m := range loomKey.FindAllStringSubmatchIndex(text, -1) {
			l := List{Key: text[m[2]:m[3]], Use: Dial, Line: lineOf(text, m[0]), Odd: "its value is not text on the same line"}
			rest, _, _ := strings.Cut(text[m[0]:], "\n")
			if v := loomList.FindStringSubmatchIndex(rest); v != nil {
				l.take(text, m[0], v[4:10])
				if behind := text[m[0]+len(rest):]; l.Value == "" && v[4] < 0 && v[6] < 0 && len(behind) > 1 && strings.ContainsRune(" \t-", rune(behind[1])) {
					l.Odd = "its value is not text on the same line"
				}
			}
			all = append(all, l)
		}
		return all, nil
	}
	var all []List
	for _, m := range serviceList.FindAllStringSubmatchIndex(text, -1) {
		if m[2] < 0 { // the variable
			m = append(m[:2:2], m[10:]...)
		}
		begin := strings.LastIndexByte(text[:m[2]], '\n') + 1
		if c := strings.TrimLeft(text[begin:m[2]], " \t"); c != "" && (c[0] == '#' || c[0] == ';') {
			continue
		}
		key := text[m[2]:m[3]]
		l := List{Key: key, Line: lineOf(text, m[2]), Odd: "its value stands elsewhere"}
		word := strings.TrimLeft(key, "-")
		if i := strings.Index(word, "_P2P_"); i >= 0 && !strings.HasPrefix(key, "-") {
			word = word[i+1:]
		}
		l.Use = useOf(word)
		l.take(text, 0, m[4:10])
		all = append(all, l)
	}
	return all, nil
}

// take reads the value at the first pair of offsets that is one.
func (l *List) take(text string, base int, pairs []int) {
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i] >= 0 {
			l.from, l.to, l.Odd = base+pairs[i], base+pairs[i+1], ""
			l.Value = text[l.from:l.to]
			l.judge(text[l.to:])
		}
	}
}

// judge says what of a value cannot be read.
func (l *List) judge(behind string) {
	if strings.ContainsRune(l.Value, '$') {
		l.Odd = "it is written with a variable"
		return
	}
	for _, p := range Peers(l.Value) {
		q, ok := ParsePeer(p)
		if !ok || (q.Addr == "") != (l.Use == IDs) {
			l.Odd = "it holds what is no peer"
		}
	}
	if strings.HasSuffix(l.Value, ",") && behind != "" && strings.ContainsRune(" \t\\", rune(behind[0])) {
		l.Odd = "it goes on behind a blank"
	}
}

func lineOf(text string, at int) int { return strings.Count(text[:at], "\n") + 1 }

func tomlLists(text string) ([]List, error) {
	all, err := decode(text)
	if err != nil {
		return nil, err
	}
	p2p, _ := all["p2p"].(map[string]any)
	if p2p == nil { // app.toml
		return nil, nil
	}
	s := settings{p2p: p2p}
	for key := range p2p {
		s.dashes = s.dashes || strings.Contains(key, "-")
	}
	found, err := statements(text)
	if err != nil {
		return nil, err
	}
	var out []List
	for _, key := range []string{"persistent_peers", "seeds", "private_peer_ids", "unconditional_peer_ids"} {
		l := List{Key: "p2p." + s.name(key), Value: s.text(key)}
		l.Use = useOf(l.Key)
		at, err := find(found, l.Key)
		if err != nil {
			return nil, err
		}
		if at >= 0 {
			l.Line, l.from, l.to = found[at].line+1, found[at].from, found[at].to
		} else if key != "persistent_peers" {
			continue
		}
		l.judge("")
		out = append(out, l)
	}
	return out, nil
}

// plainValue is what a list may become: nothing that a shell, systemd, YAML or TOML
// would read as anything else.
var plainValue = regexp.MustCompile(`^[0-9A-Za-z@:.,/\[\]_-]*$`)

// Relist writes the values that rewrite gives to the lists of a file, and leaves every
// other byte as it is. It is not asked about lists that are Odd. The error is
// ErrNotEdited.
func Relist(form Form, text string, rewrite func(List) string) (*Edited, error) {
	e, err := relist(form, text, rewrite)
	if err != nil {
		return nil, hint.Add(fmt.Errorf("%w: %w", ErrNotEdited, err), "change it by hand")
	}
	return e, nil
}

func relist(form Form, text string, rewrite func(List) string) (*Edited, error) {
	all, err := Lists(form, text)
	if err != nil {
		return nil, err
	}
	var changes []Change
	want := map[int]string{}
	for i, l := range all {
		if l.Odd != "" {
			continue
		}
		v := rewrite(l)
		if v == l.Value {
			continue
		}
		if !plainValue.MatchString(v) {
			return nil, fmt.Errorf("%s cannot be written as %.200q", l.Key, v)
		}
		if v == "" && form != TOML && text[l.from-1] != '"' && text[l.from-1] != '\'' {
			return nil, fmt.Errorf("%s in line %d would be left without a value", l.Key, l.Line)
		}
		want[i] = v
		changes = append(changes, Change{l.Key, v})
	}
	if form == TOML {
		return edit(text, changes)
	}
	e := newEdited(text)
	starts := []int{0}
	for _, l := range e.lines {
		starts = append(starts, starts[len(starts)-1]+len(l))
	}
	for i := range slices.Backward(all) { // from behind, for several may stand in a line
		v, ok := want[i]
		if !ok {
			continue
		}
		n, _ := slices.BinarySearch(starts, all[i].from+1)
		n--
		now := cmp.Or(e.replaced[n], e.lines[n])
		e.replaced[n] = now[:all[i].from-starts[n]] + v + now[all[i].to-starts[n]:]
	}
	after, err := Lists(form, e.String())
	if err != nil || len(after) != len(all) {
		return nil, fmt.Errorf("it would have other lists than before (%w)", err)
	}
	for i, l := range after {
		v, changed := want[i]
		if !changed {
			v = all[i].Value
		}
		if l.Key != all[i].Key || l.Line != all[i].Line || l.Value != v {
			return nil, fmt.Errorf("%s in line %d cannot be set there", l.Key, l.Line)
		}
	}
	return e, nil
}

func newEdited(text string) *Edited {
	e := &Edited{lines: strings.SplitAfter(text, "\n"), replaced: map[int]string{}, inserted: map[int][]string{}}
	if n := len(e.lines); e.lines[n-1] == "" {
		e.lines = e.lines[:n-1]
	}
	return e
}

// ReplaceHost writes another host for one, wherever it stands as a whole word outside
// of comments: an address, a name, or either with a port.
func (e *Edited) ReplaceHost(old, new string) {
	swap := func(line string) string {
		if c := strings.TrimLeft(line, " \t"); c == "" || c[0] == '#' || c[0] == ';' {
			return line
		}
		var b strings.Builder
		for rest := line; ; {
			i := strings.Index(rest, old)
			if i < 0 {
				b.WriteString(rest)
				return b.String()
			}
			end := i + len(old)
			whole := !wordAt(line[:len(line)-len(rest)+i], true) && !wordAt(rest[end:], false)
			b.WriteString(rest[:i])
			if whole {
				b.WriteString(new)
			} else {
				b.WriteString(old)
			}
			rest = rest[end:]
		}
	}
	for i, l := range e.lines {
		if now := swap(cmp.Or(e.replaced[i], l)); now != l {
			e.replaced[i] = now
		}
	}
	for i := range e.inserted {
		for j, l := range e.inserted[i] {
			e.inserted[i][j] = swap(l)
		}
	}
}

// wordAt tells whether the byte next to a word belongs to it.
func wordAt(s string, last bool) bool {
	if s == "" {
		return false
	}
	c := s[0]
	if last {
		c = s[len(s)-1]
	}
	return c == '.' || c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
