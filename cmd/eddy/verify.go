package main

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/eddy-backup/eddy/internal/config"
	"github.com/eddy-backup/eddy/internal/hint"
	"github.com/eddy-backup/eddy/internal/job"
	"github.com/eddy-backup/eddy/observer"
	"github.com/eddy-backup/eddy/observer/cometbft"
	"github.com/eddy-backup/eddy/uploader"
)

// verifyFlags are those of `eddy verify`.
type verifyFlags struct {
	readData, noGrade, noOpen, noAttest bool

	sample, scratch string
	seed            uint64
	signers         []string
}

func (a *app) verifyCommand() *cobra.Command {
	var f verifyFlags
	c := &cobra.Command{
		Use: "verify SEL", Short: "prove a backup from what the store has of it", Args: cobra.ExactArgs(1),
		Long: `Prove a backup from what the store has of it. SEL is as with restore. It needs a
store and a cluster only: no configuration, no node.

By itself it looks: every object is there, with its size and its checksum where the
store tells one; index, seek table, list of hashes and manifest agree. With --sample
it reads a share of the frames back as well, chosen at random; with --read-data
every byte, and compares every hash; then it looks into what was read, as a backup is
looked into before it is sent. For that it needs room: --scratch says where.

Where the configuration names witnesses, they are asked about a backup with which none
of them has agreed yet.

What was proven is written beside the backup as a grade: sampled, verified, attested or
failed. docs/proof.md says what each proves, and what not.`,
		Example: "  eddy verify latest\n  eddy verify latest --sample 5%\n  eddy verify latest --read-data --store s3://backups/eddy --cluster gaia-main",
		RunE: func(cmd *cobra.Command, args []string) error {
			boundMemory()
			v, err := f.job(cmd.Flags().Changed("seed"))
			if err != nil {
				return errorsJoinUsage(err)
			}
			c, err := a.load(config.NeedCatalog)
			if err != nil {
				return err
			}
			if v.Catalog, err = a.openTrusted(cmd.Context(), c, f.signers); err != nil {
				return err
			}
			if v.Host, err = os.Hostname(); err != nil {
				return fmt.Errorf("host name: %w", err)
			}
			v.Selector, v.Version, v.Events, v.Now = args[0], version, a.ui, time.Now
			v.Lookers, v.Scratch = lookers(c), scratch(c, f.scratch)
			if !f.noAttest {
				v.Attester = attester(c)
			}
			done, err := v.Run(cmd.Context())
			if done.ID != "" {
				err = errors.Join(a.result(done), err)
			}
			return err
		},
	}
	c.Flags().BoolVar(&f.readData, "read-data", false, "read every byte back")
	c.Flags().StringVar(&f.sample, "sample", "", "N%: read that share of the frames back, chosen at random")
	c.Flags().Uint64Var(&f.seed, "seed", 0, "choose the frames of a sample as the run did that printed this seed")
	c.Flags().StringArrayVar(&f.signers, "signer", nil, "public key, or its PEM file, that must have signed it (repeatable; default: signers)")
	c.Flags().BoolVar(&f.noOpen, "no-open", false, "with --read-data: do not look into what was read")
	c.Flags().StringVar(&f.scratch, "scratch", "", "with --read-data: directory for what is looked into (default: verify.dir, or one in the workdir)")
	c.Flags().BoolVar(&f.noAttest, "no-attest", false, "do not ask the witnesses about a backup with which none has agreed yet")
	c.Flags().BoolVar(&f.noGrade, "no-grade", false, "write no grade: for credentials that may only read")
	return c
}

func (f verifyFlags) job(seeded bool) (job.Verify, error) {
	v := job.Verify{By: uploader.ByQuick, NoGrade: f.noGrade, NoOpen: f.noOpen, Seed: f.seed}
	switch {
	case !f.readData && (f.noOpen || f.scratch != ""):
		return v, hint.Add(errors.New("--no-open or --scratch without --read-data"), "only what is read whole is looked into: add --read-data")
	case f.readData && f.sample != "":
		return v, hint.Add(errors.New("--read-data and --sample exclude each other"), "--read-data reads all of it")
	case f.readData:
		v.By = uploader.ByReadData
	case f.sample != "":
		n, err := strconv.ParseFloat(strings.TrimSuffix(f.sample, "%"), 64)
		if err != nil || !(n > 0 && n <= 100) {
			return v, hint.Add(fmt.Errorf("--sample %q", f.sample), "write a share above 0% and up to 100%: --sample 5%")
		}
		v.By, v.Share = uploader.BySample, n/100
		if !seeded {
			v.Seed = rand.Uint64N(1 << 53) // as a number of JSON it stays what it is
		}
	}
	if seeded && v.By != uploader.BySample {
		return v, hint.Add(errors.New("--seed without --sample"), "a seed chooses the frames of a sample")
	}
	return v, nil
}

// lookers look into what was read back.
func lookers(c *config.Config) map[string]observer.Looker {
	return map[string]observer.Looker{"cometbft": cometbft.Looker{Offline: offline(c.Check.Memory.Bytes())}}
}

// scratch is where what is looked into goes: where dir or the configuration says, else
// in the workdir, where there is one that may be written, else where temporary files
// go.
func scratch(c *config.Config, dir string) job.Scratch {
	dir = cmp.Or(dir, c.Verify.Dir)
	if dir == "" && unix.Access(c.Workdir, unix.W_OK|unix.X_OK) == nil {
		dir = filepath.Join(c.Workdir, "verify")
	}
	return job.Scratch{Dir: cmp.Or(dir, os.TempDir())}
}

// attester asks the configured witnesses; nil: there are none.
func attester(c *config.Config) observer.Attester {
	if len(c.Replica.Witnesses) == 0 {
		return nil
	}
	return &cometbft.Attestor{Witnesses: c.Replica.Witnesses, Own: c.Replica.RPC, Trusted: trusted(c)}
}
