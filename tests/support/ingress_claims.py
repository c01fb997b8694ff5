"""Writes the headers that only a gateway may set into the files of config/, from proxy/core/request/claims.py.

``python -m tests.support.ingress_claims`` rewrites the files; tests/unit/test_ingress_files.py checks that they are
current. The list of a file is between two marks. nginx and Traefik have no patterns for header names, so their files
have the known members of each family. The Caddyfile has patterns by hand, which the suite in tests/e2e/ingress tests.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from proxy.core.identity import PRESETS
from proxy.core.request.claims import CLAIMS as WHOLE
from proxy.core.request.claims import FAMILIES, ClaimKind
from tests.support.gateway import ROOT
from tests.threats.cases import CLAIMS

CONFIG = ROOT / "config"
BEGIN, END = "# claims\n", "# end of claims\n"

OURS = (*(name for _, name in PRESETS["patgate"].headers), "X-Request-Id")
"""The names that every file replaces with patgate's."""

TITLES = {
    "path": "The path and the program: patgate has judged those of the request line.",
    "method": "The method, likewise.",
    "client": "The client's address.",
    "transport": "The scheme, the host and the server.",
    "identity": "The client's identity, in headers of other gateways and of CGI.",
}

SET_BY = {
    "nginx": ("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Real-Ip"),
    "traefik": (
        *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Forwarded-Server"),
        "X-Real-Ip",
    ),
}
"""Names that the ingress sets itself, so that the client's never passes."""


def names(kind: ClaimKind, *, without: tuple[str, ...] = ()) -> list[str]:
    """The whole names of a kind, and the known members of its families, that can be a header of an ingress.

    Every ingress drops names with a character like ``$``.
    """
    excluded = {name.lower() for name in (*OURS, *without)}
    earlier = [*ClaimKind][: [*ClaimKind].index(kind)]
    excluded |= {name.lower() for other in earlier for name in CLAIMS[other]}
    return [name for name in dict.fromkeys(CLAIMS[kind]) if name.lower() not in excluded and "$" not in name]


def prefixes() -> list[str]:
    return sorted({family.lower() for families in FAMILIES.values() for family in families if "$" not in family})


def outside_families(kind: str) -> list[str]:
    """The whole names of a kind that no prefix covers, in lower case."""
    covered = tuple(prefixes())
    return [name.lower() for name in CLAIMS[kind] if "$" not in name and not name.lower().startswith(covered)]


def nginx() -> Iterator[str]:
    for kind in ClaimKind:
        yield f"\n# {TITLES[kind]}\n"
        of_kind = names(kind, without=SET_BY["nginx"])
        yield from (f'proxy_set_header {name:<33} "";\n' for name in of_kind)


def removed_by_name(indent: str, ingress: str) -> Iterator[str]:
    """A mapping of every name to an empty value, in YAML."""
    for kind in ClaimKind:
        yield f"{indent}# {TITLES[kind]}\n"
        yield from (f'{indent}{name}: ""\n' for name in names(kind, without=SET_BY[ingress]))


def envoy() -> Iterator[str]:
    indent = " " * 24
    yield from (f'{indent}- remove_on_match: {{ key_matcher: {{ prefix: "{name}" }} }}\n' for name in prefixes())
    for kind in ClaimKind:
        yield f"{indent}# {TITLES[kind]}\n"
        yield from (f"{indent}- remove: {name}\n" for name in outside_families(kind))
    yield from (f"{indent}- remove: {name.lower()}\n" for name in ("X-Request-Id",))


def haproxy() -> Iterator[str]:
    def rules(patterns: list[str], form: str) -> Iterator[str]:
        room = 116 - len(form.format(""))
        for line in textwrap.wrap(" ".join(patterns), room, break_long_words=False, break_on_hyphens=False):
            yield "    " + form.format(line.replace(" ", "|")) + "\n"

    yield from rules(prefixes(), "http-request del-header (?i)^({}) -m reg")
    for kind in ClaimKind:
        yield f"    # {TITLES[kind]}\n"
        yield from rules(outside_families(kind), "http-request del-header (?i)^({})$ -m reg")
    yield from rules(["x-request-id"], "http-request del-header (?i)^({})$ -m reg")


def envoy_gateway() -> Iterator[str]:
    """Its list has at most 64 names: what claims another target or method."""
    indent = " " * 8
    for kind in (ClaimKind.PATH, ClaimKind.METHOD):
        yield f"{indent}# {TITLES[kind]}\n"
        yield from (f"{indent}- {name}\n" for name in CLAIMS[kind] if name in WHOLE[kind])


WRITERS: Mapping[str, Callable[[], Iterator[str]]] = {
    "ingress/nginx/nginx-claims.conf": nginx,
    "ingress/traefik/patgate.yaml": partial(removed_by_name, " " * 10, "traefik"),
    "ingress/envoy/envoy.yaml": envoy,
    "ingress/envoy/envoy-grpc.yaml": envoy,
    "ingress/haproxy/haproxy.cfg": haproxy,
    "kubernetes/ingress-nginx.yaml": partial(removed_by_name, " " * 2, "nginx"),
    "kubernetes/traefik.yaml": partial(removed_by_name, " " * 6, "traefik"),
    "kubernetes/envoy-gateway.yaml": envoy_gateway,
    "kubernetes/envoy-gateway-grpc.yaml": envoy_gateway,
}


def current(name: str) -> str:
    """The file with its list as it must be."""
    before, begin, rest = (CONFIG / name).read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"config/{name} has no marks for the claims"
    return before + BEGIN + "".join(WRITERS[name]()) + END + after


if __name__ == "__main__":
    for file in WRITERS:
        (CONFIG / file).write_text(current(file))
