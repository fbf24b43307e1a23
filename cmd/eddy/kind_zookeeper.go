package main

import (
	"cmp"
	"context"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/observer/zookeeper"
)

// zookeeperServer is a server of an ensemble as the job wants it.
type zookeeperServer struct{ *zookeeper.Replica }

func (zookeeperServer) Facts(context.Context) (job.Facts, error) { return job.Facts{}, nil }

func newZookeeper(c *config.Config) (job.Replica, error) {
	o, err := zookeeperOptions(c)
	if err != nil {
		return nil, err
	}
	if o.Control, err = newControl(c); err != nil {
		return nil, err
	}
	r, err := zookeeper.New(o)
	if err != nil {
		return nil, err
	}
	return zookeeperServer{r}, nil
}

// zookeeperOptions joins what eddy's configuration says with what the server's does.
func zookeeperOptions(c *config.Config) (o zookeeper.Options, err error) {
	z := c.Replica.Zookeeper
	if z.Config != "" {
		if o.Conf, err = zookeeper.ReadConf(z.Config); err != nil {
			return o, err
		}
	}
	o.Conf.DataDir = cmp.Or(z.DataDir, o.Conf.DataDir)
	o.Conf.LogDir = cmp.Or(z.DataLogDir, o.Conf.LogDir)
	o.Conf.Client = cmp.Or(z.ClientAddress, o.Conf.Client)
	if len(z.Servers) > 0 {
		o.Conf.Servers = nil
		for _, s := range z.Servers {
			o.Conf.Servers = append(o.Conf.Servers, zookeeper.Server{Client: s})
		}
	}
	o.Drill = zookeeper.Driller{Command: c.Drill.Command, Check: c.Drill.Check, Timeout: c.Drill.Timeout.D()}
	o.Cluster, o.Outage = c.Cluster, z.AllowOutage == "true"
	o.Timeout, o.Deadline = c.Replica.Control.Timeout.D(), c.Replica.Control.Deadline.D()
	return o, nil
}
