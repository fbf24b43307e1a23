# What a developer does with eddy. `make help` lists it. Nothing here needs more
# than Go, git, make and apt; `make deps` fetches the few tools of tests and demo.

GO      ?= go
GOTEST  ?= $(GO) test
FUZZTIME ?= 10s
TAGS    := pebbledb
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X main.version=$(VERSION)

# Real servers are built once for each state of their go.mod, outside the tree.
LABKEY  := $(shell cat lab/go.mod lab/go.sum lab/minio/go.mod lab/minio/go.sum | sha256sum | cut -c1-16)
LABBIN  := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/eddy-lab/$(LABKEY)
LAB     := bin/lab s3 --
export EDDY_LAB_BIN := $(LABBIN)

# A real Cosmos SDK chain's programs, by the state of their own module.
WASMDTAGS := netgo,pebbledb
WASMD := $(dir $(LABBIN))wasmd-$(shell (echo $(WASMDTAGS); cat lab/wasmd/go.mod lab/wasmd/go.sum) | sha256sum | cut -c1-16)

# A real Consul, by the state of its own module.
CONSUL := $(dir $(LABBIN))consul-$(shell cat lab/consul/go.mod lab/consul/go.sum | sha256sum | cut -c1-16)

# A real etcd with its tools, by the state of its own module.
ETCD := $(dir $(LABBIN))etcd-$(shell cat lab/etcd/go.mod lab/etcd/go.sum | sha256sum | cut -c1-16)

# A Debian with a systemd of its own, for what needs one; the number is of its list.
SYSROOT := $(dir $(LABBIN))debian-12-systemd-1

# A machine, or an engine, lives in namespaces that end with its test, whatever ends that: a
# time-out and a kill -9 leave nothing running and nothing mounted. Their process 1
# is a shell, which reaps orphans: a machine does not reboot before the last one of
# its processes is reaped.
ALONE := unshare --mount --pid --fork --kill-child --mount-proc sh -c '"$$@"; exit $$?' sh

# Static by default; the race detector needs cgo and says so itself.
export CGO_ENABLED := 0

# Packages whose tests have a part that runs against a real S3 server, or for
# longer than a developer likes to wait.
LABDIRS := uploader cmd scripts internal/job observer/cometbft
LABPKGS := $(LABDIRS:%=./%/...)

.DEFAULT_GOAL := build
.PHONY: help deps deps-systemd build lab lab-wasmd lab-consul lab-etcd test race lint fuzz crash e2e e2e-short e2e-demo e2e-drill e2e-docker e2e-systemd e2e-quickstart e2e-raft e2e-raft-short chaos chaos-resume bench demo dist clean FORCE

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install with apt what tests, demo and bench need and this machine lacks
	scripts/deps.sh

deps-systemd:
	scripts/deps.sh systemd

build: bin/eddy ## build bin/eddy, static

bin/eddy: FORCE
	$(GO) build -trimpath -buildvcs=false -tags $(TAGS) -ldflags '$(LDFLAGS)' -o $@ ./cmd/eddy

lab: bin/lab bin/grow bin/bench bin/chaos ## build the real S3 servers (cached) and the lab tools

bin/lab bin/grow bin/bench bin/chaos: bin/%: FORCE $(LABBIN)/versitygw $(LABBIN)/minio
	cd lab && $(GO) build -trimpath -buildvcs=false -tags $(TAGS) -o ../$@ ./cmd/$*

# Built beside and renamed: two checkouts may share the cache.
$(LABBIN)/versitygw:
	mkdir -p $(LABBIN)
	cd lab && $(GO) build -trimpath -buildvcs=false -o $@.$$$$ github.com/versity/versitygw/cmd/versitygw && mv $@.$$$$ $@

$(LABBIN)/minio:
	mkdir -p $(LABBIN)
	cd lab/minio && $(GO) build -trimpath -buildvcs=false -o $@.$$$$ github.com/minio/minio && mv $@.$$$$ $@

lab-wasmd: $(WASMD)/wasmd ## build a real chain's node, wasmd, and cosmovisor (cached; needs gcc; minutes)

# wasmd finds its library beside itself. It comes last: where it is all is.
$(WASMD)/wasmd:
	mkdir -p $(@D)
	cd lab/wasmd && $(GO) build -trimpath -buildvcs=false -o $(@D)/cosmovisor cosmossdk.io/tools/cosmovisor/cmd/cosmovisor
	cd lab/wasmd && cp -f "$$($(GO) list -m -f '{{.Dir}}' github.com/CosmWasm/wasmvm/v3)/internal/api/libwasmvm.$$(uname -m).so" $(@D)/
	cd lab/wasmd && CGO_ENABLED=1 $(GO) build -trimpath -buildvcs=false -tags $(WASMDTAGS) -ldflags '-s -w \
		-X github.com/cosmos/cosmos-sdk/version.Name=wasm -X github.com/cosmos/cosmos-sdk/version.AppName=wasmd \
		-extldflags "-Wl,-rpath,$$ORIGIN"' -o $@.$$$$ github.com/CosmWasm/wasmd/cmd/wasmd && mv $@.$$$$ $@

lab-consul: $(CONSUL)/consul ## build a real Consul (cached; ten minutes)

$(CONSUL)/consul:
	mkdir -p $(@D)
	cd lab/consul && $(GO) build -trimpath -buildvcs=false -ldflags '-s -w' -o $@.$$$$ github.com/hashicorp/consul && mv $@.$$$$ $@

lab-etcd: $(ETCD)/etcd ## build a real etcd and its tools (cached; a minute or two)

# The server comes last: where it is all is.
$(ETCD)/etcd:
	mkdir -p $(@D)
	for tool in etcdutl etcdctl; do \
		(cd lab/etcd && $(GO) build -trimpath -buildvcs=false -o $(@D)/$$tool.$$$$ go.etcd.io/etcd/$$tool/v3 && mv $(@D)/$$tool.$$$$ $(@D)/$$tool) || exit 1; \
	done
	cd lab/etcd && $(GO) build -trimpath -buildvcs=false -o $@.$$$$ go.etcd.io/etcd/server/v3 && mv $@.$$$$ $@

test: deps bin/lab ## all tests, those against the two real S3 servers included
	$(GOTEST) -tags $(TAGS) $$($(GO) list ./... $(LABDIRS:%=| grep -v /%))
	$(LAB) $(GOTEST) -timeout 30m -tags '$(TAGS) lab' $(LABPKGS)
	bin/lab s3 --server minio -- $(GOTEST) -tags '$(TAGS) lab' ./uploader/... ./scripts/... ./internal/job/...
	bin/lab s3 --server minio -- $(GOTEST) -tags '$(TAGS) lab' -run 'TestLabScripts/^(canary-)?s3$$' ./cmd/eddy
	cd lab && $(GOTEST) -tags '$(TAGS) lab' ./...

race: deps ## all tests that need no server, with the race detector (needs gcc)
	CGO_ENABLED=1 $(GOTEST) -race -tags $(TAGS) ./...
	cd lab && CGO_ENABLED=1 $(GOTEST) -race -tags $(TAGS) ./...

# No tidy for lab/wasmd: it would fetch 2 GB of what only tests of others use.
lint: deps ## gofumpt, vet, staticcheck, shellcheck, go.mod
	@out=$$($(GO) tool gofumpt -l .); if [ -n "$$out" ]; then echo "gofumpt would change:"; echo "$$out"; exit 1; fi
	$(GO) vet -tags $(TAGS) ./...
	$(GO) vet -tags '$(TAGS) lab root crash' ./...
	$(GO) tool staticcheck -tags $(TAGS) ./...
	$(GO) tool staticcheck -tags '$(TAGS) lab root crash' ./...
	cd lab && $(GO) vet -tags '$(TAGS) lab e2e root' ./...
	staticcheck=$$($(GO) tool -n staticcheck) && cd lab && $$staticcheck -tags '$(TAGS) lab e2e root' ./...
	shellcheck .ci/run .ci/gotest scripts/*.sh
	$(GO) mod verify
	$(GO) mod tidy -diff
	cd lab && $(GO) mod verify && $(GO) mod tidy -diff
	cd lab/wasmd && $(GO) mod verify && $(GO) vet ./...

# Goroutines make coverage a matter of chance, so that an input may be minimised for
# a minute, the default, and nothing else is tried.
fuzz: ## every fuzz function for FUZZTIME (10s), a line for each
	@log=$$(mktemp) && trap 'rm -f "$$log"' EXIT && \
	for file in $$(grep -rl --include='*_test.go' '^func Fuzz' . | sort); do \
		dir=$$(dirname $$file); \
		for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\).*/\1/p' $$file); do \
			if (cd $$dir && $(GO) test -tags $(TAGS) -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 1s .) >$$log 2>&1; then \
				echo "ok   $$dir $$f $(FUZZTIME), $$(sed -n 's/.*execs: \([0-9]*\).*/\1/p' $$log | tail -1) runs"; \
			else cat $$log; echo "FAIL $$dir $$f"; exit 1; fi; \
		done; \
	done

# A failure names effect and variant, or a seed: CRASH='-run TestSeeds -seed 17'.
# In its own directory, where go test shows what a test that passes has printed.
crash: ## a crash at every change that backup, restore and expire make (minutes)
	cd internal/crash && $(GO) test -tags '$(TAGS) crash' -count=1 -timeout 60m $(CRASH)

# What continuous integration runs of it; the rest takes many more minutes.
e2e-short: e2e-demo e2e-raft-short ## the demo in its other forms, the stage of a node under load, raft clusters but Consul (root)

e2e-demo: deps bin/eddy bin/lab
	$(LAB) bin/eddy demo --store s3://{bucket}/e2e --endpoint {endpoint} --engine pebbledb --volume-size 1MiB
	bin/eddy demo --engine goleveldb
	cd lab && $(GOTEST) -tags '$(TAGS) e2e' -count=1 -timeout 20m ./e2e

e2e-drill: bin/eddy lab-wasmd ## drills a real SDK chain, and 1 GB of real blocks; SIZE=100 (MB) for a short one (minutes)
	contract="$$(cd lab/wasmd && $(GO) mod download -json github.com/CosmWasm/wasmd | sed -n 's/.*"Dir": "\(.*\)",/\1/p')/x/wasm/keeper/testdata/hackatom.wasm" && \
		cd lab && SIZE=$(SIZE) EDDY_LAB_WASMD=$(WASMD) EDDY_LAB_CONTRACT=$$contract $(GOTEST) -tags '$(TAGS) e2e' -count=1 -timeout 30m -v ./drill
	[ "$$(id -u)" != 0 ] || $(GOTEST) -tags '$(TAGS) root' -count=1 -run TestRoot ./observer/cometbft/drill

e2e: e2e-demo e2e-raft e2e-drill e2e-docker e2e-systemd e2e-quickstart chaos ## all of that against real systems (root; half an hour)

e2e-docker: bin/eddy bin/lab ## docker control, the compose file and its quick start, beside a real engine (root; minutes)
	scripts/deps.sh docker
	EDDY=$(CURDIR)/bin/eddy bin/lab docker -- $(GOTEST) -count 1 -p 1 -tags '$(TAGS) root' -run 'Docker|Compose' -v ./observer/control ./deploy
	d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && cd lab && \
		TMPDIR=$$d EDDY=$(CURDIR)/bin/eddy $(ALONE) $(GOTEST) -tags '$(TAGS) root' -count=1 -timeout 10m -v -run TestDocker ./quickstart

e2e-systemd: deps-systemd bin/lab $(SYSROOT) ## holds against a real systemd, booted in a container (root; minutes)
	d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && \
		TMPDIR=$$d $(ALONE) bin/lab systemd --root $(SYSROOT) -- $(GOTEST) -tags '$(TAGS) root' -count=1 -timeout 20m -v -run TestSystemd ./observer/control

e2e-quickstart: deps-systemd dist bin/lab lab-wasmd $(SYSROOT) ## types the quick start on a booted machine with a real chain (root; minutes)
	d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && cd lab && \
		TMPDIR=$$d EDDY_LAB_ROOT=$(SYSROOT) EDDY_LAB_WASMD=$(WASMD) \
		$(ALONE) $(GOTEST) -tags '$(TAGS) root' -count=1 -timeout 20m -v -skip TestDocker ./quickstart

# The short form leaves out the one that takes ten minutes to build.
e2e-raft: bin/eddy lab-consul lab-etcd ## Swarm, with and without autolock, ZooKeeper, etcd, Consul: backed up under load, destroyed, restored, every key proven; E2E='-run TestConsul' for one (root; minutes)
	$(RAFT) $(E2E) ./raft

e2e-raft-short: bin/eddy lab-etcd
	$(RAFT) -skip TestConsul ./raft

RAFT = scripts/deps.sh docker && scripts/deps.sh zookeeper && \
	$(GOTEST) -tags '$(TAGS) e2e root' -count=1 -run 'TestE2E|TestDrillWithAnEngine|TestDrillDies' ./observer/zookeeper ./observer/swarm && \
	cd lab && EDDY=$(CURDIR)/bin/eddy EDDY_LAB_CONSUL=$(CONSUL)/consul EDDY_LAB_ETCD=$(ETCD) $(GOTEST) -tags '$(TAGS) e2e root' -count=1 -timeout 20m -v

# libpam-systemd is named because debootstrap does not know who provides a logind.
$(SYSROOT): | deps-systemd
	mkdir -p $(@D)
	d=$@.$$$$ && trap 'rm -rf "$$d"' EXIT && \
		debootstrap --variant=minbase --include=systemd,systemd-sysv,libpam-systemd,dbus,polkitd,sudo bookworm "$$d" && \
		rm -rf "$$d"/var/cache/apt/archives/*.deb && mv "$$d" $@

SEED   ?= $(shell date +%s)
chaos: bin/eddy bin/chaos ## kills, cuts, lies, full and broken disks, each round once; ROUNDS=N, SEED=N plays the same again, CHAOS='--only RE' (root)
	cd lab && $(ALONE) $(GOTEST) -tags '$(TAGS) root' -count=1 ./chaos
	d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && TMPDIR=$$d \
		$(ALONE) bin/chaos --eddy bin/eddy $(if $(ROUNDS),--rounds $(ROUNDS)) --seed $(SEED) $(CHAOS)

# One volume, of which nothing but parts can be gone on with; then many, and an
# eddy of another version, for which only whole volumes count.
RESUME  = d=$$(mktemp -d) && trap 'rm -rf "$$d"' EXIT && TMPDIR=$$d $(ALONE) \
	bin/chaos --eddy bin/eddy --resume --size $(or $(SIZE),3GB)
chaos-resume: bin/eddy bin/chaos ## kill -9 at 90 % of an upload, and what the next run reads and sends; SIZE=300MB for a short one (root)
	$(GO) build -trimpath -buildvcs=false -tags $(TAGS) -ldflags '-X main.version=$(VERSION)-next' -o bin/eddy-next ./cmd/eddy
	$(RESUME) --volume 256GiB
	$(RESUME) --volume $(or $(VOLUME),256MiB) --upgraded bin/eddy-next

bench: deps bin/eddy bin/bench ## the measured promises; BENCH='--size 500MB' for a short one
	bin/bench --eddy bin/eddy $(BENCH)

demo: deps bin/eddy bin/lab ## chain, backup, disaster, restore, proof, on a real S3 server
	$(LAB) bin/eddy demo --store s3://{bucket}/demo --endpoint {endpoint}

dist: ## release binaries for linux/amd64 and arm64, units and policies, checksums
	rm -rf dist && mkdir dist
	for arch in amd64 arm64; do \
		GOOS=linux GOARCH=$$arch $(GO) build -trimpath -buildvcs=false -tags $(TAGS) \
			-ldflags '-s -w -buildid= $(LDFLAGS)' -o dist/eddy-$(VERSION)-linux-$$arch ./cmd/eddy || exit 1; \
	done
	tar --sort=name --owner=0 --group=0 --numeric-owner --mtime=@$$(git log -1 --format=%ct) --mode=u+rw,go+r,go-w \
		--exclude='*.go' --exclude=testdata --exclude=scripts/deps.sh -cf - deploy scripts | gzip -n >dist/eddy-$(VERSION)-deploy.tar.gz
	cd dist && sha256sum eddy-* > SHA256SUMS

clean: ## remove what was built in the tree
	rm -rf bin dist
