//go:build !lab

package job

// benchUnit is what the sizes of a bench's files, parts and volumes are multiples
// of, in bytes: a third of a file, an eighth of a part. A file of three units still
// has a frame of its own (256 KiB). With the tag lab all tests run on whole
// mebibytes, as large as parts really are.
const benchUnit = 128 << 10

// damagedKinds is how many kinds of buckets TestDamageInTheBucketIsFound damages:
// a directory and S3; with the tag lab also those that rot, and that have no sums.
const damagedKinds = 2
