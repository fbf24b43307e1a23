package consul

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// recordNames are what Consul's state.bin holds, by the byte before each record.
// What is not named here is counted by its number.
var recordNames = [...]string{
	0: "catalog entries", 2: "keys", 3: "sessions", 5: "tombstones", 6: "coordinates", 7: "prepared queries", 9: "autopilot settings",
	12: "intentions", 13: "CA roots", 14: "CA provider states", 15: "CA settings", 16: "indexes",
	17: "ACL tokens", 19: "ACL policies", 22: "config entries", 23: "ACL roles", 25: "ACL binding rules", 27: "ACL auth methods", 29: "chunks",
	30: "federation states", 31: "system metadata", 32: "virtual IPs", 33: "free virtual IPs", 34: "kinds of services",
	35: "peerings", 38: "peering trust bundles", 40: "peering secrets",
}

// countRecords counts the records of a Consul state.bin: a header, then of each
// record a byte that says what it is, and a value in msgpack. It reads to the end,
// or to where it does not understand.
func countRecords(r io.Reader) (map[string]int64, error) {
	in := bufio.NewReaderSize(r, 1<<16)
	if err := skipValue(in); err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	var counts [256]int64
	for n := 0; ; n++ {
		what, err := in.ReadByte()
		if errors.Is(err, io.EOF) {
			break
		}
		if err == nil {
			err = skipValue(in)
		}
		if err != nil {
			return nil, fmt.Errorf("behind %d records: %w", n, err)
		}
		counts[what]++
	}
	out := map[string]int64{}
	for what, n := range counts {
		if n == 0 {
			continue
		}
		name := ""
		if what < len(recordNames) {
			name = recordNames[what]
		}
		if name == "" {
			name = fmt.Sprintf("records of type %d", what)
		}
		out[name] = n
	}
	return out, nil
}

// skipValue reads over one value of msgpack (github.com/msgpack/msgpack, spec.md).
// Nothing of it is kept, so that no length in it can cost memory.
func skipValue(in *bufio.Reader) error {
	for left := uint64(1); left > 0; {
		b, err := in.ReadByte()
		if err != nil {
			return cut(err)
		}
		left--
		bytes, values := uint64(0), uint64(0)
		switch {
		case b <= 0x7f || b >= 0xe0 || b == 0xc0 || b == 0xc2 || b == 0xc3: // small numbers, nil, false, true
		case b <= 0x8f:
			values = 2 * uint64(b&0x0f)
		case b <= 0x9f:
			values = uint64(b & 0x0f)
		case b <= 0xbf:
			bytes = uint64(b & 0x1f)
		case b >= 0xc4 && b <= 0xc6: // bytes
			bytes, err = number(in, 1<<(b-0xc4))
		case b >= 0xc7 && b <= 0xc9: // extensions, with a type
			bytes, err = number(in, 1<<(b-0xc7))
			bytes++
		case b == 0xca: // a float
			bytes = 4
		case b == 0xcb:
			bytes = 8
		case b >= 0xcc && b <= 0xcf: // unsigned
			bytes = 1 << (b - 0xcc)
		case b >= 0xd0 && b <= 0xd3: // signed
			bytes = 1 << (b - 0xd0)
		case b >= 0xd4 && b <= 0xd8: // short extensions
			bytes = 1<<(b-0xd4) + 1
		case b >= 0xd9 && b <= 0xdb: // text
			bytes, err = number(in, 1<<(b-0xd9))
		case b == 0xdc || b == 0xdd: // lists
			values, err = number(in, 2<<(b-0xdc))
		case b == 0xde || b == 0xdf: // maps
			values, err = number(in, 2<<(b-0xde))
			values *= 2
		default: // 0xc1 is never used
			return fmt.Errorf("a byte 0x%02x begins no value", b)
		}
		if err == nil {
			_, err = io.CopyN(io.Discard, in, int64(bytes)) // less than 2^33
		}
		if err != nil {
			return cut(err)
		}
		if left += values; left > 1<<40 {
			return errors.New("it names more values than there can be")
		}
	}
	return nil
}

// number reads a big-endian one.
func number(in *bufio.Reader, bytes int) (n uint64, err error) {
	for range bytes {
		b, err := in.ReadByte()
		if err != nil {
			return 0, err
		}
		n = n<<8 | uint64(b)
	}
	return n, nil
}

func cut(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
