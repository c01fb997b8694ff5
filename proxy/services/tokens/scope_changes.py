"""Scopes of a token that there is, added, removed and set: what they will be, and what to tell about it.

Rules:

1. A token without scopes has all that its role has. Nothing can be added to that, and nothing taken from it one by
   one: it is narrowed by setting what it shall keep.
2. Removing the last scope leaves none: the token may do nothing. It never becomes one without scopes.
3. Removing what is not there is no error, unless another scope still allows it: whoever removed it would believe that
   it is gone.
4. What is added keeps to the policy, and the whole token afterwards to what the one presented may do (``custody``).
   Taking away needs neither.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from proxy.core.errors import Conflict, Forbidden, Invalid
from proxy.core.permissions import PermissionSet
from proxy.services.caller import Caller
from proxy.services.policy.service import PolicyService
from proxy.services.tokens import authorization, loading
from proxy.services.tokens.issuance import SCOPES_MOST, canonical
from proxy.services.tokens.loading import Found
from proxy.store.change import Rows

_ALL_ALREADY: Final = (
    "the token names no scopes: it has all that its role allows already. Set the scopes that it shall have instead"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scopes:
    """Scopes after an edit, sorted; ``added`` is what of it was not covered before."""

    after: list[str]
    added: tuple[str, ...]
    warnings: tuple[str, ...] = ()


Edit = Callable[[Sequence[str] | None], Scopes]
"""From the scopes of a token (None: all of its role's) to those after. Raises Conflict."""


def adding(more: Iterable[str]) -> Edit:
    """These as well."""
    wanted = tuple(more)

    def edit(before: Sequence[str] | None) -> Scopes:
        if before is None:
            raise Conflict(_ALL_ALREADY)
        return Scopes(after=canonical((*before, *wanted)), added=_new(before, wanted))

    return edit


def removing(fewer: Iterable[str]) -> Edit:
    """Without these."""
    gone = tuple(dict.fromkeys(fewer))
    taken = frozenset(gone)

    def edit(before: Sequence[str] | None) -> Scopes:
        if before is None:
            raise Conflict(_ALL_ALREADY)
        after = [text for text in before if text not in taken]
        # Looked up, not compared each with each: both have up to a thousand, and the workers wait for this process.
        held, left = frozenset(before), PermissionSet.of(after)
        warnings = []
        for text in gone:
            wider = left.covering(text)
            if wider and text not in held:
                raise Conflict(f"the token has no such scope, but {wider[0]}, which covers it")
            if wider:
                warnings.append(f"{wider[0]} still covers {text}")
        removed = PermissionSet.of(gone)
        narrower = [other for other in after if removed.covering(other)]
        if narrower:
            warnings.append(f"{', '.join(narrower)} remain, as parts of what was removed")
        return Scopes(after=after, added=(), warnings=tuple(warnings))

    return edit


def setting(scopes: Iterable[str]) -> Edit:
    """These and no others; none at all lets the token do nothing."""
    wanted = tuple(scopes)

    def edit(before: Sequence[str] | None) -> Scopes:
        added = () if before is None else _new(before, wanted)
        return Scopes(after=canonical(wanted), added=added)

    return edit


async def require(
    rows: Rows, asker: Caller, policies: PolicyService, found: Found, wanted: tuple[str, ...], edited: Scopes
) -> None:
    """Whether ``asker`` may make this of a token. Raises Invalid (policy) and Forbidden (rule 4)."""
    faults = (await policies.of(rows, *loading.policed_by(found))).scope_faults(wanted)
    if len(edited.after) > SCOPES_MOST:
        faults.append(("scopes", f"a token has at most {SCOPES_MOST} scopes"))
    if faults:
        raise Invalid(*faults[0], *faults[1:])
    if not edited.added:
        return
    wider = [] if asker.grant is None else authorization.wider(asker.grant, wanted)
    if wider:
        raise Forbidden("a token cannot be given more than the one presented may do", *wider)
    await loading.require_within(rows, asker, found, expires_at=found.row.expires_at, scopes=edited.after)


def _new(before: Sequence[str], wanted: Iterable[str]) -> tuple[str, ...]:
    held = PermissionSet.of(before)
    return tuple(text for text in wanted if not held.covering(text))
