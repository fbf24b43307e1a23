package job

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/uploader"
)

// A cluster that was brought back from a dump has the identity that it had, and goes
// on from an earlier position: by itself it does not tell that its history began anew.
// So that is counted behind the identity, in the incarnations of the backups: all
// eddies of a cluster read it there.
const historyMark = "+"

// historyOf takes an incarnation apart: the identity, and how often its history began
// anew since.
func historyOf(incarnation string) (identity string, again int) {
	at := strings.LastIndex(incarnation, historyMark)
	if at < 0 {
		return incarnation, 0
	}
	again, err := strconv.Atoi(incarnation[at+len(historyMark):])
	if err != nil || again < 1 {
		return incarnation, 0
	}
	return incarnation[:at], again
}

// history finds out which one of the cluster's histories s is of: the one of the
// newest backup, or with NewIncarn the one after that. A chain knows it by itself.
func (b *Backup) history(ctx context.Context, s *observer.State) error {
	b.again = 0
	if _, ok := b.Replica.(observer.Restorer); !ok {
		return nil
	}
	newest, err := b.Catalog.Latest(ctx)
	if errors.Is(err, uploader.ErrNoSuchBackup) || err == nil && newest.Manifest == nil {
		return nil
	}
	if err != nil {
		return err
	}
	identity, again := historyOf(newest.Manifest.Incarnation)
	if identity != s.Position.Incarnation {
		return nil // another cluster, which must be said as ever
	}
	if b.again = again; b.NewIncarn {
		b.again++
	}
	s.Position.Incarnation = b.ofHistory(s.Position.Incarnation)
	return nil
}

// ofHistory is the incarnation of a position that the replica, or its dump, tells.
func (b *Backup) ofHistory(identity string) string {
	if b.again == 0 {
		return identity
	}
	return identity + historyMark + strconv.Itoa(b.again)
}
