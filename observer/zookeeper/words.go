package zookeeper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// askWithin bounds one question to one server.
const askWithin = 5 * time.Second

const maxAnswer = 1 << 20 // bytes

// errUnlisted: the server does not answer this word.
var errUnlisted = errors.New("not in its 4lw.commands.whitelist")

// errIdle: it runs, and serves nobody: it has no quorum, or looks for its leader.
var errIdle = errors.New("it is not serving")

// ask says a four-letter word to a server and returns what it says.
func ask(ctx context.Context, addr, word string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, askWithin)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	end, _ := ctx.Deadline()
	if err := conn.SetDeadline(end); err != nil {
		return "", err
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := io.WriteString(conn, word); err != nil {
		return "", err
	}
	b, err := io.ReadAll(io.LimitReader(conn, maxAnswer))
	text := string(b)
	switch {
	case strings.Contains(text, "is not executed because it is not in the whitelist"):
		return "", fmt.Errorf("%s: %w", word, errUnlisted)
	case strings.HasPrefix(text, "This ZooKeeper instance is not currently serving requests"):
		return "", errIdle
	case err != nil:
		return "", err
	case text == "":
		return "", fmt.Errorf("%s got no answer", word)
	}
	return text, nil
}

// The modes that a server says it is in.
const (
	modeLeader     = "leader"
	modeFollower   = "follower"
	modeObserver   = "observer"
	modeStandalone = "standalone"
)

// srvr is what a server says of itself.
type srvr struct {
	version string
	mode    string
	zxid    uint64
	nodes   int64
}

func askServer(ctx context.Context, addr string) (srvr, error) {
	text, err := ask(ctx, addr, "srvr")
	if err != nil {
		return srvr{}, err
	}
	return parseSrvr(text)
}

func parseSrvr(text string) (s srvr, err error) {
	seen := false
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		switch key {
		case "Zookeeper version":
			s.version, _, _ = strings.Cut(value, ",")
			s.version, _, _ = strings.Cut(s.version, "-") // of the build
		case "Zxid":
			s.zxid, err = strconv.ParseUint(strings.TrimPrefix(value, "0x"), 16, 64)
			if err != nil {
				return s, fmt.Errorf("its Zxid is %.40q", value)
			}
			seen = true
		case "Mode":
			s.mode = value
		case "Node count":
			s.nodes, err = strconv.ParseInt(value, 10, 64)
			if err != nil {
				return s, fmt.Errorf("its node count is %.40q", value)
			}
		}
	}
	if s.mode == "" || !seen {
		return s, errors.New("its answer to srvr has no mode or no zxid: it is no ZooKeeper")
	}
	return s, nil
}
