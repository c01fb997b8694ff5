"""Why a deployment refuses what patgate would answer otherwise, and what to do: read from the refusal itself."""

import re
from typing import Final

from proxy.cli.doctor.client import Response
from proxy.core.reasons import Reason

_REASON: Final = re.compile(r"[a-z_]{1,40}")
_COMPARE: Final = "compare the configuration of the ingress with its file in config/ingress"
_BACKEND: Final = "patgate gets no answer from the backend: see whether it runs at the address in upstreams"
_ADVICE: Final = {
    Reason.PEER_UNTRUSTED: (
        "patgate does not trust this ingress: add its address, which patgate's log has as peer, to "
        "listen.forward_auth.trusted (over gRPC: listen.ext_authz.trusted)"
    ),
    Reason.PEER_SECRET: "the ingress and listen.forward_auth.secret must have the same secret",
    Reason.FORWARDED_INVALID: f"the ingress asks at another ingress's path, or not as its path needs: {_COMPARE}",
    Reason.REQUIREMENT_INVALID: f"the URL that the ingress calls has a query that patgate does not know: {_COMPARE}",
    Reason.AUTHORITY_UNAVAILABLE: "patgate runs, but cannot decide: look at its log",
    Reason.UPSTREAM_UNHEALTHY: _BACKEND,
    Reason.UPSTREAM_REFUSED: _BACKEND,
    Reason.UPSTREAM_RESET: _BACKEND,
    Reason.UPSTREAM_CONNECT_TIMEOUT: _BACKEND,
    Reason.UPSTREAM_TIMEOUT: _BACKEND,
    # What the files of config/ingress answer in patgate's place.
    "unavailable": (
        "the ingress gets no verdict: see whether patgate runs, and whether the ingress has the address of "
        "listen.forward_auth"
    ),
}
_SILENCE: Final = (
    "the ingress gets no answer from patgate or from the backend: see whether both run; the log of the ingress names "
    "the address that failed"
)
_SERVER_ERRORS: Final = (500, 502, 503, 504)


def described(answer: Response) -> str:
    """The status, and the reason if the answer has one: ``403 (no_route)``."""
    reason = _reason(answer)
    return f"{answer.status} ({reason})" if reason else str(answer.status)


def advice(answer: Response) -> str | None:
    """What to do if a part of the deployment does not work, or None if the answer does not tell."""
    found = _ADVICE.get(_reason(answer))
    return found or (_SILENCE if answer.status in _SERVER_ERRORS else None)


def _reason(answer: Response) -> str:
    reason = answer.document.get("reason")
    return reason if isinstance(reason, str) and _REASON.fullmatch(reason) else ""
