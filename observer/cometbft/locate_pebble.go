//go:build pebbledb

package cometbft

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble"
)

// readerOf returns how a database of an engine is opened, nil where this build
// cannot.
func readerOf(e Engine) reader {
	switch e {
	case GoLevelDB:
		return readGoLevelDB
	case Pebble:
		return readPebble
	default:
		return nil
	}
}

func readPebble(dir string, key []byte) (value []byte, err error) {
	db, err := pebble.Open(dir, &pebble.Options{ReadOnly: true, ErrorIfNotExists: true, Logger: silent{}})
	if err != nil {
		if strings.Contains(err.Error(), "format major version") {
			err = fmt.Errorf("%w: written by a newer pebble: %w", ErrNoPosition, err)
		}
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	v, closer, err := db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, fmt.Errorf("%w: it has no %s: the node has made no block yet", ErrNoPosition, key)
	}
	if err != nil {
		return nil, err
	}
	value = bytes.Clone(v)
	return value, closer.Close()
}

// silent is a logger for an engine that is opened for one key: what matters
// comes back as an error. Fatalf must not return.
type silent struct{}

func (silent) Infof(string, ...any) {}

func (silent) Errorf(string, ...any) {}

func (silent) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
