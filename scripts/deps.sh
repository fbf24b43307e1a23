#!/usr/bin/env bash
# Installs, on Debian and its kin, the tools that eddy's tests, demo and bench
# call and that this machine lacks. Does nothing where all are there. With the
# word docker also what `make e2e-docker` needs: an engine; with the word systemd
# what boots a machine for `make e2e-systemd` and `make e2e-quickstart`; with the word
# zookeeper its servers, for `make e2e-raft-short`.
set -euo pipefail

missing=()
need() { # need PROGRAM PACKAGE
  command -v "$1" >/dev/null || missing+=("$2")
}
if [ "${1:-}" = docker ]; then
  need dockerd docker.io
  need docker docker.io
  need docker-compose docker-compose
  need ip iproute2
  need iptables iptables
fi
need zstd zstd
need age age
need curl curl
need jq jq
need shellcheck shellcheck
need gcc gcc
need git git
need tar tar
need sha256sum coreutils
if [ "${1:-}" = systemd ]; then
  need debootstrap debootstrap
  need systemd-nspawn systemd-container
  need nsenter util-linux
  need unshare util-linux
  need ip iproute2
fi
if [ "${1:-}" = zookeeper ]; then
  need java default-jre-headless
  [ -e /usr/share/java/zookeeper.jar ] || missing+=(zookeeper)
fi
# The bench measures Debian's own awscli and reads GNU time, so it is these
# files that must be there, not something of the same name in PATH.
need /usr/bin/aws awscli
need /usr/bin/time time
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)

if [ ${#missing[@]} -eq 0 ]; then
  echo "deps: nothing is missing"
  exit 0
fi
echo "deps: installing ${missing[*]}"
if ! command -v apt-get >/dev/null; then
  echo "deps: no apt-get here; install by hand: ${missing[*]}" >&2
  exit 1
fi
root=()
if [ "$(id -u)" -ne 0 ]; then
  root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${root[@]}" apt-get update
"${root[@]}" apt-get install --yes --no-install-recommends "${missing[@]}"
