"""The definitions of all metrics: name, kind, help, labels, buckets.

Definitions only: other modules count in plain numbers under these names, and ``exposition.py`` renders them. Label
values come from the configuration (route, upstream) or from fixed vocabularies (outcome, reason), never from a request,
so that the configuration bounds the number of series. A test checks that docs/metrics.md describes each metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, inclusive, without the last unbounded bucket; finest where most requests are."""


class MetricKind(StrEnum):
    """The Prometheus type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Merge(StrEnum):
    """How the values of several workers for one gauge are combined."""

    SUM = "sum"
    MAX = "max"
    MIN = "min"


class Outcome(StrEnum):
    """How a request ended: ``label outcome of patgate_requests_total``."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    FAILED = "failed"
    REPORTED = "reported"


class HashOutcome(StrEnum):
    """How one unit of argon2 work ended: ``label outcome of patgate_argon2_total``."""

    HASHED = "hashed"
    MATCHED = "matched"
    MISMATCHED = "mismatched"
    OVERLOADED = "overloaded"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One metric; ``labels`` gives the order of the label values in a snapshot."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    merge: Merge = Merge.SUM


REQUESTS = Metric(
    name="patgate_requests_total",
    kind=MetricKind.COUNTER,
    help="Requests that ended, by route, outcome (allowed, refused, failed, reported) and reason.",
    labels=("route", "outcome", "reason"),
)
REQUEST_SECONDS = Metric(
    name="patgate_request_seconds",
    kind=MetricKind.HISTOGRAM,
    help="Seconds from the last byte of a request's head to the last byte of its response.",
    labels=("route",),
    buckets=SECONDS,
)
CACHE_HITS = Metric(
    name="patgate_cache_hits_total",
    kind=MetricKind.COUNTER,
    help="Presented tokens that a worker decided from its cache.",
)
CACHE_MISSES = Metric(
    name="patgate_cache_misses_total",
    kind=MetricKind.COUNTER,
    help="Presented tokens for which a worker queried the authority.",
)
CACHE_ENTRIES = Metric(
    name="patgate_cache_entries",
    kind=MetricKind.GAUGE,
    help="Grants in the workers' caches, summed over the workers.",
)
CONNECTIONS = Metric(
    name="patgate_connections",
    kind=MetricKind.GAUGE,
    help="Open client connections, summed over the workers.",
)
ACCEPT_PAUSES = Metric(
    name="patgate_accept_pauses_total",
    kind=MetricKind.COUNTER,
    help="How often a worker paused accepting connections, by listener and cause (limit, resources).",
    labels=("listener", "cause"),
)
CONNECTIONS_DROPPED = Metric(
    name="patgate_connections_dropped_total",
    kind=MetricKind.COUNTER,
    help="Client connections closed without a request, by listener and cause (proxy_header, handshake, room).",
    labels=("listener", "cause"),
)
EXT_AUTHZ_ERRORS = Metric(
    name="patgate_ext_authz_errors_total",
    kind=MetricKind.COUNTER,
    help="Errors of peers of listen.ext_authz, by cause (protocol, not_a_call, message, too_long, timeout, abandoned).",
    labels=("cause",),
)
EPOCH_LAG = Metric(
    name="patgate_epoch_lag",
    kind=MetricKind.GAUGE,
    help="Changes that the slowest worker has not applied yet.",
    merge=Merge.MAX,
)
EPOCH = Metric(
    name="patgate_epoch",
    kind=MetricKind.GAUGE,
    help="Number of the last committed change that the authority has announced.",
)
CHANGES = Metric(
    name="patgate_changes_total",
    kind=MetricKind.COUNTER,
    help="Changes committed and announced since the authority started.",
)
ARGON2 = Metric(
    name="patgate_argon2_total",
    kind=MetricKind.COUNTER,
    help="Argon2id computations by outcome (hashed, matched, mismatched) and those rejected (overloaded).",
    labels=("outcome",),
)
ARGON2_PENDING = Metric(
    name="patgate_argon2_pending",
    kind=MetricKind.GAUGE,
    help="Argon2id computations running or waiting for a thread.",
)
RESOLVES = Metric(
    name="patgate_resolves_total",
    kind=MetricKind.COUNTER,
    help="Requests of workers to the authority, by operation (resolve, verify) and outcome (grant, refused, failed).",
    labels=("operation", "outcome"),
)
API_REFUSALS = Metric(
    name="patgate_api_refusals_total",
    kind=MetricKind.COUNTER,
    help="Refused requests of the control API on TCP, by reason.",
    labels=("reason",),
)
WORKERS = Metric(
    name="patgate_workers",
    kind=MetricKind.GAUGE,
    help="Gateway workers connected to the authority.",
)
LEASE_SECONDS = Metric(
    name="patgate_lease_seconds",
    kind=MetricKind.GAUGE,
    help="Seconds for which workers may still decide from their caches; 0 when the lease has expired.",
)
STORE_IN_DOUBT = Metric(
    name="patgate_store_in_doubt",
    kind=MetricKind.GAUGE,
    help="1 while it is unknown whether a change is stored, because the disk failed; tokens it affects are refused.",
)
NODES = Metric(
    name="patgate_nodes",
    kind=MetricKind.GAUGE,
    help="Nodes of the store, as this node last saw them.",
)
CONFIG_MISMATCH = Metric(
    name="patgate_config_mismatch",
    kind=MetricKind.GAUGE,
    help="Nodes of the store whose configuration is not that of this node.",
)
STORE_FENCED = Metric(
    name="patgate_store_fenced",
    kind=MetricKind.GAUGE,
    help="1 while this node refuses its store, and with it every request, until an operator accepts it.",
)
ROLES_SUPERSEDED = Metric(
    name="patgate_roles_superseded",
    kind=MetricKind.GAUGE,
    help="1 while the roles of this node's configuration are not applied, because newer ones were after them.",
)
CLOCK_OFFSET = Metric(
    name="patgate_clock_offset_seconds",
    kind=MetricKind.GAUGE,
    help="Seconds by which the clock of the store's database is ahead of this host's; negative if it is behind.",
)
ACKNOWLEDGEMENT_SECONDS = Metric(
    name="patgate_acknowledgement_seconds",
    kind=MetricKind.HISTOGRAM,
    help="Time from the commit of a change until every node has acknowledged it, or its lease is over.",
    buckets=SECONDS,
)
UPSTREAM_UP = Metric(
    name="patgate_upstream_server_up",
    kind=MetricKind.GAUGE,
    help="1 while every worker has an address of the server that is healthy and accepts connections, else 0.",
    labels=("upstream", "server"),
    merge=Merge.MIN,
)
UPSTREAM_ADDRESSES = Metric(
    name="patgate_upstream_server_addresses",
    kind=MetricKind.GAUGE,
    help="Addresses of the server: 1, or for a name the number that it resolves to, in the worker with the fewest.",
    labels=("upstream", "server"),
    merge=Merge.MIN,
)
UPSTREAM_CHECKS = Metric(
    name="patgate_upstream_checks_total",
    kind=MetricKind.COUNTER,
    help="Health checks of the workers, by upstream, server and outcome (passed, failed).",
    labels=("upstream", "server", "outcome"),
)
RELOAD_OK = Metric(
    name="patgate_config_last_reload_successful",
    kind=MetricKind.GAUGE,
    help="1 if the last reload of the configuration succeeded, or there was none; 0 if it was refused.",
)
RELOAD_TIME = Metric(
    name="patgate_config_last_reload_success_timestamp_seconds",
    kind=MetricKind.GAUGE,
    help="Time of the last successful reload of the configuration, in unix seconds; 0 if there was none.",
)
TOKENS_EXPIRING = Metric(
    name="patgate_tokens_expiring",
    kind=MetricKind.GAUGE,
    help="Active tokens that expire within this many days (notices.days), counted once a minute.",
    labels=("days",),
)
NOTICES = Metric(
    name="patgate_notices_total",
    kind=MetricKind.COUNTER,
    help="Notices of tokens that expire soon, by outcome: sent (the webhook accepted it) or failed (will be retried).",
    labels=("outcome",),
)
AUDIT_OMITTED = Metric(
    name="patgate_audit_omitted_total",
    kind=MetricKind.COUNTER,
    help="Requests without an event in the audit log because there were too many.",
)
AUDIT_LOST = Metric(
    name="patgate_audit_lost_total",
    kind=MetricKind.COUNTER,
    help="Request events that the authority dropped, by cause (overflow, invalid, refused).",
    labels=("cause",),
)
DEFECTS = Metric(
    name="patgate_defects_total",
    kind=MetricKind.COUNTER,
    help="Unexpected exceptions in the workers and the authority; each is in the log.",
)
AUDIT_LAST = Metric(
    name="patgate_audit_last_sequence",
    kind=MetricKind.GAUGE,
    help="Number of the newest event of the audit log; it never decreases while the log is intact.",
    merge=Merge.MAX,
)
AUDIT_WHOLE = Metric(
    name="patgate_audit_end_whole",
    kind=MetricKind.GAUGE,
    help="1 while the end of the audit log is intact, checked once a minute; 0 if events are missing.",
    merge=Merge.MIN,
)
BUILD_INFO = Metric(
    name="patgate_build_info",
    kind=MetricKind.GAUGE,
    help="Always 1; the labels have the versions of patgate and Python.",
    labels=("version", "python"),
)

METRICS: tuple[Metric, ...] = (
    REQUESTS,
    REQUEST_SECONDS,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_ENTRIES,
    CONNECTIONS,
    ACCEPT_PAUSES,
    CONNECTIONS_DROPPED,
    EXT_AUTHZ_ERRORS,
    EPOCH_LAG,
    EPOCH,
    CHANGES,
    ARGON2,
    ARGON2_PENDING,
    RESOLVES,
    API_REFUSALS,
    WORKERS,
    LEASE_SECONDS,
    STORE_IN_DOUBT,
    NODES,
    CONFIG_MISMATCH,
    STORE_FENCED,
    ROLES_SUPERSEDED,
    CLOCK_OFFSET,
    ACKNOWLEDGEMENT_SECONDS,
    RELOAD_OK,
    RELOAD_TIME,
    UPSTREAM_UP,
    UPSTREAM_ADDRESSES,
    UPSTREAM_CHECKS,
    TOKENS_EXPIRING,
    NOTICES,
    AUDIT_OMITTED,
    AUDIT_LOST,
    DEFECTS,
    AUDIT_LAST,
    AUDIT_WHOLE,
    BUILD_INFO,
)
BY_NAME: Mapping[str, Metric] = MappingProxyType({metric.name: metric for metric in METRICS})
