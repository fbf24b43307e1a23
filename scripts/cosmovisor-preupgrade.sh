#!/usr/bin/env bash
#
# Before an upgrade of the chain's program: a backup that nothing deletes.
#
#   cosmovisor-preupgrade.sh NAME HEIGHT          as cosmovisor calls it
#   cosmovisor-preupgrade.sh --ahead NAME HEIGHT  by hand or by cron, before HEIGHT
#
# As cosmovisor's hook: put it into DAEMON_HOME/cosmovisor, executable, and set
# COSMOVISOR_CUSTOM_PREUPGRADE=cosmovisor-preupgrade.sh. Cosmovisor has stopped the
# node then and waits; a backup of it would have to stop cosmovisor, which waits for
# this very script. So it makes none: it pins the newest backup at or below HEIGHT,
# and seals keys and configuration as they are before the upgrade, which stops
# nothing.
#
# --ahead makes a backup of the running node, labelled pre-NAME, and pins that: an
# hour or a day before HEIGHT, so that the pinned one is young.
#
# It never blocks an upgrade: whatever goes wrong is said, and the exit code is 0.
# In the environment:
#
#   EDDY_PREUPGRADE_TIMEOUT   how long all of it may take: 5m, with --ahead 6h
#   EDDY_PREUPGRADE_MAX_AGE   hours that the pinned backup may be old: 26
#   EDDY_PREUPGRADE_REQUIRED  yes: without a pinned backup that is young enough the
#                             exit code is 1, and cosmovisor does not upgrade
#   EDDY_PREUPGRADE_KEYS      no: no bundle of keys and configuration
#   EDDY                      another program than the eddy in PATH
#
# What it says is on stdout, and behind DAEMON_HOME/cosmovisor/preupgrade.log where that
# is set: cosmovisor shows nothing of a hook that fails, not even why.
#
# A pin stays until `eddy unpin ID --as upgrade-NAME`.

set -uo pipefail
export LC_ALL=C PATH=$PATH:/usr/local/bin

say() { printf 'preupgrade: %s\n' "$*" >&2; }

# end MESSAGE: without a pinned backup.
end() {
  say "$1"
  if [ "${EDDY_PREUPGRADE_REQUIRED:-no}" = yes ]; then
    say "EDDY_PREUPGRADE_REQUIRED is yes: the upgrade is held up"
    exit 1
  fi
  say "the upgrade goes on without"
  exit 0
}

# bounded ARGS... runs eddy for as long as is left; told to end, it leaves the node
# running.
bounded() {
  local left=$((until - SECONDS))
  [ "$left" -gt 0 ] || { say "no time is left for: eddy $*"; return 124; }
  timeout --kill-after=60 "$left" "$eddy" "$@"
}

main() {
  ahead=''
  if [ "${1:-}" = --ahead ]; then
    ahead=yes
    shift
  fi
  [ $# -eq 2 ] || end "want NAME and HEIGHT, got $# words"
  [[ $2 =~ ^[1-9][0-9]{0,18}$ ]] || end "$2 is no height"
  height=$2
  eddy=${EDDY:-eddy}
  command -v "$eddy" >/dev/null || end "$eddy is not installed"
  command -v timeout >/dev/null || end "timeout (coreutils) is not installed"
  # What names and labels are made of; the tail of a long one tells more than its head.
  name=$(printf %s "$1" | tr -c 'A-Za-z0-9_.-' '-')
  label=pre-${name: -$((${#name} < 21 ? ${#name} : 21))}
  pin=upgrade-${name:0:50}

  limit=${EDDY_PREUPGRADE_TIMEOUT:-${ahead:+6h}}
  limit=${limit:-5m}
  [[ $limit =~ ^([1-9][0-9]{0,6})([smh]?)$ ]] || end "EDDY_PREUPGRADE_TIMEOUT $limit: want 300s, 5m or 6h"
  case ${BASH_REMATCH[2]} in
    m) unit=60 ;;
    h) unit=3600 ;;
    *) unit=1 ;;
  esac
  until=$((SECONDS + BASH_REMATCH[1] * unit))

  sel=height:$height
  if [ -n "$ahead" ]; then
    bounded backup --label "$label"
    code=$?
    case $code in
      0 | 3) ;;
      124 | 137) say "the backup took longer than $limit" ;;
      *) say "no backup was made: eddy backup ended with $code" ;;
    esac
  elif [ "${EDDY_PREUPGRADE_KEYS:-yes}" != no ]; then
    bounded keys backup || say "keys and configuration were not saved"
  fi

  pinned=$(bounded --json pin "$sel" --as "$pin") || end "no backup was pinned"
  id=$(printf '%s\n' "$pinned" | sed -n 's/.*"id":"\([^"]*\)".*/\1/p')
  stamp=${id:0:4}-${id:4:2}-${id:6:2}T${id:9:2}:${id:11:2}:${id:13:2}Z
  age=$((($(date +%s) - $(date -d "$stamp" +%s || echo 0)) / 3600))
  say "$id is pinned as $pin, $age h old"
  [ "$age" -le "${EDDY_PREUPGRADE_MAX_AGE:-26}" ] || end "it is older than ${EDDY_PREUPGRADE_MAX_AGE:-26} h"
}

log=''
if [ -n "${DAEMON_HOME:-}" ]; then
  log=$DAEMON_HOME/cosmovisor/preupgrade.log
  (umask 077 && : >>"$log") || log=''
fi
# The subshell's 2 is this stdout, also where its 1 is a variable.
main "$@" 2>&1 | tee -a "${log:-/dev/null}"
exit "${PIPESTATUS[0]}"
