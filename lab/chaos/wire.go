package chaos

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// wire is the network between eddy and the store.
type wire struct {
	proxy *toxiproxy.Proxy
}

// healTime bounds the removal of one fault: it waits for data that is under way.
const healTime = 10 * time.Second

func newWire(upstream string) (*wire, error) {
	zerolog.SetGlobalLevel(zerolog.Disabled) // some toxics log there whatever they are given
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	w := &wire{proxy: toxiproxy.NewProxy(server, "store", "127.0.0.1:0", upstream)}
	return w, w.proxy.Start()
}

// endpoint stays the same through a cut.
func (w *wire) endpoint() string { return "http://" + w.proxy.Listen }

// toxics of one kind, in both directions.
func (w *wire) toxic(kind string, attributes map[string]int) error {
	for _, stream := range []string{"upstream", "downstream"} {
		if err := w.toxicOn(stream, kind, attributes); err != nil {
			return err
		}
	}
	return nil
}

func (w *wire) toxicOn(stream, kind string, attributes map[string]int) error {
	b, err := json.Marshal(map[string]any{"name": kind + " " + stream, "type": kind, "stream": stream, "toxicity": 1, "attributes": attributes})
	if err != nil {
		return err
	}
	if _, err := w.proxy.Toxics.AddToxicJson(bytes.NewReader(b)); err != nil {
		return fmt.Errorf("toxic %s: %w", kind, err)
	}
	return nil
}

// cut closes all connections and refuses new ones.
func (w *wire) cut() { w.proxy.Stop() }

// heal makes the network whole again.
func (w *wire) heal() error {
	ctx, cancel := context.WithTimeout(context.Background(), healTime)
	defer cancel()
	w.proxy.Toxics.ResetToxics(ctx)
	if err := w.proxy.Start(); err != nil && !errors.Is(err, toxiproxy.ErrProxyAlreadyStarted) {
		return fmt.Errorf("connect the store again: %w", err)
	}
	return nil
}
