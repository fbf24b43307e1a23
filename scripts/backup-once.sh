#!/usr/bin/env bash
#
# One backup, for cron: never two at once, one line in a log, a word to a dead man's
# switch, and eddy's exit code.
#
#   backup-once.sh [flags] [-- eddy arguments]
#
#   --log FILE       one line a run is added to it; what eddy said of the last run
#                    stands in FILE.last
#   --ping-file FILE its first line is the address of a dead man's switch (mode 0600:
#                    who knows it can silence the alarm); asked at begin with /start,
#                    at the end as it is, or with /fail
#   --max-time TIME  6h, 90m: then eddy is told to end, with the node running
#   --verbose        print on success, too
#
#   55 3 * * * /usr/local/bin/backup-once.sh --log /var/log/eddy/backup.log
#
# Runs `eddy backup`, or what is given behind --: `-- -c /etc/eddy/b.yaml keys backup`.
# Prints nothing where all is well, so that cron mails only what needs a look. EDDY
# names another program than the eddy in PATH or /usr/local/bin.
#
# Exit codes are eddy's: 0 done, 3 done with warnings, 11 another one works already,
# 12 the node is not fit, 14 the store does not answer; 124 it took longer than
# --max-time. An 11 is no failure: the switch is told nothing.

set -euo pipefail
export LC_ALL=C PATH=$PATH:/usr/local/bin

die() {
  printf 'backup-once: %s\n' "$2" >&2
  exit "$1"
}

log='' ping_file='' max_time='' verbose=''
while [ $# -gt 0 ]; do
  case $1 in
    --log | --ping-file | --max-time)
      [ $# -ge 2 ] || die 2 "$1 needs a value"
      name=${1#--}
      printf -v "${name//-/_}" %s "$2"
      shift
      ;;
    --verbose) verbose=yes ;;
    --) shift; break ;;
    -h | --help) sed -n '/^#   backup-once/,/^#   55/s/^# \{0,3\}//p' "$0" >&2; exit 0 ;;
    *) die 2 "unknown argument $1" ;;
  esac
  shift
done
[ $# -gt 0 ] || set -- backup
eddy=${EDDY:-eddy}
command -v "$eddy" >/dev/null || die 1 "$eddy is not installed"
if [ -n "$max_time" ] && [[ ! $max_time =~ ^[1-9][0-9]*[smhd]?$ ]]; then die 2 "--max-time $max_time: want 90m or 6h"; fi
url=''
if [ -n "$ping_file" ]; then
  [ -r "$ping_file" ] || die 2 "$ping_file cannot be read"
  read -r url <"$ping_file" || [ -n "$url" ] || die 2 "$ping_file is empty"
  [[ $url =~ ^https?://[^\"\\[:space:]]+$ ]] || die 2 "the first line of $ping_file is no address"
fi

# ping SUFFIX: the address goes by a pipe, for arguments can be seen by all. That it
# cannot be reached fails no backup.
ping() {
  [ -n "$url" ] || return 0
  printf 'url = "%s%s"\n' "${url%/}" "$1" | curl -fsS -m 20 --retry 3 -o /dev/null -K - 2>/dev/null ||
    printf 'backup-once: the dead man'\''s switch cannot be reached\n' >&2
}

said=$(mktemp "${TMPDIR:-/tmp}/backup-once.XXXXXX")
trap 'rm -f "$said"' EXIT
begun=$(date -u +%Y-%m-%dT%H:%M:%SZ) from=$SECONDS
# A lock for each set of arguments: keys and data may be saved side by side.
lock=${TMPDIR:-/tmp}/backup-once-$(id -u)-$(printf '%s\0' "${EDDY_CONFIG:-}" "$@" | sha256sum | cut -c 1-12).lock
code=0
if [ -L "$lock" ] || { [ -e "$lock" ] && [ ! -O "$lock" ]; }; then die 1 "$lock is not ours"; fi
exec 9>>"$lock"
if ! flock -n 9; then
  code=11
  echo "another one has not ended yet" >"$said"
else
  ping /start
  # 15 minutes for a node that is slow to stop: a SIGKILL would leave it to its guard.
  limit=()
  [ -z "$max_time" ] || limit=(timeout --kill-after=15m "$max_time")
  ${limit[@]+"${limit[@]}"} "$eddy" "$@" >"$said" 2>&1 9>&- || code=$?
  case $code in
    0 | 3) ping '' ;;
    11) ;;
    *) ping /fail ;;
  esac
fi

word=failed
case $code in
  0) word=ok ;;
  3) word=warnings ;;
  11) word=busy ;;
  124 | 137) word=too-long ;;
esac
line="$begun $word exit=$code seconds=$((SECONDS - from)) $(sed '/^hint:/d' "$said" | tail -n 1 | tr -d '\000-\037' | cut -c 1-300)"
if [ -n "$log" ]; then
  printf '%s\n' "$line" >>"$log" || printf 'backup-once: cannot write %s\n' "$log" >&2
  cp "$said" "$log.last" || printf 'backup-once: cannot write %s.last\n' "$log" >&2
fi
if [ "$code" -ne 0 ] || [ -n "$verbose" ]; then
  printf '%s\n' "$line"
  tail -n 30 "$said"
fi
exit "$code"
