package detect

import (
	"context"
	"errors"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"
)

// Look gathers what this machine runs. What cannot be looked at is said in Blind.
func Look(ctx context.Context) Host {
	h := Host{User: lookupUser, Chain: RPC{Timeout: 3 * time.Second}}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var err error
	blind := func(what string) {
		if err != nil && !errors.Is(err, ErrNotFound) {
			h.Blind = append(h.Blind, what+": "+bareError(err).Error())
		}
	}
	h.Units, err = readUnits(ctx)
	blind("systemd")
	h.Processes, err = readProcesses("/proc")
	blind("processes")
	socket := "/var/run/docker.sock"
	if s, ok := strings.CutPrefix(os.Getenv("DOCKER_HOST"), "unix://"); ok {
		socket = s
	}
	h.Containers, err = readContainers(ctx, socket)
	blind("docker")
	return h
}

func lookupUser(name string) (User, error) {
	u, err := user.Lookup(name)
	if err != nil {
		u, err = user.LookupId(name)
	}
	if err != nil {
		return User{}, err
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	return User{Name: u.Username, Home: u.HomeDir, UID: uid, GID: gid}, errors.Join(uerr, gerr)
}
