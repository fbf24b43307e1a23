//go:build lab

package consul

import (
	"os"
	"testing"
)

// A real Consul passes what its stand-in does. The end-to-end test runs it.
func TestSuiteOnConsul(t *testing.T) {
	address, token := os.Getenv("EDDY_LAB_CONSUL_ADDRESS"), os.Getenv("EDDY_LAB_CONSUL_TOKEN")
	if address == "" || token == "" {
		t.Fatal("EDDY_LAB_CONSUL_ADDRESS and EDDY_LAB_CONSUL_TOKEN name no server: make e2e-raft sets them")
	}
	suite(t, Consul, address, token)
}
