package detect

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// maxAnswer bounds what is read of one answer, of an engine or of a node, bytes.
const maxAnswer = 4 << 20

// readContainers asks the engine behind a unix socket. Without one the error is
// ErrNotFound.
func readContainers(ctx context.Context, socket string) ([]Container, error) {
	if _, err := os.Stat(socket); errors.Is(err, os.ErrNotExist) {
		return nil, ErrNotFound
	}
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	var list []struct{ ID string }
	if err := getJSON(ctx, client, "http://engine/containers/json?all=1", &list); err != nil {
		return nil, err
	}
	var out []Container
	for _, c := range list {
		var d inspected
		if err := getJSON(ctx, client, "http://engine/containers/"+url.PathEscape(c.ID)+"/json", &d); err != nil {
			return nil, err
		}
		out = append(out, d.container())
	}
	return out, nil
}

// inspected is what matters here of the engine's answer.
type inspected struct {
	Name   string
	State  struct{ Running bool }
	Config struct {
		User       string
		WorkingDir string
		Entrypoint []string
		Cmd        []string
		Env        []string
		Labels     map[string]string
	}
	HostConfig      struct{ NetworkMode string }
	Mounts          []struct{ Source, Destination string }
	NetworkSettings struct {
		IPAddress string
		Networks  map[string]struct{ IPAddress string }
		Ports     map[string][]struct{ HostIP, HostPort string }
	}
}

func (d inspected) container() Container {
	c := Container{
		Name: strings.TrimPrefix(d.Name, "/"), User: d.Config.User, Dir: d.Config.WorkingDir,
		Argv: append(d.Config.Entrypoint, d.Config.Cmd...), Env: environ(d.Config.Env),
		Running: d.State.Running, Ports: map[string]string{}, Files: composed(d.Config.Labels),
	}
	for _, m := range d.Mounts {
		if m.Source != "" {
			c.Mounts = append(c.Mounts, Mount{m.Source, m.Destination})
		}
	}
	if d.HostConfig.NetworkMode == "host" {
		return c
	}
	c.Addr = d.NetworkSettings.IPAddress
	for _, n := range d.NetworkSettings.Networks {
		if c.Addr == "" || n.IPAddress != "" && n.IPAddress < c.Addr { // always the same one
			c.Addr = n.IPAddress
		}
	}
	if c.Addr == "" {
		c.Addr = "0.0.0.0" // it does not run: only what it publishes is known
	}
	for port, bound := range d.NetworkSettings.Ports {
		number, proto, _ := strings.Cut(port, "/")
		if proto != "tcp" || len(bound) == 0 {
			continue
		}
		host := bound[0].HostIP
		if ip, err := netip.ParseAddr(host); err != nil || ip.IsUnspecified() {
			host = "127.0.0.1"
		}
		c.Ports[number] = net.JoinHostPort(host, bound[0].HostPort)
	}
	return c
}

// composed are the files from which docker compose has made a container, by the
// labels that it gives it.
func composed(labels map[string]string) (files []string) {
	const project = "com.docker.compose.project."
	for _, label := range []string{"config_files", "environment_file"} {
		for file := range strings.SplitSeq(labels[project+label], ",") {
			if filepath.IsAbs(file) {
				files = append(files, file)
			}
		}
	}
	if dir := labels[project+"working_dir"]; filepath.IsAbs(dir) && exists(filepath.Join(dir, ".env")) {
		files = append(files, filepath.Join(dir, ".env"))
	}
	return files
}

// getJSON reads a bounded answer.
func getJSON(ctx context.Context, client *http.Client, address string, into any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err // without the address
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers %s", resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxAnswer)).Decode(into); err != nil {
		return fmt.Errorf("its answer is not what was expected: %w", err)
	}
	return nil
}
