#!/bin/sh
# The whole installation where Docker runs: build, start, search through the command line while
# every container is restarted, check the result, take all of it down. Needs Docker with Compose
# and python3; touches no other installation. SMOKE_BUILD=no takes images that are there already.
set -eu
cd "$(dirname "$0")"

COMPOSE=${COMPOSE:-docker compose}
work=$(mktemp -d)
export COMPOSE_PROJECT_NAME=tailor-smoke COMPOSE_FILE="${COMPOSE_FILE:-compose.yaml}" COMPOSE_PROFILES=agent
export SECRETS="$work/secrets" PUBLISH="127.0.0.1:${PORT:-18000}"

compose() { $COMPOSE "$@"; }

finish() {
    status=$?
    [ "$status" = 0 ] || compose logs --tail 60 || true
    compose down --volumes --timeout 20 || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

say() { echo "smoke: $*" >&2; }

tailor() { # a command line in a container of its own, as a user has it on another machine
    compose run --rm -T --no-deps -e TAILOR_API_KEY="${key:-}" -e TAILOR_URL=http://api:8000 \
        agent "$@" < /dev/null
}

field() { # EXPRESSION over the document `d` on standard input
    python3 -c "import json, sys; d = json.load(sys.stdin); print($1)"
}

until_true() { # SECONDS WHAT COMMAND...
    deadline=$(($(date +%s) + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$(date +%s)" -lt "$deadline" ] || { say "$what: not in time"; return 1; }
        sleep 2
    done
    say "$what"
}

healthy() { # SERVICE: its containers run, and no health check says otherwise
    states=$(compose ps --format '{{.State}}-{{.Health}}' "$1")
    [ -n "$states" ] || return 1
    for state in $states; do
        case $state in running-healthy | running-) ;; *) return 1 ;; esac
    done
}

has_model() { [ "$(tailor models list --target "$target" --json | field 'len(d)')" != 0 ]; }

status_is_one_of() {
    now=$(tailor search show "$search" --json | field 'd["status"]') || return 1
    case " $* " in *" $now "*) ;; *) return 1 ;; esac
}

sh init.sh
[ "${SMOKE_BUILD:-yes}" = no ] || compose build

say "starting"
compose run --rm -T migrate < /dev/null
key=$(compose run --rm -T --no-deps migrate admin key smoke --json < /dev/null | field 'd["token"]')
compose up --detach db api worker
for service in db api worker; do until_true 600 "$service is healthy" healthy "$service"; done
if compose logs api | grep -q 'TAILOR_API_KEY='; then say "a key is in the log"; exit 1; fi

say "nothing runs as root, and no root file system can be written to"
for service in db api worker; do
    [ "$(compose exec -T "$service" id -u)" != 0 ] || { say "$service is root"; exit 1; }
    ! compose exec -T "$service" touch /probe 2> "$work/refused" ||
        { say "$service can write to its root"; exit 1; }
done

say "enrolling this machine"
code=$(tailor agent code --space micro --json | field 'd["code"]')
target=$(tailor agent enrol "$code" --json | field 'd["target"]')
compose up --detach agent
until_true 1800 "the latency model of $target is fitted" has_model

say "searching"
budget=$(tailor search preflight --target "$target" --budget-ms 1 --json |
    field '(d["fastest_ms"] + d["slowest_ms"]) / 2')
search=$(tailor search create --target "$target" --budget-ms "$budget" --epochs 60 --json |
    field 'd["id"]')
until_true 300 "$search runs" status_is_one_of running
for service in worker api db agent; do
    say "killing $service"
    compose kill --signal KILL "$service"
    compose up --detach --no-deps "$service"
    until_true 300 "$service is healthy again" healthy "$service"
done
until_true 1800 "$search has succeeded" status_is_one_of succeeded

tailor search show "$search" --json | field 'd["result"]["network"]["measured"]["median_ms"]' |
    python3 -c "
import sys
measured_ms = float(sys.stdin.read())
assert measured_ms <= $budget, f'{measured_ms} ms is over the budget of $budget ms'
print(f'smoke: measured {measured_ms:.4g} ms, budget $budget ms', file=sys.stderr)"
say "passed"
