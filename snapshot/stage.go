package snapshot

// Stage is the sealed directory from which an archive is made.
type Stage struct{}
