package zookeeper

import (
	"context"
	"errors"
	"fmt"

	"github.com/eddy-backup/eddy/internal/check"
)

// Checks tells whether the other servers can be asked to attest a backup.
func (r *Replica) Checks(ctx context.Context) []check.Finding {
	const name = "attest"
	asked, can := 0, 0
	id, err := readMyID(r.o.DataDir)
	if err != nil {
		id = "" // that it cannot be read others say
	}
	for _, s := range r.o.Conf.Servers {
		if r.isSelf(s, id) {
			continue
		}
		asked++
		if _, err := ask(ctx, s.Client, "hash"); err == nil || !errors.Is(err, errUnlisted) {
			can++
		}
	}
	if asked == 0 {
		return nil
	}
	if can == 0 {
		return []check.Finding{{Name: name, Level: check.Warn, Said: "no other server answers hash, so none can attest a backup", Hint: "set 4lw.commands.whitelist=srvr,hash in their zoo.cfg"}}
	}
	return []check.Finding{check.Good(name, fmt.Sprintf("%d of %d other servers can be asked for their digests", can, asked))}
}
