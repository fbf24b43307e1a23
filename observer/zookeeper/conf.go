package zookeeper

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/eddy-backup/eddy/internal/hint"
)

// Server is one of the ensemble.
type Server struct {
	ID     string // N of server.N; "" where the configuration does not tell
	Client string // host:port of its clients
	// Election is host:port on which it listens for the others, also while it serves
	// nobody; "" where it is not known.
	Election string
	// Observer: it does not vote. Where that is not known a server that does not
	// answer counts as one that votes.
	Observer bool
}

// Conf is what a zoo.cfg says.
type Conf struct {
	DataDir, LogDir string
	Client          string // host:port of this server's clients
	Servers         []Server
	Weighted        bool // votes have weights, or groups
}

// maxConf bounds a zoo.cfg, in bytes.
const maxConf = 1 << 20

// ReadConf reads a zoo.cfg and the dynamic file that it names.
func ReadConf(file string) (Conf, error) {
	keys, err := readProperties(file)
	if err != nil {
		return Conf{}, err
	}
	if more := keys["dynamicConfigFile"]; more != "" {
		dynamic, err := readProperties(more)
		if err != nil {
			return Conf{}, err
		}
		for k, v := range dynamic {
			keys[k] = v
		}
	}
	c, err := parseConf(keys)
	if err != nil {
		return c, fmt.Errorf("%s: %w", file, err)
	}
	return c, nil
}

func readProperties(file string) (map[string]string, error) {
	st, err := os.Stat(file)
	if err == nil && st.Size() > maxConf {
		err = fmt.Errorf("%s is larger than %d bytes", file, maxConf)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, hint.Add(fmt.Errorf("read the configuration of ZooKeeper: %w", err), "set `replica.zookeeper.config` to the file that the server is started with; eddy's user must be able to read it")
	}
	return properties(string(b)), nil
}

// properties reads lines KEY=VALUE.
func properties(text string) map[string]string {
	out := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == '!' {
			continue
		}
		key, value, _ := strings.Cut(line, "=")
		out[strings.TrimSpace(key)] = strings.TrimSpace(value)
	}
	return out
}

func parseConf(keys map[string]string) (c Conf, err error) {
	c.DataDir, c.LogDir = keys["dataDir"], keys["dataLogDir"]
	if !filepath.IsAbs(c.DataDir) {
		return c, hint.Add(fmt.Errorf("dataDir is %q", c.DataDir), "name the data directory from the root, in replica.zookeeper.data_dir too")
	}
	if c.LogDir != "" && !filepath.IsAbs(c.LogDir) {
		return c, hint.Add(fmt.Errorf("dataLogDir is %q", c.LogDir), "name the log directory from the root, in replica.zookeeper.data_log_dir too")
	}
	port := keys["clientPort"]
	for k, v := range keys {
		kind, id, numbered := strings.Cut(k, ".")
		if kind == "group" || kind == "weight" {
			c.Weighted = true
		}
		if !numbered || kind != "server" {
			continue
		}
		s, err := parseServer(id, v, port)
		if err != nil {
			return c, fmt.Errorf("%s: %w", k, err)
		}
		c.Servers = append(c.Servers, s)
	}
	slices.SortFunc(c.Servers, func(a, b Server) int {
		if len(a.ID) != len(b.ID) {
			return len(a.ID) - len(b.ID)
		}
		return strings.Compare(a.ID, b.ID)
	})
	if self, ok := c.self(); ok && port == "" {
		_, port, _ = net.SplitHostPort(self.Client)
	}
	if port != "" {
		host := keys["clientPortAddress"]
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		c.Client = net.JoinHostPort(host, port)
	}
	return c, nil
}

// self is the server whose number is in myid.
func (c Conf) self() (Server, bool) {
	id, err := readMyID(c.DataDir)
	i := slices.IndexFunc(c.Servers, func(s Server) bool { return s.ID == id })
	if err != nil || id == "" || i < 0 {
		return Server{}, false
	}
	return c.Servers[i], true
}

// readMyID is the number of the server that a data directory belongs to, "" where it
// has none.
func readMyID(dataDir string) (string, error) {
	b, err := readSmall(filepath.Join(dataDir, myID))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	id := strings.TrimSpace(string(b[:min(len(b), 32)]))
	if _, err := strconv.ParseInt(id, 10, 64); err != nil {
		return "", fmt.Errorf("%s holds %.20q, which is no number", filepath.Join(dataDir, myID), id)
	}
	return id, nil
}

// parseServer reads HOST:PORT:PORT[:ROLE][;[HOST:]PORT], of several addresses the
// first, as QuorumPeer.QuorumServer does.
func parseServer(id, text, clientPort string) (Server, error) {
	s := Server{ID: id}
	first, client, _ := strings.Cut(text, ";")
	if addr, _, several := strings.Cut(first, "|"); several {
		if _, role, ok := strings.Cut(first[strings.LastIndexByte(first, '|'):], ":observer"); ok && role == "" {
			s.Observer = true
		}
		first = addr
	}
	host, rest := first, ""
	if strings.HasPrefix(first, "[") {
		end := strings.IndexByte(first, ']')
		if end < 0 {
			return s, fmt.Errorf("%q is no server", text)
		}
		host, rest = first[1:end], strings.TrimPrefix(first[end+1:], ":")
	} else {
		host, rest, _ = strings.Cut(first, ":")
	}
	parts := strings.Split(rest, ":")
	if host == "" || len(parts) < 2 {
		return s, fmt.Errorf("%q is no server", text)
	}
	s.Election = net.JoinHostPort(host, parts[1])
	s.Observer = s.Observer || len(parts) > 2 && parts[2] == "observer"
	if client != "" {
		if at, port, err := net.SplitHostPort(client); err == nil {
			clientPort = port
			if ip := net.ParseIP(at); at != "" && (ip == nil || !ip.IsUnspecified()) {
				host = at
			}
		} else {
			clientPort = client
		}
	}
	if clientPort != "" {
		s.Client = net.JoinHostPort(host, clientPort)
	}
	return s, nil
}
