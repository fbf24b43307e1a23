package detect

import (
	"context"
	"strings"
)

// Host is what a machine runs.
type Host struct {
	Units      []Unit
	Processes  []Process
	Containers []Container
	// User finds a user by name or uid.
	User func(name string) (User, error)
	// Chain asks nodes by RPC; nil: nobody is asked.
	Chain Chain
	// Blind says what could not be looked at, and why.
	Blind []string
}

// User is an account.
type User struct {
	Name, Home string
	UID, GID   int
}

// Unit is a service as systemd describes it.
type Unit struct {
	Name   string // gaiad.service
	Load   string // LoadState: loaded, not-found, masked
	Active string // ActiveState
	File   string // UnitFileState: enabled, disabled, ...
	User   string // "": root
	Dir    string // WorkingDirectory, "" for none
	Argv   []string
	Env    map[string]string
	PID    int // of the main process, 0 while it does not run
	// Files define it, as systemd has resolved them: the unit's own, its drop-ins, and
	// the files of its environment.
	Files []string
}

// Process is a process of this machine, those in containers apart.
type Process struct {
	PID  int
	UID  int
	Argv []string
	Env  map[string]string
	Dir  string
	Unit string // the system's service that it belongs to, "" for none
}

// Container is a container of the engine at its default socket.
type Container struct {
	Name    string
	User    string
	Dir     string
	Argv    []string // entry point and command
	Env     map[string]string
	Mounts  []Mount
	Running bool
	// Ports maps a port of the container, "26657", to the address on this machine.
	Ports map[string]string
	// Addr is the container's own address, "" where it uses the host's network.
	Addr string
	// Files define it where docker compose has made it: compose and environment files.
	Files []string
}

// Mount is a directory of this machine that a container sees.
type Mount struct{ Source, Target string }

// Chain asks nodes.
type Chain interface {
	// Status asks a node who it is.
	Status(ctx context.Context, url string) (Status, error)
	// Peers asks a node whom it is connected to.
	Peers(ctx context.Context, url string) ([]Peer, error)
}

// Status is what a node says of itself.
type Status struct{ ID, ChainID string }

// Peer is a node that another one is connected to.
type Peer struct {
	ID       string
	IP       string // as the other one sees it
	Port     string // on which it listens for peers
	RPC      string // its RPC's listening address, in its own notation: tcp://0.0.0.0:26657
	Outbound bool   // dialled by the other one: it can be reached at IP and Port
}

// kept tells the variables of an environment that say where a node is and whom it
// talks to. No other gets into a Host: environments hold keys and tokens.
func kept(name string) bool {
	switch name {
	case "HOME", "DAEMON_HOME", "DAEMON_NAME", "CMTHOME", "TMHOME":
		return true
	}
	for _, end := range []string{"_HOME", "_RPC_LADDR", "_P2P_PEX", "_P2P_LADDR", "_P2P_EXTERNAL_ADDRESS", "_P2P_SEED_MODE", "_P2P_PERSISTENT_PEERS"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

// environ makes a map of NAME=value words.
func environ(words []string) map[string]string {
	env := map[string]string{}
	for _, w := range words {
		if name, value, ok := strings.Cut(w, "="); ok && kept(name) {
			env[name] = value
		}
	}
	return env
}
