"""Checks of what arrives at the backend, seen through ``patgate whoami``: identity, claims, credential, upgrades."""

from collections.abc import Sequence
from typing import Final

from proxy.cli.doctor import causes
from proxy.cli.doctor.deployment import MARK, Arrived, Deployment, arrived, spelled
from proxy.cli.doctor.findings import Finding, ok, problem, skipped

ECHO: Final = "echo"
IDENTITY: Final = "identity-headers"
CLAIMS: Final = "client-claims"
CREDENTIAL: Final = "credential"
UPGRADES: Final = "upgrades"

_FORGED_ADDRESS: Final = "203.0.113.77"
_FORGED_HOST: Final = "doctor-spoofed.invalid"
_CLAIMS: Final = (
    ("X-Forwarded-For", _FORGED_ADDRESS),
    ("X-Real-IP", _FORGED_ADDRESS),
    ("True-Client-IP", _FORGED_ADDRESS),
    ("Forwarded", f"for={_FORGED_ADDRESS};host={_FORGED_HOST}"),
    ("X-Forwarded-Host", _FORGED_HOST),
    ("X-Forwarded-Uri", f"/{MARK}"),
    ("X-Forwarded-Prefix", f"/{MARK}"),
    ("X-Original-URL", f"/{MARK}"),
    ("X-HTTP-Method-Override", MARK),
    ("Script_Name", f"/{MARK}"),
)


def sees(deployment: Deployment) -> tuple[Finding, Arrived | None]:
    """Whether an allowed request reaches ``patgate whoami``, and how it arrives there."""
    answer = deployment.ask_with_token()
    seen = arrived(answer)
    if seen is not None:
        return ok(ECHO, f"{deployment.path} is answered by patgate whoami"), seen
    why = f"{deployment.path} with the token gets {causes.described(answer)}"
    if answer.success:
        why += ", and not from patgate whoami"
    advice = "route the path to a running `patgate whoami`, and use a token that may GET it"
    return problem(ECHO, why, causes.advice(answer) or advice), None


def identity_headers(deployment: Deployment, plain: Arrived) -> Finding:
    """No identity header of a client may arrive, and a client must not have patgate's deleted."""
    names = deployment.identity_names
    spellings = {
        "as it is": names,
        "in lower case": tuple(name.lower() for name in names),
        "with underscores": tuple(name.replace("-", "_") for name in names),
        "with dots": tuple(name.replace("-", ".") for name in names),
    }
    advice = (
        "have the ingress replace or delete it in every spelling (nginx: auth_request_set and proxy_set_header for "
        "each; Caddy: copy_headers; Traefik: authResponseHeaders)"
    )
    if not (ours := plain.named(names)):
        missing = "have the ingress ask patgate, and pass the identity headers of its answer on to the backend"
        return problem(IDENTITY, "an allowed request arrives without any identity header", missing)
    for how, sent in spellings.items():
        seen = arrived(deployment.ask_with_token(*((name, MARK) for name in sent)))
        if seen is None:
            continue  # refused, which is fine
        for name, value in seen.headers:
            if MARK in value:
                return problem(IDENTITY, f"a client's {name} ({how}) arrives at the backend", advice)
    nominated = ", ".join(("close", *(name for name, _ in ours)))
    seen = arrived(deployment.ask_with_token(("Connection", nominated)))
    if seen is not None and (gone := _nominated(seen, [name for name, _ in ours])) is not None:
        return problem(IDENTITY, f"a client's Connection: {gone} can delete the header {gone}", _CONNECTION)
    return ok(IDENTITY, f"{len(ours)} identity headers arrive, and none of a client")


_CONNECTION: Final = "have the ingress set or clean the client's Connection header before it asks patgate"


def _nominated(seen: Arrived, names: Sequence[str]) -> str | None:
    """The identity header that a client's ``Connection`` has deleted, or that it names on its way; None if none."""
    options = {spelled(each.strip()) for _, value in seen.named(["Connection"]) for each in value.split(",")}
    return next((name for name in names if spelled(name) in options or not seen.named([name])), None)


def client_claims(deployment: Deployment) -> Finding:
    """What a client says about its address, host, path or method must not arrive as if it were true."""
    seen = arrived(deployment.ask_with_token(*_CLAIMS))
    if seen is None:
        return ok(CLAIMS, "a request with forged headers about itself is refused")
    believed = [
        name for name, value in seen.headers if any(each in value for each in (_FORGED_ADDRESS, _FORGED_HOST, MARK))
    ]
    if not believed:
        return ok(CLAIMS, "forged headers about address, host, path and method do not arrive")
    return problem(
        CLAIMS,
        f"a client's {', '.join(dict.fromkeys(believed))} arrives at the backend",
        "listen.proxy.trusted must contain the ingress only, and the ingress must replace these headers",
    )


def credential(deployment: Deployment, plain: Arrived) -> Finding:
    """The token must not reach the backend."""
    for name, value in plain.headers:
        if deployment.token is not None and deployment.token in value:
            advice = 'have the ingress remove it after patgate was asked (nginx: proxy_set_header Authorization "")'
            return problem(CREDENTIAL, f"the token arrives at the backend in {name}", advice)
    return ok(CREDENTIAL, "the token does not arrive at the backend")


def upgrades(deployment: Deployment) -> Finding:
    """No upgrade to a protocol that nobody knows may arrive: one to HTTP/2 would arrive too.

    Behind it the client speaks to the application without a verdict.
    """
    seen = arrived(deployment.ask_with_token(("Connection", "Upgrade"), ("Upgrade", MARK)))
    if seen is None or not any(MARK in value for _, value in seen.named(["Upgrade"])):
        return ok(UPGRADES, "an upgrade to an unknown protocol does not arrive")
    return problem(
        UPGRADES,
        "a client's Upgrade to an unknown protocol arrives at the backend",
        "have the ingress pass no upgrade but to websocket; if it cannot, no backend behind it may accept Upgrade: h2c",
    )


def without_echo(deployment: Deployment) -> list[Finding]:
    """The checks of this module, skipped."""
    missing = "the token: PATGATE_TOKEN, or --token - and the token on standard input"
    if deployment.token is not None:
        missing = "--echo PATH, a path that is routed to `patgate whoami`"
    why = "what arrives at the backend cannot be seen from outside"
    return [skipped(name, why, f"add {missing}") for name in (ECHO, IDENTITY, CLAIMS, CREDENTIAL, UPGRADES)]
