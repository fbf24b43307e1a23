package job

import (
	"context"
	"encoding/json"

	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/uploader"
)

// attest asks the witnesses about a backup with which none has agreed: the app hash
// after its block may not have been signed yet when it was made, or nobody could be
// asked. The manifest stays as it is; what they say is a grade of its own, where one
// agrees or proves another history. denied says the latter.
func (v *Verify) attest(ctx context.Context, b uploader.Backup, out *Verified) (denied, err error) {
	m := b.Manifest
	if m == nil || len(v.findings) > 0 {
		return nil, nil
	}
	out.Attested = m.Attested
	before := evidence(m)
	if v.Attester == nil || !b.Attested.IsZero() || before.Count(observer.Agrees) > 0 {
		return nil, nil
	}
	e, err := v.Attester.Attest(ctx, PositionOf(m), before, 0)
	if ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		v.warn("the witnesses could not be asked: "+err.Error(), "")
		return nil, nil
	}
	sayAttested(e, PositionOf(m), func(text string) { v.phase(m.ID, "attest", "%s", text) }, v.warn)
	out.Attested, out.Attest = e.Grade(), attestOf(e)
	report, err := json.Marshal(out.Attest)
	if err != nil {
		return nil, err
	}
	g := uploader.Grade{
		ID: b.ID, Kind: uploader.GradeAttested, By: uploader.ByAttest, Given: v.Now(), Eddy: v.Version, Host: v.Host,
		ManifestSHA256: b.ManifestSHA256(), Report: report,
	}
	if denied = forked(e); denied != nil {
		g.Kind, g.Findings = uploader.GradeFailed, []uploader.Finding{{Stage: uploader.ByAttest, Text: denied.Error()}}
	} else if e.Count(observer.Agrees) == 0 {
		return nil, nil
	}
	if !v.NoGrade {
		if _, err := v.Catalog.PutGrade(ctx, g); err != nil {
			v.warn("the grade could not be written: "+err.Error(), "credentials that may only read cannot: `--no-grade` writes none")
		}
	}
	return denied, nil
}
