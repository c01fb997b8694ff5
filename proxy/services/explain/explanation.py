"""Explains the decision on a token's request: the verdict, the response, the steps and the identity headers.

Rules:

1. The verdict is the gateway's, made in the gateway's order with the gateway's functions: ``core.request`` parses the
   request, ``services.grants`` judges the token, ``core.decision`` decides. This module decides nothing.
2. The response (status, message, challenge) comes from the table of reasons and ``core.challenge``.
3. Only the redacted path of the target is kept, because explanations may be shown, logged and forwarded.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxy.core.challenge import Challenges
from proxy.core.decision import decision, needed_permission
from proxy.core.identity import IdentityOutputs
from proxy.core.model import Access, Grant, RefusedGrant
from proxy.core.reasons import TABLE, Reason
from proxy.core.request.request_reading import host_name, judge, only_reported, read_line
from proxy.core.request.requirement import read_logged, required
from proxy.core.request.second_targets import NamedTarget, judge_second
from proxy.core.request.target import PathForm, refused_form
from proxy.core.routes import Match, RouteTable
from proxy.observe.logs import redact
from proxy.observe.metrics import Outcome
from proxy.services.explain.steps import Findings, Subject
from proxy.services.views import rfc3339


@dataclass(frozen=True, kw_only=True, slots=True)
class Second:
    """A second target of a request, as the audit log has it: the header that names it, its method and its path."""

    header: str
    method: str
    path: str

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {"header": self.header, "method": self.method, "path": redact(self.path)}


@dataclass(frozen=True, kw_only=True, slots=True)
class DescribedRequest:
    """The request to explain. ``target`` may be a whole URL; with ``host`` "" the URL's host applies, or none.

    ``address`` is the client's. With "" it is taken to be one from which the token may be used. ``requirement`` is what
    the ingress said that the request needs, as the audit log has it; "" for nothing.
    """

    method: str
    target: str
    host: str = ""
    address: str = ""
    second: Second | None = None
    requirement: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gateway:
    """The configuration that gateways decide and respond with. ``longest`` limits a request line, in bytes."""

    routes: RouteTable
    challenges: Challenges
    identity: IdentityOutputs
    longest: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The verdict of a gateway: allowed, refused, or ``reported``, which is forwarded nevertheless.

    ``match`` None: no route was matched. ``contradicted``: path and requirement name different organisations.
    """

    match: Match | None
    reason: Reason
    outcome: Outcome
    contradicted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """The explanation of a request as of ``at`` (unix seconds).

    ``challenge`` are the values of ``WWW-Authenticate``, ``identity`` the names and values of the identity headers that
    the backend gets.
    """

    at: float
    request: DescribedRequest
    judged: Judged
    findings: Findings
    challenge: tuple[str, ...]
    identity: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        judged, findings, entry = self.judged, self.findings, TABLE[self.judged.reason]
        allowed = judged.outcome is Outcome.ALLOWED
        return {
            "at": rfc3339(self.at),
            "verdict": judged.outcome.value,
            "reason": judged.reason.value,
            "status": None if allowed else entry.status,
            "public_reason": None if allowed else entry.public,
            "title": entry.title,
            "detail": entry.detail,
            "challenge": list(self.challenge),
            "method": redact(self.request.method),
            "path": redact(self.request.target.partition("?")[0]),
            "host": redact(self.request.host) or None,
            "ip": self.request.address or None,
            "second_target": None if self.request.second is None else self.request.second.as_dict(),
            "requirement": self.request.requirement or None,
            **_route(judged.match),
            **_applied(findings),
            "token": None if findings.subject is None else _token(findings.subject),
            "steps": [step.as_dict() for step in findings.steps()],
            "identity": [{"name": name, "value": value} for name, value in self.identity],
        }


def judged(gateway: Gateway, request: DescribedRequest, found: Grant | RefusedGrant, now: float) -> Judged:
    """The verdict on a request with a token whose grant or refusal is ``found``, at ``now`` (unix seconds).

    The order is that of the gateway's phases: parse, route, authenticate, authorise, second target.
    """
    found = _at_an_address(request, found)
    own = _judged_own_target(gateway, request, found, now)
    if request.second is None or own.match is None or own.outcome is Outcome.REFUSED:
        return own
    host = host_name(request.host.encode("utf-8", "surrogatepass")) or ""
    path = request.second.path.encode("utf-8", "surrogatepass")
    target = NamedTarget(None, path, written=request.second.method != "GET")
    match, reason = judge_second(gateway.routes, own.match, host, target)
    if reason is None and match is not None and match.route.access is Access.TOKEN:
        # A request that failed authentication is forwarded without identity, so the second target has no credential.
        reason = Reason.NO_CREDENTIAL if isinstance(found, RefusedGrant) else _reason(match, request, found, now)
    if reason is None or reason is Reason.ALLOWED:
        return own
    if match is None or not only_reported(match, reason):
        return Judged(match=match or own.match, reason=reason, outcome=Outcome.REFUSED)
    return own if own.outcome is Outcome.REPORTED else Judged(match=match, reason=reason, outcome=Outcome.REPORTED)


def _judged_own_target(gateway: Gateway, request: DescribedRequest, found: Grant | RefusedGrant, now: float) -> Judged:
    """The verdict on the request's own target."""
    line = _line(gateway, request)
    if isinstance(line, Reason):
        return Judged(match=None, reason=line, outcome=Outcome.REFUSED)
    match, reason = judge(gateway.routes, request.method.encode("utf-8", "surrogatepass"), *line)
    requirement = read_logged(request.requirement)
    if requirement is not None:
        match, reason = required(requirement, match, reason)
        if reason is Reason.ORG_MISMATCH:
            return Judged(match=match, reason=reason, outcome=Outcome.REFUSED, contradicted=True)
    if reason is not None or match is None:
        return Judged(match=match, reason=reason or Reason.NO_ROUTE, outcome=Outcome.REFUSED)
    if match.route.access is not Access.TOKEN:
        return Judged(match=match, reason=Reason.ALLOWED, outcome=Outcome.ALLOWED)
    reason = found.reason if isinstance(found, RefusedGrant) else _reason(match, request, found, now)
    if reason is Reason.ALLOWED:
        return Judged(match=match, reason=reason, outcome=Outcome.ALLOWED)
    outcome = Outcome.REPORTED if only_reported(match, reason) else Outcome.REFUSED
    return Judged(match=match, reason=reason, outcome=outcome)


def _reason(match: Match, request: DescribedRequest, grant: Grant, now: float) -> Reason:
    return decision(match, grant, now, request.address).reason


def _at_an_address(request: DescribedRequest, found: Grant | RefusedGrant) -> Grant | RefusedGrant:
    """The grant for a request whose client has no known address: without IP ranges, because nothing else is known."""
    if isinstance(found, RefusedGrant) or request.address:
        return found
    return replace(found, ranges=None)


def explain(
    gateway: Gateway,
    request: DescribedRequest,
    subject: Subject | None,
    now: float,
    anonymous: Reason = Reason.NO_CREDENTIAL,
) -> Explanation:
    """The explanation of this token's request at ``now``; without a token, of a request refused for ``anonymous``."""
    found = RefusedGrant(prefix="", reason=anonymous, depends=()) if subject is None else subject.found
    verdict = judged(gateway, request, found, now)
    match = verdict.match
    at_address = _at_an_address(request, found)
    grounds = None
    if match is not None and match.route.access is Access.TOKEN and isinstance(at_address, Grant):
        grounds = decision(match, at_address, now, request.address)
    values = gateway.challenges.values(TABLE[verdict.reason].challenge, match)
    return Explanation(
        at=now,
        request=request,
        judged=verdict,
        findings=Findings(
            routes=gateway.routes,
            match=match,
            reason=verdict.reason,
            subject=subject,
            grounds=grounds,
            address=request.address,
            form=_form(gateway, request, verdict),
            requirement=read_logged(request.requirement),
            contradicted=verdict.contradicted,
        ),
        challenge=tuple(value.decode("ascii") for value in values),
        identity=_identity(gateway, verdict, found),
    )


def _form(gateway: Gateway, request: DescribedRequest, verdict: Judged) -> str:
    """The form of the path, or of the second target, that is not canonical; empty for other verdicts."""
    if verdict.reason is not Reason.TARGET_NOT_CANONICAL:
        return ""
    line = _line(gateway, request)
    if isinstance(line, Reason):
        return PathForm.NOT_A_PATH.value
    match, reason = judge(gateway.routes, request.method.encode("utf-8", "surrogatepass"), *line)
    path = line[1]
    if reason is not Reason.TARGET_NOT_CANONICAL and request.second is not None:
        match, path = verdict.match, request.second.path.encode("utf-8", "surrogatepass")
    return refused_form(path, 0 if match is None else match.route.allow).value


def depends_on_query(gateway: Gateway, request: DescribedRequest) -> bool:
    """Whether the query decides which route this request, or its second target, matches."""
    line = _line(gateway, request)
    if isinstance(line, Reason):
        return False
    targets = [(request.method, line[1])]
    if request.second is not None:
        targets.append((request.second.method, request.second.path.encode("utf-8", "surrogatepass")))
    return any(
        judge(gateway.routes, method.encode("utf-8", "surrogatepass"), line[0], path, None)[1] is Reason.QUERY_AMBIGUOUS
        for method, path in targets
    )


def _line(gateway: Gateway, request: DescribedRequest) -> tuple[str, bytes, bytes] | Reason:
    """The host, path and query of a request, or why they cannot be read."""
    method, target, host = (
        text.encode("utf-8", "surrogatepass") for text in (request.method, request.target, request.host)
    )
    return read_line(method, target, host, gateway.longest)


def _identity(gateway: Gateway, verdict: Judged, found: Grant | RefusedGrant) -> tuple[tuple[str, str], ...]:
    match = verdict.match
    if verdict.outcome is Outcome.REFUSED or match is None or match.route.access is not Access.TOKEN:
        return ()
    outputs = gateway.identity.of(match.route.upstream)
    if isinstance(found, RefusedGrant) or TABLE[verdict.reason].status == 401:
        # A request that failed authentication is forwarded without identity: its headers are empty.
        lines = outputs.anonymous
    else:
        lines = outputs.lines(found, match.org)
    fields = lines.decode("ascii").split("\r\n")[:-1]
    return tuple((name, value.strip()) for name, _, value in (field.partition(":") for field in fields))


def _route(match: Match | None) -> dict[str, object]:
    """The matched route, with the operation, entity and permission that it derives from the request."""
    if match is None:
        names = ("route", "access", "upstream", "enforce", "operation", "entity", "entity_id", "permission", "org")
        return dict.fromkeys(names)
    route = match.route
    return {
        "route": route.name,
        "access": route.access.value,
        "upstream": route.upstream or None,
        "enforce": route.enforce,
        "operation": match.operation,
        "entity": match.entity,
        "entity_id": match.entity_id,
        "permission": needed_permission(match) or None,
        "org": match.org,
    }


def _applied(findings: Findings) -> dict[str, object]:
    """The role and scopes that apply, and the entry of each that allows the request."""
    subject, grounds = findings.subject, findings.grounds
    name, org = findings.role
    role_entry, scope_entry = (None, None) if grounds is None else (grounds.role_entry, grounds.scope_entry)
    scopes = None if subject is None else subject.row.scopes
    return {
        "role": name or None,
        "role_org": org or None,
        "role_permissions": list(findings.permissions),
        "role_entry": None if role_entry is None else str(role_entry),
        "scopes": None if scopes is None else list(scopes),
        "scope_entry": None if scope_entry is None else str(scope_entry),
    }


def _token(subject: Subject) -> dict[str, object]:
    row = subject.row
    return {
        "id": row.id,
        "prefix": row.prefix,
        "name": row.name,
        "kind": row.kind.value,
        "reach": row.reach.value,
        "status": subject.status.value,
        "user_id": row.user_id,
        "user": row.email,
        "user_status": None if row.user_status is None else row.user_status.value,
        "org_id": row.org_id,
        "org": row.org_name,
        "org_status": row.org_status,
        "expires_at": rfc3339(row.expires_at),
        "revoked_at": rfc3339(subject.revoked_at),
        "ip_ranges": None if row.ip_ranges is None else list(row.ip_ranges),
    }
