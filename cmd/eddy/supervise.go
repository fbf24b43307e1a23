package main

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer/control"
)

func newSuperviseCommand() *cobra.Command {
	var o control.SuperviseOptions
	var health bool
	cmd := &cobra.Command{
		Use:   "supervise --socket S -- CMD [ARG...]",
		Short: "be the node's parent, and hold it still for a backup",
		Long: `supervise runs CMD, forwards signals to it, reaps what it leaves behind and exits
with its exit code; it may be PID 1 of a container. Through its socket eddy backup
stops the node for a moment: the node is started again when the backup asks for it,
when the backup dies, and at the deadline.

With --health it asks the supervise at --socket, and exits with 0 while the node
runs or is held: the liveness probe of a container.`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case o.Socket == "":
				return hint.Add(fmt.Errorf("%w: supervise needs --socket", errUsage), "for example --socket /run/eddy/node.sock")
			case health && len(args) > 0:
				return fmt.Errorf("%w: --health takes no command", errUsage)
			case !health && len(args) == 0:
				return hint.Add(fmt.Errorf("%w: supervise needs the node's command", errUsage), "put it after --")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if health {
				ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
				defer cancel()
				return control.Health(ctx, o.Socket)
			}
			o.Argv = args
			o.Log = newLog(cmd.ErrOrStderr(), flagValue(cmd, "log-format"), "supervise")
			if home := flagValue(cmd, "home"); home != "" {
				o.SwapFile = filepath.Join(home, ".eddy", "swap.json")
			}
			// Signals are the node's, once each: Supervise forwards them itself.
			code, err := control.Supervise(context.WithoutCancel(cmd.Context()), o)
			switch {
			case err != nil && code > 1: // the command cannot be run
				o.Log.Error().Err(err).Send()
				return childExit(code)
			case err != nil:
				return err
			case code != 0:
				return childExit(code)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.StringVar(&o.Socket, "socket", "", "unix socket to listen on; in the home only under .eddy")
	f.DurationVar(&o.StopTimeout, "stop-timeout", control.DefaultTimeout, "how long the node may take to stop")
	f.DurationVar(&o.MaxHold, "max-hold", 15*time.Minute, "longest hold that may be asked for")
	f.DurationVar(&o.MaxHeldPerHour, "max-held-per-hour", 30*time.Minute, "how long the node may be held within an hour")
	f.IntSliceVar(&o.AllowUIDs, "allow-uid", nil, "users that may use the socket, beside root and the one that runs this")
	f.IntVar(&o.AllowGID, "allow-gid", 0, "group that may use the socket, and owns it")
	f.IntSliceVar(&o.CleanExit, "clean-exit", []int{0, 130, 143}, "exit codes of the node that mean a clean stop")
	f.BoolVar(&health, "health", false, "ask the supervise at --socket instead of being one")
	return cmd
}

// flagValue reads a flag of the root command, "" where there is none.
func flagValue(cmd *cobra.Command, name string) string {
	if f := cmd.Flag(name); f != nil {
		return f.Value.String()
	}
	return ""
}
