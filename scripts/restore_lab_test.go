//go:build lab

package scripts_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The same over the aws command line, from a real S3 server.
func TestRestoreFromS3(t *testing.T) {
	endpoint, bucket := os.Getenv("EDDY_LAB_S3_ENDPOINT"), os.Getenv("EDDY_LAB_S3_BUCKET")
	if endpoint == "" || bucket == "" {
		t.Fatal("no S3 server: run this as `make test` does, under `lab s3 --`")
	}
	b := newBackup(t, source)
	store := "s3://" + bucket + "/scripts-" + filepath.Base(b.dir)
	sh(t, b.dir, nil, "aws --endpoint-url "+endpoint+" s3 cp --quiet --recursive . "+store)
	for name, c := range map[string]struct {
		env  []string
		args []string
		code int
		says string
	}{
		"latest":            {},
		"by id":             {args: []string{"--id", id}},
		"another cluster":   {args: []string{"--cluster", "other"}, code: 10, says: "there is no"},
		"another bucket":    {args: []string{"--store", "s3://eddy-none/x"}, code: 10, says: "there is no"},
		"wrong credentials": {env: []string{"AWS_SECRET_ACCESS_KEY=wrong"}, code: 14, says: "credentials"},
		"nobody answers":    {env: []string{"AWS_MAX_ATTEMPTS=1"}, args: []string{"--endpoint", "http://127.0.0.1:1"}, code: 14, says: "check the URL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			args := append([]string{"--store", store, "--cluster", cluster, "--home", home, "--endpoint", endpoint}, c.args...)
			got := restore(t, c.env, args...)
			if got.code != c.code || !strings.Contains(got.output, c.says) {
				t.Errorf("exit code %d, want %d with %q\n%s", got.code, c.code, c.says, got.output)
			}
			want := source
			if c.code != 0 {
				want = nil
			}
			wantTree(t, home, want)
		})
	}
}

// The other renames of a swap.
func TestRestoreSwapInterruptedAnywhere(t *testing.T) { testSwapInterrupted(t, 1, 2, 4, renames) }
