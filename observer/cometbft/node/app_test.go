package node

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// A node waits for its app, goes on with it again and again, and can be ended
// when the app is gone.
func TestAppOutside(t *testing.T) {
	for transport, address := range map[string]func(t *testing.T) string{
		Socket: func(t *testing.T) string { return "unix://" + filepath.Join(t.TempDir(), "app.sock") },
		GRPC:   freeAddress,
	} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			homes, err := Testnet(t.TempDir(), TestnetOptions{Validators: 1, ChainID: "outside", Commit: 50 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			app, addr, height := t.TempDir(), address(t), 0
			for range 2 {
				n := play(t, "node", homes[0].Dir, addr, transport)
				a := play(t, "app", app, addr, transport)
				height = waitHeight(t, homes[0], height+2)
				n.stop(t)
				a.stop(t)
			}
			if _, err := os.Stat(filepath.Join(app, "data", "application.db", "CURRENT")); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Join(homes[0].Dir, "data", "application.db")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the node has an app's database of its own: %v", err)
			}
			n := play(t, "node", homes[0].Dir, addr, transport)
			a := play(t, "app", app, addr, transport)
			waitHeight(t, homes[0], height+1)
			a.stop(t)
			// A socket's client asks for the node's end itself, gRPC's waits.
			if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			hung := time.AfterFunc(20*time.Second, func() { _ = n.cmd.Process.Kill() })
			_ = n.cmd.Wait()
			if !hung.Stop() {
				t.Errorf("the node hangs without its app:\n%s", n.out.String())
			}
		})
	}
}

func TestWaitingForAnAppEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := awaitApp(ctx, freeAddress(t), Socket); err == nil {
		t.Fatal("there is no app, and no error")
	}
}

func TestAddressesOfAnApp(t *testing.T) {
	for _, bad := range [][2]string{{"", Socket}, {"kvstore", Socket}, {"http://127.0.0.1:1", GRPC}, {"unix://", Socket}, {"tcp://127.0.0.1:1", "http"}} {
		if err := RunApp(t.Context(), AppOptions{Home: t.TempDir(), Engine: "goleveldb", Listen: bad[0], Transport: bad[1]}); err == nil {
			t.Errorf("%q by %q: no error", bad[0], bad[1])
		}
	}
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "tcp://" + l.Addr().String()
}
