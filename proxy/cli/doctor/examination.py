"""The order of the checks, and which of them a deployment allows."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from proxy.cli.doctor import arrivals, refusals, surroundings
from proxy.cli.doctor.client import NoAnswer
from proxy.cli.doctor.deployment import Deployment
from proxy.cli.doctor.findings import Finding, ok, problem, skipped

ANSWERS: Final = "answers"
_FRONT: Final[tuple[tuple[str, Callable[[Deployment], Finding]], ...]] = (
    (refusals.NO_TOKEN, refusals.no_token),
    (refusals.WRONG_TOKEN, refusals.wrong_token),
    (refusals.FAIL_OPEN, refusals.fail_open),
    (refusals.FORGED_TARGET, refusals.forged_target),
    (refusals.REFUSALS, refusals.refusals),
    (refusals.PATHS, refusals.paths),
)
CHECKS: Final = (
    ANSWERS,
    *(name for name, _ in _FRONT),
    arrivals.ECHO,
    arrivals.IDENTITY,
    arrivals.CLAIMS,
    arrivals.CREDENTIAL,
    arrivals.UPGRADES,
    surroundings.BACKENDS,
    surroundings.FORWARD_AUTH,
)
"""The names of all checks, in their order. A report has each once."""


def examine(deployment: Deployment) -> Iterator[Finding]:
    """The finding of every check, each as soon as it is made."""
    try:
        deployment.ask()
    except NoAnswer as error:
        yield problem(ANSWERS, f"{deployment.front} gives no answer: {error}", "name the address that users reach")
        for name in CHECKS[1:-2]:
            yield skipped(name, f"{deployment.front} gives no answer")
    else:
        yield ok(ANSWERS, f"{deployment.front} answers")
        for name, check in _FRONT:
            yield _checked(name, check, deployment)
        yield from _arrivals(deployment)
    yield surroundings.backends(deployment)
    yield surroundings.forward_auth(deployment)


def _arrivals(deployment: Deployment) -> Iterator[Finding]:
    if deployment.token is None or not deployment.echo:
        yield from arrivals.without_echo(deployment)
        return
    try:
        finding, plain = arrivals.sees(deployment)
    except NoAnswer as error:
        finding, plain = _unanswered(arrivals.ECHO, error), None
    yield finding
    if plain is None:
        for name in (arrivals.IDENTITY, arrivals.CLAIMS, arrivals.CREDENTIAL, arrivals.UPGRADES):
            yield skipped(name, "patgate whoami does not answer")
        return
    yield _checked(arrivals.IDENTITY, partial(arrivals.identity_headers, plain=plain), deployment)
    yield _checked(arrivals.CLAIMS, arrivals.client_claims, deployment)
    yield _checked(arrivals.CREDENTIAL, partial(arrivals.credential, plain=plain), deployment)
    yield _checked(arrivals.UPGRADES, arrivals.upgrades, deployment)


def _checked(name: str, check: Callable[[Deployment], Finding], deployment: Deployment) -> Finding:
    try:
        return check(deployment)
    except NoAnswer as error:
        return _unanswered(name, error)


def _unanswered(name: str, error: NoAnswer) -> Finding:
    return problem(name, f"a request gets no answer: {error}", "look at the log of the ingress and of patgate")
