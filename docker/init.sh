#!/bin/sh
# Writes what compose.yaml reads: .env and, with a fresh password, the secrets. Overwrites nothing.
set -eu
cd "$(dirname "$0")"
secrets=${SECRETS:-./secrets}

[ -e .env ] || cp .env.example .env
if [ -e "$secrets" ]; then
    echo "$secrets is there already and stays as it is" >&2
    exit 0
fi
# others on this machine cannot enter the folder; users of the containers can read the files
umask 077
mkdir "$secrets.new"
password=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
printf '%s' "$password" > "$secrets.new/db_password"
printf 'postgresql+psycopg://tailor:%s@db:5432/tailor' "$password" > "$secrets.new/tailor_database_url"
chmod 444 "$secrets.new"/*
mv "$secrets.new" "$secrets"
echo "wrote docker/.env and $secrets" >&2
