// Package alarm tells others what became of a run: it runs the operator's own
// commands, pings a dead man's switch, and writes metrics for the textfile
// collector of Prometheus' node_exporter.
//
// It refuses to know what a run is and to decide what is worth telling: it is
// given words and figures. Its invariants: nothing here takes longer than a bound
// that is written here; and the address of the switch, which is a secret, is part
// of no error.
package alarm
