package swarm

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// errWire: bytes are no message of the kind that they should be.
var errWire = errors.New("no such message")

// field is one field of a protobuf message: a number, or bytes.
type field struct {
	n   protowire.Number
	num uint64
	raw []byte // nil: it is a number
}

// fields gives each field of a message, in order. Groups, which none of ours have, are
// no message.
func fields(b []byte, each func(field) error) error {
	for len(b) > 0 {
		n, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return errWire
		}
		b = b[size:]
		f := field{n: n}
		switch typ {
		case protowire.VarintType:
			f.num, size = protowire.ConsumeVarint(b)
		case protowire.Fixed32Type:
			var v uint32
			v, size = protowire.ConsumeFixed32(b)
			f.num = uint64(v)
		case protowire.Fixed64Type:
			f.num, size = protowire.ConsumeFixed64(b)
		case protowire.BytesType:
			f.raw, size = protowire.ConsumeBytes(b)
			if f.raw == nil {
				f.raw = []byte{}
			}
		default:
			return errWire
		}
		if size < 0 {
			return errWire
		}
		b = b[size:]
		if err := each(f); err != nil {
			return err
		}
	}
	return nil
}

// scan reads the known fields of a message: the last of each counts.
func scan(b []byte, nums map[protowire.Number]*uint64, raws map[protowire.Number]*[]byte) error {
	return fields(b, func(f field) error {
		if p := nums[f.n]; p != nil && f.raw == nil {
			*p = f.num
		} else if p := raws[f.n]; p != nil && f.raw != nil {
			*p = f.raw
		} else if nums[f.n] != nil || raws[f.n] != nil {
			return fmt.Errorf("%w: field %d is of another type", errWire, f.n)
		}
		return nil
	})
}

// inner is the content of a field of a field ... of a message; nil where it is not there.
func inner(b []byte, path ...protowire.Number) ([]byte, error) {
	for _, n := range path {
		var next []byte
		if err := scan(b, nil, map[protowire.Number]*[]byte{n: &next}); err != nil || next == nil {
			return nil, err
		}
		b = next
	}
	return b, nil
}
