#!/bin/sh
# Run once by the PostgreSQL image on an empty volume: one database and one role each for Prefect and results.
set -eu
prefect_password=$(cat /run/secrets/prefect_db_password)
results_password=$(cat /run/secrets/results_db_password)
psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" \
  -v prefect_password="$prefect_password" -v results_password="$results_password" <<'SQL'
CREATE ROLE prefect LOGIN PASSWORD :'prefect_password';
CREATE DATABASE prefect OWNER prefect;
CREATE ROLE smearflow LOGIN PASSWORD :'results_password';
CREATE DATABASE smearflow OWNER smearflow;
\connect prefect
CREATE EXTENSION IF NOT EXISTS pg_trgm;
SQL
