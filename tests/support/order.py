"""The order in which test files start when a run is distributed among workers: the longest first.

A worker is given a whole file at a time. A file that takes a minute and begins last keeps one worker busy while the
others are idle. Files that are not listed here take some seconds and follow in the order of the tree.

The tests that run alone (``support.turns``) come before all others, in one row. In the middle of a run each of them
would wait for the longest test that is running, and the other workers with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

LONGEST: Final = (
    "tests/model/test_model.py",
    "tests/model/test_seeded.py",
    "tests/nemesis/test_failover.py",
    "tests/nemesis/test_steps.py",
    "tests/nemesis/test_nemesis.py",
    "tests/e2e/test_docs.py",
    "tests/threats/test_s10_store.py",
    "tests/unit/cli/test_keys.py",
    "tests/unit/cli/test_listing.py",
    "tests/threats/test_s14_data_directory.py",
    "tests/e2e/test_signals.py",
    "tests/unit/cli/commands/test_serve.py",
    "tests/contract/test_crash_points.py",
    "tests/contract/test_disk.py",
    "tests/unit/store/dialects/test_postgresql.py",
    "tests/unit/store/dialects/test_postgresql_servers.py",
    "tests/e2e/test_reload.py",
    "tests/e2e/test_schemathesis.py",
    "tests/differential/test_paths.py",
    "tests/unit/gateway/downstream/test_acceptor.py",
    "tests/threats/test_s14_host.py",
    "tests/e2e/test_doctor.py",
    "tests/unit/cli/commands/test_quickstart.py",
    "tests/unit/gateway/downstream/test_slow.py",
    "tests/e2e/test_moving.py",
    "tests/unit/store/copying/test_copy.py",
    "tests/e2e/test_demo.py",
    "tests/unit/gateway/phases/test_relayed_answers.py",
    "tests/unit/authority/test_process.py",
    "tests/e2e/test_drain.py",
    "tests/threats/test_s2_second_targets.py",
    "tests/e2e/test_bench.py",
    "tests/unit/bench/scaling/test_page.py",
    "tests/unit/bench/scaling/test_measure.py",
    "tests/e2e/test_requests.py",
    "tests/unit/cli/test_people.py",
    "tests/unit/gateway/phases/test_relay.py",
    "tests/unit/gateway/ext_authz/test_connection.py",
    "tests/clients/test_npm.py",
    "tests/unit/authority/test_housekeeping.py",
    "tests/unit/gateway/downstream/test_disconnect.py",
    "tests/e2e/test_audit_log.py",
    "tests/unit/gateway/phases/test_parse.py",
    "tests/e2e/test_ext_authz.py",
    "tests/e2e/test_bad_start.py",
    "tests/e2e/test_forward_auth_peers.py",
    "tests/differential/test_differential.py",
    "tests/property/test_gateway_heads.py",
    "tests/e2e/test_git.py",
    "tests/contract/test_crash.py",
    "tests/unit/cli/commands/test_audit.py",
    "tests/unit/cli/commands/test_policy.py",
    "tests/contract/test_several.py",
    "tests/contract/test_grants.py",
    "tests/property/test_gateway_bodies.py",
    "tests/e2e/test_entrance.py",
    "tests/e2e/test_cors.py",
    "tests/support/test_pool.py",
    "tests/threats/test_s7_api.py",
    "tests/clients/test_object-store.py",
    "tests/property/test_core_token.py",
    "tests/unit/gateway/grants/test_authority_client.py",
    "tests/e2e/test_first_decision.py",
    "tests/property/test_core_wire.py",
    "tests/property/test_core_target.py",
    "tests/clients/test_browser.py",
    "tests/threats/test_s2_upstream_headers.py",
    "tests/e2e/test_systemd.py",
    "tests/property/test_containment.py",
    "tests/threats/test_s7_escalation.py",
    "tests/support/test_plugin.py",
    "tests/property/test_core_routes.py",
)
"""Ordered by measured time, not exact to the second: move a file when its time has changed a lot."""

TOGETHER: Final = (
    "tests/threats/test_s10_faults.py",
    "tests/faults/test_kill.py",
    "tests/threats/test_s8_exhaustion.py",
    "tests/e2e/test_mcp.py",
    "tests/e2e/test_event_streams.py",
    "tests/e2e/test_websocket_clients.py",
    "tests/unit/gateway/phases/test_revalidate.py",
    "tests/unit/gateway/downstream/test_connection.py",
    "tests/unit/gateway/grants/test_authority_ends.py",
    "tests/unit/supervisor/test_keeper.py",
    "tests/threats/test_s4_reuse.py",
    "tests/threats/test_s4_leaving.py",
    "tests/threats/test_s9_leaks.py",
    "tests/clients/test_mqtt.py",
    "tests/clients/test_fastapi.py",
    "tests/e2e/ingress/test_outage.py",
    "tests/nemesis/test_times.py",
)
"""The files with tests that run alone.

One worker runs them all; otherwise workers would wait for each other.
"""

SHARING: Final = (
    (
        "tests/e2e/test_requirements_c.py",
        "tests/e2e/test_requirements_a.py",
        "tests/e2e/test_requirements_b.py",
        "tests/e2e/test_requirements_d.py",
        "tests/e2e/test_requirements_e.py",
        "tests/e2e/test_requirements_f.py",
        "tests/e2e/test_api.py",
        "tests/e2e/test_explain.py",
        "tests/e2e/test_organisation_keys.py",
        "tests/threats/test_s7_people.py",
    ),
    (
        "tests/threats/test_real_claims.py",
        "tests/threats/test_real_dav.py",
        "tests/threats/test_real_framing.py",
    ),
    (
        "tests/e2e/ingress/test_claims.py",
        "tests/e2e/ingress/test_verdicts.py",
        "tests/e2e/ingress/test_presets.py",
        "tests/e2e/ingress/test_misplaced.py",
        "tests/e2e/ingress/test_targets.py",
        "tests/e2e/ingress/test_bodies.py",
        "tests/e2e/ingress/test_calls.py",
    ),
)
"""Files that use the same gateway or servers: one worker runs them all; otherwise each file would start its own."""

_LONGER: Final = 12
"""The number of long files that begin before the groups, which take longer than any file after these."""

_GROUP: Final[Mapping[str, str]] = {name: group[0] for group in (TOGETHER, *SHARING) for name in group}
_ORDER: Final = (
    *TOGETHER,
    *LONGEST[:_LONGER],
    *(name for group in SHARING for name in group),
    *LONGEST[_LONGER:],
)
_PLACE: Final[Mapping[str, int]] = {name: place for place, name in enumerate(_ORDER)}


def place(test: str, *, alone: bool = False) -> tuple[bool, int]:
    """The position of a test, by node id: a test that runs ``alone`` first, then by its file.

    It is the same for all tests of a file and of all unlisted files, which keep their order.
    """
    return not alone, _PLACE.get(file_of(test), len(_ORDER))


def file_of(test: str) -> str:
    """The file of a test's node id."""
    return test.partition("::")[0]


class Files(LoadFileScheduling):  # type: ignore[misc]
    """Gives a worker one file at a time, or all files of a group."""

    def _split_scope(self, nodeid: str) -> str:
        file = file_of(nodeid)
        return _GROUP.get(file, file)
