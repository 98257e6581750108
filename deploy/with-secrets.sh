#!/bin/sh
# Puts the passwords of /run/secrets into the environment of the command that follows, and nowhere else.
set -eu
secret() { cat "/run/secrets/$1"; }
if [ -r /run/secrets/prefect_db_password ]; then
  export PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://prefect:$(secret prefect_db_password)@postgres:5432/prefect"
fi
if [ -r /run/secrets/results_db_password ]; then
  export SMEARFLOW_DATABASE="postgresql://smearflow:$(secret results_db_password)@postgres:5432/smearflow"
fi
if [ -r /run/secrets/s3_secret_key ]; then
  export AWS_SECRET_ACCESS_KEY="$(secret s3_secret_key)"
fi
if [ -r /run/secrets/pseudonym_key ]; then
  export SMEARFLOW_PSEUDONYM_KEY="$(secret pseudonym_key)"
fi
if [ -r /run/secrets/audit_key ]; then
  export SMEARFLOW_AUDIT_KEY="$(secret audit_key)"
fi
exec "$@"
