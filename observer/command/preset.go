package command

import "strings"

// Preset fills in what a product's own commands are, where nothing is said. image is
// the product's with its version, args what its commands get beside their own. The
// commands are those of the products' documents (UCP 2.1 and 3, DTR 2.x); they were
// not tried on the products.
//
// Both run with --log-driver none, or the dump lands in the engine's log. UCP is asked
// for no passphrase: the dump is encrypted by eddy, and a passphrase would stand in
// the arguments of a process.
func (o Options) Preset(name, image string, args []string) Options {
	var dump, restore []string
	switch name {
	case "ucp":
		run := []string{"docker", "run", "--rm", "-i", "--name", "ucp", "--log-driver", "none", "-v", "/var/run/docker.sock:/var/run/docker.sock", image}
		dump = join(run, []string{"backup", "--no-passphrase", "--include-logs=false"}, args)
		restore = join(run, []string{"restore"}, args)
		if o.Expect.Members == 0 && len(o.Expect.Contains) == 0 {
			o.Expect.Contains, o.Expect.Members = []string{"ucp-controller-server-certs/key.pem"}, 27
		}
	case "dtr":
		run := []string{"docker", "run", "--rm", "-i", "--log-driver", "none"}
		for _, v := range sortedVars(o.EnvFiles) { // by name only: the value comes with the environment
			run = append(run, "-e", v)
		}
		run = append(run, image)
		dump, restore = join(run, []string{"backup"}, args), join(run, []string{"restore"}, args)
	}
	if o.Expect.Form == AnyForm || o.Expect.Form == "" {
		o.Expect.Form = TarForm
	}
	if len(o.Argv) == 0 {
		o.Argv = dump
	}
	if len(o.Restore) == 0 {
		o.Restore = restore
	}
	if len(o.Precheck) == 0 {
		o.Precheck = []string{"docker", "node", "ls", "--quiet"} // a manager with a quorum
	}
	if _, version, ok := strings.Cut(image, ":"); ok && len(o.Version) == 0 {
		o.Version = []string{"echo", version}
	}
	return o
}

func join(parts ...[]string) (all []string) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}
