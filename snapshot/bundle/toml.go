package bundle

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/eddy-backup/eddy/internal/hint"
)

// settings are the words of a TOML file by "table.key", dashes as underscores: older
// nodes write both.
type settings map[string]string

// maxTOML bounds a configuration file, in bytes.
const maxTOML = 4 << 20

// readTOML reads a configuration; one that is absent says nothing. The error holds
// nothing of the file, in which passwords may stand.
func readTOML(file string) (settings, error) {
	fi, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var b []byte
	if err == nil {
		if fi.Size() > maxTOML || !fi.Mode().IsRegular() {
			return nil, fmt.Errorf("%s is no configuration file: %d bytes", file, fi.Size())
		}
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, hint.Add(err, "run eddy as root, or as the node's user")
	}
	all, err := parseTOML(string(b))
	if err != nil {
		return nil, hint.Add(fmt.Errorf("%s: %w", file, err), "correct that line: it may name the files that belong into the bundle")
	}
	return all, nil
}

func parseTOML(text string) (settings, error) {
	var all map[string]any
	if _, err := toml.Decode(text, &all); err != nil {
		var p toml.ParseError
		if errors.As(err, &p) {
			return nil, fmt.Errorf("line %d is no TOML", p.Position.Line)
		}
		return nil, errors.New("it is no TOML")
	}
	out := settings{}
	for key, v := range all {
		switch v := v.(type) {
		case string:
			out[plain(key)] = v
		case map[string]any:
			for sub, w := range v {
				if w, ok := w.(string); ok {
					out[plain(key)+"."+plain(sub)] = w
				}
			}
		}
	}
	return out, nil
}

func plain(key string) string { return strings.ReplaceAll(key, "-", "_") }

// comet are the files that a CometBFT home names in its config.toml.
type comet struct {
	nodeKey, validatorKey, signState, genesis string
	tls                                       []string
}

// cometFiles finds them; dir is the home with config/config.toml in it. Of a Loom
// chain, and until Tendermint 0.25, key and state are one file.
func cometFiles(dir string, loom bool) (c comet, err error) {
	s, err := readTOML(filepath.Join(dir, "config", "config.toml"))
	if err != nil {
		return c, err
	}
	at := func(base, value, preset string) string {
		if value == "" {
			value = preset
		}
		if value == "" || filepath.IsAbs(value) {
			return value
		}
		return filepath.Join(base, value)
	}
	c = comet{
		nodeKey:      at(dir, s["node_key_file"], "config/node_key.json"),
		validatorKey: at(dir, s["priv_validator_key_file"], "config/priv_validator_key.json"),
		signState:    at(dir, s["priv_validator_state_file"], "data/priv_validator_state.json"),
		genesis:      at(dir, s["genesis_file"], "config/genesis.json"),
	}
	if old := at(dir, s["priv_validator_file"], "config/priv_validator.json"); s["priv_validator_file"] != "" || loom && s["priv_validator_key_file"] == "" && isFile(old) {
		c.validatorKey, c.signState = old, ""
	}
	config := filepath.Join(dir, "config") // to which the RPC's certificate is relative
	for _, key := range []string{"rpc.tls_cert_file", "rpc.tls_key_file"} {
		if f := at(config, s[key], ""); f != "" {
			c.tls = append(c.tls, f)
		}
	}
	return c, nil
}

func isFile(file string) bool {
	fi, err := os.Stat(file)
	return err == nil && fi.Mode().IsRegular()
}
