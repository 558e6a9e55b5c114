#!/bin/sh
# Start the platform with Docker Compose, or bring it up to date.
#
#   ./deploy.sh               make what .env lacks, build, start, wait until all is healthy
#   ./deploy.sh superuser     the same, then make somebody who may enter the console
#
# Secrets are made once and kept in .env (0600). Keep that file: with it goes the way into the data.
set -eu
cd "$(dirname "$0")"
umask 077

case ${1:-} in
'' | superuser) ;;
*)
    echo "usage: ./deploy.sh [superuser]" >&2
    exit 64
    ;;
esac

if ! docker compose version >/dev/null 2>&1; then
    echo "Docker with the compose plugin is needed: https://docs.docker.com/compose/install/" >&2
    exit 1
fi

touch .env
chmod 600 .env
chmod 755 docker/postgres-roles.sh  # read by another user inside its container
[ -z "$(tail -c 1 .env)" ] || echo >>.env

random_hex() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
# A Fernet key: 32 random bytes in the URL-safe alphabet.
fernet_key() { head -c 32 /dev/urandom | base64 | tr '+/' '-_' | tr -d '\n'; }

# keep NAME COMMAND...: a value that .env does not have, or has empty, is made by the command.
keep() {
    name=$1
    shift
    if ! grep -q "^$name=." .env; then
        printf '%s=%s\n' "$name" "$("$@")" >>.env
        echo "made $name"
    fi
}

keep SECRET_KEY random_hex 32
keep ENCRYPTION_KEYS fernet_key
keep SERVICE_TOKEN random_hex 24
keep POSTGRES_PASSWORD random_hex 24
keep NOOBLE_OWNER_PASSWORD random_hex 24
keep NOOBLE_APP_PASSWORD random_hex 24
keep VALKEY_PASSWORD random_hex 24
keep ALLOWED_HOSTS echo localhost,127.0.0.1

docker compose up --detach --build --wait

if [ "${1:-}" = superuser ]; then
    docker compose exec web python manage.py createsuperuser
fi

address=$(docker compose port web 8000)
echo
echo "api     http://$address/api/docs"
echo "health  http://$address/health/detailed"
echo "admin   http://$address/admin/   (through a proxy that speaks TLS: see docs/operations.md)"
[ "${1:-}" = superuser ] || echo "        ./deploy.sh superuser makes the first account"
