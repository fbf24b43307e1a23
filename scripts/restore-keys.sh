#!/usr/bin/env bash
#
# Brings a node's keys and configuration back from a bundle of eddy, without eddy:
# bash, age, zstd, tar, coreutils, and curl (https://) or the aws command line
# (s3://) are all it needs.
#
#   restore-keys.sh --store STORE --cluster NAME --node NODE --list
#   restore-keys.sh --store STORE --cluster NAME --node NODE --home DIR -i FILE [flags]
#
#   --store STORE    s3://bucket/prefix, https://host/prefix or file:///dir
#   --cluster NAME   the cluster's name in the store
#   --node NODE      whose bundle
#   --home DIR       the node's home: files of the home go there, all others to the
#                    absolute paths that they had
#   -i, --identity FILE  the age identity or ssh key that opens it; repeatable
#   --list           say what the newest bundle holds; needs neither home nor identity
#   --id ID          this bundle instead of the newest
#   --into DIR       everything below DIR/home and DIR/root instead, to be looked at
#   --only GLOB      these only, by name, path in the home, or absolute path; repeatable
#   --endpoint URL   of an S3 store that is not AWS
#   --signer KEY     public key, or its PEM file: take only what it has signed
#                    (needs openssl 3)
#   --owner U:G      owner of all files (root only; default: who they belonged to)
#   --other-node     this home is to become that node: the one that runs elsewhere
#                    with the same node key must be down
#   --with-validator-key ADDRESS  the validator key as well, whose consensus address
#                    this is (40 hex digits); needs one of the next two
#   --witness URL    RPC of a living node, asked whether that key still signs; repeatable
#   --no-witness     no node of the chain lives any more
#   --dry-run        say what would happen to each file, change nothing
#   --yes            write without asking
#
# Every file is compared with the list inside the bundle, and that with the manifest,
# before any is written. What is there and differs is kept, as NAME.eddy-saved-TIME.
# Killed, run it again: a file that is in its place already is left alone.
#
# THE VALIDATOR KEY and its sign state stay in the bundle unless their address is
# typed. A key that signs in two places, or a second time at a height, costs the
# validator its stake. With --witness the script refuses while the key signs
# anywhere, and writes a sign state above all that it may have signed; the node must
# be started only when the chain has passed that height. With --no-witness nobody can
# say what it has signed: it gets a sign state ten heights above the bundle's and the
# newest backup's, unless this home has one of this key. Where all validators of a
# chain come back so, docs/runbooks/whole-cluster.md has what is left to do.
#
# Exit codes: 0 done, 1 failed, 2 usage or no identity that fits, 10 no such bundle,
# 11 another restore works here, 12 another node's bundle, or a key that may not be
# restored, 13 the bundle is not what its manifest says, 14 the store or a witness does
# not answer, 16 not confirmed.

set -euo pipefail
export LC_ALL=C
unset CDPATH TAR_OPTIONS
umask 077

me=restore-keys
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

store='' cluster='' node='' home='' into='' id='' endpoint='' owner='' signer=''
list='' dry='' yes='' other_node='' address='' no_witness=''
identities=() globs=() witnesses=()
while [ $# -gt 0 ]; do
  case $1 in
    --list | --dry-run | --yes | --other-node | --no-witness)
      name=${1#--} name=${name%-run}
      printf -v "${name//-/_}" yes
      shift
      continue
      ;;
    -h | --help) usage; exit 0 ;;
  esac
  [ $# -ge 2 ] || { usage; die 2 "$1 is unknown, or needs a value"; }
  case $1 in
    --store | --cluster | --node | --home | --into | --id | --endpoint | --owner | --signer) printf -v "${1#--}" %s "$2" ;;
    -i | --identity)
      [ -r "$2" ] || die 2 "$2 cannot be read: no identity"
      identities+=(-i "$2")
      ;;
    --only) globs+=("$2") ;;
    --witness) witnesses+=("${2%/}") ;;
    --with-validator-key) address=${2^^} ;;
    *) usage; die 2 "unknown argument $1" ;;
  esac
  shift 2
done
if [ -z "$store" ] || [ -z "$cluster" ] || [ -z "$node" ]; then
  usage
  die 2 "--store, --cluster and --node are needed"
fi
for name in cluster node; do
  [[ ${!name} =~ ^[A-Za-z0-9_.-]{1,63}$ && ${!name} != . && ${!name} != .. ]] || die 2 "$name ${!name}: only letters, digits, _ . and -"
done
id_form='^[0-9]{8}T[0-9]{6}Z-keys-[0-9a-f]{6}$'
[ -z "$id" ] || [[ $id =~ $id_form ]] || die 2 "$id is not the id of a bundle"
if [ -z "$list" ]; then
  [ ${#identities[@]} -gt 0 ] || die 2 "no identity is named" "-i FILE: one of those that the bundle was sealed for"
  [ -z "$home" ] || [ -z "$into" ] || die 2 "--home and --into are two ways to say where to"
  [ -n "$home$into" ] || die 2 "--home or --into is needed"
  need age "apt-get install age; for a post-quantum identity, version 1.3 or later"
  need zstd "apt-get install zstd"
  need tar "apt-get install tar"
  if [ -n "$home" ]; then
    [ -d "$home" ] || die 2 "$home is not a directory" "make it first, owned by the user that runs the node"
    home=$(cd "$home" && pwd -P)
  else
    [ -z "$(ls -A "$into" 2>/dev/null)" ] || die 2 "$into is not empty"
    mkdir -p "$into"
    into=$(cd "$into" && pwd -P)
  fi
fi
if [ -n "$owner" ] && [ "$(id -u)" -ne 0 ]; then
  die 2 "only root can give files to $owner" "run as root, or leave --owner out"
fi
if [ -n "$address" ]; then
  [[ $address =~ ^[0-9A-F]{40}$ ]] || die 2 "--with-validator-key: $address is no consensus address" "40 hex digits, as \`comet show-address\` prints and the explorers have"
  [ -n "$no_witness" ] || [ ${#witnesses[@]} -gt 0 ] || die 2 "nobody can be asked whether the validator key still signs" "name a living node: --witness http://HOST:26657; only where none lives any more, --no-witness"
  [ ${#witnesses[@]} -eq 0 ] || need curl "apt-get install curl"
fi
[ -z "$signer" ] || need openssl "apt-get install openssl"
base=${store%/}/$cluster
case $store in
  file://*) base=${base#file://} ;;
  s3://*) need aws "install awscli, or give the https:// URL of a public bucket" ;;
  https://* | http://*) need curl "apt-get install curl" ;;
  *) die 2 "store $store: want s3://, https:// or file://" ;;
esac

if [ -n "$home" ]; then
  exec 9<"$home"
  if command -v flock >/dev/null; then flock -n 9 || die 11 "another restore of keys works in $home"; fi
  [ ! -e "$home/.eddy/keys.json" ] || die 11 "a restore of keys by eddy was killed here before its end" "let eddy finish it: eddy keys restore"
  rm -rf "$home"/.restore-keys.* # of a run that was killed
fi
# What is opened lies in the home, or in DIR, until it is in its place: never in /tmp.
work=$(mktemp -d "${home:-${into:-${TMPDIR:-/tmp}}}/.restore-keys.XXXXXX")
coming=()
finish() {
  local status=$?
  rm -rf "$work" ${coming[@]+"${coming[@]}"}
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# ---- the bundle ------------------------------------------------------------

if [ -z "$id" ]; then
  small "keys/$node/latest.json" "$work/manifest.json" || die 10 "there is no bundle of $node in $base" "check --store, --cluster and --node; --id names one itself"
  id=$(field '  ' id)
  [[ $id =~ $id_form ]] || die 13 "latest.json of $node names no bundle" "name one: --id"
fi
dir=keys/$node/$id
read_manifest "$dir" || die 10 "there is no bundle $id of $node"
for name in id cluster node; do
  [ "$(field '  ' $name)" = "${!name}" ] || die 13 "the manifest of $id is that of another bundle"
done

# files_of FILE prints "name class size mode", by tabs, of each file of a list, and with
# a second argument owner and sum as well.
files_of() {
  awk -v more="${2:-}" '
    function value(s) { sub(/^[^:]*: "?/, "", s); sub(/"?,?$/, "", s); return s }
    /^  "files": \[/ { on = 1; next }
    /^  \]/ { on = 0 }
    !on { next }
    /^    \{/ { split("", f); next }
    /^      "/ { key = $1; gsub(/[":]/, "", key); f[key] = value($0); if (key == "name" && index(f[key], "\\")) exit 1; next }
    /^    \}/ {
      printf "%s\t%s\t%s\t%s", f["name"], f["class"], f["size"], f["mode"]
      if (more) printf "\t%s\t%s\t%s", f["user"] == "" ? "-" : f["user"], f["group"] == "" ? "-" : f["group"], f["sha256"]
      print ""
    }' "$1"
}
unusual() { die 1 "$id has a name in it that this script cannot handle" "take eddy: \`eddy keys restore $id --node $node\`"; }

files_of "$work/manifest.json" >"$work/promised" || unusual
if [ -n "$list" ]; then
  say "$id: $(field '  ' preset) on $(field '  ' host), made $(field '  ' created), $(field '  ' size) bytes, node id $(field '  ' node_id)"
  awk -F '\t' '{ printf "%s %9d  %-13s %s\n", $4, $3, $2, $1 }' "$work/promised"
  exit 0
fi
small "$dir/bundle.tar.zst.age" "$work/sealed" || die 13 "bundle.tar.zst.age of $id is missing" "another one: --id"
if [ "$(stat -c %s "$work/sealed")" != "$(field '  ' size)" ] || [ "$(sha256sum <"$work/sealed" | cut -d ' ' -f 1)" != "$(field '  ' sha256)" ]; then
  die 13 "bundle.tar.zst.age of $id is not what its manifest names" "another one: --id"
fi
if ! age -d "${identities[@]}" -o "$work/opened" "$work/sealed" 2>"$work/errors"; then
  if grep -q 'no identity matched\|reading "\|incorrect passphrase' "$work/errors"; then
    die 2 "no identity opens $id: it was sealed for others" "-i FILE, with one of: $(sed -n '/^  "recipients"/,/\]/s/^    "\(.*\)",\{0,1\}$/\1/p' "$work/manifest.json" | tr '\n' ' ')"
  fi
  die 13 "$id cannot be decrypted: $(tail -n 1 "$work/errors")" "another one: --id"
fi
mkdir "$work/out"
# 1 GiB is more than any bundle of eddy decodes to.
if ! (ulimit -f $((1 << 20)) && zstd -dcq "$work/opened" >"$work/tar") || ! tar -tvf "$work/tar" >"$work/members" 2>"$work/errors"; then
  die 13 "$id is damaged inside" "another one: --id"
fi
rm "$work/opened"
if grep -qv '^-' "$work/members" || tar -tf "$work/tar" | grep -qvE '^(home|root)/.|^EDDY-BUNDLE\.json$' || tar -tf "$work/tar" | grep -qE '(^|/)\.\.?(/|$)|//'; then
  die 13 "$id holds something that no bundle of eddy does" "another one: --id"
fi
tar -x --no-same-owner --keep-old-files -C "$work/out" -f "$work/tar" || die 13 "$id is damaged inside" "another one: --id"
rm "$work/tar"
for name in id cluster node; do
  grep -qxF "  \"$name\": \"${!name}\"," "$work/out/EDDY-BUNDLE.json" || die 13 "what $id holds is another bundle"
done
files_of "$work/out/EDDY-BUNDLE.json" more >"$work/files" || unusual
cut -f 1-4 "$work/files" | cmp -s - "$work/promised" || die 13 "the manifest of $id and the list inside it differ" "another one: --id"
(
  cd "$work/out"
  [ "$(find . -type f ! -path ./EDDY-BUNDLE.json -printf x | wc -c)" -eq "$(wc -l <"$work/files")" ] &&
    awk -F '\t' '{ print $7 "  " $1 }' "$work/files" | sha256sum -c --strict --quiet >&2
) || die 13 "the files in $id are not those of its list" "another one: --id"

# ---- where each goes -------------------------------------------------------

# wanted NAME tells whether --only asks for a file.
wanted() {
  local path=${1#home/} glob
  [[ $1 = home/* ]] || path=${1#root}
  [ ${#globs[@]} -gt 0 ] || return 0
  for glob in "${globs[@]}"; do
    # shellcheck disable=SC2053 # patterns are what is meant
    if [[ $path = $glob || ${path##*/} = $glob ]]; then return 0; fi
  done
  return 1
}

# secret FILE is the key in a file of CometBFT.
secret() { tr -d ' \n\t\r' <"$1" | sed -n 's/.*"priv_key":{[^}]*"value":"\([^"]*\)".*/\1/p'; }

# sign_state FILE prints "height round step".
sign_state() {
  tr -d ' \n\t\r"' <"$1" | awk '
    function n(key) { return match($0, "[{,]" key ":[0-9]+") ? substr($0, RSTART + length(key) + 2, RLENGTH - length(key) - 2) : "" }
    { h = n("height"); r = n("round"); s = n("step") }
    END { if (h == "" || r == "" || s == "") exit 1; print h, r, s }'
}

# living looks for signatures of $address in the last blocks of each witness, and sets
# tip to the highest of them.
living() {
  local w h at
  for w in ${witnesses[@]+"${witnesses[@]}"}; do
    h=$(curl -fsS -m 10 "$w/status" | tr -d ' \n"' | sed -n 's/.*latest_block_height:\([0-9]*\).*/\1/p') || h=''
    [ -n "$h" ] || die 14 "the witness $w does not answer" "a witness that lives, or --no-witness where none does"
    if [ "$h" -gt "$tip" ]; then tip=$h; fi
    for ((at = h; at > 0 && at > h - 20; at--)); do
      curl -fsS -m 10 "$w/commit?height=$at" >"$work/commit" || die 14 "the witness $w does not tell the commit of block $at" "another witness"
      if grep -qi "\"validator_address\": *\"$address\"" "$work/commit"; then
        die 12 "the key of $address has signed block $at, of $h: it signs somewhere" "stop that node for good, wait for 20 blocks, run this again"
      fi
    done
  done
}

# newest_backup sets newest to the height of the data in the store.
newest_backup() {
  local id
  newest=0
  small latest.txt "$work/latest.txt" || return 0
  id=$(sed -n 's/^id //p' "$work/latest.txt")
  [[ $id =~ ^[0-9]{8}T[0-9]{6}Z-[A-Za-z0-9_.-]+$ ]] || die 13 "latest.txt names no backup"
  small "data/$id/manifest.json" "$work/data.json" || die 13 "the newest backup, $id, has no manifest"
  newest=$(sed -n '/^  "position": {/,/^  }/s/^    "index": \([0-9]\{1,18\}\),\{0,1\}$/\1/p' "$work/data.json")
  [ -n "$newest" ] || die 13 "the manifest of $id tells no height"
}

tip=0 newest=0 key='' mine='' plan=() found='' saved=eddy-saved-$(date -u +%Y%m%dT%H%M%SZ)

# where NAME is the place of a file.
where() {
  if [ -n "$into" ]; then
    say "$into/$1"
  elif [[ $1 = home/* ]]; then
    say "$home/${1#home/}"
  else
    say "${1#root}"
  fi
}

while IFS=$'\t' read -r name class _ mode _; do
  if ! wanted "$name"; then continue; fi
  found=yes to=$(where "$name") what=new
  if [ "$class" = 'validator key' ] || [ "$class" = 'sign state' ]; then
    if [ -z "$address" ]; then
      say "left in the bundle  $class  $to"
      continue
    fi
    if [ "$class" = 'validator key' ]; then
      if tr -d ' \n\t\r' <"$work/out/$name" | grep -q '"last_height"'; then
        die 12 "$name has key and sign state in one, which a script does not merge" "take eddy: \`eddy keys restore $id --node $node\`"
      fi
      has=$(tr -d ' \n\t\r' <"$work/out/$name" | sed -n 's/.*"address":"\([0-9A-Fa-f]*\)".*/\1/p')
      [ "${has^^}" = "$address" ] || die 16 "the key in $id has another address than the one that was typed"
      if [ -e "$to" ] && [ "$(secret "$to")" != "$(secret "$work/out/$name")" ]; then
        die 12 "$to is another validator's key" "look whose it is, and move it away yourself"
      fi
      key=yes
      if [ -e "$to" ]; then mine=yes; fi
      living
      [ -z "$no_witness" ] || newest_backup
    fi
  fi
  if [ "$class" = 'node key' ] && [ -z "$other_node$into" ] && [ -e "$to" ] && [ "$(secret "$to")" != "$(secret "$work/out/$name")" ]; then
    die 12 "$to is the key of another node than $node" "the right --node; or --other-node, where this home is to become that node, and the one elsewhere is down"
  fi
  up=$(realpath -m "${to%/*}")
  if [ -L "$to" ] || { [ -e "$to" ] && [ ! -f "$to" ]; }; then
    die 12 "$to is no plain file" "leave it out with --only, or look into --into DIR"
  fi
  if [[ $name = home/* && -z $into && $up/ != "$home"/* ]]; then
    die 12 "$to leads out of the home, to $up" "leave it out with --only, or look into --into DIR"
  fi
  if [ -e "$to" ]; then
    what=replace
    if [ "$class" = 'sign state' ]; then
      what=raise
    elif cmp -s "$to" "$work/out/$name" && [ "$(stat -c %a "$to")" = "$((10#$mode))" ]; then
      what=same
    fi
  elif [ "$class" = 'sign state' ]; then
    what=raise
  fi
  printf '%-8s %s  %s  %s\n' "$what" "$mode" "$class" "$to"
  [ "$what" = same ] || plan+=("$name")
done <"$work/files"
[ -n "$found" ] || die 10 "no file of $id is what --only asks for"
if [ -n "$dry" ]; then
  say "dry run: nothing was changed"
  exit 0
fi
if [ ${#plan[@]} -eq 0 ]; then
  say "all of it is there already"
  exit 0
fi
if [ -z "$into$yes" ]; then
  [ -t 0 ] || die 16 "nobody can be asked" "look at --dry-run, then give --yes"
  read -r -p "type the cluster's name to write them: " answer
  [ "$answer" = "$cluster" ] || die 16 "not confirmed, nothing was changed"
fi
# ---- beside, then in -------------------------------------------------------

# raise NAME puts the highest sign state that is known in place of the bundle's, and
# above all that the chain has, where a witness tells; where none does, above all that is
# known of it, unless the home has used the key itself.
raise() {
  local file states=() h r s
  for file in "$work/out/$1" "$(where "$1")" "$home"/.eddy/{before,restore}-*/"${1#home/}"; do
    [ -e "$file" ] || continue
    states+=("$(sign_state "$file")") || die 12 "$file cannot be read as a sign state" "find out what happened to it"
  done
  if [ -n "$no_witness" ] && { [ -z "$mine" ] || [ ! -e "$(where "$1")" ]; }; then
    h=$(printf '%s\n' "$tip" "$newest" "${states[@]}" | sort -n | tail -n 1)
    tip=${h%% *}
  fi
  [ "$tip" -eq 0 ] || states+=("$((tip + 10)) 2147483647 3")
  read -r h r s < <(printf '%s\n' "${states[@]}" | sort -k1,1n -k2,2n -k3,3n | tail -n 1)
  for file in "$(where "$1")" "$work/out/$1"; do # with its signature, where it is one of them
    if [ -e "$file" ] && [ "$(sign_state "$file")" = "$h $r $s" ]; then
      cp "$file" "$work/state"
      mv "$work/state" "$work/out/$1"
      return
    fi
  done
  printf '{"height": "%s", "round": %s, "step": %s}\n' "$h" "$r" "$s" >"$work/out/$1"
}

# make_dir DIR makes it and what lacks above it, each its parent's owner's.
make_dir() {
  [ ! -d "$1" ] || return 0
  make_dir "${1%/*}"
  mkdir "$1"
  [ "$(id -u)" -ne 0 ] || chown --reference="${1%/*}" "$1"
}

# owner_of NAME USER GROUP is who root gives a file to.
owner_of() {
  local like=${home:-$into}
  [[ $1 = home/* ]] || like=/
  if [ -n "$owner" ]; then
    say "$owner"
  elif getent passwd "$2" >/dev/null && getent group "$3" >/dev/null; then
    say "$2:$3"
  else
    stat -c %u:%g "$like"
  fi
}

for name in "${plan[@]}"; do
  IFS=$'\t' read -r _ class _ mode user group _ < <(awk -F '\t' -v name="$name" '$1 == name' "$work/files")
  to=$(where "$name")
  new=${to%/*}/.${to##*/}.eddy-coming-$id
  [ "$class" != 'sign state' ] || raise "$name"
  make_dir "${to%/*}"
  coming+=("$new")
  cp "$work/out/$name" "$new"
  [ "$(id -u)" -ne 0 ] || chown "$(owner_of "$name" "$user" "$group")" "$new"
  chmod "$mode" "$new"
done
sync
for name in "${plan[@]}"; do
  to=$(where "$name")
  if [ -e "$to" ]; then
    keep=$to.$saved again=1
    while [ -e "$keep" ]; do again=$((again + 1)) keep=$to.$saved-$again; done # twice in a second
    ln -T "$to" "$keep"
  fi
  mv -T "${to%/*}/.${to##*/}.eddy-coming-$id" "$to"
done
coming=()
sync
say "restored ${#plan[@]} file(s) of $id of $node; what differed is kept as NAME.$saved"
if [ -n "$key" ] && [ -n "$no_witness" ] && [ "$tip" -gt 0 ]; then
  say "THE VALIDATOR KEY is here. What it has signed nobody knows: it signs nothing up to height $((tip + 10)), and no node may be started with it where another has it. If the whole chain comes back like this, no block will be made before it is taken back: docs/runbooks/whole-cluster.md."
elif [ -n "$key" ] && [ "$tip" -gt 0 ]; then
  say "THE VALIDATOR KEY is here. Start the node only when the chain has passed height $((tip + 10)), and nowhere else with this key."
elif [ -n "$key" ]; then
  say "THE VALIDATOR KEY is here: start no second node with it."
fi
