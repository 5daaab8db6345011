#!/usr/bin/env bash
# The login of the service, made once by PostgreSQL's container (/docker-entrypoint-initdb.d) or by you, as the owner:
#   POSTGRES_USER=owner POSTGRES_DB=chatledger CHATLEDGER_DB_PASSWORD=… ./ops/postgres-roles.sh
# Three names: the owner migrates; `chatledger_service` logs in; the role `chatledger`, which nobody logs in as, is what
# the service works as. It may append to the ledger, and change or delete nothing in it.
set -euo pipefail
psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<'END'
\getenv password CHATLEDGER_DB_PASSWORD
CREATE ROLE chatledger NOLOGIN;
CREATE ROLE chatledger_service LOGIN PASSWORD :'password' IN ROLE chatledger;
END
