"""The statements on nodes, for PostgreSQL, one round trip each.

A statement is a transaction by itself, so it sees one snapshot, taken after the client's clock was read.
"""

from __future__ import annotations

from typing import Final

from proxy.store.migrate import REVISIONS

CHANNEL: Final = "patgate_changes"
"""The channel of NOTIFY. A notification has no payload and is a hint only."""

SCHEMA: Final = REVISIONS[-1]

SERVER: Final = """
SELECT pg_backend_pid() AS pid,
       pg_is_in_recovery() AS standby,
       (SELECT oid FROM pg_database WHERE datname = current_database())::bigint AS database,
       has_function_privilege('pg_control_system()', 'EXECUTE') AS may_identify
"""
SYSTEM: Final = "SELECT system_identifier::text FROM pg_control_system()"

JOIN: Final = """
WITH orphans AS (
    DELETE FROM acknowledgements a WHERE NOT EXISTS (SELECT FROM nodes n WHERE n.id = a.id)
)
INSERT INTO nodes (id, name, version, protocol, schema, config_hash, lease, renewals, started_at, renewed_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, extract(epoch FROM clock_timestamp()))
"""

RENEW: Final = """
WITH renewed AS (
    UPDATE nodes SET renewals = renewals + 1, renewed_at = extract(epoch FROM clock_timestamp())
    WHERE id = $1 RETURNING id
)
SELECT EXISTS (SELECT FROM renewed) AS renewed,
       h.n, h.mark, h.lease_bound,
       to_regclass('changes')::oid::bigint AS relation,
       left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
       (SELECT value FROM meta WHERE name = $4) AS acceptances,
       CASE
           WHEN h.n < $2::bigint THEN false
           WHEN $3::bytea IS NULL THEN true
           WHEN h.n = $2::bigint THEN h.mark = $3::bytea
           ELSE coalesce(
               (SELECT c.mark IS NULL OR c.mark = $3::bytea FROM changes c WHERE c.epoch = $2::bigint),
               $2::bigint < (SELECT min(c.epoch) FROM changes c),
               false)
       END AS remembered,
       coalesce((SELECT applied FROM acknowledgements WHERE id = $1), 0) AS acknowledged,
       extract(epoch FROM clock_timestamp())::float8 AS database_time
FROM change_head h WHERE h.id = 1
"""
"""Parameters: the node, the remembered number (0: none) and mark, the name of the acceptances in ``meta``.

A change that pruning has removed is older than every one that is left, and counts as there.
"""

HEAD: Final = """
SELECT n, mark, lease_bound,
       to_regclass('changes')::oid::bigint AS relation,
       left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline
FROM change_head WHERE id = 1
"""

ACKNOWLEDGE: Final = """
INSERT INTO acknowledgements AS a (id, applied)
SELECT $1, $2::bigint FROM (SELECT set_config('synchronous_commit', 'off', true) AS off) s WHERE s.off = 'off'
ON CONFLICT (id) DO UPDATE SET applied = greatest(a.applied, excluded.applied)
"""
"""Waits for no disk: a lost acknowledgement is repeated after the next renewal, which shows it."""

LEAVE: Final = """
WITH acknowledged AS (DELETE FROM acknowledgements WHERE id = ANY($1::text[]))
DELETE FROM nodes WHERE id = ANY($1::text[])
"""

POLL: Final = """
SELECT h.lease_bound,
       to_regclass('changes')::oid::bigint AS relation,
       left(pg_walfile_name(pg_current_wal_lsn()), 8) AS timeline,
       n.id, n.renewals, coalesce(a.applied, 0) AS applied
FROM change_head h LEFT JOIN nodes n ON true LEFT JOIN acknowledgements a ON a.id = n.id
WHERE h.id = 1
"""

REAP: Final = """
WITH gone AS (DELETE FROM nodes WHERE id = $1 AND renewals = $2 RETURNING id)
DELETE FROM acknowledgements WHERE id IN (SELECT id FROM gone)
"""

DESCRIBE: Final = "UPDATE nodes SET config_hash = $2, lease = $3 WHERE id = $1"
"""For people only: the lease that counts is the bound in ``change_head``."""

NODES: Final = """
SELECT n.id, n.name, n.version, n.protocol, n.schema, n.config_hash, n.lease, n.started_at,
       greatest(0, extract(epoch FROM clock_timestamp())::float8 - n.renewed_at) AS age,
       coalesce(a.applied, 0) AS applied
FROM nodes n LEFT JOIN acknowledgements a ON a.id = n.id
ORDER BY n.started_at, n.id
"""
