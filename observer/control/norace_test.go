//go:build !race

package control

// slower stretches the times of tests, see race_test.go.
const slower = 1
