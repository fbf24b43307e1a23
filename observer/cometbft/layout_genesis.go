package cometbft

import (
	"bufio"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Genesis is what identifies a chain's history.
type Genesis struct {
	ChainID       string
	Time          time.Time
	InitialHeight int64 // 1 where the file has none or 0, as CometBFT reads it
}

// Incarnation is the hex sha256 over chain id, genesis time in UTC as
// RFC3339Nano and initial height in decimal, each followed by a line feed. The
// whole file is not hashed: chains publish it in several formattings.
func (g Genesis) Incarnation() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d\n", g.ChainID, g.Time.UTC().Format(time.RFC3339Nano), g.InitialHeight))
	return hex.EncodeToString(sum[:])
}

// Incarnation identifies the history that the node of home follows.
func Incarnation(home string) (string, error) {
	g, err := ReadGenesis(home)
	if err != nil {
		return "", err
	}
	return g.Incarnation(), nil
}

// ChainID is the chain id in the genesis file of home.
func ChainID(home string) (string, error) {
	g, err := ReadGenesis(home)
	return g.ChainID, err
}

// ReadGenesis reads the genesis file of a home, which may be gigabytes long,
// without holding it.
func ReadGenesis(home string) (Genesis, error) {
	home, err := resolveHome(home)
	if err != nil {
		return Genesis{}, err
	}
	bases, err := readBases(home)
	if err != nil {
		return Genesis{}, err
	}
	return readGenesisFile(bases[0].genesis)
}

func readGenesisFile(file string) (Genesis, error) {
	f, err := os.Open(file)
	if err != nil {
		return Genesis{}, hint.Add(fmt.Errorf("read the genesis file: %w", err), "eddy needs the chain's genesis.json where genesis_file in config.toml says")
	}
	defer f.Close()
	g, err := readGenesis(f)
	if err != nil {
		return Genesis{}, hint.Add(fmt.Errorf("read the genesis file %s: %w", file, err), "fetch the chain's genesis.json again")
	}
	return g, nil
}

// readGenesis reads the three fields and stops at the last of them: the state of
// the application, hundreds of megabytes on some chains, usually stands behind.
// Where it stands before, it is skipped value by value.
func readGenesis(r io.Reader) (g Genesis, err error) {
	dec := json.NewDecoder(bufio.NewReaderSize(r, 1<<16))
	dec.UseNumber()
	if err := expectDelim(dec, '{'); err != nil {
		return g, err
	}
	var chain, at, height bool
	for dec.More() && !(chain && at && height) {
		t, err := dec.Token()
		if err != nil {
			return g, noEOF(err)
		}
		key, _ := t.(string)
		var text string
		switch key {
		case "chain_id", "genesis_time", "initial_height":
			text, err = scalar(dec)
		default:
			err = skipValue(dec)
		}
		if err == nil {
			switch key {
			case "chain_id":
				chain, g.ChainID = true, text
			case "genesis_time":
				at = true
				g.Time, err = time.Parse(time.RFC3339Nano, text)
			case "initial_height":
				height = true
				g.InitialHeight, err = strconv.ParseInt(cmp.Or(text, "0"), 10, 64)
			}
		}
		if err != nil {
			return g, fmt.Errorf("%q: %w", key, noEOF(err))
		}
	}
	if !(chain && at && height) {
		if err := expectDelim(dec, '}'); err != nil {
			return g, err
		}
	}
	switch {
	case g.ChainID == "":
		return g, errors.New("it has no chain_id")
	case len(g.ChainID) > 256 || strings.ContainsAny(g.ChainID, "\n\x00"):
		return g, errors.New("its chain_id is no chain id")
	case g.InitialHeight < 0:
		return g, errors.New("its initial_height is negative")
	case g.InitialHeight == 0:
		g.InitialHeight = 1
	}
	return g, nil
}

func expectDelim(dec *json.Decoder, want json.Delim) error {
	t, err := dec.Token()
	if err != nil {
		return noEOF(err)
	}
	if t != want {
		return fmt.Errorf("found %v where %v should be", t, want)
	}
	return nil
}

// scalar reads a value that is a string or a number, as text; null is "".
func scalar(dec *json.Decoder) (string, error) {
	t, err := dec.Token()
	if err != nil {
		return "", err
	}
	switch v := t.(type) {
	case string:
		return v, nil
	case json.Number:
		return v.String(), nil
	case nil:
		return "", nil
	default:
		return "", errors.New("neither a string nor a number")
	}
}

// skipValue reads over one value of any depth.
func skipValue(dec *json.Decoder) error {
	for depth := 0; ; {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		if d, ok := t.(json.Delim); ok {
			if d == '{' || d == '[' {
				depth++
			} else {
				depth--
			}
		}
		if depth == 0 {
			return nil
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
