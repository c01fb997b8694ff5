"""Explains requests: what a token would get for a request now, and why a past request was decided as it was.

Rules:

1. A caller may query the tokens that it may see (``tokens.authorization``), and the decisions whose audit event it may
   read or whose token it may see. Anything else gives the same error as an unknown token or decision.
2. A whole token is refused wherever an id is expected, and no error repeats the input.
3. A past decision is what the audit log has recorded. The explanation of the same request now is added only for a
   caller that may see the token.
4. For a token that is attached to several organisations, the explanation covers only those in which the caller may see
   the token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Final

from proxy.core.decision import needed_permission
from proxy.core.errors import Invalid, NotFound
from proxy.core.kinds import Reach
from proxy.core.model import Actor, ActorKind
from proxy.core.networks import unmapped
from proxy.core.reasons import Reason
from proxy.core.request.requirement import REDACTED, UNROUTED
from proxy.core.routes import Match
from proxy.core.token import WHOLE_TOKEN, TokenFormat
from proxy.observe.logs import redact
from proxy.observe.metrics import Outcome
from proxy.services import grants
from proxy.services.caller import AccountEntity, AccountOperation, Caller, load_caller
from proxy.services.explain.explanation import (
    DescribedRequest,
    Explanation,
    Gateway,
    Second,
    depends_on_query,
    explain,
)
from proxy.services.explain.steps import FAILED, Subject
from proxy.services.tokens import authorization, loading
from proxy.services.tokens.authorization import NO_TOKEN, Ruling, Verb
from proxy.services.views import TokenView, rfc3339
from proxy.store.audit.queries import LogEntry, LogQuery, SortOrder
from proxy.store.change import Rows
from proxy.store.store import Store

NO_DECISION: Final = (
    "the audit log has no decision with this id; the setting audit.requests says which requests it keeps, and every "
    "refusal that is logged has its id in the gateway's log"
)
NO_ORG: Final = "there is no organisation with this name or id"
_LOOKS: Final = (AccountOperation.READ, AccountOperation.LIST)
_METHOD_LIMIT: Final = 64
_TARGET_LIMIT: Final = 65_536
_HOST_LIMIT: Final = 512
_SINCE_LIMIT: Final = 20
"""The most changes since a decision that are listed."""
_PATH_LIMIT: Final = 512
"""The length at which the audit log cuts paths."""
_ACTION_LIMIT: Final = 64
_THING_LIMIT: Final = 128
"""The lengths at which the audit log cuts actions, and entities with their ids."""
_CUT: Final = re.compile(r"\[redacted\]|_(?:[Pp][Aa][Tt]|[Kk][Ee][Yy])_[0-9A-Za-z]{12}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Happened:
    """A change after the decision to the token, its owner, role or organisation."""

    at: float
    action: str
    name: str
    by: str

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        return {"at": rfc3339(self.at), "action": self.action, "target": self.name, "by": self.by}


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """A past decision from the audit log, with the explanation of the same request now.

    ``now`` None: the token was deleted, the caller may not see it, or the request could not be parsed. ``differences``
    and ``notes`` are sentences; ``since`` are the later changes to the token, its owner, role and organisation.
    """

    entry: LogEntry
    now: Explanation | None
    differences: tuple[str, ...]
    notes: tuple[str, ...]
    since: tuple[Happened, ...]

    def as_dict(self) -> dict[str, object]:
        """The JSON document of the control API."""
        entry, details = self.entry, self.entry.details
        return {
            "decision": entry.decision_id,
            "then": {
                "at": rfc3339(entry.at),
                "verdict": entry.outcome,
                "reason": entry.reason,
                "status": details.get("status"),
                "method": details.get("method"),
                "path": details.get("path"),
                "host": details.get("host") or None,
                "second_target": _second_shown(entry),
                "requirement": details.get("requirement") or None,
                "route": entry.target_name or None,
                "action": entry.action,
                "target": entry.target_id or None,
                "token_id": entry.actor_id or None,
                "token_name": entry.actor_name or None,
                "user": entry.email or None,
                "org": entry.org_name or None,
                "address": entry.address or None,
            },
            "now": None if self.now is None else self.now.as_dict(),
            "differences": list(self.differences),
            "notes": list(self.notes),
            "since": [change.as_dict() for change in self.since],
        }


class ExplainService:
    """Explains requests and decisions with the configuration in use (``gateway``).

    All methods raise StoreUnavailable.
    """

    def __init__(self, store: Store, clock: Callable[[], float], *, gateway: Gateway, tokens: TokenFormat) -> None:
        self._store = store
        self._clock = clock
        self._gateway = gateway
        self._whole = re.compile(tokens.embedded_pattern)

    async def token(
        self, actor: Actor, token: str, method: str, target: str, host: str = "", address: str = ""
    ) -> Explanation:
        """Explain what the token with this id or public prefix gets for this method and path (or URL).

        ``address`` is the client's, as the gateway would find it. Raises NotFound, Invalid (a whole token, a text too
        long for a request, or no address), Unauthenticated.
        """
        self._refuse_whole("token", token)
        limits = (("method", method, _METHOD_LIMIT), ("path", target, _TARGET_LIMIT), ("host", host, _HOST_LIMIT))
        for field, text, most in limits:
            self._refuse_whole(field, text)
            if len(text) > most:
                raise Invalid(field, f"at most {most} characters")
        request = DescribedRequest(method=method, target=target, host=host, address=_address(address))
        now = self._clock()
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, now)
            subject = await self._subject(rows, caller, token, now)
            if subject is None:
                raise NotFound(NO_TOKEN)
            return self._explained(caller, request, subject, now)

    async def decision(self, actor: Actor, decision: str) -> Decision:
        """The decision with this id, and the decision now. Raises NotFound, Invalid, Unauthenticated."""
        self._refuse_whole("decision", decision)
        now = self._clock()
        async with self._store.read() as rows:
            caller = await load_caller(rows, actor, now)
            page = await rows.log.page(LogQuery(request_id=decision), SortOrder.OLDEST, None, _SINCE_LIMIT)
            found = [entry for entry in page.entries if _of_request(entry)] if decision else []
            for entry in found:
                decided = await self._decided(rows, caller, entry, now)
                if decided is not None:
                    return decided
        raise NotFound(NO_DECISION)

    async def _decided(self, rows: Rows, caller: Caller, entry: LogEntry, now: float) -> Decision | None:
        """The decision of this event; None if the caller may see neither the event nor the token."""
        named = entry.actor_kind != ActorKind.SYSTEM
        subject = await self._subject(rows, caller, entry.actor_id, now) if named else None
        if subject is None and not _may_read(caller, entry):
            return None
        if named and subject is None:
            there = await rows.tokens.get(entry.actor_id)
            note = "you may not see the token" if there else "the token has been deleted"
            return Decision(entry=entry, now=None, differences=(), notes=(note,), since=())
        request = DescribedRequest(
            **{field: str(entry.details.get(key) or "") for field, key in _DETAILS},
            second=_second(entry),
            address=entry.address,
        )
        if not request.method or not request.target:
            return Decision(entry=entry, now=None, differences=(), notes=(_UNREAD,), since=())
        if entry.target_name == UNROUTED.name and not request.requirement:
            return Decision(entry=entry, now=None, differences=(), notes=(_NO_REQUIREMENT,), since=())
        explained = self._explained(caller, request, subject, now, _anonymous_reason(entry))
        by_query = depends_on_query(self._gateway, request)
        return Decision(
            entry=entry,
            now=explained,
            differences=() if by_query or REDACTED in request.requirement else _differences(entry, explained),
            notes=(*_notes(entry, request), *([_NO_QUERY] if by_query else [])),
            since=() if subject is None else await _since(rows, caller, entry, subject),
        )

    async def _subject(self, rows: Rows, caller: Caller, token: str, now: float) -> Subject | None:
        """The token with this id or prefix; None if it is unknown or the caller may not see it."""
        entry = await rows.tokens.get(token.rpartition("_")[2])
        if entry is None or token not in (entry.token.id, entry.token.prefix):
            return None
        loaded = await loading.load(rows, caller, entry)
        if authorization.judge(caller, loaded.target, Verb.SHOW, ()) is not Ruling.ALLOWED:
            return None
        row = (await rows.grant_rows([entry.token.id])).tokens[entry.token.id]
        return Subject(
            row=row,
            status=TokenView.of(entry, now).status,
            revoked_at=entry.token.revoked_at,
            found=grants.verdict(row.prefix, row.id, row, now),
        )

    def _explained(
        self,
        caller: Caller,
        request: DescribedRequest,
        subject: Subject | None,
        now: float,
        anonymous: Reason = Reason.NO_CREDENTIAL,
    ) -> Explanation:
        explained = explain(self._gateway, request, subject, now, anonymous)
        if subject is None or subject.row.reach is not Reach.ORGS or caller.operator:
            return explained
        match = explained.judged.match
        seen = tuple(
            one for one in subject.row.orgs if any(caller.may(AccountEntity.KEYS, look, one.org_id) for look in _LOOKS)
        )
        org = None if match is None else match.org
        if org is not None and not any(org in (one.org_id, one.org_name) for one in seen):
            raise NotFound(NO_ORG)
        row = replace(subject.row, orgs=seen)
        return replace(explained, findings=replace(explained.findings, subject=replace(subject, row=row)))

    def _refuse_whole(self, field: str, text: str) -> None:
        if self._whole.search(text) is not None:
            raise Invalid(field, WHOLE_TOKEN)


def _address(text: str) -> str:
    """The address in its short form, IPv4 if it is mapped; "" for "". Raises Invalid."""
    if not text:
        return ""
    try:
        return str(unmapped(ip_address(text)))
    except ValueError:
        raise Invalid("ip", "an IP address such as 192.0.2.7 or 2001:db8::7") from None


_UNREAD: Final = "the reason is in how the request was received or forwarded, not in what the token may do"
_NO_QUERY: Final = (
    "the query decides about the route here, and the log has no query: this is about the request without one"
)
_NO_REQUIREMENT: Final = (
    "a requirement of the ingress decided, and the log does not have it: the event is of an older version"
)
_DETAILS: Final = (("method", "method"), ("target", "path"), ("host", "host"), ("requirement", "requirement"))


def _of_request(entry: LogEntry) -> bool:
    return entry.action == "request" or entry.action.startswith("request.")


def _second(entry: LogEntry) -> Second | None:
    """The second target that was refused; None if it was not judged."""
    named = entry.details.get("second_target")
    if not isinstance(named, dict) or "path" not in named:
        return None
    return Second(header=str(named.get("header")), method=str(named.get("method")), path=str(named["path"]))


def _second_shown(entry: LogEntry) -> dict[str, object] | None:
    """The second target that was refused; without method and path if it could not be judged."""
    named = entry.details.get("second_target")
    if not isinstance(named, dict):
        return None
    return {key: named.get(key) for key in ("header", "method", "path")}


def _is_comparable(entry: LogEntry) -> bool:
    """Whether the reason can be derived again from the logged request and the token."""
    if entry.outcome == Outcome.FAILED:
        return False
    return entry.reason in _ABOUT_TOKENS or (entry.reason == Reason.SECOND_TARGET and _second(entry) is not None)


def _anonymous_reason(entry: LogEntry) -> Reason:
    """The reason to refuse this request without a token: the logged one, if it is about the credential."""
    return next((reason for reason in FAILED if reason.value == entry.reason), Reason.NO_CREDENTIAL)


def _differences(entry: LogEntry, now: Explanation) -> tuple[str, ...]:
    """Sentences about what differs now; empty if the result is the same, or cannot be compared."""
    judged, found = now.judged, []
    route = "" if judged.match is None else judged.match.route.name
    if route != entry.target_name:
        found.append(f"the route was {entry.target_name or 'none'}, now it is {route or 'none'}")
    elif judged.match is not None:
        found += _needs(entry, judged.match)
    if not _is_comparable(entry):
        return ()
    if judged.outcome.value != entry.outcome:
        found.append(f"it was {entry.outcome}, now it would be {judged.outcome.value}")
    if judged.reason.value != entry.reason and judged.reason is not Reason.ALLOWED:
        found.append(f"the reason was {entry.reason}, now it would be {judged.reason.value}")
    return tuple(found)


def _needs(entry: LogEntry, match: Match) -> list[str]:
    """A sentence if the same route derives another permission now, as far as the log has the earlier one."""
    needed = needed_permission(match)
    thing, _, operation = needed.rpartition(":")
    now = (f"request.{operation}"[:_ACTION_LIMIT], redact(thing)[:_THING_LIMIT])
    if not needed or not entry.target_id or now == (entry.action, entry.target_id):
        return []
    before = entry.action.removeprefix("request").removeprefix(".")
    return [f"it needed {entry.target_id}:{before}, now it would need {now[1]}:{operation}"] if before else []


def _notes(entry: LogEntry, request: DescribedRequest) -> list[str]:
    """Sentences about the limits of the comparison."""
    notes = []
    reason = entry.reason
    if reason == Reason.TOKEN_WRONG_SECRET:
        notes.append("the value presented was not that of the token, or no longer is: this is about its present value")
    elif not _is_comparable(entry):
        notes.append(_UNREAD)
    paths = (request.target,) if request.second is None else (request.target, request.second.path)
    if any(len(path) >= _PATH_LIMIT or _CUT.search(path) is not None for path in paths):
        notes.append("the path in the log is cut or redacted, so this may be about another path")
    if REDACTED in request.requirement:
        notes.append("the requirement in the log is redacted, so this may be about another resource")
    return notes


_ABOUT_TOKENS: Final = frozenset(
    reason.value
    for reason in (
        *FAILED,
        Reason.ALLOWED,
        Reason.TARGET_NOT_CANONICAL,
        Reason.TARGET_TOO_LONG,
        Reason.METHOD_REFUSED,
        Reason.NO_ROUTE,
        Reason.ROUTE_DENIED,
    )
)
"""Reasons that can be derived again from method, path and token alone."""


def _may_read(caller: Caller, entry: LogEntry) -> bool:
    """Whether the audit log would show this event to the caller (``audit.service`` rule 1)."""
    if caller.may(AccountEntity.AUDIT, AccountOperation.LIST, entry.org_id):
        return True
    grant = caller.grant
    if grant is None or not grant.user_id or entry.user_id != grant.user_id:
        return False
    if not caller.scopes_allow(AccountEntity.AUDIT, AccountOperation.LIST):
        return False
    return grant.reach is Reach.ACCOUNT or entry.org_id == grant.org_id


async def _since(rows: Rows, caller: Caller, entry: LogEntry, subject: Subject) -> tuple[Happened, ...]:
    """Later changes to the token, its owner, role and organisation that the caller may read, oldest first."""
    row = subject.row
    queries = [LogQuery(target_id=id_, since=entry.at) for id_ in (row.id, row.user_id, row.role, row.org_id) if id_]
    queries.append(LogQuery(target_id="*", action="account.roles.sync", since=entry.at))
    found: dict[int, LogEntry] = {}
    for query in queries:
        page = await rows.log.page(query, SortOrder.OLDEST, None, _SINCE_LIMIT)
        found.update((one.n, one) for one in page.entries if one.epoch and _may_read(caller, one))
    return tuple(
        Happened(at=one.at, action=one.action, name=one.target_name or one.target_id, by=one.actor_name or one.actor_id)
        for _, one in sorted(found.items())[:_SINCE_LIMIT]
    )
