#!/usr/bin/env bash
# A standby of ops/compose.cluster.yaml: an empty data folder is filled from the primary, then PostgreSQL runs in it. It follows
# whichever of HOSTS may be written to, so that after a failover nobody has to turn it to the new primary.
#   HOSTS=machine-1,machine-2,machine-3 STANDBY_NAME=machine_2 SECRETS=/run/secrets ./ops/postgres-standby.sh postgres …
set -euo pipefail
if [[ ! -s $PGDATA/PG_VERSION ]]; then
  password=$(<"${SECRETS:-/run/secrets}/replication.password")
  primary="host=$HOSTS port=${PGPORT:-5432} user=replication password=$password target_session_attrs=read-write"
  primary+=" application_name=$STANDBY_NAME connect_timeout=3"
  until pg_basebackup --dbname="$primary" --pgdata="$PGDATA" --wal-method=stream --checkpoint=fast --write-recovery-conf; do
    rm -rf "${PGDATA:?}"/*
    sleep 2
  done
  chmod 0700 "$PGDATA"
fi
exec "$@"
