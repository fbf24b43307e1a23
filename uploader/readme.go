package uploader

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

const maxReadme = 1 << 20 // bytes

// putReadme writes README.txt where its content is not what is there already.
func (c *Catalog) putReadme(ctx context.Context) error {
	want := []byte(c.readme())
	have, _, err := c.store.GetSmall(ctx, c.readmeKey(), maxReadme)
	switch {
	case err == nil && bytes.Equal(have, want):
		return nil
	case err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrDamaged):
		return err
	}
	_, err = c.store.PutSmall(ctx, c.readmeKey(), want, "text/plain; charset=utf-8", Condition{})
	return err
}

// stock is how a shell reads a store without eddy.
type stock struct {
	tools string // beside bash, coreutils, zstd and tar
	get   string // the body of a function that writes the object $1 to stdout
	other string // a paragraph on another way; "" where there is none
	list  string // a command that lists all ids
	flags string // what eddy's own command needs beside --store and --cluster
}

// stocked is a store that can be read by stock tools.
type stocked interface{ stock(cluster string) stock }

func (s *fileStore) stock(cluster string) stock {
	return stock{
		tools: "nothing else",
		get:   "cat " + quote(s.dir) + `/"$1"`,
		list:  "ls " + quote(s.dir+"/"+cluster+"/data"),
	}
}

func (s *s3Store) stock(cluster string) stock {
	var aws, eddy string
	if u, err := url.Parse(s.c.Endpoint); s.c.Endpoint != "" && err == nil {
		u.User = nil // this file is for everybody who reads the bucket
		aws = " --endpoint-url " + quote(u.String())
		eddy = " --endpoint " + quote(u.String())
	}
	if s.c.Region != "" {
		aws += " --region " + quote(s.c.Region)
		eddy += " --region " + quote(s.c.Region)
	}
	return stock{
		tools: "the aws command line (or curl) and credentials that may read the bucket",
		get:   "aws s3 cp --only-show-errors" + aws + " " + quote(s.URL()) + `/"$1" -`,
		list:  "aws s3 ls" + aws + " " + quote(s.URL()+"/"+cluster+"/data/"),
		other: `Without the aws command line, with curl 7.75 or later, take this function in its
place (with temporary credentials add -H "x-amz-security-token: $AWS_SESSION_TOKEN"):

get() { curl -fsS --aws-sigv4 aws:amz:` + region(s.c.Region) + `:s3 -K <(printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY") ` + quote(s.web()) + `/"$1"; }

`,
		flags: eddy,
	}
}

// web is where plain https finds the store's objects, if anybody may read them.
func (s *s3Store) web() string {
	host := fmt.Sprintf("https://%s.s3.%s.amazonaws.com", s.bucket, region(s.c.Region))
	if u, err := url.Parse(s.c.Endpoint); s.c.Endpoint != "" && err == nil {
		u.User = nil
		host = strings.TrimSuffix(u.String(), "/") + "/" + s.bucket
	}
	if s.prefix != "" {
		host += "/" + s.prefix
	}
	return host
}

func region(r string) string {
	if r == "" {
		return "us-east-1"
	}
	return r
}

// quote makes a word of a shell out of s.
func quote(s string) string {
	if s != "" && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_./:@-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// readme is the recovery sheet that lies beside the backups: for somebody at
// three in the morning who has the bucket and no eddy. It depends on the store
// and the cluster only, never on a backup, so it is seldom written.
func (c *Catalog) readme() string {
	s, ok := c.store.(stocked)
	if !ok {
		s = nameless{c.store.URL()}
	}
	k := s.stock(c.cluster)
	return fmt.Sprintf(readmeText, c.cluster, quote(c.store.URL()), k.flags, k.tools, k.get, k.other, k.list)
}

// nameless is a store of which only the URL is known.
type nameless struct{ url string }

func (n nameless) stock(cluster string) stock {
	return stock{tools: "whatever reads " + n.url, get: "cat " + quote(n.url) + `/"$1"`, list: "ls " + quote(n.url+"/"+cluster+"/data")}
}

// Readme is README.txt: the recovery sheet for this very store and cluster.
func (c *Catalog) Readme() string { return c.readme() }

// readmeText has, in this order: cluster, store URL, flags of eddy, tools, get,
// another get, list. The lines between scissors run as they stand.
const readmeText = `Backups of %[1]s, made by eddy.

WITH EDDY, into an absent or empty directory

eddy list --store %[2]s --cluster %[1]s%[3]s
eddy restore latest --into DIR --store %[2]s --cluster %[1]s%[3]s

WITHOUT EDDY: bash, coreutils, zstd, tar, and %[4]s

Stop the node, and whatever would start it again. Then, as the user that runs the
node, paste this into bash. Only its first line needs your hand; of an encrypted backup, for
which age is needed, the second as well. The backup is extracted beside the live data and compared, file by file, with its list of
hashes; what is there now is moved aside, never deleted or written over (two
databases must never be mixed).

#--8<-- from here
home=${home:-/PATH/OF/THE/HOME}   # the directory that holds data/
identity=${identity:-/PATH/OF/THE/IDENTITY}   # of an encrypted backup (.age)
cluster=%[1]s
get() { %[5]s; }
restore() (
  set -euo pipefail
  cd "$home"
  home=$PWD
  new=$PWD/.eddy-new old=$PWD/.eddy-old-$(date +%%s)
  mkdir "$new"                     # it is there: an earlier try; look, then remove it
  cd "$new"
  pointer=$(get "$cluster/latest.txt")
  sum=$(printf '%%s\n' "$pointer" | sed '$d' | sha256sum | cut -c 1-64)
  [ "$pointer" = "${pointer%%sha256 *}sha256 $sum" ] || { echo "latest.txt is damaged" >&2; exit 1; }
  id=$(printf '%%s\n' "$pointer" | sed -n 's/^id //p')
  keys=$(printf '%%s\n' "$pointer" | sed -n 's/^[0-9]* \(.*\/vol-.*\)$/\1/p')
  plain() { case $keys in *.age) age -d -i "$identity" ;; *) cat ;; esac; }
  printf '%%s\n' "$keys" |
    while read -r key; do get "$key" </dev/null; done | plain | zstd -dc | tar -x --no-same-owner
  case $keys in *.age) ;; *) get "$cluster/data/$id/SHA256SUMS.zst" | zstd -dc | sha256sum --quiet --strict -c ;; esac
  mkdir "$old"
  find . -mindepth 1 -maxdepth 1 -printf '%%f\0' | while IFS= read -r -d '' name; do
    if [ -e "$home/$name" ] || [ -L "$home/$name" ]; then mv -T "$home/$name" "$old/$name"; fi
    mv -T "$name" "$home/$name"
  done
  rmdir "$new"
  if [ -e "$old/data/priv_validator_state.json" ]; then
    cp -p "$old/data/priv_validator_state.json" "$home/data/"
  fi
  echo "restored $id; what was there before is in $old"
)
restore
#--8<-- to here

%[6]sTHE SIGN STATE. Keys, config/ and data/priv_validator_state.json are in no backup.
Keep the node's own. The commands above bring the sign state of this home back.
If this home had none:
 - find the one that this key used last (the machine it signed on before, its
   keys backup) and put it into data/. Of several take the highest height.
 - never write one by hand for a key that has ever signed, and never take an
   older one: a validator that signs a height twice is punished, for ever.
 - only beside a key made fresh, just now, which has never signed:
     echo '{"height":"0","round":0,"step":0}' > data/priv_validator_state.json

ANOTHER BACKUP THAN THE LATEST. This lists all of them:

%[7]s

One with a manifest.json is complete. Its volumes vol-0000.tar.zst, vol-0001... in
order, joined, are one zstd stream of one tar: take them in place of the keys of
latest.txt. Every backup is whole in itself and needs no other.

A volume named vol-0000.tar.zst.age is encrypted. With an identity that it was sealed
for, into an empty directory: age -d -i IDENTITY vol-0000.tar.zst.age | zstd -dc | tar x
(eddy wants -i IDENTITY, too). Of a cluster that is no chain (etcd, Consul, ZooKeeper, a
Swarm, a program's dump) do that, and not what is to be pasted above: what comes out is
given back by that system's own means. eddy's docs have a page for each.

What stands in .eddy-root/NAME of a restored home belongs elsewhere: manifest.json
says where, under "roots".

KEYS AND CONFIGURATION of a node lie apart, in keys/NODE/, encrypted: who has one of
the identities that they were sealed for can open them, nobody else. With eddy:

eddy keys list --store %[2]s --cluster %[1]s%[3]s
eddy keys restore latest --node NODE --into DIR -i IDENTITY --store %[2]s --cluster %[1]s%[3]s

Without eddy, with age (1.3 or later for an identity that begins with
AGE-SECRET-KEY-PQ) beside the tools above, into an empty directory:

#--8<-- keys from here
node=${node:-NODE} identity=${identity:-/PATH/OF/THE/IDENTITY}
cluster=%[1]s
get() { %[5]s; }
keys() (
  set -euo pipefail
  umask 077
  pointer=$(get "$cluster/keys/$node/latest.json")
  field() { printf '%%s\n' "$pointer" | sed -n "s/^  \"$1\": \"\(.*\)\",\{0,1\}\$/\1/p"; }
  id=$(field id)
  get "$cluster/keys/$node/$id/bundle.tar.zst.age" >bundle.tar.zst.age
  echo "$(field sha256)  bundle.tar.zst.age" | sha256sum --quiet -c
  age -d -i "$identity" bundle.tar.zst.age | zstd -dc | tar -xp --no-same-owner
  echo "opened $id of $node: home/ belongs into the node's home, root/ below /"
)
keys
#--8<-- keys to here

EDDY-BUNDLE.json says of each file where it was, whose, and what it is. Put back what
you need, file by file. A validator key comes last, if at all: never while another
machine may sign with it, and never without its sign state (above).
`
