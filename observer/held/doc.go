// Package held holds a node still by a control, for every kind of system whose node
// must be stopped to be captured.
//
// It knows package control and what observers call its errors. It refuses to know any
// kind, and when a node may be stopped: its caller has asked that. Its invariant: what
// was captured counts only if the node stood still to the end of the capture.
package held
