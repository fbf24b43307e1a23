package job

import (
	"os"
	"testing"
)

// TestMain gives all tests at once what t.Setenv would not let them have in
// parallel: credentials for the buckets that are fakes. Those of a real server, in
// the environment already, stay; the fakes take any.
func TestMain(m *testing.M) {
	if os.Getenv("AWS_ACCESS_KEY_ID") == "" {
		for k, v := range map[string]string{
			"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true",
			"AWS_CONFIG_FILE": os.DevNull, "AWS_SHARED_CREDENTIALS_FILE": os.DevNull,
		} {
			if err := os.Setenv(k, v); err != nil {
				panic(err)
			}
		}
	}
	os.Exit(m.Run())
}
