"""Checks of what can be reached around patgate: backends, and the forward-auth listener. They never send the token."""

from dataclasses import replace
from typing import Final

from proxy.cli.doctor.client import Address, NoAnswer, Response, send
from proxy.cli.doctor.deployment import Deployment, is_loopback, outward_address
from proxy.cli.doctor.findings import Finding, ok, problem, skipped

BACKENDS: Final = "backends"
FORWARD_AUTH: Final = "forward-auth"

_UNREACHABLE: Final = (
    "let only patgate or the ingress reach it: bind it to 127.0.0.1 or a private network, or use a firewall"
)


def backends(deployment: Deployment) -> Finding:
    """No backend may serve requests that do not come through patgate.

    A server with a loopback address is probed on this machine's outward address, where it answers if it is bound to all
    addresses.
    """
    if not deployment.backends:
        return skipped(BACKENDS, "no backend is known", "add --backend URL, or --config FILE for its upstreams")
    silent = 0
    for address in deployment.backends:
        probed = _outside(address)
        answer = None if probed is None else _answer(probed, deployment.path)
        if probed is None or answer is None or answer.status in (401, 403, 407):
            silent += 1
            continue
        seen = f"{probed} answers {answer.status} to a request without a token that does not come through patgate"
        return problem(BACKENDS, seen, _UNREACHABLE)
    return ok(BACKENDS, f"{silent} of {silent} servers serve no request from here around patgate")


def _outside(address: Address) -> Address | None:
    """Where a server would answer other machines; None if this cannot be probed from here."""
    try:
        if not is_loopback(address.name):
            return address
    except OSError:
        return None
    outward = outward_address()
    return None if outward is None else replace(address, name=outward, host=f"{outward}:{address.port}")


def _answer(address: Address, path: str) -> Response | None:
    try:
        return send(address, path)
    except NoAnswer:
        return None


def forward_auth(deployment: Deployment) -> Finding:
    """The forward-auth listener must refuse every peer but the ingress."""
    address = deployment.forward_auth
    if address is None:
        return skipped(
            FORWARD_AUTH, "no forward-auth listener to probe", "add --forward-auth URL, from another machine"
        )
    described = (("X-Original-Method", "GET"), ("X-Original-URI", deployment.path))
    try:
        answer = send(address, "/nginx", described)
    except NoAnswer as error:
        return ok(FORWARD_AUTH, f"{address} is not reachable from here: {error}")
    if answer.document.get("reason") == "peer_untrusted":
        return ok(FORWARD_AUTH, f"{address} refuses this machine")
    return problem(
        FORWARD_AUTH,
        f"{address} answers this machine ({answer.status}) as if it were an ingress",
        "if the ingress runs on this machine, run the check from another one; otherwise remove this machine from "
        "listen.forward_auth.trusted, and let only the ingress reach the listener",
    )
