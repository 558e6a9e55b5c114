#!/bin/sh
# Become the process that the first argument names; what follows are its own arguments.
set -eu
cd "$(dirname "$0")/.."
role=${1:-web}
[ $# -eq 0 ] || shift
case $role in
web) exec daphne -v 0 -b 0.0.0.0 -p 8000 "$@" nooble.asgi:application ;;
worker) exec celery -q -A celery_app worker --without-gossip --without-mingle --loglevel "${LOG_LEVEL:-INFO}" "$@" ;;
beat) exec celery -q -A celery_app beat --loglevel "${LOG_LEVEL:-INFO}" "$@" ;;
migrate) exec python manage.py migrate --no-input "$@" ;;
manage) exec python manage.py "$@" ;;
*)
    echo "unknown role: $role (web, worker, beat, migrate, manage)" >&2
    exit 64
    ;;
esac
