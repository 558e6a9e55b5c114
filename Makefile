# Needs nothing but make and Python 3.11 or newer: `make run` brings the rest, into .venv and .nooble.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --constraint constraints.txt
ARGS ?=

# The checks import the settings, but must not need (or touch) any service.
OFFLINE := NOOBLE_ENV=test DATABASE_URL='postgresql://nobody@/nowhere?host=/nonexistent' \
	REDIS_URL='unix:///nonexistent/valkey.sock?db=0' SECRET_KEY=only-for-checks-only-for-checks-only-for-checks-only-for-checks \
	ENCRYPTION_KEYS=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=

.PHONY: help run test check chaos fuzz pages clients docs bench format runtime dev
.DEFAULT_GOAL := help

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' Makefile

# The last command is exec'd, so that a signal to make reaches the supervisor itself.
run: runtime ## start everything on this machine (PORT, HOST, NOOBLE_HOME); Ctrl-C stops it
	@exec $(BIN)/python -m nooble.run

# Kills and freezes come last: they need the machine. One worker more than cores: many tests wait.
test: dev ## run the test suite on real services (ARGS="-k name")
	@if [ -n "$(ARGS)" ]; then exec $(BIN)/python -m pytest $(ARGS); fi; \
	$(BIN)/python -m pytest -n 3 --dist loadfile --ignore=tests/chaos --ignore=tests/clients && exec $(BIN)/python -m pytest -n 2 --dist loadfile tests/chaos

check: dev ## lint, formatting, import directions, types, missing migrations, deployment, known vulnerabilities
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/lint-imports
	@$(OFFLINE) $(BIN)/python -m mypy
	@$(OFFLINE) $(BIN)/python -W ignore::RuntimeWarning manage.py makemigrations --check --dry-run
	@$(OFFLINE) NOOBLE_ENV=prod ALLOWED_HOSTS=nooble.example.com $(BIN)/python manage.py check --deploy --fail-level INFO
	@.ci/audit $(BIN)/python

chaos: dev ## kill, freeze and cut everything on purpose, at full size (ARGS="-k guard", CHAOS_SEED)
	@exec env CHAOS=full $(BIN)/python -m pytest tests/chaos $(ARGS)

fuzz: dev ## hold thousands of answers against /api/schema: cases, checks, failures (ARGS="-k name")
	@exec env FUZZ=full $(BIN)/python -m pytest -s tests/acceptance/test_schema.py tests/acceptance/test_hostile_ids.py $(ARGS)

pages: dev ## drive the chat page and the console in headless Chromium (Debian: apt install chromium)
	@$(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet "playwright>=1.50,<2"
	@exec $(BIN)/python -m pytest pages $(ARGS)

clients: dev ## drive the official JavaScript client of the OpenAI API (Debian: apt install npm)
	@command -v npm >/dev/null || { echo "npm is missing: the JavaScript client is not tested" >&2; exit 0; }; \
	(cd tests/clients && npm ci --silent --no-audit --no-fund) && exec $(BIN)/python -m pytest tests/clients $(ARGS)

docs: dev ## write the pages of docs/ that come from the code
	@$(OFFLINE) $(BIN)/python -W ignore manage.py docs

bench: dev ## measure (ARGS="--help")
	@exec $(BIN)/python -m bench $(ARGS)

format: dev ## fix what ruff can fix
	@$(BIN)/python -m ruff check --fix .
	@$(BIN)/python -m ruff format .

# Two makes in one checkout must not install at the same time: each takes a lock (on this very file)
# and only then looks at the stamps.
LOCKED = exec 9<Makefile; ! command -v flock >/dev/null || flock 9; exec $(MAKE) --silent --no-print-directory

runtime:
	@$(LOCKED) .venv/.runtime

dev:
	@$(LOCKED) .venv/.dev

.venv/.created:
	@test -n "$(PYTHON)" || { echo "Nooble needs Python 3.11 or newer: install it, or run make with PYTHON=/path/to/python" >&2; exit 1; }
	@echo "Creating .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv || { echo "$(PYTHON) cannot create .venv (on Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@touch $@

.venv/.runtime: requirements.txt constraints.txt .venv/.created
	@echo "Installing requirements.txt into .venv (a minute or two the first time)"
	@$(PIP) -r requirements.txt
	@touch $@

.venv/.dev: requirements-dev.txt requirements-otel.txt .venv/.runtime
	@echo "Installing requirements-dev.txt into .venv"
	@$(PIP) -r requirements-dev.txt
	@touch $@
