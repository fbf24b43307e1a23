// Package uploader is the bucket: resumable uploads, ranged reads, the catalog
// of backups with their manifests and the pointer to the latest, and retention.
//
// It refuses to know any cluster and any archive format: what it sends are
// pieces of bytes, what it keeps are keys, sizes and checksums. Its invariants:
// no object is visible as a backup before every byte of it is stored and checked
// (the manifest is written last); latest never moves back inside an incarnation;
// every call to the store has a deadline of its own.
package uploader
