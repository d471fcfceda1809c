# `make demo` runs the main job, `make test` everything CI runs; both set up what they need.

PYTHON ?= python3
BIN := .venv/bin
export OMP_NUM_THREADS ?= $(shell nproc 2>/dev/null || echo 2)

.PHONY: setup demo test lint types unit format clean images compose-files lock-images smoke

setup: .venv/installed

# torch first and pinned: asked for indirectly, pip would take the newest build there is
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Tailor needs Python 3.11 or newer"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[api,worker,agent,dev]'
	touch $@

demo: setup
	$(BIN)/tailor demo $(ARGS)

test: lint types unit

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

# two processes, since most tests wait, each a file of tests at a time; ARGS="-n 0" for one.
# Their threads would only fight for the cores
unit: export OMP_NUM_THREADS = 1
unit: setup .venv/browser
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

# the browser tests need one: any that is here, else Debian's, else Playwright's own
.venv/browser: .venv/installed
	command -v chromium || command -v chromium-browser || command -v google-chrome || \
	{ test "$$(id -u)" = 0 && command -v apt-get && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } || \
	$(BIN)/playwright install --with-deps chromium || $(BIN)/playwright install chromium || \
	echo "no browser: the browser tests will fail and say so"
	touch $@

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# what deploys: docs/howto/deploy.md
compose-files:
	docker/init.sh

images: compose-files
	docker compose --file docker/compose.yaml --profile agent build

lock-images:
	docker/lock.sh

smoke:
	docker/smoke.sh

clean:
	rm -rf .venv .tailor build dist
