// Package snapshot turns the files of a held replica into archives and back.
//
// It fills and seals a [Stage], cuts what lies in it into a plan of volumes and
// frames, encodes those frames from one sequential read, writes the index that
// makes every frame addressable, and extracts archives again, with every hash
// checked. FORMAT.md beside this file specifies the bytes.
//
// It refuses to know where the bytes go or come from: no network, no bucket, no
// cluster. Its invariants: nobody writes to a stage once it is sealed; nothing is
// read twice; what a frame decodes to is a function of the sealed stage alone;
// an extraction that returns nil has compared every byte with the index.
package snapshot
