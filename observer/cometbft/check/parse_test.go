package check

import (
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// oldStateOf is a state as amino wrote it.
func oldStateOf(version bool, chain string, height uint64) []byte {
	var b []byte
	num := protowire.Number(1)
	if version {
		b = protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), []byte{8, 10, 16, 1})
		num++
	}
	b = protowire.AppendString(protowire.AppendTag(b, num, protowire.BytesType), chain)
	b = protowire.AppendVarint(protowire.AppendTag(b, num+1, protowire.VarintType), height)
	return append(b, 0x18, 5)
}

func TestParseOld(t *testing.T) {
	for text, want := range map[string][2]int64{
		`{"height":"1234"}`:             {1, 1234},
		`{"height":1234}`:               {1, 1234},
		`{"base":"12","height":"1234"}`: {12, 1234},
		`{"height":"0"}`:                {},
	} {
		base, height, err := parseOldStore([]byte(text))
		if err != nil || base != want[0] || height != want[1] {
			t.Errorf("%s: %d to %d, %v", text, base, height, err)
		}
	}
	for _, text := range []string{"", "{", `{"height":"x"}`, `{"height":-3}`, `{"height":"3","base":"4"}`} {
		if _, _, err := parseOldStore([]byte(text)); err == nil {
			t.Errorf("%q: no error", text)
		}
	}
	for _, version := range []bool{true, false} {
		chain, heights, ok := parseOldState(oldStateOf(version, "default", 246))
		if !ok || chain != "default" || heights != [2]int64{246, 123} {
			t.Errorf("version %t: %s %v %t", version, chain, heights, ok)
		}
	}
	for _, b := range [][]byte{nil, {10}, {10, 3, 'a'}, []byte("garbage"), oldStateOf(false, "a\x00b", 3)} {
		if chain, heights, ok := parseOldState(b); ok {
			t.Errorf("%q: %s %v", b, chain, heights)
		}
	}
}

func FuzzParseOld(f *testing.F) {
	f.Add([]byte(`{"base":"12","height":"1234"}`))
	f.Add(oldStateOf(true, "default", 246))
	f.Fuzz(func(t *testing.T, b []byte) {
		if base, height, err := parseOldStore(b); err == nil && (base < 0 || base > height) {
			t.Errorf("%d to %d", base, height)
		}
		if chain, heights, ok := parseOldState(b); ok && (chain == "" || min(heights[0], heights[1]) < 0) {
			t.Errorf("%q %v", chain, heights)
		}
	})
}

// What is in a dump is somebody else's: no value of it may make a reader hang or
// take memory without bound, and CometBFT's own may panic, no more.
func FuzzParseBlocks(f *testing.F) {
	for backend := range backends() {
		d := chains.get(f, "sound", backend).dump(f, backend)
		for _, key := range []string{"H:9", "P:9:0", "C:9"} {
			d.set("blockstore", key, func(b []byte) []byte { f.Add(b); return b })
		}
		d.set("state", "stateKey", func(b []byte) []byte { f.Add(b); return b })
		d.set("state", "genesisDoc", func(b []byte) []byte { f.Add(b); return b })
		break
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c := &checker{}
		err := c.guard(StageBlocks, "fuzz", func() error {
			if m, err := parseMeta(b); err == nil && m != nil {
				_ = m.Header.Hash()
			}
			_, _ = parsePart(b)
			_, _ = parseBlock(b)
			_, _, _ = parseKVStore(b)
			_, _ = parseGenesis(b)
			if s, err := parseState(b); err == nil {
				_, _ = s.Validators.Hash(), s.ConsensusParams.Hash()
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
