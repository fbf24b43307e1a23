package roster

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/nodeconfig"
)

// Look is what the files of one node are compared with.
type Look struct {
	Self    string // the node's id, "" where it has none
	Members Members
	// Here are the addresses of this machine.
	Here []netip.Addr
}

// Findings compares the files with who the nodes are, and where.
func (l Look) Findings(files []File) []check.Finding {
	return append(l.peers(files), l.addresses(files))
}

// peers looks at every entry of every list.
func (l Look) peers(files []File) (out []check.Finding) {
	var wrong, odd []string
	known, others := 0, 0
	for _, f := range files {
		for _, list := range f.Lists {
			at := fmt.Sprintf("%s:%d %s", filepath.Base(f.Path), list.Line, list.Key)
			if list.Odd != "" {
				odd = append(odd, at+": "+list.Odd)
			}
			if list.Use != nodeconfig.Dial {
				continue
			}
			for _, p := range peersOf(list) {
				m, ok := l.Members.ByID(p.ID)
				there, taken := l.Members.byAddr(p.Addr)
				switch {
				case p.ID == l.Self:
					odd = append(odd, at+" names the node itself")
				case ok && m.Observer:
					odd = append(odd, at+" names "+m.Name+", an observer, which nobody should list")
				case ok && m.Host != "" && !m.at(p.Addr):
					wrong = append(wrong, fmt.Sprintf("%s has %s at %s, the inventory at %s", at, m.Name, p.Addr, m.Host))
				case ok:
					known++
				case taken && there.ID != "":
					wrong = append(wrong, fmt.Sprintf("%s calls %s by the id %s, its node key is of %s (%s)", at, p.Addr, p.ID, there.ID, there.Name))
				default:
					others++
				}
			}
		}
	}
	const todo = "`eddy keys peers --inventory FILE` shows what they should say, --write writes it"
	switch {
	case len(wrong) > 0:
		out = append(out, check.Finding{Name: "peers", Level: check.Fail, Said: few(wrong), Hint: todo})
	default:
		out = append(out, check.Good("peers", fmt.Sprintf("%d entries name nodes by their ids, %d are of nobody that is known", known, others)))
	}
	if len(odd) > 0 {
		out = append(out, check.Finding{Name: "lists", Level: check.Warn, Said: few(odd), Hint: todo + "; what it leaves alone is for you to look at"})
	}
	return out
}

// few is one line of what may be many.
func few(all []string) string {
	const most = 6
	if n := len(all); n > most {
		return strings.Join(all[:most], "; ") + fmt.Sprintf("; and %d more", n-most)
	}
	return strings.Join(all, "; ")
}

// addressText is an IPv4 address, or an IPv6 one in brackets.
var addressText = regexp.MustCompile(`\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-fA-F:.]+\]`)

// alone tells whether an address that stands at line[from:to] is a word of its own: no
// part of a longer one, no network, no entry of a list of peers.
func alone(line string, from, to int) bool {
	if wordly(line[:from], true) || strings.HasSuffix(line[:from], "@") {
		return false
	}
	behind := line[to:]
	return !wordly(behind, false) && !(len(behind) > 1 && (behind[0] == '.' || behind[0] == '/') && behind[1] >= '0' && behind[1] <= '9')
}

// wordly tells whether the byte at the end, or the beginning, of s is of a word.
func wordly(s string, end bool) bool {
	if s == "" {
		return false
	}
	c := s[0]
	if end {
		c = s[len(s)-1]
	}
	return c == '-' || c == '_' || end && c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// addresses lists what stands in the files and is neither this machine's nor of a node
// that is known: what came along from another machine.
func (l Look) addresses(files []File) check.Finding {
	var odd []string
	for _, f := range files {
		n := 0
		for line := range strings.Lines(f.Text) {
			n++
			if c := strings.TrimSpace(line); c == "" || c[0] == '#' || c[0] == ';' {
				continue
			}
			for _, m := range addressText.FindAllStringIndex(line, -1) {
				text := strings.Trim(line[m[0]:m[1]], "[]")
				if !alone(line, m[0], m[1]) {
					continue
				}
				ip, err := netip.ParseAddr(text)
				if err != nil || l.mine(ip) {
					continue
				}
				odd = append(odd, fmt.Sprintf("%s (%s:%d)", ip, filepath.Base(f.Path), n))
			}
		}
	}
	if len(odd) == 0 {
		return check.Good("addresses", "every address in the files is this machine's, or of a node that is known")
	}
	slices.Sort(odd)
	return check.Finding{
		Name: "addresses", Level: check.Warn, Said: "neither this machine's nor of a node that is known: " + few(slices.Compact(odd)),
		Hint: "where one is of the machine of before: `eddy keys peers --replace OLD=NEW --write`",
	}
}

func (l Look) mine(ip netip.Addr) bool {
	ip = ip.Unmap()
	if ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() || ip.IsLinkLocalUnicast() || slices.Contains(l.Here, ip) {
		return true
	}
	return slices.ContainsFunc(l.Members, func(m Member) bool { return m.Host == ip.String() })
}
