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
	"unicode"

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

// Incarnation identifies the history that the node of home follows: the chain's,
// and then "@HEIGHT" for each time that the chain was taken back, in order.
func Incarnation(home string) (string, error) {
	g, err := ReadGenesis(home)
	if err != nil {
		return "", err
	}
	return incarnationOf(home, g)
}

func incarnationOf(home string, g Genesis) (string, error) {
	list, err := readRollbacks(home)
	return after(g.Incarnation(), list), err
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
// Where it stands before, it is passed over byte by byte, which is thirty times
// as fast as encoding/json's tokens and checks only that brackets and quotes end.
func readGenesis(r io.Reader) (g Genesis, err error) {
	s := genesisScanner{bufio.NewReaderSize(r, 1<<18)}
	if err := s.expect('{'); err != nil {
		return g, err
	}
	var chain, at, height bool
	for first := true; !(chain && at && height); first = false {
		c, err := s.next()
		if err == nil && c == '}' {
			break
		}
		if err == nil && !first {
			if c != ',' {
				return g, fmt.Errorf("found %q between two fields", c)
			}
			c, err = s.next()
		}
		if err == nil && c != '"' {
			return g, fmt.Errorf("found %q where a field should begin", c)
		}
		var key, text string
		if err == nil {
			key, err = s.text('"')
		}
		if err == nil {
			err = s.expect(':')
		}
		if err == nil {
			c, err = s.next()
		}
		if err != nil {
			return g, noEOF(err)
		}
		switch key {
		case "chain_id", "genesis_time", "initial_height":
			text, err = s.text(c)
		default:
			err = s.skip(c)
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
	switch {
	case g.ChainID == "":
		return g, errors.New("it has no chain_id")
	case !at:
		return g, errors.New("it has no genesis_time")
	case len(g.ChainID) > 256 || strings.ContainsFunc(g.ChainID, unicode.IsControl):
		return g, errors.New("its chain_id is no chain id")
	case g.InitialHeight < 0:
		return g, errors.New("its initial_height is negative")
	case g.InitialHeight == 0:
		g.InitialHeight = 1
	}
	return g, nil
}

// genesisScanner reads JSON just well enough to find the fields of one object.
type genesisScanner struct{ r *bufio.Reader }

// maxGenesisText bounds a field's name and the values that are read, bytes.
const maxGenesisText = 4 << 10

// next returns the next byte that is no space.
func (s genesisScanner) next() (byte, error) {
	for {
		c, err := s.r.ReadByte()
		if err != nil {
			return 0, noEOF(err)
		}
		switch c {
		case ' ', '\t', '\r', '\n':
		default:
			return c, nil
		}
	}
}

func (s genesisScanner) expect(want byte) error {
	c, err := s.next()
	if err == nil && c != want {
		err = fmt.Errorf("found %q where %q should be", c, want)
	}
	return err
}

// text reads a string, or a number or null as text, whose first byte is c; null
// is "".
func (s genesisScanner) text(c byte) (string, error) {
	if c == '"' {
		raw := []byte{c}
		for escaped := false; ; {
			c, err := s.r.ReadByte()
			if err != nil {
				return "", noEOF(err)
			}
			if raw = append(raw, c); len(raw) > maxGenesisText {
				return "", errors.New("too long")
			}
			if c == '"' && !escaped {
				break
			}
			escaped = c == '\\' && !escaped
		}
		var out string
		err := json.Unmarshal(raw, &out)
		return out, err
	}
	raw, err := s.literal(c)
	if err != nil {
		return "", err
	}
	var n json.Number
	if string(raw) == "null" {
		return "", nil
	}
	if err := json.Unmarshal(raw, &n); err != nil {
		return "", errors.New("neither a string nor a number")
	}
	return n.String(), nil
}

// literal reads a number, true, false or null.
func (s genesisScanner) literal(c byte) ([]byte, error) {
	raw := []byte{c}
	for {
		c, err := s.r.ReadByte()
		if err != nil {
			return nil, noEOF(err)
		}
		if strings.IndexByte(",]} \t\r\n", c) >= 0 {
			return raw, s.r.UnreadByte()
		}
		if raw = append(raw, c); len(raw) > maxGenesisText {
			return nil, errors.New("too long")
		}
	}
}

// skip passes over a value whose first byte is c.
func (s genesisScanner) skip(c byte) error {
	if c != '"' && c != '{' && c != '[' {
		_, err := s.literal(c)
		return err
	}
	depth, quoted, escaped := 0, c == '"', false
	if !quoted {
		depth = 1
	}
	for {
		if _, err := s.r.Peek(1); err != nil {
			return noEOF(err)
		}
		b, err := s.r.Peek(s.r.Buffered())
		if err != nil {
			return err
		}
		for i, c := range b {
			switch {
			case escaped:
				escaped = false
			case quoted:
				escaped, quoted = c == '\\', c != '"'
			case c == '"':
				quoted = true
			case c == '{' || c == '[':
				depth++
			case c == '}' || c == ']':
				depth--
			}
			if depth == 0 && !quoted {
				_, err := s.r.Discard(i + 1)
				return err
			}
		}
		if _, err := s.r.Discard(len(b)); err != nil {
			return err
		}
	}
}

func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
