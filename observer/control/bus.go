package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/eddy-backup/eddy/internal/hint"
)

// systemd is what is asked of systemd: over D-Bus, or by sudo. A start or a stop
// queues a job and returns; what becomes of it the unit tells. Each question has
// a connection of its own, so that there is nothing that breaks between two.
type systemd struct {
	sudo bool // starts and stops go by sudo; questions need no rights
}

// busTimeout is for one question; polkit may have to be started first.
const busTimeout = 15 * time.Second

// systemdDest is systemd's name on the bus, and of its objects' interfaces.
const systemdDest = "org.freedesktop.systemd1"

// ask connects and asks, within busTimeout.
func (s systemd) ask(ctx context.Context, what, name string, do func(context.Context, *dbus.Conn) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, busTimeout, fmt.Errorf("no answer within %s", busTimeout))
	defer cancel()
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return hint.Add(fmt.Errorf("connect to systemd: %w", join(context.Cause(ctx), err)), "eddy needs the D-Bus system bus, /run/dbus/system_bus_socket; as root: `systemctl start dbus.socket`")
	}
	defer conn.Close()
	if err := do(ctx, conn); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return fmt.Errorf("systemd: %s %s: %w", what, name, err)
	}
	return nil
}

// call calls a method of systemd's manager.
func call(ctx context.Context, conn *dbus.Conn, method string, args ...any) *dbus.Call {
	return conn.Object(systemdDest, "/org/freedesktop/systemd1").CallWithContext(ctx, systemdDest+".Manager."+method, 0, args...)
}

// unit asks for all that systemd knows of a unit. One that does not exist has a
// load state of not-found.
func (s systemd) unit(ctx context.Context, name string) (u unit, err error) {
	err = s.ask(ctx, "look at", name, func(ctx context.Context, conn *dbus.Conn) error {
		var path dbus.ObjectPath
		if err := call(ctx, conn, "LoadUnit", name).Store(&path); err != nil {
			return err
		}
		var props map[string]dbus.Variant
		// No interface: the properties of all that the unit has.
		if err := conn.Object(systemdDest, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.GetAll", 0, "").Store(&props); err != nil {
			return err
		}
		p := make(map[string]any, len(props))
		for k, v := range props {
			p[k] = v.Value()
		}
		u = unitOf(name, p)
		return nil
	})
	return u, err
}

// await looks at a unit until it is as wanted, or ctx is done. A systemd that
// does not answer (it may be re-executing itself) is asked again.
func (s systemd) await(ctx context.Context, name string, wanted func(unit) bool) (unit, error) {
	for {
		u, err := s.unit(ctx, name)
		if err == nil && wanted(u) {
			return u, nil
		}
		if sleep(ctx, pollEvery) != nil {
			return u, join(context.Cause(ctx), err)
		}
	}
}

// start, stop and resetFailed ask for what their names say.
func (s systemd) start(ctx context.Context, name string) error { return s.order(ctx, "start", name) }
func (s systemd) stop(ctx context.Context, name string) error  { return s.order(ctx, "stop", name) }
func (s systemd) resetFailed(ctx context.Context, name string) error {
	return s.order(ctx, "reset-failed", name)
}

func (s systemd) order(ctx context.Context, verb, name string) error {
	if s.sudo {
		return runSudo(ctx, append([]string{"sudo", "-n", "--"}, sudoArgv(verb, name)...))
	}
	return s.ask(ctx, verb, name, func(ctx context.Context, conn *dbus.Conn) error {
		var err error
		switch verb {
		case "start":
			err = call(ctx, conn, "StartUnit", name, "replace").Err
		case "stop":
			err = call(ctx, conn, "StopUnit", name, "replace").Err
		default:
			err = call(ctx, conn, "ResetFailedUnit", name).Err
		}
		if denied(err) {
			err = hint.Add(fmt.Errorf("%w: %w", errDenied, err), polkitHint)
		}
		return err
	})
}

// may asks whether this process may start or stop a unit, without doing it;
// errDenied is in the chain where it may not.
//
// By D-Bus it sends the very request, in a job mode that this verb cannot have:
// systemd asks polkit first, and refuses the mode after that. polkit itself
// answers questions about one unit only to root. (Measured with systemd 252; the
// mode "triggering" is known since 246.)
func (s systemd) may(ctx context.Context, verb, name string) error {
	if s.sudo {
		if err := runSudo(ctx, append([]string{"sudo", "-n", "-l", "--"}, sudoArgv(verb, name)...)); err != nil {
			return fmt.Errorf("%w: %w", errDenied, err)
		}
		return nil
	}
	if os.Geteuid() == 0 {
		return nil
	}
	return s.ask(ctx, "may eddy "+verb, name, func(ctx context.Context, conn *dbus.Conn) error {
		method, mode := "StartUnit", "triggering"
		if verb == "stop" {
			method, mode = "StopUnit", "isolate"
		}
		err := call(ctx, conn, method, name, mode).Err
		var e dbus.Error
		switch {
		case denied(err):
			return hint.Add(fmt.Errorf("%w: %w", errDenied, err), polkitHint)
		case errors.As(err, &e) && strings.Contains(e.Error(), "only valid for"):
			return nil
		case err == nil:
			return errors.New("an impossible request was taken")
		default:
			return hint.Add(err, "where systemd is older than version 246 set `replica.control.systemd.rights: sudo`")
		}
	})
}

// errDenied is in the chain of a refusal for want of rights.
var errDenied = errors.New("not allowed")

// What gives the right, in the way that the configuration names.
const (
	polkitHint = "install deploy/systemd/50-eddy.rules as /etc/polkit-1/rules.d/50-eddy.rules, mode 0644, with eddy's user and the unit in place of gaia and gaiad; where polkit is older than 0.106 set `replica.control.systemd.rights: sudo`"
	sudoHint   = "install deploy/systemd/sudoers as /etc/sudoers.d/eddy, mode 0440, with eddy's user and the unit in place of gaia and gaiad"
)

func denied(err error) bool {
	var e dbus.Error
	return errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.AccessDenied" ||
		e.Name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired")
}

// sudoArgv is the command that deploy's sudoers lines allow word for word.
func sudoArgv(verb, name string) []string {
	return []string{"/usr/bin/systemctl", "--no-ask-password", "--no-block", verb, name}
}

// runSudo runs a command of sudo's. It is not ended with ctx: what it was asked
// to do may be half done.
func runSudo(ctx context.Context, argv []string) error {
	c, err := spawn(argv, nodeEnv(), true, nil)
	if err != nil {
		return hint.Add(err, "install sudo, or set `replica.control.systemd.rights: polkit`")
	}
	defer c.free()
	within, cancel := context.WithTimeout(context.WithoutCancel(ctx), busTimeout)
	defer cancel()
	if err := c.wait(within); err != nil {
		_ = c.proc.kill()
		c.ended(time.Second)
		return fmt.Errorf("sudo did not end: %w", err)
	}
	if err := c.outcome(); err != nil {
		return hint.Add(fmt.Errorf("%s: %w", strings.Join(argv, " "), err), sudoHint)
	}
	return nil
}
