package crc

import (
	"hash/crc64"
	"testing"

	"pgregory.net/rapid"
)

func TestCheckValue(t *testing.T) {
	if got := NVME([]byte("123456789")); got != 0xae8b14860a799888 {
		t.Fatalf("check value %x, want ae8b14860a799888", got)
	}
}

func TestCombineEqualsTheWhole(t *testing.T) {
	table := crc64.MakeTable(polynomial)
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "a")
		b := rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "b")
		want := crc64.Checksum(append(append([]byte(nil), a...), b...), table)
		if got := Combine(NVME(a), NVME(b), int64(len(b))); got != want {
			t.Fatalf("combined %x, the whole %x", got, want)
		}
	})
}

func TestCombineOverLongRunsOfZeros(t *testing.T) {
	zeros := make([]byte, 5<<20)
	if got, want := Combine(NVME([]byte("x")), NVME(zeros), int64(len(zeros))), NVME(append([]byte("x"), zeros...)); got != want {
		t.Fatalf("combined %x, the whole %x", got, want)
	}
}
