package cometbft

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What is secret in an RPC address is in no error and in no name of a witness,
// whatever the node behind it answers, or where there is none.
func TestRPCErrorsHideTheAddress(t *testing.T) {
	echo := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusForbidden)
		if _, err := w.Write([]byte(r.URL.Path + " is not for " + r.Header.Get("Authorization"))); err != nil {
			t.Error(err)
		}
	}))
	defer echo.Close()
	for _, raw := range []string{
		"http://me:hunter2@127.0.0.1:1/v1/hunter2",
		"http://me:hunter2@nosuchhost.invalid/hunter2/",
		strings.Replace(echo.URL, "//", "//me:hunter2@", 1) + "/hunter2",
		echo.URL + "/hunter2",
		"http://127.0.0.1:1/a%2Fhunter2",
		"ws://me:hunter2@h/hunter2",
		"http://me:hunter2@%zz/hunter2",
	} {
		_, err := askStatus(t.Context(), raw)
		if err == nil || strings.Contains(err.Error(), "hunter2") || strings.Contains(err.Error(), "bWU6aHVudGVyMg") {
			t.Errorf("status: %v", err)
		}
		if _, _, err = appAndPeers(t.Context(), raw); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("net_info: %v", err)
		}
		w := (&Replica{}).witness(t.Context(), raw)
		if w.Error == "" || strings.Contains(w.Error+w.URL, "hunter2") {
			t.Errorf("witness: %+v", w)
		}
	}
	if got := bare("https://me:hunter2@rpc.example.com:443/hunter2?x=hunter2"); got != "https://rpc.example.com:443/..." {
		t.Error(got)
	}
	if got := bare("http://127.0.0.1:26657/"); got != "http://127.0.0.1:26657" {
		t.Error(got)
	}
}
