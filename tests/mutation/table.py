"""The modules to mutate, the nearest tests of each, and the known equivalent mutants."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]

#: The modules on which security and consistency depend.
MODULES: Final = (
    "proxy/core/event_quota.py",
    "proxy/core/request/request_reading.py",
    "proxy/core/request/claims.py",
    "proxy/core/request/client_address.py",
    "proxy/core/networks.py",
    "proxy/core/request/query.py",
    "proxy/core/identity.py",
    "proxy/core/permissions.py",
    "proxy/core/decision.py",
    "proxy/core/reasons.py",
    "proxy/core/routes.py",
    "proxy/core/request/second_targets.py",
    "proxy/core/request/target.py",
    "proxy/core/token.py",
    "proxy/core/token_search.py",
    "proxy/gateway/downstream/acceptor.py",
    "proxy/gateway/phases/authenticate.py",
    "proxy/gateway/phases/authorise.py",
    "proxy/gateway/http1/body.py",
    "proxy/gateway/grants/cache.py",
    "proxy/gateway/forward_auth.py",
    "proxy/gateway/http1/grammar.py",
    "proxy/gateway/http1/partial_head.py",
    "proxy/gateway/downstream/disconnect.py",
    "proxy/gateway/grants/authority_client.py",
    "proxy/gateway/phases/revalidate.py",
    "proxy/gateway/grants/lookup_queue.py",
    "proxy/gateway/phases/mutate.py",
    "proxy/gateway/phases/parse.py",
    "proxy/gateway/downstream/proxy_protocol.py",
    "proxy/gateway/phases/relay.py",
    "proxy/gateway/phases/second_target.py",
    "proxy/services/caller.py",
    "proxy/services/tokens/authorization.py",
    "proxy/services/tokens/revocation.py",
    "proxy/services/validation.py",
    "proxy/services/accounts/members.py",
    "proxy/services/tokens/issuance.py",
    "proxy/services/identifiers.py",
    "proxy/services/tokens/ownership.py",
    "proxy/services/policy/service.py",
    "proxy/services/policy/model.py",
    "proxy/services/tokens/regeneration.py",
    "proxy/services/tokens/scope_changes.py",
    "proxy/store/audit/chain.py",
    "proxy/store/change.py",
    "proxy/store/dialects/sqlite.py",
    "proxy/store/feed.py",
    "proxy/store/tokens/active.py",
    "proxy/store/tokens/tokens.py",
    "proxy/authority/grants/argon2_hasher.py",
    "proxy/authority/grants/lease.py",
    "proxy/authority/workers/server.py",
    "proxy/authority/control_commands.py",
    "proxy/authority/grants/page_writer.py",
    "proxy/authority/grants/resolver.py",
    "proxy/authority/workers/report_parsing.py",
    "proxy/authority/webhook.py",
    "proxy/control/authenticate.py",
    "proxy/control/middleware.py",
    "proxy/control/host_check.py",
    "proxy/control/request_parsing.py",
    "proxy/control/throttle.py",
    "proxy/settings/addresses.py",
    "proxy/settings/sources/environment.py",
    "proxy/settings/checks/files.py",
    "proxy/settings/checks/listeners.py",
    "proxy/settings/checks/routes.py",
    "proxy/settings/rules.py",
    "proxy/settings/sources/secret.py",
    "proxy/supervisor/datadir.py",
)

#: The last stage, by package: contract and threat tests that run its code.
FAR: Final[Mapping[str, Sequence[str]]] = {
    "core": ("tests/property/test_containment.py", "tests/unit/services/tokens/test_containment.py"),
    "gateway": ("tests/threats/test_s2_identity.py", "tests/threats/test_s3_framing.py"),
    "services": ("tests/contract/test_reach.py", "tests/threats/test_s7_escalation.py"),
    "store": ("tests/contract",),
    "authority": ("tests/contract/test_grants.py", "tests/threats/test_s6_stale.py"),
    "control": ("tests/threats/test_s7_api.py",),
    "settings": (),
    "supervisor": (),
}

#: Tests whose names do not show that they belong to a module.
NEAR: Final[Mapping[str, Sequence[str]]] = {
    "proxy/core/request/request_reading.py": ("tests/unit/gateway/test_forward_auth.py",),
    "proxy/core/request/target.py": ("tests/threats/test_s1_routes.py",),
    "proxy/core/routes.py": ("tests/threats/test_s1_routes.py",),
    "proxy/core/identity.py": ("tests/unit/core/test_identity_reserved.py",),
    "proxy/authority/grants/lease.py": ("tests/unit/authority/grants/test_page_writer.py",),
    "proxy/gateway/phases/revalidate.py": ("tests/unit/gateway/phases/test_revalidate_exchanges.py",),
    "proxy/gateway/phases/mutate.py": (
        "tests/unit/gateway/phases/test_forwarded_scheme.py",
        "tests/unit/gateway/phases/test_from_ingress.py",
    ),
    "proxy/core/request/claims.py": ("tests/threats/test_s2_claims.py",),
    "proxy/core/networks.py": ("tests/property/test_core_client_address.py",),
    "proxy/core/reasons.py": ("tests/unit/gateway/phases/test_refusals.py",),
    "proxy/gateway/phases/second_target.py": ("tests/threats/test_s2_second_targets.py",),
    "proxy/gateway/phases/authorise.py": ("tests/unit/gateway/phases/test_organisations.py",),
    "proxy/gateway/http1/body.py": (
        "tests/property/test_gateway_bodies.py",
        "tests/unit/gateway/http1/test_messages.py",
    ),
    "proxy/gateway/grants/cache.py": (
        "tests/unit/gateway/upstream/test_dns.py",
        "tests/unit/gateway/grants/test_authority_ends.py",
    ),
    "proxy/gateway/phases/parse.py": (
        "tests/property/test_gateway_heads.py",
        "tests/unit/gateway/http1/test_messages.py",
    ),
    "proxy/services/tokens/authorization.py": (
        "tests/unit/services/tokens/test_containment.py",
        "tests/unit/services/keys/test_service.py",
    ),
    "proxy/services/tokens/revocation.py": ("tests/unit/services/tokens/test_lifecycle.py",),
    "proxy/services/validation.py": ("tests/unit/services/accounts/test_accounts.py",),
    "proxy/services/identifiers.py": ("tests/unit/services/accounts/test_accounts.py",),
    "proxy/services/tokens/ownership.py": (
        "tests/unit/services/tokens/test_containment.py",
        "tests/unit/services/tokens/test_service.py",
    ),
    "proxy/services/tokens/regeneration.py": ("tests/unit/services/tokens/test_lifecycle.py",),
    "proxy/control/middleware.py": (
        "tests/unit/control/test_refusal_log.py",
        "tests/unit/control/test_api.py",
    ),
    "proxy/control/host_check.py": ("tests/unit/control/test_api.py",),
    "proxy/control/request_parsing.py": ("tests/unit/control/test_api.py",),
}

#: Mutants without an observable effect: by module, the original and the mutated line, and why.
EQUIVALENT: Final[Mapping[str, Mapping[tuple[str, str], str]]] = {
    "proxy/core/permissions.py": {
        ("if entity_id is None or self._by_id is None:", "if (self._by_id is None):"): "None is the id of no table",
    },
    "proxy/core/routes.py": {
        ("self._by_host[host] = roots", "pass"): "the cache only saves building it again",
    },
    "proxy/gateway/phases/second_target.py": {
        (
            "if reason is None and match is not None:",
            "if (reason is None):",
        ): "without a reason there is a match",
    },
    "proxy/settings/sources/secret.py": {
        ("file.write(key)", "file.flush()"): "closing the file flushes it; only a power failure shows the difference",
    },
}


def paths(packages: Sequence[str] = ()) -> list[str]:
    """The modules of these packages ("core" or "proxy/core"), or these modules; all modules if none is given.

    Raises KeyError for an unknown name.
    """
    if not packages:
        return list(MODULES)
    found = []
    for wanted in (one.rstrip("/").removeprefix("proxy/") for one in packages):
        some = [path for path in MODULES if path.startswith(f"proxy/{wanted}/")]
        some = some or [path for path in MODULES if path == f"proxy/{wanted.removesuffix('.py')}.py"]
        if not some:
            raise KeyError(wanted)
        found += some
    return list(dict.fromkeys(found))


def stages(path: str, root: Path = ROOT) -> list[list[str]]:
    """The tests of one module, nearest first: its own; those that import it; its package's, contracts, threats."""
    _, package, *rooms, name = path.removesuffix(".py").split("/")
    own = [
        "/".join(("tests/unit", package, *rooms, f"test_{name}.py")),
        f"tests/property/test_{package}_{name}.py",
        *NEAR.get(path, ()),
    ]
    own = [one for one in own if (root / one).exists()]
    module = path.removesuffix(".py").replace("/", ".")
    importing = [test for test, names in _imports(root).items() if module in names and test not in own]
    seen = {*own, *importing}
    rest = [
        test
        for place in (f"tests/unit/{package}", *FAR[package])
        for test in _modules(root / place, root)
        if test not in seen
    ]
    return [stage for stage in (own, importing, rest) if stage]


def _modules(place: Path, root: Path) -> list[str]:
    found = [place] if place.is_file() else sorted(place.rglob("test_*.py"))
    return [path.relative_to(root).as_posix() for path in found]


@cache
def _imports(root: Path) -> Mapping[str, frozenset[str]]:
    """The modules of the package, as dotted names, that each module of tests/{unit,property,contract} imports."""
    found = {}
    for place in ("unit", "property", "contract"):
        for path in sorted((root / "tests" / place).rglob("test_*.py")):
            names = set()
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, ast.ImportFrom) and node.module:
                    names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                elif isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
            found[path.relative_to(root).as_posix()] = frozenset(names)
    return found
