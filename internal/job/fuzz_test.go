package job

import (
	"os"
	"testing"
)

// A state file of another version, half a one, or somebody else's text ends in
// values or in an error; what is read can be written and read again.
func FuzzStateFiles(f *testing.F) {
	f.Add([]byte(`{"format":1,"min_reader":1,"store":"s3://b/p","roots":[{"name":"","path":"/h"}],"stage":"aa","cuts":"bb","volumes":2,"carry":"AAEC","manifest":{"id":"x"}}`))
	f.Add([]byte(`{"format":1,"min_reader":1,"id":"x","state":"holding","boot_id":"b"}`))
	f.Add([]byte(`{"format":1,"min_reader":1,"nonce":"n"}`))
	f.Add([]byte(`{"format":9,"min_reader":9}`))
	f.Add([]byte(`{"min_reader":"1"`))
	dir, err := os.MkdirTemp("/dev/shm", "eddy-test-") // fsync would be all that is tested
	if err != nil {
		dir = f.TempDir()
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	w := Workdir{Dir: dir}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, name := range []string{attemptName, "job.json", leaseFile, "last.json"} {
			if err := os.WriteFile(w.path(name), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		a, err := w.attempt()
		if err == nil && a != nil {
			if err := w.keep(a); err != nil {
				t.Fatal(err)
			}
			if again, err := w.attempt(); err != nil || again.Stage != a.Stage {
				t.Errorf("written again: %+v, %v", again, err)
			}
		}
		_, _ = w.State()
		_, _ = w.Last()
		if nonce, err := w.leaseNonce(); err == nil && nonce == "" {
			t.Error("a lease without a nonce")
		}
	})
}
