package etcd

import "time"

// Drill is how a backup is brought to life.
type Drill struct {
	Canary  string // a key that must be there; "": none
	Timeout time.Duration
}
