//go:build race

package control

// slower stretches the times of tests: the race detector makes every process of
// a test slow to start.
const slower = 2
