//go:build lab

package uploader

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The real server is probed for what the page says of it.
func TestProbeOfARealServer(t *testing.T) {
	s := lab(t, nil)
	caps, err := NewCatalog(s, "gaia").Probe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := Caps{Conditions: Kept, SmallSums: Kept, PartSums: Kept, WholeSum: Kept, UnequalParts: Kept, PartCopy: Kept, CopySums: Ignored, ListUploads: Kept, DeleteMany: Kept, Tags: Kept}
	name := "versitygw 1.8 (tried)"
	if os.Getenv("EDDY_LAB_S3_SERVER") == "minio" {
		name, want.ListUploads, want.CopySums = "MinIO 2026-02 (tried)", Ignored, Refused
	}
	if diff := cmp.Diff(want, caps, notAbilities); diff != "" {
		t.Error(diff)
	}
	if keys := keysOf(t, s, "", ""); len(keys) > 0 || caps.Left {
		t.Errorf("the probe leaves %v", keys)
	}
	page, err := os.ReadFile("../docs/stores.md")
	if err != nil {
		t.Fatal(err)
	}
	if row := pageRow(name, caps); !strings.Contains(string(page), row) {
		t.Errorf("docs/stores.md lacks the row\n%s", row)
	}
}
