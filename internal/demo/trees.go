package demo

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// compareTrees compares names, types, modes, sizes and contents of two
// directories and returns the number of files. eddy's own work directory and a
// sign state, which no archive holds, are left aside.
func compareTrees(a, b string) (int, error) {
	left, err := describe(a)
	if err != nil {
		return 0, err
	}
	right, err := describe(b)
	if err != nil {
		return 0, err
	}
	files := 0
	for name, l := range left {
		r, ok := right[name]
		if !ok {
			return 0, fmt.Errorf("%s is only in %s", name, filepath.Base(a))
		}
		if l != r {
			return 0, fmt.Errorf("%s differs: %s against %s", name, l, r)
		}
		if strings.HasPrefix(l, "-") {
			files++
		}
	}
	for name := range right {
		if _, ok := left[name]; !ok {
			return 0, fmt.Errorf("%s is only in %s", name, filepath.Base(b))
		}
	}
	return files, nil
}

func describe(dir string) (map[string]string, error) {
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		switch {
		case name == ".":
			return nil
		case name == ".eddy":
			return fs.SkipDir
		case e.Name() == "priv_validator_state.json":
			return nil
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		line := st.Mode().String()
		if st.Mode().IsRegular() {
			sum, err := hashFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x %d", st.Size(), sum, st.ModTime().Unix())
		}
		if st.Mode()&fs.ModeSymlink != 0 {
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		out[name] = line
		return nil
	})
	return out, err
}

func hashFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
