//go:build !lab

package uploader

// unit is what stands for a MiB in the sizes of the tests' objects, pieces and
// parts, in bytes: what they are about happens at the borders of parts, and needs no
// large ones. With the tag lab it is one, on the fakes as on real servers.
const unit = 128 << 10
