// Package leak looks for keys where none may be: in every object of a store, as it is
// and decompressed, in every form in which a key could show.
//
// It is for tests. It knows no format but zstd and trusts no name: what begins as a
// zstd frame is decompressed. Its invariant: a key that stands anywhere in what it was
// given, raw, in hex or in base64, is found; tests plant one to see that.
package leak

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"

	"github.com/eddy-backup/eddy/uploader"
)

// Needle is a secret by name, in all its forms.
type Needle struct {
	Name  string
	Forms [][]byte
}

// Key is the needle of a secret of random bytes: as it is, in hex of both cases, and
// in base64 at each of the three places in which it may stand in a longer text.
func Key(name string, key []byte) Needle {
	n := Needle{Name: name, Forms: [][]byte{key, []byte(hex.EncodeToString(key)), []byte(strings.ToUpper(hex.EncodeToString(key)))}}
	for _, enc := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
		for shift := range 3 {
			text := enc.EncodeToString(append(make([]byte, shift), key...))
			// What depends on the key alone: from the first character behind the shift to
			// the last one that ends in it.
			n.Forms = append(n.Forms, []byte(text[(shift*8+5)/6:(shift+len(key))*8/6]))
		}
	}
	return n
}

// CometKey is the needle of a node key or a validator key in CometBFT's JSON. Of an
// ed25519 key the seed is the secret: what follows it is public.
func CometKey(name string, file []byte) (Needle, error) {
	var k struct {
		Priv struct {
			Value []byte `json:"value"`
		} `json:"priv_key"`
	}
	if err := json.Unmarshal(file, &k); err != nil || len(k.Priv.Value) != 64 {
		return Needle{}, fmt.Errorf("%s: no ed25519 key in JSON", name)
	}
	return Key(name, k.Priv.Value[:32]), nil
}

// AgeIdentity is the needle of an X25519 identity, in its text and in its bytes.
func AgeIdentity(name string, file []byte) (Needle, error) {
	const mark = "AGE-SECRET-KEY-1"
	_, rest, ok := strings.Cut(string(file), mark)
	text, _, _ := strings.Cut(rest, "\n")
	text = strings.TrimSpace(text)
	if !ok || len(text) != 58 {
		return Needle{}, fmt.Errorf("%s: no X25519 identity", name)
	}
	// Bech32 (BIP 173): five bits a character; the last six are a checksum.
	const alphabet = "QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L"
	var key []byte
	acc, bits := 0, 0
	for _, c := range text[:len(text)-6] {
		v := strings.IndexRune(alphabet, c)
		if v < 0 {
			return Needle{}, fmt.Errorf("%s: no bech32", name)
		}
		if acc, bits = acc<<5|v, bits+5; bits >= 8 {
			bits -= 8
			key = append(key, byte(acc>>bits))
			acc &= 1<<bits - 1
		}
	}
	n := Key(name, key)
	n.Forms = append(n.Forms, []byte(text), []byte(strings.ToLower(text)))
	return n, nil
}

// Search reads every object of a store and tells where which needle is: "NAME in KEY",
// or "NAME in KEY, decompressed". read is how many bytes were looked at.
func Search(ctx context.Context, s uploader.Store, needles ...Needle) (hits []string, read int64, err error) {
	for o, err := range s.List(ctx, "", "") {
		if err != nil {
			return hits, read, err
		}
		body, err := s.Open(ctx, o.Key, "", 0, -1)
		if err != nil {
			return hits, read, err
		}
		head := make([]byte, 4)
		n, err := io.ReadFull(body, head)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return hits, read, errors.Join(err, body.Close())
		}
		whole := io.MultiReader(bytes.NewReader(head[:n]), body)
		raw := &watch{needles: needles}
		err = look(raw, whole, n == 4 && bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}), o.Key, needles, &hits, &read)
		if err = errors.Join(err, body.Close()); err != nil {
			return hits, read, fmt.Errorf("%s: %w", o.Key, err)
		}
	}
	return hits, read, nil
}

func look(raw *watch, in io.Reader, packed bool, key string, needles []Needle, hits *[]string, read *int64) error {
	plain := &watch{needles: needles}
	in = io.TeeReader(in, raw)
	if packed {
		z, err := zstd.NewReader(in)
		if err != nil {
			return err
		}
		defer z.Close()
		if _, err := io.Copy(plain, z); err != nil {
			return err
		}
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	for _, name := range raw.found {
		*hits = append(*hits, name+" in "+key)
	}
	for _, name := range plain.found {
		*hits = append(*hits, name+" in "+key+", decompressed")
	}
	*read += raw.n + plain.n
	return nil
}

// watch looks for needles in what is written to it, also where two writes meet.
type watch struct {
	needles []Needle
	tail    []byte
	found   []string
	n       int64
}

func (w *watch) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	b := append(w.tail, p...)
	longest := 0
	for _, n := range w.needles {
		for _, f := range n.Forms {
			longest = max(longest, len(f))
			if bytes.Contains(b, f) && !slices.Contains(w.found, n.Name) {
				w.found = append(w.found, n.Name)
			}
		}
	}
	w.tail = append([]byte(nil), b[max(0, len(b)-longest):]...)
	return len(p), nil
}
