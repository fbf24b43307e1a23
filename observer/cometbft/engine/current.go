package engine

import (
	"bytes"
	"errors"
	"io"
	"iter"
	"strconv"
	"strings"
)

const manifestMarker = "marker.manifest." // pebble: the rest is a number, a dot, and a name

// NamesManifest tells whether a file says which MANIFEST is in force, or is one.
func NamesManifest(name string) bool {
	return name == "CURRENT" || strings.HasPrefix(name, "MANIFEST-") || strings.HasPrefix(name, manifestMarker)
}

// CurrentManifest is the name of the MANIFEST in force, "" of a database that has
// none yet. names are at least those for which NamesManifest holds; tables tells
// whether there are tables. open opens a file of the database by its name.
func CurrentManifest(names iter.Seq[string], tables bool, open func(name string) (io.ReadCloser, error)) (string, error) {
	newest, name, current := uint64(0), "", false
	for have := range names {
		current = current || have == "CURRENT"
		marker, ok := strings.CutPrefix(have, manifestMarker)
		if !ok {
			continue
		}
		number, value, ok := strings.Cut(marker, ".")
		n, err := strconv.ParseUint(number, 10, 64)
		if ok && err == nil && (name == "" || n > newest) {
			newest, name = n, value
		}
	}
	if name != "" {
		return name, nil
	}
	if !current {
		if tables {
			return "", errors.New("there is no CURRENT, and tables")
		}
		return "", nil
	}
	f, err := open("CURRENT")
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 100))
	if err != nil {
		return "", err
	}
	line, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok || !bytes.HasPrefix(line, []byte("MANIFEST-")) {
		return "", errors.New("its CURRENT names no MANIFEST")
	}
	return string(line), nil
}
