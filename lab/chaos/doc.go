// Package chaos does to the real eddy what nights do: it kills and freezes it, cuts
// and stalls its connections, answers it with lies, and fills and breaks its disks,
// while a real chain runs and a real S3 server listens. Then the faults stop, eddy
// is run again, and a checker looks at what is left.
//
// It knows eddy by its command line, its files in the workdir, and the formats in
// the bucket, and imports none of its packages: the checker reads the bucket by the
// S3 API and the archives by zstd and tar. Its invariant: what it started has ended
// and what it mounted is gone when Run has returned.
package chaos
