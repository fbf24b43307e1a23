package config

import "strings"

// Swarm is a manager of a Docker Swarm.
type Swarm struct {
	// DataRoot is the engine's, as `docker info` has it: Docker Root Dir.
	DataRoot string `yaml:"data_root" default:"/var/lib/docker"`
	// Socket is the engine's: a path, or tcp://host:port; "": what DOCKER_HOST says, else
	// /var/run/docker.sock.
	Socket string `yaml:"socket"`
	// UnlockKey is where the key of a locked swarm lies for a start after which eddy does
	// not remember it.
	UnlockKey SwarmUnlockKey `yaml:"unlock_key"`
	// AllowRunningTasks allows to stop an engine that runs containers.
	AllowRunningTasks string `yaml:"allow_running_tasks" default:"false" enum:"true,false"`
	// Canary is the name of a config or a secret that a drill must find.
	Canary string `yaml:"canary"`
}

// SwarmUnlockKey is one of the two.
type SwarmUnlockKey struct {
	// File has mode 0600 and holds one key a line, or what `docker swarm unlock-key`
	// prints.
	File string `yaml:"file"`
	// Command prints it. No shell.
	Command []string `yaml:"command"`
}

func (l *loader) checkSwarm() {
	const section = "replica.swarm"
	s := l.c.Replica.Swarm
	l.absolute(section+".data_root", s.DataRoot)
	l.checkDocker(section, Docker{Container: "x", Socket: s.Socket})
	if strings.HasPrefix(s.UnlockKey.File, "SWMKEY-") { // not repeated: it is a secret
		l.problem(section+".unlock_key.file", "holds a key", "write the key into a file of mode 0600, and its name here")
	} else {
		l.absolute(section+".unlock_key.file", s.UnlockKey.File)
	}
	if len(s.UnlockKey.Command) > 0 && !l.bad[section+".unlock_key.command"] {
		l.argv(section+".unlock_key.command", s.UnlockKey.Command)
		if s.UnlockKey.File != "" {
			l.problem(section+".unlock_key.command", "set beside file", "the key lies in one place: leave only that")
		}
	}
	if k := l.c.Replica.Control; k.Docker.Container != "" {
		l.problem("replica.control.docker", "cannot stop the engine itself", "write control: {systemd: {unit: docker.service}}")
	}
}
