package check

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
)

// blob is a program of a wasm contract.
type blob struct {
	name string // below the dump, with slashes
	path string
}

// programHash is the sha256 by which a program is named, in lower-case hex; "": the
// file is no program. CosmWasm's library keeps them in state/wasm of the directory
// that a chain gives it, since version 2 with an extension (vm/src/cache.rs,
// save_wasm_to_disk).
func programHash(name string) string {
	dir, file := path.Split(name)
	hash := strings.TrimSuffix(file, ".wasm")
	if !strings.HasSuffix("/"+dir, "/state/wasm/") || len(hash) != 2*sha256.Size || strings.Trim(hash, "0123456789abcdefABCDEF") != "" {
		return ""
	}
	return strings.ToLower(hash)
}

// programs sees that each program is what its name says, and that those are there
// that the chain has. A program that is altered or gone is found by no app hash: a
// node stops, or goes astray, when a block calls it.
func (c *checker) programs(ctx context.Context, blobs []blob) error {
	have := map[string]bool{}
	buf := make([]byte, 256<<10)
	for _, b := range blobs {
		if err := ctx.Err(); err != nil {
			return err
		}
		want := programHash(b.name)
		have[want] = true
		got, err := hashFile(b.path, buf)
		if err != nil {
			return err
		}
		if got != want {
			c.fail(StageApp, WasmHash, b.name, "it has the sha256 %s, its name says another: it is not the program that the chain calls", got)
			continue
		}
		c.r.Proven.Programs++
	}
	missing := 0
	for _, hash := range c.codes {
		if !have[hex.EncodeToString(hash)] {
			missing++
		}
	}
	if missing > 0 {
		c.note("%d of the %d programs that the chain's wasm store names are not in the dump's wasm directory: a node that is to call one of them stops", missing, len(c.codes))
	}
	return nil
}

func hashFile(name string, buf []byte) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	// Not io.Copy alone: the hash would have it read in pieces of 32 KiB.
	if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{f}, buf); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// The keys of wasmd's own store that hold what it knows of a program: the number
// that it was given, 8 bytes (x/wasm/types/keys.go).
var codesFrom, codesTo = []byte{1}, []byte{2}

// storedCode takes in the hash of a program that the chain knows. Other stores of
// this name hold other things behind such keys.
func (c *checker) storedCode(n *treeNode) {
	var hash []byte
	err := fields(n.value, func(num protowire.Number, _ uint64, text []byte) error {
		if num == 1 {
			hash = text
		}
		return nil
	})
	if err == nil && len(n.key) == 9 && len(hash) == sha256.Size {
		c.codes = append(c.codes, hash)
	}
}
