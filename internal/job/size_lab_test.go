//go:build lab

package job

const (
	benchUnit    = 1 << 20
	damagedKinds = 4
)
