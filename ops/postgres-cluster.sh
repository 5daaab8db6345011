#!/usr/bin/env bash
# What a new primary of three needs (ops/compose.cluster.yaml), once, as the owner: the roles, who may replicate, and that a
# commit waits for one of the standbys. It is set last, because from then on everything waits until a standby is there.
#   POSTGRES_USER=owner POSTGRES_DB=chatledger SECRETS=/run/secrets ./ops/postgres-cluster.sh
set -euo pipefail
secrets=${SECRETS:-/run/secrets}
CHATLEDGER_DB_PASSWORD=$(<"$secrets/service.password")
REPLICATION_PASSWORD=$(<"$secrets/replication.password")
export CHATLEDGER_DB_PASSWORD REPLICATION_PASSWORD
roles=$(dirname "$(readlink -f "$0")")/postgres-roles.sh
[[ -e $roles ]] || roles=/etc/chatledger/postgres-roles.sh  # In the container, which runs what lies beside this file.
"$roles"
psql -v ON_ERROR_STOP=1 --no-psqlrc --quiet -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<'END'
\getenv password REPLICATION_PASSWORD
CREATE ROLE replication LOGIN REPLICATION PASSWORD :'password';
ALTER SYSTEM SET wal_keep_size = '4GB';
ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (machine_1, machine_2, machine_3)';
END
printf 'host replication replication all scram-sha-256\n' >> "$PGDATA/pg_hba.conf"
psql --no-psqlrc --quiet -U "$POSTGRES_USER" -d "$POSTGRES_DB" --output /dev/null --command 'SELECT pg_reload_conf()'
