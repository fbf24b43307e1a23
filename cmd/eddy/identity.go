package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/term"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/snapshot/bundle"
)

// identityVar names a file of identities where no flag does.
const identityVar = "EDDY_IDENTITY_FILE"

// readIdentities reads what -i or the environment names; none where neither does.
func (a *app) readIdentities() (all bundle.Identities, err error) {
	files := a.identities
	if file := os.Getenv(identityVar); len(files) == 0 && file != "" {
		files = []string{file}
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			return nil, hint.Add(fmt.Errorf("%w: %w", bundle.ErrIdentity, err), "name the file with the secret half; the recovery sheet says where it is kept")
		}
		ids, err := bundle.ParseIdentities(file, b, a.askSecret)
		if err != nil {
			return nil, err
		}
		all = append(all, ids...)
	}
	return all, nil
}

// askSecret asks for a passphrase on the terminal, whatever stdin is.
func (a *app) askSecret(prompt string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, hint.Add(errors.New("the identity needs a passphrase, and there is no terminal to ask on"), "run it on a terminal, or name an identity without a passphrase")
	}
	defer tty.Close()
	fmt.Fprint(tty, prompt)
	pass, err := term.ReadPassword(int(tty.Fd()))
	fmt.Fprintln(tty)
	if err != nil {
		return nil, fmt.Errorf("read the passphrase: %w", err)
	}
	return pass, nil
}

// readRecipients are those of the configuration, its file included.
func readRecipients(e config.Encryption) (bundle.Recipients, error) {
	to, err := bundle.ParseRecipients("encryption.recipients", e.Recipients)
	if err != nil || e.RecipientsFile == "" {
		return to, err
	}
	b, err := os.ReadFile(e.RecipientsFile)
	if err != nil {
		return to, hint.Add(fmt.Errorf("%w: encryption.recipients_file: %w", bundle.ErrRecipient, err), "name a file that eddy's user may read")
	}
	more, err := bundle.ParseRecipients(e.RecipientsFile+" line", strings.Split(string(bytes.TrimSpace(b)), "\n"))
	if err == nil && more.Len() == 0 {
		err = hint.Add(fmt.Errorf("%w: %s names nobody", bundle.ErrRecipient, e.RecipientsFile), "write recipients into it, one a line")
	}
	return to.Join(more), err
}
