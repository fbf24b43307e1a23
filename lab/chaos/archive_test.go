package chaos

import (
	"archive/tar"
	"bytes"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// pack makes an archive of frames, one a file, with an index's skippable frame at
// the end.
func pack(t *testing.T, files ...string) []byte {
	t.Helper()
	var plain bytes.Buffer
	tw := tar.NewWriter(&plain)
	for i := 0; i < len(files); i += 2 {
		body := files[i+1]
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: files[i], Size: int64(len(body)), Mode: 0o600}); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(body)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	var out []byte
	for b := plain.Bytes(); len(b) > 0; {
		n := min(len(b), 700)
		out = enc.EncodeAll(b[:n], out)
		b = b[n:]
	}
	return append(out, 0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'i', 'd', 'x')
}

func TestUnpack(t *testing.T) {
	long := strings.Repeat("0123456789abcdef", 400)
	good := pack(t, "data/a", long, "data/b", "short")
	files, size, err := unpack(bytes.NewReader(good), nil)
	if err != nil || len(files) != 2 || size != int64(len(long)+5) || files["data/a"] == files["data/b"] {
		t.Fatalf("%v of %d bytes, %v", files, size, err)
	}
	broken := bytes.Clone(good)
	broken[len(good)/3] ^= 1
	for name, archive := range map[string][]byte{
		"a flipped bit":  broken,
		"a missing end":  good[:len(good)/2],
		"a file twice":   pack(t, "data/a", "x", "data/a", "x"),
		"a way out":      pack(t, "../a", "x"),
		"an odd name":    pack(t, "data//a", "x"),
		"a sign state":   pack(t, "data/priv_validator_state.json", "{}"),
		"a node's key":   pack(t, "config/node_key.json", "{}"),
		"a key's text":   pack(t, "data/wal", long+"SECRETSECRET"+long),
		"one at a seam":  pack(t, "data/wal", strings.Repeat("x", 32<<10-520)+"SECRETSECRET"+long),
		"no zstd at all": []byte("plain"),
	} {
		if _, _, err := unpack(bytes.NewReader(archive), [][]byte{[]byte("SECRETSECRET")}); err == nil {
			t.Errorf("%s is not noticed", name)
		}
	}
}

// Whatever the reads, a text is found where it crosses them.
func TestSearch(t *testing.T) {
	text := []byte(strings.Repeat("-", 1000) + "needle" + strings.Repeat("-", 1000))
	for _, n := range []int{1, 2, 5, 7, overlap - 1, overlap, overlap + 1, 1003} {
		s := &search{r: bytes.NewReader(text), needles: [][]byte{[]byte("needle")}}
		for p := make([]byte, n); ; {
			if _, err := s.Read(p); err != nil {
				break
			}
		}
		if s.found == nil {
			t.Errorf("not found by reads of %d bytes", n)
		}
	}
}

func TestReadSums(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	sum := strings.Repeat("ab", 32)
	got, err := readSums(bytes.NewReader(enc.EncodeAll([]byte(sum+"  data/a\n"+sum+"  data/b c\n"), nil)))
	if err != nil || len(got) != 2 || got["data/b c"] != sum {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := readSums(bytes.NewReader(enc.EncodeAll([]byte("no sum at all\n"), nil))); err == nil {
		t.Error("a line without a sum passes")
	}
}

func TestSame(t *testing.T) {
	a := content{"x": "1", "y": "2"}
	for _, c := range []struct {
		got  content
		want string
	}{
		{content{"x": "1", "y": "2"}, ""},
		{content{"x": "1"}, "y is missing"},
		{content{"x": "1", "y": "3"}, "y has other content"},
		{content{"x": "1", "y": "2", "z": "3"}, "z is too much"},
	} {
		err := same(a, c.got)
		if c.want == "" && err != nil || c.want != "" && (err == nil || err.Error() != c.want) {
			t.Errorf("%v: %v, want %q", c.got, err, c.want)
		}
	}
}
