//go:build lab

package uploader

const unit = mib
