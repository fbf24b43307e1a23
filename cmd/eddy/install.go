package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/fsx"
	"github.com/eddy-backup/eddy/internal/hint"
)

// installed is what `eddy install` prints.
type installed struct {
	File    string `json:"file"`
	Version string `json:"version"`
}

func (installed) MessageType() string { return "installed" }
func (i installed) Line() string      { return "installed " + i.File + " (" + i.Version + ")" }

func (a *app) installCommand() *cobra.Command {
	return &cobra.Command{
		Use: "install DIR", Short: "copy this program into a directory, for another container", Args: cobra.ExactArgs(1),
		Long: `install copies the running program to DIR/eddy, with mode 0755, for an init
container: its image has no shell and no cp, and the node's image has no eddy. What
is there is replaced at once; who runs it goes on with the old one. DIR is made
where it is missing.`,
		Example: "  eddy install /eddy",
		RunE: func(cmd *cobra.Command, args []string) error {
			file, err := install(cmd.Context(), args[0])
			if err != nil {
				return hint.Add(fmt.Errorf("install: %w", err), "name a directory that this user may write to, with room for the program")
			}
			return a.result(installed{File: file, Version: version})
		},
	}
}

func install(ctx context.Context, dir string) (file string, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	// Several init containers may share the directory.
	tmp, err := os.MkdirTemp(dir, ".eddy-*")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	part, file := filepath.Join(tmp, "eddy"), filepath.Join(dir, "eddy")
	if _, err := fsx.Copy(ctx, "/proc/self/exe", part, 0o700); err != nil {
		return "", err
	}
	f, err := os.Open(part)
	if err != nil {
		return "", err
	}
	if err := errors.Join(f.Chmod(0o755), f.Sync(), f.Close()); err != nil {
		return "", err
	}
	if err := os.Rename(part, file); err != nil {
		return "", err
	}
	return file, fsx.SyncDir(dir)
}
