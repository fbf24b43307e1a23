#!/usr/bin/env bash
#
# Restores a chain node's data from an eddy backup without eddy: bash, zstd, tar,
# coreutils, and curl (https://) or the aws command line (s3://) are all it needs.
#
#   restore-latest.sh --store STORE --cluster NAME --home DIR [flags]
#
#   --store STORE    s3://bucket/prefix, https://host/prefix or file:///dir
#   --cluster NAME   the cluster's name in the store
#   --home DIR       the node's home; the backup's data/ becomes DIR/data
#   --id ID          this backup instead of the latest
#   --endpoint URL   of an S3 store that is not AWS
#   --signer KEY     public key, or its PEM file: take only what it has signed
#                    (needs openssl 3)
#   --owner U:G      owner of the restored files (root only; default: DIR's owner)
#   --dry-run        say what is there and what would happen, change nothing
#   --yes            replace live data without asking
#
# Stop the node, and whatever would start it again, before. The backup is
# extracted beside the live data, in DIR/.eddy, while the stored size of every
# volume and the checksum of every frame are checked; then every file is compared
# with the backup's list of sums. Only if all of it agrees is anything replaced,
# and what was there stays in DIR/.eddy/before-ID until you delete it.
#
# Keys and config/ are never in a backup and are left alone. The sign state is the
# one thing that must never go back: the highest that this home has is carried
# over; where a validator key has none, the script stops and says what to do.
#
# Exit codes: 0 done, 1 failed, 2 usage, 10 no such backup, 11 another restore
# works here, 12 the node is running or its sign state is missing, 13 the backup
# is corrupt, 14 the store does not answer, 16 not confirmed.

set -euo pipefail
export LC_ALL=C
unset CDPATH TAR_OPTIONS
umask 077

usage() { sed -n '/^#   restore/,/^#   --yes/s/^# \{0,3\}//p' "$0" >&2; }

say() { printf '%s\n' "$*"; }

# die CODE MESSAGE [HINT]
die() {
  printf 'restore-latest: %s\n' "$2" >&2
  [ $# -lt 3 ] || printf 'hint: %s\n' "$3" >&2
  exit "$1"
}

need() { command -v "$1" >/dev/null || die 1 "$1 is not installed" "$2"; }

# ---- arguments -------------------------------------------------------------

store='' cluster='' home='' id='' endpoint='' owner='' signer='' dry='' yes=''
while [ $# -gt 0 ]; do
  case $1 in
    --store | --cluster | --home | --id | --endpoint | --owner | --signer)
      [ $# -ge 2 ] || { usage; die 2 "$1 needs a value"; }
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    --dry-run) dry=yes ;;
    --yes) yes=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage; die 2 "unknown argument $1" ;;
  esac
  shift
done
if [ -z "$store" ] || [ -z "$cluster" ] || [ -z "$home" ]; then
  usage
  die 2 "--store, --cluster and --home are needed"
fi
[[ $cluster =~ ^[A-Za-z0-9_.-]{1,63}$ && $cluster != . && $cluster != .. ]] || die 2 "cluster $cluster: only letters, digits, _ . and -"

id_form='^[0-9]{8}T[0-9]{6}Z-[A-Za-z0-9_.-]{3,25}-[0-9a-f]{6}$'
[ -z "$id" ] || [[ $id =~ $id_form ]] || die 2 "$id is not the id of a backup"

base=${store%/}/$cluster
case $store in
  file://*) base=${base#file://} ;;
  s3://*) need aws "install awscli, or give the https:// URL of a public bucket" ;;
  https://* | http://*) need curl "apt-get install curl" ;;
  *) die 2 "store $store: want s3://, https:// or file://" ;;
esac
need zstd "apt-get install zstd"
need tar "apt-get install tar"
[ -z "$signer" ] || need openssl "apt-get install openssl"
[ -d "$home" ] || die 2 "$home is not a directory" "make it first, owned by the user that runs the node"
home=$(cd "$home" && pwd -P)
if [ -n "$owner" ] && [ "$(id -u)" -ne 0 ]; then
  die 2 "only root can give files to $owner" "run as root, or leave --owner out"
fi
[ -n "$owner" ] || owner=$(stat -c %u:%g "$home")

# ---- the store -------------------------------------------------------------

aws_() { aws ${endpoint:+--endpoint-url "$endpoint"} "$@"; }

# failed_fetch KEY ERRORS turns a tool's words into "not there" or "no answer".
failed_fetch() {
  if grep -qE '\((404|NoSuchKey)\)|: 404' "$2"; then
    return 10
  fi
  die 14 "read $1: $(grep -v '^$' "$2" | tail -n 1)" "check the URL, --endpoint and the credentials"
}

# small KEY FILE fetches a small object; returns 10 where there is none.
small() {
  case $store in
    file://*)
      [ -e "$base/$1" ] || return 10
      cat "$base/$1" >"$2" || die 14 "read $base/$1"
      ;;
    s3://*) aws_ s3 cp --only-show-errors "$base/$1" "$2" 2>"$work/errors" || failed_fetch "$base/$1" "$work/errors" ;;
    *) curl -fsSL --retry 3 --retry-delay 1 --retry-connrefused -o "$2" "$base/$1" 2>"$work/errors" || failed_fetch "$base/$1" "$work/errors" ;;
  esac
}

# ask_size KEY sets size to that of an object; returns 10 where there is none.
ask_size() {
  local rest
  case $store in
    file://*)
      [ -e "$base/$1" ] || return 10
      size=$(stat -c %s "$base/$1")
      ;;
    s3://*)
      rest=${base#s3://}/$1
      size=$(aws_ s3api head-object --bucket "${rest%%/*}" --key "${rest#*/}" --query ContentLength --output text 2>"$work/errors") ||
        failed_fetch "$base/$1" "$work/errors"
      ;;
    *)
      size=$(curl -fsSLI --retry 3 --retry-delay 1 --retry-connrefused -o /dev/null -w '%header{content-length}' "$base/$1" 2>"$work/errors") ||
        failed_fetch "$base/$1" "$work/errors"
      ;;
  esac
}

# A download over plain https goes chunk by chunk, so that one that breaks off is
# taken up again there and not lost with hours of work behind it.
chunk=$((256 << 20))

# volume KEY SIZE writes an object to standard output.
volume() {
  local off=0 end
  case $store in
    file://*) cat "$base/$1" ;;
    s3://*) aws_ s3 cp --only-show-errors "$base/$1" - ;;
    *)
      while [ "$off" -lt "$2" ]; do
        end=$((off + chunk < $2 ? off + chunk : $2))
        local range=(-r "$off-$((end - 1))")
        [ "$2" -gt "$chunk" ] || range=()
        curl -fsSL --retry 8 --retry-all-errors ${range[@]+"${range[@]}"} -o "$work/chunk" "$base/$1" || return
        if [ "$(stat -c %s "$work/chunk")" -ne $((end - off)) ]; then
          say "restore-latest: $1: asked for bytes $off to $end, got $(stat -c %s "$work/chunk")" >&2
          return 1
        fi
        cat "$work/chunk" || return
        off=$end
      done
      rm -f "$work/chunk"
      ;;
  esac
}

# all_volumes writes all volumes in order and fails where one has another size
# than the pointer or the store said: a stream that ends early at a frame border
# is whole to zstd.
all_volumes() {
  local i
  for i in "${!volumes[@]}"; do
    say "  ${volumes[i]}, ${sizes[i]} bytes" >&2
    volume "data/$id/${volumes[i]}" "${sizes[i]}" | tee /dev/fd/3 | wc -c >"$work/count" || return
    if [ "$(cat "$work/count")" -ne "${sizes[i]}" ]; then
      say "restore-latest: ${volumes[i]} has $(cat "$work/count") bytes, not ${sizes[i]}" >&2
      return 1
    fi
  done 3>&1
}

# ---- the home --------------------------------------------------------------

eddydir=$home/.eddy
made_eddydir='' swapping=''
work='' new='' before='' marker=''

# entries DIR lists the names in a directory, each ended by a zero byte.
entries() { find "$1" -mindepth 1 -maxdepth 1 -printf '%f\0'; }

# undo_swap brings back what was there. It is right at any point of a swap: an
# entry whose old version lies in $before is put back, the new one set aside.
undo_swap() {
  local name
  while IFS= read -r -d '' name; do
    if [ -e "$home/$name" ] || [ -L "$home/$name" ]; then
      if [ -e "$new/$name" ]; then
        say "restore-latest: $home/$name appeared in the middle of a swap: look at it, move it away, run this again" >&2
        return 1
      fi
      mv -T "$home/$name" "$new/$name" || return
    fi
    mv -T "$before/$name" "$home/$name" || return
  done < <(entries "$before")
  # What had no old version may be in $home only.
  while IFS= read -r -d '' name; do
    if [ ! -e "$new/$name" ] && [ ! -L "$new/$name" ]; then
      mv -T "$home/$name" "$new/$name" || return
    fi
  done <"$marker"
  rm -f "$marker"
  rmdir "$before"
  sync -f "$home"
}

# finish_swap deals with the marker of a swap that was killed. Where every new
# entry is in place the swap was over, and a node may have run since: that is
# never taken back.
finish_swap() {
  local name names=() left=0
  mapfile -d '' -t names <"$marker"
  for name in "${names[@]}"; do
    if [ -e "$new/$name" ] || [ -L "$new/$name" ]; then left=$((left + 1)); fi
  done
  if [ "$left" -eq 0 ]; then
    rm -f "$marker"
    rmdir "$new"
    say "an earlier restore was killed when it had replaced everything: it stands"
    return
  fi
  refuse_running "${names[@]}"
  say "an earlier restore was killed while it replaced files: moving the old ones back"
  undo_swap
}

finish() {
  local status=$?
  set +e
  if [ -n "$swapping" ]; then
    say "restore-latest: moving the old data back" >&2
    undo_swap || say "restore-latest: could not move everything back: what is missing is in $before; run this script again" >&2
  fi
  # With the marker still there the new data is needed to find the way back.
  if [ -n "$new" ] && [ ! -e "$marker" ]; then rm -rf "$new"; fi
  [ -z "$work" ] || rm -rf "$work"
  [ -z "$made_eddydir" ] || rm -rf "$eddydir"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# users_of PATH prints the processes that have a file below PATH open: as root
# those of everybody, else one's own.
users_of() {
  find /proc/[0-9]*/fd -maxdepth 1 -type l -printf '%l\t%p\n' 2>/dev/null |
    dir=$1/ awk -F '\t' 'index($1, ENVIRON["dir"]) == 1 { split($NF, p, "/"); print p[3] }' | sort -un || true
}

refuse_running() {
  local name pids pid
  for name in "$@"; do
    [ -e "$home/$name" ] || continue
    pids=$(users_of "$(readlink -f "$home/$name")")
    [ -n "$pids" ] || continue
    pid=${pids%%$'\n'*}
    die 12 "process $pid ($(cat "/proc/$pid/comm" 2>/dev/null || true)) has files open in $home/$name" \
      "stop the node and whatever starts it again (systemctl stop UNIT), then run this again"
  done
}

# sign_state FILE prints "height round step FILE" of a priv_validator_state.json.
sign_state() {
  tr -d ' \n\t\r"' <"$1" | awk -v file="$1" '
    function n(key) { return match($0, "[{,]" key ":[0-9]+") ? substr($0, RSTART + length(key) + 2, RLENGTH - length(key) - 2) : "" }
    { h = n("height"); r = n("round"); s = n("step") }
    END { if (h == "" || r == "" || s == "") exit 1; print h, r, s, file }'
}

# look_at NAME... sets replaced to those that are in the home, and refuses what a
# rename cannot replace.
look_at() {
  local name
  replaced=()
  for name in "$@"; do
    [ "$name" != .eddy ] || die 13 "backup $id wants to replace .eddy"
    if [ -L "$home/$name" ]; then
      die 1 "$home/$name is a symbolic link" "restore into another --home and move the files to where the link leads"
    fi
    if command -v mountpoint >/dev/null && mountpoint -q "$home/$name"; then
      die 1 "$home/$name is a mount of its own" "restore into another --home on that mount and move the files"
    fi
    if [ -e "$home/$name" ]; then replaced+=("$name"); fi
  done
  refuse_running "$@"
}

# ---- what the store has ----------------------------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/restore-latest.XXXXXX")
volumes=() sizes=()

# add_volume KEY SIZE takes one line of the pointer; the path is ours, not its.
add_volume() {
  local name
  printf -v name 'vol-%04d.tar.zst' ${#volumes[@]}
  if [[ ! $2 =~ ^[0-9]{1,15}$ ]] || [ "${1##*/}" != "$name" ]; then
    die 13 "strange volume $1, $2 bytes, in $id"
  fi
  volumes+=("$name") sizes+=("$2")
}

# check_signature refuses a backup whose manifest the signer has not signed, or whose
# list of sums is not the one that the manifest names: with it every file is proven.
check_signature() {
  local field sum
  small "data/$id/manifest.json" "$work/manifest.json" || die 10 "there is no backup $id of $cluster"
  small "data/$id/manifest.sig" "$work/manifest.sig" || die 13 "backup $id is not signed" "another backup: --id"
  if [ -e "$signer" ]; then
    cp "$signer" "$work/signer.pem"
  else
    printf -- '-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----\n' "$signer" >"$work/signer.pem"
  fi
  openssl pkey -pubin -in "$work/signer.pem" -noout 2>"$work/errors" || die 2 "--signer $signer is neither a public key nor the PEM file of one"
  openssl pkeyutl -verify -rawin -pubin -inkey "$work/signer.pem" -in "$work/manifest.json" -sigfile "$work/manifest.sig" >"$work/errors" 2>&1 ||
    die 13 "the manifest of $id is not signed by $signer" "another backup: --id; another key: --signer"
  for field in "id\": \"$id" "cluster\": \"$cluster"; do
    grep -qxF "  \"$field\"," "$work/manifest.json" || die 13 "the signed manifest is not that of $id of $cluster"
  done
  sum=$(sed -n 's/^    "sha256": "\([0-9a-f]\{64\}\)"$/\1/p' "$work/manifest.json")
  [ "$sum" = "$(sha256sum "$work/SHA256SUMS.zst" | cut -d ' ' -f 1)" ] || die 13 "SHA256SUMS.zst of $id is not the one that its manifest names" "another backup: --id"
  say "backup $id is signed by the key that --signer names"
}

if [ -z "$id" ]; then
  small latest.txt "$work/latest.txt" || die 10 "there is no $base/latest.txt" "check --store and --cluster; --id restores a backup by its name"
  sum=$(sed -n '$s/^sha256 \([0-9a-f]\{64\}\)$/\1/p' "$work/latest.txt")
  [ "$sum" = "$(sed '$d' "$work/latest.txt" | sha256sum | cut -d ' ' -f 1)" ] || die 13 "latest.txt is damaged: its checksum does not fit" "name a backup with --id"
  id=$(sed -n 's/^id //p' "$work/latest.txt")
  [[ $id =~ $id_form ]] || die 13 "latest.txt names no backup"
  while read -r bytes key; do
    add_volume "$key" "$bytes"
  done < <(sed -n 's/^\([0-9]\{1,\} [^ ]*\/vol-[^ ]*\)$/\1/p' "$work/latest.txt")
else
  small "data/$id/manifest.json" "$work/manifest.json" || die 10 "there is no backup $id of $cluster" "a backup without a manifest.json was never finished"
  while ask_size "data/$id/$(printf 'vol-%04d.tar.zst' ${#volumes[@]})"; do
    add_volume "$(printf 'vol-%04d.tar.zst' ${#volumes[@]})" "$size"
  done
fi
[ ${#volumes[@]} -gt 0 ] || die 13 "backup $id has no volumes" "encrypted ones (.age) need age and eddy"
total=0
for i in "${!volumes[@]}"; do
  ask_size "data/$id/${volumes[i]}" || die 13 "${volumes[i]} of $id is missing in the store" "another backup: --id"
  [ "$size" = "${sizes[i]}" ] || die 13 "${volumes[i]} of $id has $size bytes, not ${sizes[i]}" "another backup: --id"
  total=$((total + size))
done
small "data/$id/SHA256SUMS.zst" "$work/SHA256SUMS.zst" || die 13 "backup $id has no SHA256SUMS.zst" "without the sums nothing can be proven; another backup: --id"
[ -z "$signer" ] || check_signature
zstd -dcq "$work/SHA256SUMS.zst" >"$work/SHA256SUMS" || die 13 "SHA256SUMS.zst of $id is damaged"
files=$(sort -u "$work/SHA256SUMS" | wc -l)
[ "$files" -gt 0 ] || die 13 "SHA256SUMS of $id names no file"
if grep -qE '^\\?[0-9a-f]{64} [ *](/|(.*/)?\.\.(/|$))' "$work/SHA256SUMS"; then
  die 13 "SHA256SUMS of $id names files outside of the home"
fi
say "backup $id of $cluster: ${#volumes[@]} volume(s), $total bytes stored, $files files"

# ---- what the home has -----------------------------------------------------

if [ ! -d "$eddydir" ] && [ -z "$dry" ]; then
  mkdir "$eddydir"
  made_eddydir=yes
  [ "$(id -u)" -ne 0 ] || chown "$owner" "$eddydir"
fi
if [ -e "$eddydir/swap.json" ]; then
  die 11 "a restore by eddy is in the middle of its swap here" "let eddy finish it: eddy restore"
fi
if [ -z "$dry" ] && command -v flock >/dev/null; then
  exec 9>>"$eddydir/restore.lock"
  flock -n 9 || die 11 "another restore works in $home"
  [ "$(id -u)" -ne 0 ] || chown "$owner" "$eddydir/restore.lock"
fi
for old in "$eddydir"/restore-*.swap; do
  [ -e "$old" ] || continue
  [ -z "$dry" ] || die 1 "an earlier restore was killed while it replaced files" "run this without --dry-run: it finishes that first"
  marker=$old new=${old%.swap}
  before=$eddydir/before-${new##*/restore-}
  mkdir -p "$new" "$before"
  finish_swap
done
new='' marker=''

# The first path components of the backup are what gets replaced.
mapfile -t tops < <(sed -E 's/^\\?[0-9a-f]{64} [ *]//; s|/.*||' "$work/SHA256SUMS" | sort -u)
look_at "${tops[@]}"

# The highest sign state that this home has: in its data, set aside before, or in
# what a killed restore left. Whoever signs below it signs twice.
states=()
for file in "$home"/data/priv_validator_state.json "$eddydir"/{before,restore}-*/data/priv_validator_state.json; do
  [ -e "$file" ] || continue
  states+=("$(sign_state "$file")") || die 12 "$file cannot be read as a sign state" "it decides what this node may sign; find out what happened to it before restoring"
done
state=''
if [ ${#states[@]} -gt 0 ]; then
  read -r h r s state < <(printf '%s\n' "${states[@]}" | sort -k1,1n -k2,2n -k3,3n | tail -n 1)
  say "the sign state of this home, height $h round $r step $s, is carried over from ${state#"$home"/}"
  cp -p "$state" "$work/priv_validator_state.json"
elif [ -e "$home/config/priv_validator_key.json" ]; then
  die 12 "$home has a validator key and no sign state (data/priv_validator_state.json)" \
    "this key may have signed heights above the backup's. Find the newest copy of its sign state. Where there is none, ask a living node for the chain's height, take the larger of that and the backup's, add 10 (the floor), write {\"height\": \"FLOOR\", \"round\": 2147483647, \"step\": 3} to $home/data/priv_validator_state.json, and start the node only when the chain has passed the floor. Never write height 0"
fi

free=$(($(stat -f -c '%a * %S' "$home")))
if [ "$free" -lt "$total" ]; then
  die 1 "$home has $free bytes free, the backup needs more than $total" "the old data stays until you delete it: free space first"
fi
if [ ${#replaced[@]} -gt 0 ]; then
  say "in $home these are replaced, and kept in .eddy/before-$id: ${replaced[*]}"
else
  say "nothing in $home is replaced"
fi
if [ -n "$dry" ]; then
  say "dry run: nothing was changed"
  exit 0
fi
rmdir "$eddydir/before-$id" 2>/dev/null || true # of a run that was killed before its swap
if [ -e "$eddydir/before-$id" ]; then
  die 1 "$eddydir/before-$id exists: this backup was restored here before" "look at it, then move it away"
fi
if [ ${#replaced[@]} -gt 0 ] && [ -z "$yes" ]; then
  [ -t 0 ] || die 16 "$home has live data and nobody can be asked" "give --yes to replace it"
  read -r -p "type the cluster's name to replace them: " answer
  [ "$answer" = "$cluster" ] || die 16 "not confirmed, nothing was changed"
fi

# ---- extract beside, compare, swap -----------------------------------------

new=$eddydir/restore-$id before=$eddydir/before-$id marker=$eddydir/restore-$id.swap
rm -rf "$new" "$marker.part"
mkdir "$new"
say "extracting"
all_volumes | zstd -dcq | tar -x -p --no-same-owner --keep-old-files --delay-directory-restore -C "$new" -f - ||
  die 13 "the backup could not be extracted; $home is as it was" "try again, or another backup: --id"

say "comparing $files files"
got=$(find "$new" -type f -printf x | wc -c)
[ "$got" -eq "$files" ] || die 13 "$got files came out, the sums name $files; $home is as it was" "another backup: --id"
(cd "$new" && sha256sum -c --strict --quiet "$work/SHA256SUMS" >&2) || die 13 "files differ from their sums; $home is as it was" "another backup: --id"
if [ -n "$(find "$new" ! -type f ! -type d ! -type l -print -quit)" ]; then
  die 13 "the backup holds devices or sockets, which no backup of eddy does; $home is as it was"
fi
secret=$(find "$new" \( -name 'priv_validator*.json' -o -name node_key.json \) -print -quit)
[ -z "$secret" ] || die 13 "the backup holds ${secret#"$new"/}, which no backup of eddy does; $home is as it was"

# What a node keeps among its data and no archive holds.
if [ -n "$state" ]; then
  mkdir -p "$new/data"
  cp -p "$work/priv_validator_state.json" "$new/data/"
fi
if [ -d "$home/data/snapshots" ] && [ -d "$new/data" ]; then
  mkdir -p "$new/data/snapshots" # a node expects it; its content is regenerable
fi
mapfile -d '' -t tops < <(entries "$new")
look_at "${tops[@]}"
for name in ${replaced[@]+"${replaced[@]}"}; do
  if [ -d "$home/$name/config" ] && [ ! -e "$new/$name/config" ]; then
    cp -a "$home/$name/config" "$new/$name/config"
  fi
done
[ "$(id -u)" -ne 0 ] || chown -hR "$owner" "$new"
sync -f "$new"

mkdir "$before"
[ "$(id -u)" -ne 0 ] || chown "$owner" "$before"
printf '%s\0' "${tops[@]}" >"$marker.part"
sync -f "$marker.part"
mv -T "$marker.part" "$marker"
swapping=yes
for name in "${tops[@]}"; do
  if [ -e "$home/$name" ]; then mv -T "$home/$name" "$before/$name"; fi
  mv -T "$new/$name" "$home/$name"
done
swapping=''
sync -f "$home"
rm -f "$marker"
made_eddydir=''
rmdir "$new"

say "restored $id into $home: $files files, every one as its sum says"
rmdir "$before" 2>/dev/null || say "the old data is in $before: delete it when the node runs well"
if [ -d "$home/.eddy-root" ]; then
  say "directories outside of the home are in $home/.eddy-root: move each to where the node's config looks for it"
fi
if [ -z "$state" ]; then
  say "there is no sign state and no validator key: a new node makes both at its first start."
  say "Before you put a validator key here, put its newest priv_validator_state.json into $home/data."
fi
