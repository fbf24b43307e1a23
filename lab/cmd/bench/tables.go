package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"github.com/eddy-backup/eddy/lab/chain"
)

// tablesResult is what a backup of a database with very many tables took.
type tablesResult struct {
	tables      int
	list        int64 // bytes of the list
	peak, child int64 // bytes, of eddy and of the process that opens databases
	verify      int64 // bytes, of `eddy verify --read-data`
	wall, held  float64
	checked     float64 // seconds
}

func (r tablesResult) print(w io.Writer) {
	fmt.Fprintf(w, "\ngoleveldb with %d tables in its list of %d MB: backup %.1f s, held %.1f s beyond stop and start; peak memory %d MiB (bar 256), verify --read-data %d MiB (bar 256); the check took %.1f s and %d MiB\n",
		r.tables, r.list/1e6, r.wall, r.held, r.peak>>20, r.verify>>20, r.checked, r.child>>20)
}

// manyTables makes a node whose state store has n tables, and backs it up.
func manyTables(ctx context.Context, o options, n int) (r tablesResult, err error) {
	r.tables = n
	dir := filepath.Join(o.dir, "tables")
	c, err := chain.New(ctx, chain.Options{Eddy: o.eddy, Dir: dir, Engine: "goleveldb"})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.Stop(), os.RemoveAll(dir)) }()
	if err := growTables(filepath.Join(c.Home, "data", "state.db"), n); err != nil {
		return r, err
	}
	if err := c.Start(ctx); err != nil {
		return r, err
	}
	lists, err := filepath.Glob(filepath.Join(c.Home, "data", "state.db", "MANIFEST-*"))
	if err != nil {
		return r, err
	}
	for _, l := range lists {
		if st, err := os.Stat(l); err == nil {
			r.list = max(r.list, st.Size())
		}
	}
	config := filepath.Join(dir, "eddy.yaml")
	text := fmt.Sprintf(`cluster: bench
replica:
  home: %q
  rpc: %q
  witnesses: [%q]
  control: {supervise: %q, timeout: 120s, deadline: 10m}
backup: {when_behind: wait 10m}
store: {url: "file://%s/bucket"}
workdir: %q
`, c.Home, c.RPC, c.ValidatorRPC, c.Socket, dir, filepath.Join(dir, "work"))
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return r, err
	}
	begin := time.Now()
	peak, out, err := watched(ctx, os.Environ(), o.eddy, "backup", "--config", config, "--json")
	if err != nil {
		return r, err
	}
	r.peak, r.wall = peak, time.Since(begin).Seconds()
	s, err := lastSummary(out)
	if err != nil {
		return r, err
	}
	r.held = s.Held - s.Stop - s.Start
	if r.checked, r.child, err = checkOf(ctx, o.eddy, os.Environ(), config, s.ID); err != nil {
		return r, err
	}
	r.verify, _, err = watched(ctx, os.Environ(), o.eddy, "verify", s.ID, "--read-data", "--config", config)
	return r, err
}

// checkOf is what the manifest says of the look into a dump: seconds, and the memory
// of the process that looked.
func checkOf(ctx context.Context, eddy string, env []string, config, id string) (seconds float64, peak int64, err error) {
	out, err := output(ctx, env, eddy, "show", id, "--config", config, "--json")
	if err != nil {
		return 0, 0, err
	}
	var shown struct {
		Manifest struct {
			Opened string `json:"opened"`
			Check  struct {
				Seconds float64 `json:"seconds"`
				Peak    int64   `json:"peak_bytes"`
			} `json:"check"`
		} `json:"manifest"`
	}
	if err := json.Unmarshal([]byte(out), &shown); err != nil {
		return 0, 0, err
	}
	m := shown.Manifest
	if m.Opened != "all" {
		return 0, 0, fmt.Errorf("of %s was opened: %q", id, m.Opened)
	}
	return m.Check.Seconds, m.Check.Peak, nil
}

// tableSize is small: it is their number that counts. They are of noise, as hashes and
// signatures are, and not empty: what is kept of a file that does not shrink is its
// hash.
const tableSize = 2 << 10

// growTables makes a goleveldb with n tables, all at the last level and of keys behind
// those that a node uses, so that nobody ever opens one.
func growTables(dir string, n int) error {
	const list, first = "MANIFEST-000000", 10
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	noise, table := rand.NewChaCha8([32]byte{1}), make([]byte, tableSize)
	for i := range n {
		_, _ = noise.Read(table) // documented never to fail
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%06d.ldb", first+i)), table, 0o600); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(dir, list), logOf(tableList(first, n)), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "CURRENT"), []byte(list+"\n"), 0o600)
}

// tableList is a record of a list of tables (goleveldb: session_record.go).
func tableList(first, n int) []byte {
	const comparer, logNumber, nextFile, lastSequence, addTable, level = 1, 2, 3, 4, 7, 6
	text := func(b []byte, s string) []byte { return append(binary.AppendUvarint(b, uint64(len(s))), s...) }
	b := text([]byte{comparer}, "leveldb.BytewiseComparator")
	for _, x := range [][2]uint64{{logNumber, 0}, {nextFile, uint64(first + n)}, {lastSequence, 1}} {
		b = binary.AppendUvarint(append(b, byte(x[0])), x[1])
	}
	for i := range n {
		key := string(binary.LittleEndian.AppendUint64(fmt.Appendf(nil, "~%08d", i), 1<<8|1)) // sequence 1, a value
		b = append(b, addTable, level)
		b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(first+i)), tableSize)
		b = text(text(b, key), key)
	}
	return b
}

// logOf is a log with one record (LevelDB: doc/log_format.md).
func logOf(record []byte) (out []byte) {
	const block, header = 32 << 10, 7
	const whole, begins, goesOn, ends = 1, 2, 3, 4
	for at := 0; at == 0 || at < len(record); {
		n := min(block-header, len(record)-at)
		kind := byte(goesOn)
		switch {
		case at == 0 && n == len(record):
			kind = whole
		case at == 0:
			kind = begins
		case at+n == len(record):
			kind = ends
		}
		chunk := append([]byte{kind}, record[at:at+n]...)
		sum := crc32.Checksum(chunk, crc32.MakeTable(crc32.Castagnoli))
		out = binary.LittleEndian.AppendUint32(out, (sum>>15|sum<<17)+0xa282ead8)
		out = binary.LittleEndian.AppendUint16(out, uint16(n))
		out = append(out, chunk...)
		at += n
	}
	return out
}
