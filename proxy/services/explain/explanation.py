"""Why a token's request is answered as it is.

Rules:

1. The verdict is the gateway's: read by ``core.asked``, the token's by ``services.grants``, decided by ``core.policy``,
   in the gateway's order. Nothing here decides anything.
2. What a client would get (status, words, challenge) comes from the table of reasons and ``core.challenge``.
3. Of the target only the path is kept, redacted: what is explained may be shown, logged and sent on.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.core.challenge import Challenges
from proxy.core.decision import decision, needed_permission, reached
from proxy.core.identity import IdentityNames, identity_lines, seen_in
from proxy.core.model import Access, Grant, RefusedGrant
from proxy.core.reasons import TABLE, Reason
from proxy.core.request.request_reading import host_name, judge, only_reported, read_line
from proxy.core.request.second_targets import NamedTarget, judge_second
from proxy.core.routes import Match, RouteTable
from proxy.observe.logs import redact
from proxy.observe.metrics import Outcome
from proxy.services.explain.steps import Findings, Subject
from proxy.services.views import rfc3339


@dataclass(frozen=True, kw_only=True, slots=True)
class Second:
    """A second target of a request: the header that names it, and the method and the path that it is judged by, as the
    audit log has them.
    """

    header: str
    method: str
    path: str

    def as_dict(self) -> dict[str, object]:
        return {"header": self.header, "method": self.method, "path": redact(self.path)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request as somebody describes it. ``target`` may be a whole URL; ``host`` "" is that of the URL, or none."""

    method: str
    target: str
    host: str = ""
    second: Second | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Gateway:
    """What gateways judge and answer by: the configuration in use. ``longest`` is a request line's limit in bytes."""

    routes: RouteTable
    challenges: Challenges
    names: IdentityNames
    longest: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """The verdict as a gateway reaches it: allowed, refused, or ``reported``, which is let through all the same.

    ``match`` None: it did not come to a route.
    """

    match: Match | None
    reason: Reason
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Explanation:
    """All that there is to say about a request at ``at`` (unix seconds).

    ``challenge`` are the values of ``WWW-Authenticate``, ``identity`` the names and values of the identity headers that
    the backend gets.
    """

    at: float
    asked: Asked
    judged: Judged
    findings: Findings
    challenge: tuple[str, ...]
    identity: tuple[tuple[str, str], ...]

    def as_dict(self) -> dict[str, object]:
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
            "method": redact(self.asked.method),
            "path": redact(self.asked.target.partition("?")[0]),
            "host": redact(self.asked.host) or None,
            "second_target": None if self.asked.second is None else self.asked.second.as_dict(),
            **_asked(judged.match),
            **_counted(findings),
            "token": None if findings.subject is None else _token(findings.subject),
            "steps": [step.as_dict() for step in findings.steps()],
            "identity": [{"name": name, "value": value} for name, value in self.identity],
        }


def judged(gateway: Gateway, asked: Asked, found: Grant | RefusedGrant, now: float) -> Judged:
    """The verdict on a request with the token of which ``found`` is known, at ``now`` (unix seconds).

    The order is that of the gateway's phases: parse, route, authenticate, authorise, second target.
    """
    own = _judged_alone(gateway, asked, found, now)
    if asked.second is None or own.match is None or own.outcome is Outcome.REFUSED:
        return own
    host = host_name(asked.host.encode("utf-8", "surrogatepass")) or ""
    path = asked.second.path.encode("utf-8", "surrogatepass")
    target = NamedTarget(None, path, written=asked.second.method != "GET")
    match, reason = judge_second(gateway.routes, own.match, host, target)
    if reason is None and match is not None and match.route.access is Access.TOKEN:
        # A request that failed authentication is passed on as one of nobody.
        reason = Reason.NO_CREDENTIAL if isinstance(found, RefusedGrant) else decision(match, found, now).reason
    if reason is None or reason is Reason.ALLOWED:
        return own
    if match is None or not only_reported(match, reason):
        return Judged(match=match or own.match, reason=reason, outcome=Outcome.REFUSED)
    return own if own.outcome is Outcome.REPORTED else Judged(match=match, reason=reason, outcome=Outcome.REPORTED)


def _judged_alone(gateway: Gateway, asked: Asked, found: Grant | RefusedGrant, now: float) -> Judged:
    """The verdict on the request's own target."""
    method, target, host = (text.encode("utf-8", "surrogatepass") for text in (asked.method, asked.target, asked.host))
    line = read_line(method, target, host, gateway.longest)
    if isinstance(line, Reason):
        return Judged(match=None, reason=line, outcome=Outcome.REFUSED)
    match, reason = judge(gateway.routes, method, *line)
    if reason is not None or match is None:
        return Judged(match=match, reason=reason or Reason.NO_ROUTE, outcome=Outcome.REFUSED)
    if match.route.access is not Access.TOKEN:
        return Judged(match=match, reason=Reason.ALLOWED, outcome=Outcome.ALLOWED)
    reason = found.reason if isinstance(found, RefusedGrant) else decision(match, found, now).reason
    if reason is Reason.ALLOWED:
        return Judged(match=match, reason=reason, outcome=Outcome.ALLOWED)
    outcome = Outcome.REPORTED if only_reported(match, reason) else Outcome.REFUSED
    return Judged(match=match, reason=reason, outcome=outcome)


def explain(
    gateway: Gateway, asked: Asked, subject: Subject | None, now: float, nobody: Reason = Reason.NO_CREDENTIAL
) -> Explanation:
    """Everything about the request of this token now; without a token, about one refused for ``nobody``."""
    found = RefusedGrant(prefix="", reason=nobody, depends=()) if subject is None else subject.found
    verdict = judged(gateway, asked, found, now)
    match = verdict.match
    grounds = None
    if match is not None and match.route.access is Access.TOKEN and isinstance(found, Grant):
        grounds = decision(match, found, now)
    values = gateway.challenges.values(TABLE[verdict.reason].challenge, match)
    return Explanation(
        at=now,
        asked=asked,
        judged=verdict,
        findings=Findings(routes=gateway.routes, match=match, reason=verdict.reason, subject=subject, grounds=grounds),
        challenge=tuple(value.decode("ascii") for value in values),
        identity=_identity(gateway, verdict, found),
    )


def _identity(gateway: Gateway, verdict: Judged, found: Grant | RefusedGrant) -> tuple[tuple[str, str], ...]:
    match = verdict.match
    if verdict.outcome is Outcome.REFUSED or match is None or match.route.access is not Access.TOKEN:
        return ()
    if isinstance(found, RefusedGrant) or TABLE[verdict.reason].status == 401:
        # Whoever is refused as nobody is passed on as nobody.
        return tuple((name, "") for _, name in gateway.names.headers)
    there = reached(match.org, found)
    lines = (
        identity_lines(gateway.names, found if there is None else seen_in(found, there))
        .decode("ascii")
        .split("\r\n")[:-1]
    )
    return tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in lines))


def _asked(match: Match | None) -> dict[str, object]:
    """The route that was matched, and what it makes of the request."""
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


def _counted(findings: Findings) -> dict[str, object]:
    """The role and the scopes that count, and the entry of each that allows what is asked for."""
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
    }
