// Package crc computes the CRC64NVME of byte runs and joins the values of
// neighbouring runs by arithmetic, so that the checksum of a part, a volume or an
// object is known without reading a byte twice. It is a leaf.
package crc

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/minio/crc64nvme"
)

// NVME is the CRC64NVME of b, as S3 defines it.
func NVME(b []byte) uint64 { return crc64nvme.Checksum(b) }

// Base64 is the form in which S3 writes a CRC64: big-endian bytes in base64.
func Base64(v uint64) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, v))
}

// FromBase64 reads what Base64 wrote.
func FromBase64(s string) (uint64, error) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(b) != 8 {
		return 0, fmt.Errorf("%.20q is no CRC64 in base64", s)
	}
	return binary.BigEndian.Uint64(b), nil
}

// polynomial of CRC64NVME, reflected.
const polynomial = 0x9a6c9329ac4bc9b5

// matrix is a linear map of 64 bits over GF(2): row i is the image of bit i.
type matrix [64]uint64

func (m *matrix) apply(v uint64) (r uint64) {
	for i := 0; v != 0; i, v = i+1, v>>1 {
		if v&1 != 0 {
			r ^= m[i]
		}
	}
	return r
}

// advance[k] advances a CRC by 2^k zero bytes. Advancing is linear, so each is
// the square of the one before.
var advance = sync.OnceValue(func() *[64]matrix {
	var bit matrix // one zero bit
	bit[0] = polynomial
	for i := 1; i < 64; i++ {
		bit[i] = 1 << (i - 1)
	}
	square := func(m *matrix) (r matrix) {
		for i := range r {
			r[i] = m.apply(m[i])
		}
		return r
	}
	two := square(&bit)
	four := square(&two)
	var out [64]matrix
	out[0] = square(&four)
	for k := 1; k < 64; k++ {
		out[k] = square(&out[k-1])
	}
	return &out
})

// Combine returns the CRC of A followed by B, from the CRC of each and the
// length of B in bytes.
func Combine(a, b uint64, lenB int64) uint64 {
	m := advance()
	for k := 0; lenB != 0; k, lenB = k+1, lenB>>1 {
		if lenB&1 != 0 {
			a = m[k].apply(a)
		}
	}
	return a ^ b
}
