package uploader

import (
	"strings"
	"testing"
	"time"
)

func TestNames(t *testing.T) {
	for s, want := range map[string]bool{
		"auto": true, "abc": true, ".ab": true, "a..": true, strings.Repeat("x", 25): true, "A_b-9.": true,
		"ab": false, "..a": false, "...": false, strings.Repeat("x", 26): false, "a/b": false, "a b": false, "äöü": false, "": false, "abc\n": false,
	} {
		if err := CheckLabel(s); (err == nil) != want {
			t.Errorf("label %q: %v", s, err)
		}
	}
	for s, want := range map[string]bool{
		"g": true, "gaia-main": true, "...": true, strings.Repeat("x", 63): true,
		"": false, ".": false, "..": false, strings.Repeat("x", 64): false, "a/b": false, "a\n": false,
	} {
		if err := CheckName(s); (err == nil) != want {
			t.Errorf("name %q: %v", s, err)
		}
	}
}

func TestIDs(t *testing.T) {
	now := time.Date(2026, 11, 20, 23, 55, 0, 999, time.FixedZone("east", 3600))
	id := NewID(now, "before-upgrade")
	when, label, ok := ParseID(id)
	if !ok || label != "before-upgrade" || !when.Equal(now.Truncate(time.Second)) || !strings.HasPrefix(id, "20261120T225500Z-before-upgrade-") {
		t.Fatalf("%s: %v %q %v", id, when, label, ok)
	}
	if a, b := NewID(now, "auto"), NewID(now, "auto"); a == b {
		t.Fatal("two ids of one moment are equal")
	}
	for _, s := range []string{
		"", "latest", "20261120T235500Z-auto-0123AB", "20261120T235500Z-auto-0123a", "20261120T235500Z-ab-0123ab", "20261120T235500Z-..a-0123ab",
		"20261120T235500Z--0123ab", "20260230T235500Z-auto-0123ab", "20261120T245500Z-auto-0123ab", "20261120T235500Z-auto-0123ab\n", " 20261120T235500Z-auto-0123ab",
	} {
		if _, _, ok := ParseID(s); ok {
			t.Errorf("%q is taken for an id", s)
		}
	}
}

func FuzzParseID(f *testing.F) {
	f.Add("20261120T235500Z-auto-0123ab")
	f.Add("20261120T235500Z-a-b.c-0123ab")
	f.Add("20261120T235500Z-../-0123ab")
	f.Fuzz(func(t *testing.T, s string) {
		when, label, ok := ParseID(s)
		if !ok {
			return
		}
		if strings.ContainsAny(s, "/\n\x00") || CheckLabel(label) != nil || when.Format(idTime)+"-"+label+s[len(s)-7:] != s {
			t.Fatalf("%q is %v, %q", s, when, label)
		}
	})
}

func FuzzSplitKey(f *testing.F) {
	f.Add("20261120T235500Z-auto-0123ab/vol-0000.tar.zst")
	f.Add("20261120T235500Z-auto-0123ab/grades/x.json")
	f.Add("20261120T235500Z-auto-0123ab/")
	f.Fuzz(func(t *testing.T, s string) {
		id, name, ok := splitKey(s)
		if ok && (id+"/"+name != s || !validID(id) || name == "") {
			t.Fatalf("%q is %q, %q", s, id, name)
		}
	})
}
