"""Checks of what must be refused: no token, a wrong token, a forged target, and whether refusals arrive whole."""

from typing import Final

from proxy.cli.doctor import causes
from proxy.cli.doctor.client import Response
from proxy.cli.doctor.deployment import Deployment, arrived
from proxy.cli.doctor.findings import Finding, ok, problem, skipped

NO_TOKEN: Final = "no-token"  # noqa: S105 - the name of a check
WRONG_TOKEN: Final = "wrong-token"  # noqa: S105 - the name of a check
FAIL_OPEN: Final = "fail-open"
FORGED_TARGET: Final = "forged-target"
REFUSALS: Final = "refusals"
PATHS: Final = "paths"

NAME_A_PATH: Final = "name a path that needs a token with --path or --echo"
_NOT_ASKED: Final = (
    "the request reaches the backend without a verdict: route it to patgate, or have the ingress ask patgate (nginx: "
    "auth_request in the location; Traefik: the middleware on the router)"
)
_FORGED: Final = (
    "the ingress must set the headers that describe the request itself, replacing the client's (nginx: "
    "proxy_set_header X-Original-URI $request_uri), and only the ingress may be in trusted"
)
_PATHS: Final = (
    "patgate must see the target as the client sent it, and the backend must get the same (nginx: $request_uri for "
    "X-Original-URI, never $uri; proxy_pass without a path)"
)
_REFUSALS: Final = (
    "clients cannot tell what to do: have the ingress pass patgate's refusal on as it is (nginx: the file of "
    "config/ingress builds it from headers)"
)
_TARGET_HEADERS: Final = ("X-Original-URI", "X-Original-URL", "X-Forwarded-Uri", "X-Rewrite-URL")
_METHOD_HEADERS: Final = ("X-Original-Method", "X-Forwarded-Method", "X-HTTP-Method-Override")


def no_token(deployment: Deployment) -> Finding:
    """A request without a token must not be served."""
    answer = deployment.ask()
    seen = f"a request without a token gets {answer.status}"
    return _served(NO_TOKEN, deployment, seen, _NOT_ASKED) if answer.success else ok(NO_TOKEN, seen)


def wrong_token(deployment: Deployment) -> Finding:
    """A request with a mistyped token must not be served, whichever place it is in."""
    seen = []
    for name, value in _mistyped(deployment):
        answer = deployment.ask((name, value))
        if answer.success:
            return _served(WRONG_TOKEN, deployment, f"a mistyped token in {name} gets {answer.status}", _NOT_ASKED)
        seen.append(f"{answer.status} in {name}")
    return ok(WRONG_TOKEN, f"a mistyped token gets {', '.join(seen)}")


def fail_open(deployment: Deployment) -> Finding:
    """A call to patgate that ends in another status than 401 or 403 must count as a refusal too."""
    answer = deployment.ask(*_mistyped(deployment))
    if not answer.success:
        return ok(FAIL_OPEN, f"a request that patgate refuses with 400 gets {answer.status}")
    advice = (
        "the ingress takes a failure for a permission: let only 2xx of patgate pass (nginx: no error_page that leads "
        "to the application; Envoy: failure_mode_allow: false)"
    )
    return _served(FAIL_OPEN, deployment, f"a request that patgate refuses with 400 gets {answer.status}", advice)


def _mistyped(deployment: Deployment) -> tuple[tuple[str, str], ...]:
    """A token with a wrong checksum in two places; both at once are an ambiguous request, which gets 400."""
    token = f"{deployment.brand}_pat_doctorAAAAAA_{'d' * 38}"
    return (("Authorization", f"Bearer {token}"), ("X-API-Key", token))


def _served(check: str, deployment: Deployment, seen: str, advice: str) -> Finding:
    """A request was served: a problem, unless the path may be open to everyone."""
    if deployment.path_given:
        return problem(check, seen, advice)
    return skipped(check, f"{deployment.path} may be open to everyone: {seen}", NAME_A_PATH)


def forged_target(deployment: Deployment) -> Finding:
    """A client's own headers must not choose the target that patgate judges."""
    for path in deployment.open_paths:
        claims = [(name, path) for name in _TARGET_HEADERS] + [(name, "GET") for name in _METHOD_HEADERS]
        for several in (claims, claims[0:1] + claims[4:5], claims[2:3] + claims[5:6]):
            answer = deployment.ask(*several)
            if answer.success:
                seen = f"without a token, but with {several[0][0]}: {path}, the answer is {answer.status}"
                return _served(FORGED_TARGET, deployment, seen, _FORGED)
    return ok(FORGED_TARGET, "headers that describe another target change no verdict")


def refusals(deployment: Deployment) -> Finding:
    """A refusal must arrive with its status, challenge and reason."""
    answer = deployment.ask()
    hidden = answer.status == 403 and not deployment.path_given and causes.advice(answer) is None
    if answer.success or hidden:
        return skipped(REFUSALS, f"{deployment.path} gets {answer.status} without a token", NAME_A_PATH)
    two = deployment.ask(*_mistyped(deployment))
    dots = deployment.ask(target="/doctor/.." + deployment.path)
    lost = _lost(answer, 401, "a request without a token")
    lost += _lost(two, 400, "a request with two credentials")
    lost += _lost(dots, 400, "a path with dot segments")
    if not lost:
        return ok(REFUSALS, "refusals arrive with status, challenge and reason")
    return problem(
        REFUSALS,
        "; ".join(dict.fromkeys(lost)),
        causes.advice(answer) or causes.advice(two) or causes.advice(dots) or _REFUSALS,
    )


def _lost(answer: Response, status: int, case: str) -> list[str]:
    """What the refusal of a request that must get ``status`` has lost on its way."""
    if answer.success or (status == 400 and answer.status in (401, 403)):
        # Another check judges requests that are served. And a path that the ingress has cleaned gets another refusal.
        return []
    if answer.status != status:
        return [f"{case} gets {causes.described(answer)} instead of {status}"]
    lost = []
    if status == 401 and not any("realm=" in value for value in answer.all("WWW-Authenticate")):
        lost.append("401 has no challenge (WWW-Authenticate)")
    if "reason" not in answer.document:
        lost.append(f"{status} has no reason (application/problem+json)")
    return lost


def noncanonical(path: str) -> dict[str, str]:
    """Targets that some servers read as ``path``, by what is unusual in them."""
    first, rest = path[1:2] or "x", path[2:]
    return {
        "a dot segment": f"/doctor/..{path}",
        "a single dot": f"/.{path}",
        "an encoded dot segment": f"/doctor/%2e%2e{path}",
        "an encoded slash": f"/doctor%2f..{path}",
        "an empty segment": f"/{path}",
        "a path parameter": f"{path};doctor=1",
        "a parameter in a dot segment": f"/doctor/..;{path}",
        "double encoding": f"/%25{ord(first):02x}{rest}",
    }


def paths(deployment: Deployment) -> Finding:
    """A path that two servers may read differently must be refused, or arrive as the one that was judged."""
    cleaned: list[str] = []
    for what, target in noncanonical(deployment.path).items():
        answer = deployment.ask(target=target) if deployment.token is None else deployment.ask_with_token(target=target)
        if not answer.success and answer.status != 404:
            continue
        seen = arrived(answer)
        if seen is not None and seen.path == deployment.path:
            cleaned.append(what)
            continue
        where = "" if seen is None else f", and arrives as {seen.path}"
        return problem(
            PATHS,
            f"{what} ({target}) gets {answer.status}{where}, although it has several readings",
            _PATHS,
        )
    if deployment.token is not None and deployment.echo:
        # Servers that decode a path and encode it again change the comma. (It is another resource; a token that may not
        # read that one gets a refusal.)
        for sent in (f"{deployment.path}?doctor=a%2Fb%20c&doctor=", f"{deployment.path}%2C"):
            seen = arrived(deployment.ask_with_token(target=sent))
            if seen is not None and seen.path != sent:
                return problem(PATHS, f"{sent} arrives as {seen.path}", _PATHS)
    if cleaned:
        return ok(PATHS, f"refused, or cleaned by the ingress before patgate is asked ({', '.join(cleaned)})")
    return ok(PATHS, "paths with several readings are refused")
