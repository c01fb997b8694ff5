"""The steps of a decision on a token's request, with the result of each in words.

The reason of the verdict determines which step failed; the steps before it passed. This module decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from proxy.core.decision import Verdict, needed_permission, reached
from proxy.core.kinds import OF_ORGS, Reach
from proxy.core.model import Access, Grant, RefusedGrant, TokenStatus
from proxy.core.reasons import TABLE, Reason
from proxy.core.request.requirement import UNROUTED, Requirement
from proxy.core.routes import Match, Route, RouteTable
from proxy.services.views import rfc3339
from proxy.store.records import TokenGrantRow


class Step(StrEnum):
    """The checks on a request, in their order."""

    ROUTE = "route"
    TOKEN = "token"  # noqa: S105 - the name of a step
    EXPIRY = "expiry"
    OWNER = "owner"
    ADDRESS = "address"
    ORGANISATION = "organisation"
    OPERATION = "operation"
    ROLE = "role"
    SCOPES = "scopes"


class Result(StrEnum):
    """The result of a step."""

    PASS = "pass"  # noqa: S105 - the name of a result
    FAIL = "fail"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepView:
    """One step, with its result and the explanation."""

    step: Step
    result: Result
    text: str

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {"step": self.step.value, "result": self.result.value, "text": self.text}


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """The token of the request, with its status as lists show it, and its grant or refusal."""

    row: TokenGrantRow
    status: TokenStatus
    revoked_at: float | None
    found: Grant | RefusedGrant


FAILED: Final[Mapping[Reason, Step]] = {
    Reason.NO_CREDENTIAL: Step.TOKEN,
    Reason.CREDENTIAL_UNSUPPORTED: Step.TOKEN,
    Reason.TOKEN_UNKNOWN: Step.TOKEN,
    Reason.TOKEN_WRONG_SECRET: Step.TOKEN,
    Reason.TOKEN_REVOKED: Step.TOKEN,
    Reason.TOKEN_EXPIRED: Step.EXPIRY,
    Reason.OWNER_REMOVED: Step.OWNER,
    Reason.OWNER_SUSPENDED: Step.OWNER,
    Reason.ORG_SUSPENDED: Step.OWNER,
    Reason.MEMBER_REMOVED: Step.OWNER,
    Reason.ADDRESS_REFUSED: Step.ADDRESS,
    Reason.ORG_MISMATCH: Step.ORGANISATION,
    Reason.OPERATION_UNMAPPED: Step.OPERATION,
    Reason.ROLE_DENIES: Step.ROLE,
    Reason.SCOPE_DENIES: Step.SCOPES,
}
"""The step that fails with each reason. Reasons that are not listed are about the request and its route."""

_SHOWN: Final = 12
"""The most entries of a role or of scopes that a sentence names."""
_OPEN: Final = {
    Access.TOKEN: "open to tokens",
    Access.PUBLIC: "open to anyone: tokens are not checked",
    Access.PASSTHROUGH: "left to the backend's own login: tokens are not checked",
    Access.DENIED: "never open to tokens",
}
_BY_REASON: Final[Mapping[Reason, str]] = {
    Reason.METHOD_REFUSED: "methods are in capitals, and CONNECT and TRACE are never served",
    Reason.NO_ROUTE: "no route is for this method, host and path",
    Reason.TOKEN_UNKNOWN: "there is no such token",
    Reason.OWNER_REMOVED: "its owner was removed",
    Reason.OWNER_SUSPENDED: "its owner is suspended",
    Reason.ORG_SUSPENDED: "its organisation is suspended",
    Reason.MEMBER_REMOVED: "its owner is no longer a member of its organisation",
    Reason.OPERATION_UNMAPPED: "the route names no operation for this method",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """The facts behind a verdict: its route and reason, the token, and the decision's ``grounds``.

    ``grounds`` is None if the request was refused before the decision, or the route needs none. ``address`` is the
    client's, "" where it is unknown. ``form`` is that of a path that is not canonical (``request.target.PathForm``).
    ``requirement`` is what the ingress said that the request needs. ``contradicted``: it names an organisation that is
    not the path's.
    """

    routes: RouteTable
    match: Match | None
    reason: Reason
    subject: Subject | None
    grounds: Verdict | None
    address: str = ""
    form: str = ""
    requirement: Requirement | None = None
    contradicted: bool = False

    def steps(self) -> tuple[StepView, ...]:
        """Every step: those before the failed one passed, those after it were not reached."""
        order = tuple(Step)
        failed = None if self.reason is Reason.ALLOWED else FAILED.get(self.reason, Step.ROUTE)
        if self.contradicted:
            # This is found before the token is checked.
            failed = Step.ROUTE
        if failed is not None:
            passed = order.index(failed)
        else:
            # A route that is open to everyone has no other checks.
            passed = 1 if self.grounds is None else len(order)
        views = []
        for place, step in enumerate(order):
            if step is failed:
                view = StepView(step=step, result=Result.FAIL, text=self._failure(step))
            elif place < passed:
                view = StepView(step=step, result=Result.PASS, text=self._pass(step))
            else:
                view = StepView(step=step, result=Result.NOT_REACHED, text="")
            views.append(view)
        return tuple(views)

    @property
    def role(self) -> tuple[str, str]:
        """The role that applies to the request, and the organisation that it is a role in ("": the account)."""
        if self.subject is None:
            return "", ""
        there = None
        if self.match is not None and isinstance(self.subject.found, Grant):
            there = reached(self.match.org, self.subject.found)
        if there is not None:
            return there.role, there.org_name
        return self.subject.row.role or "", self.subject.row.org_name or ""

    @property
    def permissions(self) -> tuple[str, ...]:
        """The permissions of that role, or those that the token was given in the organisation."""
        if self.subject is None:
            return ()
        if isinstance(self.subject.found, RefusedGrant):
            return tuple(self.subject.row.permissions or ())
        there = None if self.match is None else reached(self.match.org, self.subject.found)
        return (self.subject.found.permissions if there is None else there.permissions).texts

    def _pass(self, step: Step) -> str:
        match = self.match
        if match is None:
            return ""
        if step is Step.ROUTE:
            return self._routed(match.route)
        if step is Step.OPERATION:
            by_ingress = self.requirement is not None and self.requirement[:2] == (match.entity, match.operation)
            return needed_permission(match) + (", by the ingress's requirement" if by_ingress else "")
        if self.subject is None:
            return ""
        row = self.subject.row
        if step is Step.TOKEN:
            return f"{row.prefix} is known and not revoked"
        if step is Step.EXPIRY:
            return "never expires" if row.expires_at is None else f"expires {rfc3339(row.expires_at)}"
        if step is Step.OWNER:
            return _owner(row)
        if step is Step.ADDRESS:
            return _from(row, self.address)
        if step is Step.ORGANISATION:
            return f"the token reaches {match.org}" if match.org else "the route names none"
        if step is Step.ROLE:
            return f"{self._who} has {None if self.grounds is None else self.grounds.role_entry}"
        if row.scopes is None:
            return "the token has none of its own: all that the role allows"
        return f"the token has {None if self.grounds is None else self.grounds.scope_entry}"

    def _routed(self, route: Route) -> str:
        """The matched route, its place in the configuration, and what it is open to."""
        if route is UNROUTED:
            return "no route matches; the ingress's requirement alone decides"
        routes = self.routes.routes
        access = _OPEN[route.access]
        configured = route
        if route not in routes:
            # Judged by a requirement, a route that is open without a token needs one.
            configured = next(each for each in routes if replace(each, access=route.access) == route)
            access = "needs a token by the ingress's requirement"
        cut = f", forwarded without {route.strip_prefix}" if route.strip_prefix else ""
        return f"{route.name} ({routes.index(configured) + 1} of {len(routes)}), {access}{cut}"

    def _failure(self, step: Step) -> str:
        reason, match = self.reason, self.match
        if self.contradicted and match is not None and self.requirement is not None:
            return f"{match.route.name}: the path names {match.org}, the ingress's requirement {self.requirement.org}"
        words = _BY_REASON.get(reason, _clause(TABLE[reason].detail))
        if step is Step.ROUTE:
            words = f"{words} ({self.form})" if self.form else words
            return words if match is None else f"{match.route.name}: {words}"
        if match is None or self.subject is None:
            return words
        row = self.subject.row
        if step is Step.ROLE:
            return self._role_failure(row, needed_permission(match))
        if step is Step.SCOPES:
            return f"the token does not have {needed_permission(match)}; it has {_listed(row.scopes or ())}"
        if step is Step.ADDRESS:
            return f"{self.address} is not in {_listed(row.ip_ranges or ())}"
        if step is Step.ORGANISATION:
            return (
                f"the request is about {match.org}; {_reach(row)}"
                if match.org
                else f"the route names none; {_reach(row)}"
            )
        if reason is Reason.TOKEN_REVOKED:
            at = self.subject.revoked_at
            return "revoked" if at is None else f"revoked {rfc3339(at)}"
        if reason is Reason.TOKEN_EXPIRED:
            return f"expired {rfc3339(row.expires_at)}"
        return words

    def _role_failure(self, row: TokenGrantRow, needed: str) -> str:
        name, org = self.role
        if not name and not org:
            return f"its owner has no role in the account that would give it {needed}"
        if name and not self.permissions:
            return f"{self._who} permits nothing, or was deleted: it does not have {needed}"
        return f"{self._who} does not have {needed}; it has {_listed(self.permissions)}"

    @property
    def _who(self) -> str:
        name, org = self.role
        where = f" in {org}" if org else ""
        return f"the role {name}{where}" if name else f"the token{where}"


def _owner(row: TokenGrantRow) -> str:
    if row.kind in OF_ORGS:
        return "a key has no owner" + (f"; {row.org_name} is active" if row.org_name else "")
    if row.reach is Reach.ORG:
        return f"{row.email} is active, and a member of {row.org_name}, which is active too"
    return f"{row.email} is active"


def _from(row: TokenGrantRow, address: str) -> str:
    if row.ip_ranges is None:
        return "the token may be used from any address"
    ranges = _listed(row.ip_ranges)
    return f"{address} is in {ranges}" if address else f"none is given; any that is not in {ranges} is refused"


def _reach(row: TokenGrantRow) -> str:
    if row.reach is Reach.PERSONAL:
        return "the token is personal and reaches no organisation"
    if row.reach is Reach.ORG:
        return f"the token reaches {row.org_name} only"
    names = _listed(sorted(org.org_name for org in row.orgs))
    if row.reach is Reach.ORGS:
        return f"the token reaches {names}, except organisations that are suspended"
    return f"the token reaches {names}, except organisations that are suspended or whose policy it breaks"


def _clause(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:].removesuffix(".")


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more if texts else "nothing"
