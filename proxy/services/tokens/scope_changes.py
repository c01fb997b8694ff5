"""Changing the scopes of a token: adds, removes and sets scopes, and checks the result.

Rules:

1. A token without a list of scopes has all permissions of its role. Scopes cannot be added to it or removed one by one;
   it is restricted by setting the scopes to keep.
2. Removing the last scope leaves an empty list: the token may do nothing. The list never becomes None.
3. Removing a scope that is not in the list is no error, unless another scope still covers it, because the caller would
   believe that the permission is gone.
4. Added scopes must comply with the policy, and the whole token afterwards must be contained in the one presented
   (``authorization`` rule 7). Removing scopes needs neither.
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
    "the token names no scopes: it has all that its role allows already. Set the scopes that it should have instead"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scopes:
    """The scopes after an edit, sorted; ``added`` are those that were not covered before."""

    after: list[str]
    added: tuple[str, ...]
    warnings: tuple[str, ...] = ()


Edit = Callable[[Sequence[str] | None], Scopes]
"""Maps a token's scopes (None: all of its role's) to those after the edit. Raises Conflict."""


def adding(more: Iterable[str]) -> Edit:
    """The edit that adds these scopes."""
    wanted = tuple(more)

    def edit(before: Sequence[str] | None) -> Scopes:
        if before is None:
            raise Conflict(_ALL_ALREADY)
        return Scopes(after=canonical((*before, *wanted)), added=_new(before, wanted))

    return edit


def removing(fewer: Iterable[str]) -> Edit:
    """The edit that removes these scopes."""
    gone = tuple(dict.fromkeys(fewer))
    taken = frozenset(gone)

    def edit(before: Sequence[str] | None) -> Scopes:
        if before is None:
            raise Conflict(_ALL_ALREADY)
        after = [text for text in before if text not in taken]
        # Sets, not a comparison of each with each: both have up to a thousand, and the workers wait for this process.
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
    """The edit that replaces the scopes; with an empty list the token may do nothing."""
    wanted = tuple(scopes)

    def edit(before: Sequence[str] | None) -> Scopes:
        added = () if before is None else _new(before, wanted)
        return Scopes(after=canonical(wanted), added=added)

    return edit


async def require(
    rows: Rows, caller: Caller, policies: PolicyService, found: Found, wanted: tuple[str, ...], edited: Scopes
) -> None:
    """Raise Invalid (policy) or Forbidden (rule 4) if the caller may not make this edit."""
    faults = (await policies.effective(rows, *loading.policy_org_ids(found))).scope_faults(wanted)
    if len(edited.after) > SCOPES_MOST:
        faults.append(("scopes", f"a token has at most {SCOPES_MOST} scopes"))
    if faults:
        raise Invalid(*faults[0], *faults[1:])
    if not edited.added:
        return
    wider = [] if caller.grant is None else authorization.scope_errors(caller.grant, wanted)
    if wider:
        raise Forbidden("a token cannot be given more than the one presented may do", *wider)
    row = found.row
    await loading.require_within(
        rows, caller, found, expires_at=row.expires_at, scopes=edited.after, ranges=row.ip_ranges
    )


def _new(before: Sequence[str], wanted: Iterable[str]) -> tuple[str, ...]:
    held = PermissionSet.of(before)
    return tuple(text for text in wanted if not held.covering(text))
