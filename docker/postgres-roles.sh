#!/bin/sh
# Runs once, in an empty database server: two roles, one database. The owner migrates; the other
# processes are the app role, which may read and write rows, and nothing else.
set -eu
psql --no-psqlrc --quiet -v ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" --dbname postgres \
    -v owner_password="$NOOBLE_OWNER_PASSWORD" -v app_password="$NOOBLE_APP_PASSWORD" <<'SQL'
CREATE ROLE nooble_owner LOGIN NOSUPERUSER PASSWORD :'owner_password';
CREATE ROLE nooble_app LOGIN NOSUPERUSER NOBYPASSRLS PASSWORD :'app_password';
CREATE DATABASE nooble OWNER nooble_owner;
REVOKE ALL ON DATABASE nooble FROM PUBLIC;
GRANT CONNECT ON DATABASE nooble TO nooble_app;
\connect nooble
CREATE EXTENSION vector;
ALTER SCHEMA public OWNER TO nooble_owner;
ALTER DEFAULT PRIVILEGES FOR ROLE nooble_owner GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO nooble_app;
ALTER DEFAULT PRIVILEGES FOR ROLE nooble_owner GRANT USAGE, SELECT, UPDATE ON SEQUENCES TO nooble_app;
SQL
