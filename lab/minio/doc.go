// Package minio holds nothing of its own: its module pins minio, the second real
// S3 server beside versitygw, and `make lab` builds it. It is a module apart
// so that what each of the two wants of the modules that they share stays its own.
package minio
