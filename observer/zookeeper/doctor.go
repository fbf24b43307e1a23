package zookeeper

import (
	"context"
	"errors"
	"fmt"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/observer"
)

// Checks looks at the ensemble: who serves, who leads, how many more may fail, and
// whether this server may be stopped now.
func (r *Replica) Checks(ctx context.Context) []check.Finding {
	s, err := r.Describe(ctx)
	if err != nil {
		return []check.Finding{{Name: "server", Level: check.Fail, Said: err.Error(), Hint: hint.Of(err)}}
	}
	out := []check.Finding{check.Good("server", fmt.Sprintf("%s at %s, %s", s.Program(), s.Position, s.Node.Role))}
	q := observer.QuorumOf(s.Members)
	said := fmt.Sprintf("%d of %d voters serve, %d must; %d leader", q.Reachable, q.Voters, q.Needed, q.Leaders)
	switch {
	case q.Voters == 0:
		out = append(out, check.Finding{Name: "ensemble", Level: check.Warn, Said: "nobody knows the other servers", Hint: "set `replica.zookeeper.config` to the zoo.cfg that names them"})
	case s.Node.Role != modeStandalone && q.Leaders != 1:
		out = append(out, check.Finding{Name: "ensemble", Level: check.Fail, Said: said, Hint: "start the servers that are down, and wait for the election; with two leaders compare the server lists of their configurations"})
	case q.Bears() <= 0 && q.Voters > 1:
		out = append(out, check.Finding{Name: "ensemble", Level: check.Warn, Said: said + ": none more may fail", Hint: "bring the others back; three voters bear the loss of one, two of none"})
	default:
		out = append(out, check.Good("ensemble", fmt.Sprintf("%s: %d more may fail", said, q.Bears())))
	}
	for _, m := range s.Members {
		if !m.Reachable {
			out = append(out, check.Finding{Name: "member", Level: check.Warn, Said: fmt.Sprintf("server %s at %s does not serve", m.ID, m.Address), Hint: "look whether it runs, and whether srvr reaches it from here"})
		}
	}
	if err := r.Gate(ctx, s); err != nil {
		out = append(out, check.Finding{Name: "gate", Level: check.Fail, Said: err.Error(), Hint: hint.Of(err)})
	} else {
		out = append(out, check.Good("gate", "this server may be stopped for a backup now"))
	}
	return append(out, r.attesters(ctx))
}

func (r *Replica) attesters(ctx context.Context) check.Finding {
	const name = "attest"
	asked, can := 0, 0
	id, _ := readMyID(r.o.DataDir) // Describe has read it
	for _, s := range r.o.Conf.Servers {
		if r.isSelf(s, id) {
			continue
		}
		asked++
		if _, err := ask(ctx, s.Client, "hash"); err == nil || !errors.Is(err, errUnlisted) {
			can++
		}
	}
	if asked > 0 && can == 0 {
		return check.Finding{Name: name, Level: check.Warn, Said: "no other server answers hash, so none can attest a backup", Hint: "set 4lw.commands.whitelist=srvr,hash in their zoo.cfg"}
	}
	return check.Good(name, fmt.Sprintf("%d of %d other servers can be asked for their digests", can, asked))
}
