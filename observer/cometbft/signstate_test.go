package cometbft

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/eddy-backup/eddy/internal/hint"
)

func TestSignState(t *testing.T) {
	const key = `{"address":"A","priv_key":{"type":"t","value":"topsecret"}}`
	for name, c := range map[string]struct {
		files map[string]string
		want  SignStatus
		fails bool
	}{
		"none":       {files: map[string]string{}},
		"fresh":      {files: map[string]string{"data/priv_validator_state.json": `{"height":"0","round":0,"step":0}`, "config/priv_validator_key.json": key}, want: SignStatus{Key: true}},
		"signed":     {files: map[string]string{"data/priv_validator_state.json": `{"height":"81","round":2,"step":3,"signature":"x"}`}, want: SignStatus{Height: 81, Round: 2, Step: 3}},
		"only round": {files: map[string]string{"data/priv_validator_state.json": `{"height":"0","round":1,"step":0}`}, want: SignStatus{Round: 1}},
		"floor":      {files: map[string]string{"data/priv_validator_state.json": `{"height": "110", "round": 2147483647, "step": 3}`}, want: SignStatus{Height: 110, Round: 2147483647, Step: 3}},
		"elsewhere": {files: map[string]string{
			"config/config.toml": "priv_validator_state_file = \"state.json\"\npriv_validator_laddr = \"tcp://127.0.0.1:1234\"\n", "state.json": `{"height":9,"round":0,"step":1}`,
		}, want: SignStatus{Height: 9, Step: 1, Remote: "tcp://127.0.0.1:1234"}},
		"old file": {files: map[string]string{
			"config/config.toml": "priv_validator_file = \"config/pv.json\"\n", "config/pv.json": `{"last_height":"12","last_round":"1","last_step":2,"priv_key":{"value":"topsecret"}}`,
		}, want: SignStatus{Height: 12, Round: 1, Step: 2, Key: true}},
		"highest of two": {files: map[string]string{
			"data/priv_validator_state.json": `{"height":"5","round":0,"step":3}`, "config/priv_validator_key.json": `{"last_height":"5","last_round":"1","last_step":1}`,
		}, want: SignStatus{Height: 5, Round: 1, Step: 1, Key: true}},
		"cut short":    {files: map[string]string{"data/priv_validator_state.json": `{"height":"81","topsecret`}, fails: true},
		"empty":        {files: map[string]string{"data/priv_validator_state.json": ``}, fails: true},
		"negative":     {files: map[string]string{"data/priv_validator_state.json": `{"height":"-1","round":0,"step":0}`}, fails: true},
		"no height":    {files: map[string]string{"data/priv_validator_state.json": `{"round":0,"step":0}`}, fails: true},
		"out of range": {files: map[string]string{"data/priv_validator_state.json": `{"height":"1","round":9999999999,"step":0}`}, fails: true},
		"words":        {files: map[string]string{"data/priv_validator_state.json": `{"height":"topsecret","round":0,"step":0}`}, fails: true},
		"too large":    {files: map[string]string{"data/priv_validator_state.json": strings.Repeat(" ", maxSignState) + `{}`}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			home := t.TempDir()
			put(t, home, map[string]string{"data/x": ""})
			put(t, home, c.files)
			got, err := SignState(home)
			if c.fails {
				if err == nil || hint.Of(err) == "" || strings.Contains(err.Error(), "topsecret") {
					t.Fatalf("%+v, %v; want an error with a hint that quotes nothing", got, err)
				}
				return
			}
			must(t, err)
			got.Path = ""
			if got != c.want || got.Zero() != (c.want.Height == 0 && c.want.Round == 0 && c.want.Step == 0) {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func FuzzSignState(f *testing.F) {
	f.Add([]byte(`{"height":"5","round":0,"step":3,"signature":"x"}`))
	f.Add([]byte(`{"last_height":5,"last_round":"0","last_step":3}`))
	f.Add([]byte(`{"height":"","round":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, ok, err := parseSignState(b)
		if err != nil && (ok || !s.Zero() && s != (SignStatus{})) {
			t.Fatalf("an error and a state: %+v, %v", s, err)
		}
		if s.Height < 0 {
			t.Fatalf("%+v", s)
		}
	})
}

func FuzzSecretContent(f *testing.F) {
	f.Add([]byte(`{"priv_key":{"type":"tendermint/PrivKeyEd25519","value":"x"}}`))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n"))
	f.Add([]byte(`{"height":"0","round":0,"step":0}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		secret := secretContent(b)
		// What CometBFT would read as a key must never pass.
		var k struct {
			PrivKey *struct{ Type, Value string } `json:"priv_key"`
		}
		if json.Unmarshal(b, &k) == nil && k.PrivKey != nil && k.PrivKey.Value != "" && !secret {
			t.Fatalf("%q passed", b)
		}
	})
}
