#!/usr/bin/env bash
#
# Restores a chain node's data from an eddy backup without eddy: bash, zstd, tar,
# coreutils, and curl (https://) or the aws command line (s3://) are all it needs;
# for an encrypted backup age as well.
#
#   restore-latest.sh --store STORE --cluster NAME --home DIR [flags]
#
#   --store STORE    s3://bucket/prefix, https://host/prefix or file:///dir
#   --cluster NAME   the cluster's name in the store
#   --home DIR       the node's home; the backup's data/ becomes DIR/data
#   --id ID          this backup instead of the latest
#   -i, --identity FILE  the age identity or ssh key that opens an encrypted backup;
#                    repeatable
#   --endpoint URL   of an S3 store that is not AWS
#   --signer KEY     public key, or its PEM file: take only what it has signed
#                    (needs openssl 3)
#   --owner U:G      owner of the restored files (root only; default: DIR's owner)
#   --lost FROM-TO   heights that are given up: see below
#   --dry-run        say what is there and what would happen, change nothing
#   --yes            replace live data without asking
#
# What was fetched of s3:// and https:// is kept in DIR/.eddy until the restore has
# ended, where there is room for that: run again after a break, or a kill, the
# script goes on with it.
#
# Stop the node, and whatever would start it again, before. The backup is
# extracted beside the live data, in DIR/.eddy, while the stored size of every
# volume and the checksum of every frame are checked; then every file is compared
# with the backup's list of sums. An encrypted backup has no such list: its sealed
# bytes are compared with their sum in the manifest, and its files counted. Only if all of it agrees is anything replaced,
# and what was there stays in DIR/.eddy/before-ID until you delete it.
#
# Keys and config/ are never in a backup and are left alone. The sign state is the
# one thing that must never go back: the highest that this home has is carried
# over; where a validator key has none, the script stops and says what to do.
#
# A whole chain goes back where no node has its later blocks any more: read
# docs/runbooks/chain-rollback.md first. Every node, before any is started, runs
#   EVERY_VALIDATOR_GOES_BACK_TO=HEIGHT restore-latest.sh ... --id ID --lost FROM-TO
# with the height of that backup, and the heights that the chain loses. Only so does
# a sign state above HEIGHT become the last one of HEIGHT. Without --lost it says
# what this node knows of, changes nothing, and ends with 16.
#
# Exit codes: 0 done, 1 failed, 2 usage or no identity that fits, 10 no such backup, 11 another restore
# works here, 12 the node is running, or its sign state is missing or somebody else's,
# 13 the backup is corrupt, 14 the store does not answer, 16 not confirmed.

set -euo pipefail
export LC_ALL=C
unset CDPATH TAR_OPTIONS
umask 077

me=restore-latest
usage() { sed -n '/^#   restore/,/^#   --yes/s/^# \{0,3\}//p' "$0" >&2; }

# ---- shared: this part stands in restore-latest.sh and restore-keys.sh ---

say() { printf '%s\n' "$*"; }

# die CODE MESSAGE [HINT]
die() {
  printf '%s: %s\n' "$me" "$2" >&2
  [ $# -lt 3 ] || printf 'hint: %s\n' "$3" >&2
  exit "$1"
}

need() { command -v "$1" >/dev/null || die 1 "$1 is not installed" "$2"; }

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

# field INDENT NAME is a word or a number of the manifest.
field() { sed -n "s/^$1\"$2\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p" "$work/manifest.json" | head -n 1; }

# read_manifest DIR fetches the manifest there, which must be that of $id of $cluster
# where it is to be believed: signed by --signer.
read_manifest() {
  local name
  small "$1/manifest.json" "$work/manifest.json" || return
  if [[ $(field '  ' min_reader) =~ ^[0-9]+$ ]] && [ "$(field '  ' min_reader)" -gt 1 ]; then
    die 1 "$id was made by a newer eddy" "fetch the script that came with it"
  fi
  [ -n "$signer" ] || return 0
  small "$1/manifest.sig" "$work/manifest.sig" || die 13 "$id is not signed" "another one: --id"
  if [ -e "$signer" ]; then
    cp "$signer" "$work/signer.pem"
  else
    printf -- '-----BEGIN PUBLIC KEY-----\n%s\n-----END PUBLIC KEY-----\n' "$signer" >"$work/signer.pem"
  fi
  openssl pkey -pubin -in "$work/signer.pem" -noout 2>"$work/errors" || die 2 "--signer $signer is neither a public key nor the PEM file of one"
  openssl pkeyutl -verify -rawin -pubin -inkey "$work/signer.pem" -in "$work/manifest.json" -sigfile "$work/manifest.sig" >"$work/errors" 2>&1 ||
    die 13 "the manifest of $id is not signed by $signer" "another one: --id; another key: --signer"
  for name in id cluster; do
    [ "$(field '  ' $name)" = "${!name}" ] || die 13 "the signed manifest is not that of $id of $cluster"
  done
  say "$id is signed by the key that --signer names"
}

# ---- end of the shared part --------------------------------------------------

# ---- arguments -------------------------------------------------------------

store='' cluster='' home='' id='' endpoint='' owner='' signer='' lost='' dry='' yes=''
identities=()
while [ $# -gt 0 ]; do
  case $1 in
    --store | --cluster | --home | --id | --endpoint | --owner | --signer | --lost)
      [ $# -ge 2 ] || { usage; die 2 "$1 needs a value"; }
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    -i | --identity)
      [ $# -ge 2 ] || { usage; die 2 "$1 needs a value"; }
      [ -r "$2" ] || die 2 "$2 cannot be read: no identity"
      identities+=(-i "$2")
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

back=${EVERY_VALIDATOR_GOES_BACK_TO:-}
if [ -n "$back" ]; then
  [[ $back =~ ^[1-9][0-9]{0,17}$ ]] || die 2 "EVERY_VALIDATOR_GOES_BACK_TO: $back is no height"
  [ -n "$id" ] || die 2 "EVERY_VALIDATOR_GOES_BACK_TO is set, and no --id" "the latest backup may be another one tomorrow; and where no chain is taken back: unset it"
elif [ -n "$lost" ]; then
  die 16 "--lost takes a whole chain back: every validator signs heights a second time" "read docs/runbooks/chain-rollback.md; it is EVERY_VALIDATOR_GOES_BACK_TO=HEIGHT that says so"
fi

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

# A volume comes in parts of this many bytes, four at a time, so that one that
# breaks off is taken up again there and not lost with hours of work behind it.
chunk=${RESTORE_PART:-$((64 << 20))}
parts='' keep='' # where they are put, and whether they stay there until the end

# get_part KEY SIZE OFFSET LENGTH FILE fetches one of them.
get_part() {
  local rest=${base#s3://}/$1 range=()
  if [[ $store = s3://* ]]; then
    aws_ s3api get-object --bucket "${rest%%/*}" --key "${rest#*/}" --range "bytes=$3-$(($3 + $4 - 1))" "$5" >/dev/null
  else
    [ "$2" -eq "$4" ] || range=(-r "$3-$(($3 + $4 - 1))")
    curl -fsSL --speed-limit 1 --speed-time 60 ${range[@]+"${range[@]}"} -o "$5" "$base/$1"
  fi
}

# part KEY SIZE OFFSET has one of them in $parts in the end, unless it is there.
part() {
  local to=$parts/${1##*/}.$3 n=$(($2 - $3 < chunk ? $2 - $3 : chunk)) new said try
  if [ -e "$to" ] && [ "$(stat -c %s "$to")" -eq "$n" ]; then return; fi
  # Names of its own: what a killed run has left behind may still be writing.
  new=$to.new-$BASHPID said=$to.said-$BASHPID
  for try in 1 2 4 8 0; do
    if get_part "$1" "$2" "$3" "$n" "$new" 2>"$said"; then
      if [ "$(stat -c %s "$new")" -eq "$n" ]; then
        rm -f "$said"
        mv -T "$new" "$to"
        return
      fi
      say "it came with $(stat -c %s "$new") bytes" >"$said"
    elif grep -qE '\((40[0-9]|[A-Z][A-Za-z]*Denied|NoSuchKey)\)|: 40[0-9]' "$said"; then
      break # to ask again changes nothing
    fi
    sleep "$try"
  done
  say "$me: $n bytes of $1 from $3 on: $(grep -v '^$' "$said" | tail -n 1)" >&2
  rm -f "$said" "$new"
  return 1
}

# volume KEY SIZE writes an object to standard output.
volume() {
  local off=0 next=0 pids=() i=0 status=0
  case $store in
    file://*)
      cat "$base/$1"
      return
      ;;
  esac
  while [ "$off" -lt "$2" ] && [ $status -eq 0 ]; do
    while [ "$next" -lt "$2" ] && [ "$next" -lt $((off + 4 * chunk)) ]; do
      part "$1" "$2" "$next" &
      pids+=($!)
      next=$((next + chunk))
    done
    if ! wait "${pids[i]}"; then
      : >"$work/unfetched"
      status=1
      break
    fi
    cat "$parts/${1##*/}.$off" || status=$?
    [ -n "$keep" ] || rm -f "$parts/${1##*/}.$off"
    off=$((off + chunk)) i=$((i + 1))
  done
  wait
  return $status
}

# all_volumes writes all volumes in order and fails where one has another size
# than the pointer or the store said: a stream that ends early at a frame border
# is whole to zstd. Of an encrypted one, which is alone, it takes the sum as well.
all_volumes() {
  local i
  for i in "${!volumes[@]}"; do
    say "  ${volumes[i]}, ${sizes[i]} bytes" >&2
    if [ -n "$encrypted" ]; then
      { volume "data/$id/${volumes[i]}" "${sizes[i]}" | tee /dev/fd/4 | sha256sum >"$work/sum"; } 4>&1
    else
      volume "data/$id/${volumes[i]}" "${sizes[i]}"
    fi | tee /dev/fd/3 | wc -c >"$work/count" || return
    if [ "$(cat "$work/count")" -ne "${sizes[i]}" ]; then
      say "restore-latest: ${volumes[i]} has $(cat "$work/count") bytes, not ${sizes[i]}" >&2
      return 1
    fi
  done 3>&1
}

# decoded turns what all_volumes writes into the tar.
decoded() {
  if [ -n "$encrypted" ]; then
    age -d "${identities[@]}" 2>"$work/age" | zstd -dcq
  else
    zstd -dcq
  fi
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
  rm -f "$new.rollbacks" "$marker"
  rmdir "$before"
  sync -f "$home"
}

# noted puts the list of rollbacks into its place, where a swap has brought one.
noted() { [ ! -e "$new.rollbacks" ] || mv -T "$new.rollbacks" "$eddydir/rollbacks.json"; }

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
    noted
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
  if [ -n "$made_eddydir" ] && { [ -z "$keep" ] || [ ! -d "$parts" ]; }; then rm -rf "$eddydir"; fi
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

# sign_state FILE prints "height round step FILE" of a priv_validator_state.json, or of
# the priv_validator.json of old, which has the key and the state in one.
sign_state() {
  tr -d ' \n\t\r"' <"$1" | awk -v file="$1" '
    function n(key) {
      if (!match($0, "[{,](last_)?" key ":[0-9]+")) return ""
      key = substr($0, RSTART, RLENGTH)
      sub(/.*:/, "", key)
      return key
    }
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
  printf -v name 'vol-%04d.tar.zst%s' ${#volumes[@]} "$encrypted"
  if [[ ! $2 =~ ^[0-9]{1,15}$ ]] || [ "${1##*/}" != "$name" ]; then
    die 13 "strange volume $1, $2 bytes, in $id"
  fi
  volumes+=("$name") sizes+=("$2")
}

pointed=''
if [ -z "$id" ]; then
  small latest.txt "$work/latest.txt" || die 10 "there is no $base/latest.txt" "check --store and --cluster; --id restores a backup by its name"
  sum=$(sed -n '$s/^sha256 \([0-9a-f]\{64\}\)$/\1/p' "$work/latest.txt")
  [ "$sum" = "$(sed '$d' "$work/latest.txt" | sha256sum | cut -d ' ' -f 1)" ] || die 13 "latest.txt is damaged: its checksum does not fit" "name a backup with --id"
  id=$(sed -n 's/^id //p' "$work/latest.txt")
  [[ $id =~ $id_form ]] || die 13 "latest.txt names no backup"
  pointed=yes
fi
read_manifest "data/$id" || die 10 "there is no backup $id of $cluster" "a backup without a manifest.json was never finished"
encrypted=''
if grep -q '^  "encryption": {' "$work/manifest.json"; then
  [ "$(field '    ' scheme)" = age ] || die 1 "$id is encrypted in a way that this script does not know" "fetch the script that came with the eddy that made it"
  encrypted=.age
  need age "apt-get install age"
  [ -n "$dry" ] || [ ${#identities[@]} -gt 0 ] || die 2 "$id is encrypted" "name the identity that opens it: -i FILE"
fi
if [ -n "$pointed" ]; then
  while read -r bytes key; do
    add_volume "$key" "$bytes"
  done < <(sed -n 's/^\([0-9]\{1,\} [^ ]*\/vol-[^ ]*\)$/\1/p' "$work/latest.txt")
else
  while ask_size "data/$id/$(printf 'vol-%04d.tar.zst%s' ${#volumes[@]} "$encrypted")"; do
    add_volume "$(printf 'vol-%04d.tar.zst%s' ${#volumes[@]} "$encrypted")" "$size"
  done
fi
[ ${#volumes[@]} -gt 0 ] || die 13 "backup $id has no volumes" "another backup: --id"
total=0
for i in "${!volumes[@]}"; do
  ask_size "data/$id/${volumes[i]}" || die 13 "${volumes[i]} of $id is missing in the store" "another backup: --id"
  [ "$size" = "${sizes[i]}" ] || die 13 "${volumes[i]} of $id has $size bytes, not ${sizes[i]}" "another backup: --id"
  total=$((total + size))
done
if [ -n "$encrypted" ]; then
  # What it holds is told by nobody but itself: one volume, its sum, and how many files.
  files=$(field '    ' files) sum=$(field '      ' sha256)
  if [ ${#volumes[@]} -ne 1 ] || [[ ! $sum =~ ^[0-9a-f]{64}$ ]] || [[ ! $files =~ ^[0-9]+$ ]] || [ "$(field '      ' size)" != "$total" ]; then
    die 13 "$id is encrypted, and its manifest does not say of what" "another backup: --id"
  fi
else
  small "data/$id/SHA256SUMS.zst" "$work/SHA256SUMS.zst" || die 13 "backup $id has no SHA256SUMS.zst" "without the sums nothing can be proven; another backup: --id"
  sum=$(field '    ' sha256) # older manifests do not have it
  if [ -n "$signer$sum" ] && [ "$sum" != "$(sha256sum "$work/SHA256SUMS.zst" | cut -d ' ' -f 1)" ]; then
    die 13 "SHA256SUMS.zst of $id is not the one that its manifest names" "another backup: --id"
  fi
  zstd -dcq "$work/SHA256SUMS.zst" >"$work/SHA256SUMS" || die 13 "SHA256SUMS.zst of $id is damaged"
  files=$(sort -u "$work/SHA256SUMS" | wc -l)
  [ "$files" -gt 0 ] || die 13 "SHA256SUMS of $id names no file"
  if grep -qE '^\\?[0-9a-f]{64} [ *](/|(.*/)?\.\.(/|$))' "$work/SHA256SUMS"; then
    die 13 "SHA256SUMS of $id names files outside of the home"
  fi
fi
say "backup $id of $cluster: ${#volumes[@]} volume(s), $total bytes stored, $files files"

# position NAME is what the manifest says of where the backup stands.
position() { sed -n '/^  "position": {/,/^  }/p' "$work/manifest.json" | sed -n "s/^    \"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p"; }

if [ -n "$back" ] && { [ "$(position kind)" != cometbft ] || [ "$(position index)" != "$back" ]; }; then
  die 16 "the chain is to go back to height $back, and $id is of $(position kind) $(position index)" "the height that was agreed on, and the backup that ends there"
fi

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

# The first path components of the backup are what gets replaced. Of an encrypted one
# they are known when it is open.
replaced=()
if [ -z "$encrypted" ]; then
  mapfile -t tops < <(sed -E 's/^\\?[0-9a-f]{64} [ *]//; s|/.*||' "$work/SHA256SUMS" | sort -u)
  look_at "${tops[@]}"
fi

# The highest sign state that this home has: in its data, set aside before, or in
# what a killed restore left. Whoever signs below it signs twice. A Loom home has it
# below chaindata.
states=() h=0 r=0 s=0
for file in "$home"/{,chaindata/}data/priv_validator_state.json "$eddydir"/{before,restore}-*/{,chaindata/}data/priv_validator_state.json; do
  [ -e "$file" ] || continue
  states+=("$(sign_state "$file")") || die 12 "$file cannot be read as a sign state" "it decides what this node may sign; find out what happened to it before restoring"
done
state='' has_key='' old=$home/chaindata/config/priv_validator.json
if [ -e "$home/config/priv_validator_key.json" ] || [ -e "$home/chaindata/config/priv_validator_key.json" ]; then has_key=yes; fi

# take_back sets the sign state of a node whose whole chain goes back: one above that
# height becomes its last one, and so does that of a key which has none.
take_back() {
  local least=$((h > back ? h : back + 1)) file
  [ ! -e "$old" ] || die 12 "$old has key and sign state in one, which a script does not lower" "take eddy: \`eddy restore $id --rollback-chain $back\`"
  for file in "$home"/{,chaindata/}config/config.toml; do
    if grep -qsE "^[[:space:]]*priv_validator_laddr[[:space:]]*=[[:space:]]*[\"'][^\"']" "$file"; then
      die 12 "somebody else signs for this node (priv_validator_laddr in $file)" "take that signer's state back first, by its maker's instructions; then empty the line for the time of the rollback"
    fi
  done
  if [[ ! $lost =~ ^$((back + 1))-([1-9][0-9]{0,17})$ ]] || [ "${BASH_REMATCH[1]}" -lt "$least" ]; then
    die 16 "the lost heights are $((back + 1))-$least, by what this node knows${lost:+, and not $lost}" "the highest that any node knows is what every one types: --lost $((back + 1))-HIGHEST"
  fi
  say "THE WHOLE CHAIN GOES BACK to height $back: blocks $lost are given up"
  if [ "$h" -gt "$back" ] || [ -z "$state" ]; then
    [ -n "$state$has_key" ] || return 0
    [ -z "$state" ] || say "the sign state of this home was height $h round $r step $s"
    printf '{"height": "%s", "round": 2147483647, "step": 3}\n' "$back" >"$work/priv_validator_state.json"
    say "it becomes height $back round 2147483647 step 3"
    state=lowered
  else
    cp -p "$state" "$work/priv_validator_state.json"
  fi
}

if [ ${#states[@]} -gt 0 ]; then
  read -r h r s state < <(printf '%s\n' "${states[@]}" | sort -k1,1n -k2,2n -k3,3n | tail -n 1)
fi
if [ -n "$back" ]; then
  take_back
elif [ -n "$state" ]; then
  say "the sign state of this home, height $h round $r step $s, is carried over from ${state#"$home"/}"
  cp -p "$state" "$work/priv_validator_state.json"
elif [ -n "$has_key" ]; then
  die 12 "$home has a validator key and no sign state (data/priv_validator_state.json)" \
    "this key may have signed heights above the backup's. Find the newest copy of its sign state. Where there is none, ask a living node for the chain's height, take the larger of that and the backup's, add 10 (the floor), write {\"height\": \"FLOOR\", \"round\": 2147483647, \"step\": 3} to data/priv_validator_state.json there, and start the node only when the chain has passed the floor. Never write height 0"
fi

# The key file of old is its own sign state and stays where it is: no copy of it that
# lies here may have gone further.
for file in "$eddydir"/{before,restore}-*/chaindata/config/priv_validator.json; do
  if [ ! -e "$file" ] || [ ! -e "$old" ]; then continue; fi
  if ! live=$(sign_state "$old") || ! copy=$(sign_state "$file"); then
    die 12 "$old or $file cannot be read as a key with its sign state" "find out what happened to it before restoring"
  fi
  read -r h r s highest < <(printf '%s\n' "$copy" "$live" | sort -s -k1,1n -k2,2n -k3,3n | tail -n 1)
  if [ "$highest" != "$old" ]; then
    die 12 "$file has signed height $h round $r step $s, $old is behind it" "whoever signs below it signs twice: find out why before restoring"
  fi
done

free=$(($(stat -f -c '%a * %S' "$home")))
source=$(field '    ' source)
[[ $source =~ ^[0-9]{1,15}$ ]] || source=0
wanted=$((source > total ? source : total))
if [ "$free" -lt "$wanted" ]; then
  die 1 "$home has $free bytes free, the backup needs more than $wanted" "the old data stays until you delete it: free space first"
fi
# confirm says what will be replaced, and asks.
confirm() {
  local answer
  if [ ${#replaced[@]} -eq 0 ]; then
    say "nothing in $home is replaced"
    return
  fi
  say "in $home these are replaced, and kept in .eddy/before-$id: ${replaced[*]}"
  if [ -z "$dry$yes" ]; then
    [ -t 0 ] || die 16 "$home has live data and nobody can be asked" "give --yes to replace it"
    read -r -p "type the cluster's name to replace them: " answer
    [ "$answer" = "$cluster" ] || die 16 "not confirmed, nothing was changed"
  fi
}

if [ -n "$dry" ]; then
  if [ -n "$encrypted" ]; then say "what in $home is replaced shows when the backup is open"; else confirm; fi
  say "dry run: nothing was changed"
  exit 0
fi
rmdir "$eddydir/before-$id" 2>/dev/null || true # of a run that was killed before its swap
if [ -e "$eddydir/before-$id" ]; then
  die 1 "$eddydir/before-$id exists: this backup was restored here before" "look at it, then move it away"
fi
[ -n "$encrypted" ] || confirm

# ---- extract beside, compare, swap -----------------------------------------

new=$eddydir/restore-$id before=$eddydir/before-$id marker=$eddydir/restore-$id.swap
rm -rf "$new" "$new.rollbacks" "$marker.part"
mkdir "$new"
case $store in
  file://*) ;;
  *)
    parts=$eddydir/fetch-$id
    for other in "$eddydir"/fetch-*; do
      if [ "$other" != "$parts" ]; then rm -rf "$other"; fi
    done
    rm -f "$parts"/*.new-* "$parts"/*.said-*
    have=$(find "$parts" -type f -printf '%s\n' 2>/dev/null | awk '{ n += $1 } END { printf "%d", n }' || true)
    if [ "$source" -gt 0 ] && [ "$free" -gt $((source + source / 20 + total - have)) ]; then
      keep=yes
      [ "$have" -eq 0 ] || say "$have bytes of it were fetched by an earlier run"
    else
      rm -rf "$parts"
      parts=$work/parts
      say "no room to keep what is fetched: a restore that breaks off begins anew"
    fi
    mkdir -p "$parts"
    ;;
esac

# corrupt MESSAGE [HINT]: nothing that was fetched is worth anything.
corrupt() {
  [ -z "$keep" ] || rm -rf "$parts"
  die 13 "$@"
}

# note_rollback makes the list that eddy reads in a home, of when its chain was taken
# back: those that the home, or else the backup, knows of, and this one. It gets its
# name when the data are there.
note_rollback() {
  local file=$eddydir/rollbacks.json list at now
  now=$(date -u +%Y-%m-%dT%H:%M:%SZ)
  if grep -qs '"at"' "$file"; then
    list=$(tr '\n' ' ' <"$file" | sed -n 's/^\(.*"min_reader": 1,.*}\) *\] *} *$/\1/p')
    [ -n "$list" ] || die 1 "$file cannot be read as the list of rollbacks" "write it as it is on another node of the chain; where there was no rollback, remove it"
    list+=,
  else
    list='{"format": 1, "min_reader": 1, "rollbacks": ['
    for at in $(field '  ' incarnation | tr @ '\n' | sed 1d); do
      list+="{\"at\": $at, \"time\": \"$now\", \"before\": \"before-$id\"},"
    done
  fi
  printf '%s\n' "$list {\"at\": $back, \"lost\": ${lost#*-}, \"time\": \"$now\", \"before\": \"before-$id\"}]}" >"$new.rollbacks"
  [ "$(id -u)" -ne 0 ] || chown "$owner" "$new.rollbacks"
  sync -f "$new.rollbacks"
}

say "extracting"
all_volumes | decoded | tar -x -p --no-same-owner --keep-old-files --delay-directory-restore -C "$new" -f - 2>"$work/tar" || {
  cat "$work/tar" "$work/age" >&2 2>/dev/null || true
  if [ -e "$work/unfetched" ]; then
    die 14 "the backup could not be fetched whole; $home is as it was" "run this again${keep:+: it goes on where it broke off}"
  elif grep -q 'No space left' "$work/tar"; then
    die 1 "$home is full; it is as it was" "free space, then run this again"
  elif grep -q 'no identity matched\|reading "\|incorrect passphrase' "$work/age" 2>/dev/null; then
    die 2 "no identity opens $id; $home is as it was" "it was sealed for others: -i FILE, with one of those that it names under recipients in its manifest.json"
  fi
  corrupt "the backup could not be extracted; $home is as it was" "try again, or another backup: --id"
}
if [ -n "$encrypted" ] && [ "$(cut -d ' ' -f 1 "$work/sum")" != "$sum" ]; then
  corrupt "${volumes[0]} of $id is not what its manifest names; $home is as it was" "another backup: --id"
fi

say "comparing $files files"
got=$(find "$new" -type f -printf x | wc -c)
[ "$got" -eq "$files" ] || corrupt "$got files came out, the sums name $files; $home is as it was" "another backup: --id"
if [ -z "$encrypted" ]; then
  (cd "$new" && sha256sum -c --strict --quiet "$work/SHA256SUMS" >&2) || corrupt "files differ from their sums; $home is as it was" "another backup: --id"
fi
if [ -n "$(find "$new" ! -type f ! -type d ! -type l -print -quit)" ]; then
  die 13 "the backup holds devices or sockets, which no backup of eddy does; $home is as it was"
fi
secret=$(find "$new" \( -name 'priv_validator*.json' -o -name node_key.json \) -print -quit)
[ -z "$secret" ] || die 13 "the backup holds ${secret#"$new"/}, which no backup of eddy does; $home is as it was"

# What a node keeps among its data and no archive holds.
if [ -n "$state" ] && [ -d "$new/chaindata" ]; then
  mkdir -p "$new/chaindata/data"
  cp -p "$work/priv_validator_state.json" "$new/chaindata/data/"
elif [ -n "$state" ] && { [ -z "$encrypted" ] || [ -d "$new/data" ]; }; then
  mkdir -p "$new/data"
  cp -p "$work/priv_validator_state.json" "$new/data/"
fi
if [ -d "$home/data/snapshots" ] && [ -d "$new/data" ]; then
  mkdir -p "$new/data/snapshots" # a node expects it; its content is regenerable
fi
mapfile -d '' -t tops < <(entries "$new")
look_at "${tops[@]}"
[ -z "$encrypted" ] || confirm
for name in ${replaced[@]+"${replaced[@]}"}; do
  if [ -d "$home/$name/config" ] && [ ! -e "$new/$name/config" ]; then
    cp -a "$home/$name/config" "$new/$name/config"
  fi
done
[ "$(id -u)" -ne 0 ] || chown -hR "$owner" "$new"
sync -f "$new"

mkdir "$before"
[ "$(id -u)" -ne 0 ] || chown "$owner" "$before"
[ -z "$back" ] || note_rollback
printf '%s\0' "${tops[@]}" >"$marker.part"
sync -f "$marker.part"
mv -T "$marker.part" "$marker"
swapping=yes
for name in "${tops[@]}"; do
  if [ -e "$home/$name" ]; then mv -T "$home/$name" "$before/$name"; fi
  mv -T "$new/$name" "$home/$name"
done
swapping=''
noted
sync -f "$home"
rm -f "$marker"
made_eddydir=''
rmdir "$new"

[ -z "$keep" ] || rm -rf "$parts"
proof="every one as its sum says"
[ -z "$encrypted" ] || proof="sealed as they were sent"
say "restored $id into $home: $files files, $proof"
rmdir "$before" 2>/dev/null || say "the old data is in $before: delete it when the node runs well"
if [ -d "$home/.eddy-root" ]; then
  say "directories outside of the home are in $home/.eddy-root: move each to where the node's config looks for it"
fi
if [ -z "$state" ] && [ -z "$encrypted" ] && [ ! -e "$old" ]; then
  data=$home/data
  [ ! -d "$home/chaindata/data" ] || data=$home/chaindata/data
  say "there is no sign state and no validator key: a new node makes both at its first start."
  say "Before you put a validator key here, put its newest priv_validator_state.json into $data."
fi
[ -z "$back" ] || say "Start this node when every validator has been taken back to height $back, and not before."
