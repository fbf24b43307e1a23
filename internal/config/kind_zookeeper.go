package config

import (
	"fmt"
	"path/filepath"
)

// Zookeeper is a server of an ensemble of ZooKeeper.
type Zookeeper struct {
	// Config is the zoo.cfg that the server is started with; what is set beside it
	// goes before.
	Config string `yaml:"config"`
	// DataDir and DataLogDir are the server's dataDir and dataLogDir; DataLogDir "": it
	// has one directory.
	DataDir    string `yaml:"data_dir"`
	DataLogDir string `yaml:"data_log_dir"`
	// ClientAddress is host:port of the server itself.
	ClientAddress string `yaml:"client_address"`
	// Servers are host:port for clients of all servers, this one too.
	Servers []string `yaml:"servers"`
	// AllowOutage allows to stop the only server of an ensemble.
	AllowOutage string `yaml:"allow_outage" default:"false" enum:"true,false"`
}

func (l *loader) checkZookeeper() {
	const section = "replica.zookeeper"
	z := l.c.Replica.Zookeeper
	for key, dir := range map[string]string{".config": z.Config, ".data_dir": z.DataDir, ".data_log_dir": z.DataLogDir} {
		l.absolute(section+key, dir)
		if !l.bad[section+key] && dir != "" && filepath.Clean(dir) == "/" {
			l.problem(section+key, "the root directory holds no ensemble", "name the directory with version-2 in it")
		}
	}
	if a := z.ClientAddress; a != "" && !l.bad[section+".client_address"] && !hostText.MatchString(a) {
		l.problem(section+".client_address", quote(a)+" is no address", "write host:2181")
	}
	if z.Config == "" && z.ClientAddress == "" && z.DataDir != "" && !l.badBelow(section) {
		l.problem(section+".client_address", "missing beside data_dir", "write host:2181, or name the server's zoo.cfg in config")
	}
	seen := map[string]int{}
	for i, s := range z.Servers {
		key := fmt.Sprintf("%s.servers[%d]", section, i)
		switch at, twice := seen[s]; {
		case l.bad[section+".servers"]:
		case !hostText.MatchString(s):
			l.problem(key, quote(s)+" is no address", "write host:2181, where its clients connect")
		case twice:
			l.problem(key, fmt.Sprintf("the same as servers[%d]", at), "remove one of the two")
		}
		seen[s] = i
	}
}
