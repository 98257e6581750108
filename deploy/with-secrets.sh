#!/bin/sh
# Puts the passwords of /run/secrets into the environment of the command that follows, and nowhere else.
# A secret that is mounted and cannot be read, or is empty, ends here: without its key a run would write
# case ids where pseudonyms are meant, and seals that anybody can make.
set -eu
given() { [ -e "$1" ] || [ -L "$1" ]; }
secret() {
  if ! value=$(cat "$1" 2>/dev/null); then
    echo "with-secrets.sh: $1 cannot be read by user $(id -u); make the file readable for it." >&2
    exit 2
  fi
  if [ -z "$value" ]; then
    echo "with-secrets.sh: $1 is empty; write the secret into it." >&2
    exit 2
  fi
}
if given /run/secrets/prefect_db_password; then
  secret /run/secrets/prefect_db_password
  export PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://prefect:$value@postgres:5432/prefect"
fi
if given /run/secrets/results_db_password; then
  secret /run/secrets/results_db_password
  export SMEARFLOW_DATABASE="postgresql://smearflow:$value@postgres:5432/smearflow"
fi
if given /run/secrets/s3_secret_key; then
  secret /run/secrets/s3_secret_key
  export AWS_SECRET_ACCESS_KEY="$value"
fi
if given /run/secrets/pseudonym_key; then
  secret /run/secrets/pseudonym_key
  export SMEARFLOW_PSEUDONYM_KEY="$value"
fi
if given /run/secrets/audit_key; then
  secret /run/secrets/audit_key
  export SMEARFLOW_AUDIT_KEY="$value"
fi
unset value
exec "$@"
