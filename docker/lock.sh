#!/bin/sh
# Adds to each base image in .env the digest that its tag has today, so that later builds and
# starts take the same bytes. Needs Docker and a registry; run it again to move on.
set -eu
cd "$(dirname "$0")"

lock() { # NAME IMAGE
    digest=$(docker buildx imagetools inspect "$2" --format '{{.Manifest.Digest}}')
    case $digest in
        sha256:*) ;;
        *) echo "no digest for $2" >&2; exit 1 ;;
    esac
    { grep -v "^$1=" .env || true; echo "$1=$2@$digest"; } > .env.new
    mv .env.new .env
    echo "$1=$2@$digest"
}

default() { # NAME: the image of compose.yaml, by tag alone
    sed -n "s/.*\${$1:-\([^}]*\)}.*/\1/p" compose.yaml | head -n 1
}

[ -e .env ] || cp .env.example .env
for name in BASE POSTGRES; do
    given=$(sed -n "s/^$name=\([^@]*\).*/\1/p" .env)
    lock "$name" "${given:-$(default "$name")}"
done
