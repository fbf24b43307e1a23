package config

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// recipientText is the form of a recipient; whether it is one says who encrypts.
var recipientText = regexp.MustCompile(`^(age1[0-9a-z]{58,}|ssh-(ed25519|rsa) [A-Za-z0-9+/]+=*( .*)?)$`)

// maxBundles is how many bundles of a node may be kept.
const maxBundles = 1000

func (l *loader) checkKeys(need Need) {
	e, k := l.c.Encryption, l.c.Keys
	for i, r := range e.Recipients {
		key := fmt.Sprintf("encryption.recipients[%d]", i)
		switch {
		case l.bad["encryption.recipients"]:
		case strings.Contains(strings.ToUpper(r), "AGE-SECRET-KEY") || strings.Contains(r, "PRIVATE KEY"):
			// Not repeated: it is the one thing that must not be here.
			l.problem(key, "holds an identity, which is secret", "take it off this machine, make a new one elsewhere with `eddy keys init`, and write its recipient here")
		case !recipientText.MatchString(r):
			l.problem(key, "no recipient", "write age1..., ssh-ed25519 AAAA... or ssh-rsa AAAA..., as `eddy keys init` or ssh-keygen has printed it")
		}
	}
	l.absolute("encryption.recipients_file", e.RecipientsFile)
	if need&NeedReplica != 0 && !l.bad["replica.kind"] && !l.c.Replica.Chain() { // its dumps hold secrets
		need |= NeedRecipients
	}
	// The daemon makes bundles where they have a schedule.
	if need&NeedSchedule != 0 && k.Schedule != "" {
		need |= NeedRecipients
	}
	if need&NeedRecipients != 0 && len(e.Recipients) == 0 && e.RecipientsFile == "" && !l.badBelow("encryption") {
		l.problem("encryption.recipients", "missing", "`eddy keys init` makes an identity and prints its recipient; write that here, and keep the identity off this host")
	}
	if k.Node != "" && !l.bad["keys.node"] && (!nameText.MatchString(k.Node) || strings.Trim(k.Node, ".") == "") {
		l.problem("keys.node", quote(k.Node)+" is no possible name", "use 1 to 63 of letters, digits, _ . -")
	}
	for _, list := range []struct {
		key   string
		globs []string
	}{{"keys.include", k.Include}, {"keys.exclude", k.Exclude}} {
		for i, p := range list.globs {
			if l.bad[list.key] {
				break
			}
			key := fmt.Sprintf("%s[%d]", list.key, i)
			_, err := filepath.Match(p, "x")
			switch {
			case err != nil:
				l.problem(key, quote(p)+" is no pattern", "close the bracket, or write \\[ for one")
			case p == "" || filepath.Clean(p) != strings.TrimSuffix(p, "/") || p == "." || p == ".." || strings.HasPrefix(p, "../") || strings.HasPrefix(p, "~"):
				l.problem(key, quote(p)+" names nothing", "write an absolute path, or one below the home, without . and ..")
			}
		}
	}
	l.schedule("keys.schedule", k.Schedule)
	if !l.bad["keys.keep"] && (k.Keep < 1 || k.Keep > maxBundles) {
		l.problem("keys.keep", fmt.Sprintf("%d is out of range", k.Keep), fmt.Sprintf("write 1 to %d; 10 is a good number", maxBundles))
	}
}
