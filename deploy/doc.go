// Package deploy holds what an operator copies: systemd units, a compose file,
// bucket policies, the bucket's lifecycle rule. There is no code here, only the
// tests that keep those files well-formed and within the rights they promise.
package deploy
