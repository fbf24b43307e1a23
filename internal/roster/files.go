package roster

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/nodeconfig"
)

// File is a file of a node in which addresses of others stand.
type File struct {
	Path string
	Form nodeconfig.Form
	Text string
	// Lists are those of peers.
	Lists []nodeconfig.List
}

// Read reads the files of the node with that home: what its command says wins over
// loom.yml, and that over config.toml, so they come in this order. service are the
// files that define what runs it.
func Read(home string, service []string) ([]File, error) {
	var names []File
	for _, f := range service {
		names = append(names, File{Path: f, Form: nodeconfig.Service})
	}
	for _, n := range []string{"loom.yml", "loom.yaml", "config/loom.yml"} {
		names = append(names, File{Path: filepath.Join(home, n), Form: nodeconfig.Loom})
	}
	dir := filepath.Join(home, "config")
	if fi, err := os.Stat(filepath.Join(home, "chaindata", "config")); err == nil && fi.IsDir() {
		dir = filepath.Join(home, "chaindata", "config")
	}
	for _, n := range []string{"config.toml", "app.toml", "client.toml"} {
		names = append(names, File{Path: filepath.Join(dir, n), Form: nodeconfig.TOML})
	}
	var out []File
	for _, f := range names {
		if slices.ContainsFunc(out, func(o File) bool { return o.Path == f.Path }) {
			continue
		}
		text, err := nodeconfig.Read(f.Path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			f.Text = text
			f.Lists, err = nodeconfig.Lists(f.Form, text)
		}
		if err != nil {
			return nil, hint.Add(fmt.Errorf("%s: %w", f.Path, err), "run eddy as root, or as the node's user; what cannot be read cannot be compared")
		}
		out = append(out, f)
	}
	if len(out) == 0 {
		return nil, hint.Add(fmt.Errorf("no configuration of a node was found in %s", home), "name its home with --home DIR")
	}
	return out, nil
}

// Located completes members by what the lists say of where an id is dialled. What
// came first wins, and notes tell who was named at two places.
func (all Members) Located(files []File) (out Members, notes []string) {
	out = slices.Clone(all)
	for i, m := range out {
		if m.Host != "" || m.ID == "" {
			continue
		}
		for _, f := range files {
			for _, l := range f.Lists {
				for _, p := range peersOf(l) {
					if l.Use != nodeconfig.Dial || p.ID != m.ID {
						continue
					}
					host, port, err := splitAddr(p.Addr)
					switch {
					case err != nil:
					case out[i].Host == "":
						out[i].Host, out[i].Port = host, port
					case out[i].Host != host || out[i].Port != port:
						notes = append(notes, fmt.Sprintf("%s is at %s by %s of %s, and elsewhere by what wins over it", m.Name, p.Addr, l.Key, f.Path))
					}
				}
			}
		}
	}
	return out, notes
}

func peersOf(l nodeconfig.List) (out []nodeconfig.Peer) {
	for _, s := range nodeconfig.Peers(l.Value) {
		if p, ok := nodeconfig.ParsePeer(s); ok {
			out = append(out, p)
		}
	}
	return out
}
