package cometbft

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cometbft/cometbft/privval"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

func TestHowAValidatorKeyComesBack(t *testing.T) {
	at := func(h int64) *SignStatus { return &SignStatus{Height: h, Step: 3, Path: "x"} }
	alive := SignerSeen{Witness: "w1", Tip: 500, Grew: true, Known: true, From: 401}
	signing := alive
	signing.Signed = 499
	still := SignerSeen{Witness: "w2", Tip: 480, Known: true, From: 381, Signed: 480}
	behind := SignerSeen{Witness: "w3", Tip: 20, Grew: true, CatchUp: true}
	silent := SignerSeen{Witness: "w4", Error: "connection refused"}
	stranger := alive
	stranger.Known = false
	for name, c := range map[string]struct {
		k      KeyReturn
		height int64 // of the state that it gets
		above  int64
		floor  bool
		typed  bool
		no     string // the refusal
	}{
		"an observer":                      {k: KeyReturn{Observer: true, NoWitness: true, Seen: []SignerSeen{alive}}, no: "a replica that is backed up"},
		"somebody signs":                   {k: KeyReturn{InBundle: true, Seen: []SignerSeen{alive, signing}}, no: "witness w1 has its signature for block 499 of 500"},
		"somebody signs, whatever is said": {k: KeyReturn{InBundle: true, NoWitness: true, Seen: []SignerSeen{signing}}, no: "signs, or did just now"},
		"nobody signs":                     {k: KeyReturn{InBundle: true, Seen: []SignerSeen{alive}}, height: 510, above: 510, floor: true},
		"the dump is higher":               {k: KeyReturn{InBundle: true, Dump: 600, Seen: []SignerSeen{alive}}, height: 610, above: 610, floor: true},
		"the highest of all witnesses":     {k: KeyReturn{InBundle: true, Seen: []SignerSeen{alive, {Witness: "w", Tip: 700, Grew: true}}}, height: 710, above: 710, floor: true},
		"the bundle's state is no word":    {k: KeyReturn{InBundle: true, Bundle: at(300), Seen: []SignerSeen{alive}}, height: 510, above: 510, floor: true},
		"the bundle's state is higher":     {k: KeyReturn{InBundle: true, Bundle: at(900), Seen: []SignerSeen{alive}}, height: 910, above: 910, floor: true},
		"its own state stays":              {k: KeyReturn{InBundle: true, Home: at(450), Bundle: at(300), Seen: []SignerSeen{alive}}, height: 450},
		"its own signatures are no sign":   {k: KeyReturn{InBundle: true, Home: at(499), Seen: []SignerSeen{signing}}, height: 499},
		"another's beyond its own are":     {k: KeyReturn{InBundle: true, Home: at(498), Seen: []SignerSeen{signing}}, no: "block 499"},
		"the bundle is above its own":      {k: KeyReturn{InBundle: true, Home: at(200), Bundle: at(300), Seen: []SignerSeen{alive}}, height: 300},
		"no witness":                       {k: KeyReturn{InBundle: true}, no: "no witness is configured"},
		"all silent":                       {k: KeyReturn{InBundle: true, Seen: []SignerSeen{silent}}, no: "connection refused"},
		"catching up":                      {k: KeyReturn{InBundle: true, Seen: []SignerSeen{behind}}, no: "are catching up"},
		"it signed, and all stands still":  {k: KeyReturn{InBundle: true, Seen: []SignerSeen{still}}, no: "signs, or did just now"},
		"all stands still":                 {k: KeyReturn{InBundle: true, Seen: []SignerSeen{{Witness: "w", Tip: 480}}}, no: "the chain stands still"},
		"typed, no witness":                {k: KeyReturn{InBundle: true, Dump: 90, NoWitness: true}, height: 100, above: 100, floor: true, typed: true},
		"typed, all stands still":          {k: KeyReturn{InBundle: true, Dump: 90, NoWitness: true, Seen: []SignerSeen{still, silent}}, height: 490, above: 490, floor: true, typed: true},
		"typed, its own state":             {k: KeyReturn{InBundle: true, Home: at(400), NoWitness: true}, height: 400, typed: true},
		"a fresh key":                      {k: KeyReturn{Seen: []SignerSeen{stranger}}},
		"fresh, for all one can know":      {k: KeyReturn{NoWitness: true, Dump: 5}, height: 15, above: 15, floor: true, typed: true},
		"in a bundle it is not fresh":      {k: KeyReturn{InBundle: true, Seen: []SignerSeen{stranger}}, height: 510, above: 510, floor: true},
		"with a state it is not fresh":     {k: KeyReturn{Bundle: at(0), Seen: []SignerSeen{stranger}}, height: 510, above: 510, floor: true},
		"impossible":                       {k: KeyReturn{InBundle: true, Seen: []SignerSeen{{Witness: "w", Tip: 1<<63 - 1, Grew: true}}}, no: "impossible height"},
	} {
		t.Run(name, func(t *testing.T) {
			c.k.Address = "ADDRESS"
			d, err := c.k.Decide()
			if c.no != "" {
				if !errors.Is(err, observer.ErrNotFit) || !strings.Contains(err.Error(), c.no) || hint.Of(err) == "" {
					t.Fatalf("%+v, %v; want %q", d, err, c.no)
				}
				return
			}
			must(t, err)
			floor := d.State == floorAt(d.State.Height)
			if d.State.Height != c.height || floor != c.floor || d.StartAbove != c.above || (d.Typed == "ADDRESS") != c.typed || d.Why == "" {
				t.Errorf("%+v, want %+v", d, c)
			}
		})
	}
}

// What the decision is about, with CometBFT's own signer: a floor refuses the heights
// that the machine that is gone may have signed, and lets the next one through.
func TestAFloorRefusesWhatMayHaveBeenSigned(t *testing.T) {
	home, pv := validator(t, 0)
	key, err := os.ReadFile(filepath.Join(home, "config/priv_validator_key.json"))
	must(t, err)
	other := t.TempDir() // the key comes there without its state
	put(t, other, map[string]string{"data/x": "", "config/config.toml": "", "config/priv_validator_key.json": string(key)})
	search := KeySearch{Key: key, Home: other, InBundle: true, Dump: 40, NoWitness: true}
	d, err := search.ValidatorKeyReturn(t.Context())
	must(t, err)
	if d.Typed != pv.GetAddress().String() || d.StartAbove != 50 {
		t.Fatalf("%+v", d)
	}
	b, err := SignFile(nil, d.State)
	must(t, err)
	stateFile := filepath.Join(other, "data/priv_validator_state.json")
	must(t, os.WriteFile(stateFile, b, 0o600))
	back := privval.LoadFilePV(filepath.Join(other, "config/priv_validator_key.json"), stateFile)
	for _, h := range []int64{1, 41, 50} {
		if sign(back, h, "x") == nil {
			t.Errorf("it signs at height %d", h)
		}
	}
	must(t, sign(back, 51, "x"))
	// Its own state, of this key, stays from now on; that of another key says nothing.
	if d, err = search.ValidatorKeyReturn(t.Context()); err != nil || d.State.Height != 51 || d.StartAbove != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	third, _ := validator(t, 900)
	search.Home = third
	if d, err = search.ValidatorKeyReturn(t.Context()); err != nil || d.StartAbove != 50 {
		t.Errorf("%+v, %v", d, err)
	}
	search.Observer = true
	if _, err = search.ValidatorKeyReturn(t.Context()); !errors.Is(err, observer.ErrNotFit) {
		t.Error(err)
	}
	search.Key = []byte("{}")
	if _, err = search.ValidatorKeyReturn(t.Context()); err == nil {
		t.Error("no key came back")
	}
}

func TestANodeWaitsForItsFloor(t *testing.T) {
	home := restoreHome(t)
	n := int64(108)
	r := replicaOf(t, home)
	r.o.Witnesses, r.patience = []string{statusAt(t, "c", func() int64 { n++; return n })}, 400*time.Millisecond
	for _, c := range []struct {
		state string
		asks  bool
	}{{`{"height":"110","round":2147483647,"step":3}`, true}, {`{"height":"900","round":0,"step":3}`, false}, {`{"height":"0","round":0,"step":0}`, false}} {
		n = 108
		put(t, home, map[string]string{"data/priv_validator_state.json": c.state})
		must(t, r.awaitFloor(t.Context()))
		if (n > 110) != c.asks {
			t.Errorf("%s: the witness stood at %d", c.state, n)
		}
	}
	r.patience = 10 * time.Millisecond
	put(t, home, map[string]string{"data/priv_validator_state.json": `{"height":"9110","round":2147483647,"step":3}`})
	if err := r.awaitFloor(t.Context()); !errors.Is(err, observer.ErrNotFit) || hint.Of(err) == "" {
		t.Error(err)
	}
}
