package consul

import (
	"context"
	"net/http"
	"strings"

	"github.com/eddy-backup/eddy/internal/check"
	"github.com/eddy-backup/eddy/internal/hint"
)

// Checks looks at what the token may and at whom it is given to, without taking a
// snapshot.
func (s *Source) Checks(ctx context.Context) []check.Finding {
	out := []check.Finding{s.rights(ctx)}
	if s.o.TLS.SkipVerify {
		out = append(out, check.Finding{Name: "tls", Level: check.Warn, Said: "whoever answers is taken for the server, and gets the token", Hint: "name the servers' CA: " + s.sys.set("tls.ca_file", "/FILE")})
	}
	return out
}

// rights asks what the token may, as far as a question can show that: to try would be
// to take a snapshot.
func (s *Source) rights(ctx context.Context) check.Finding {
	const name = "token"
	if s.sys.kind != Consul {
		return check.Good(name, "the token needs "+s.sys.rights)
	}
	var token struct {
		AccessorID string
		Policies   []struct{ Name string }
	}
	err := s.api.ask(ctx, "/v1/acl/token/self", nil, &token)
	switch {
	case code(err) == http.StatusUnauthorized && strings.Contains(err.Error(), "ACL support disabled"):
		return check.Good(name, "ACLs are off: whoever reaches the port may do everything")
	case err != nil:
		return check.Finding{Name: name, Level: check.Fail, Said: err.Error(), Hint: hint.Or(err, "set `replica.consul.token_file: /FILE`, of mode 0600")}
	}
	for _, p := range token.Policies {
		if p.Name == "global-management" {
			return check.Good(name, "token "+token.AccessorID+" may take a snapshot")
		}
	}
	return check.Finding{Name: name, Level: check.Warn, Said: "token " + token.AccessorID + " is none of global-management: whether it may take a snapshot is not known", Hint: "it needs " + s.sys.rights}
}
