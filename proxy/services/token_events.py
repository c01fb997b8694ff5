"""Recording a change to a token: its dependency key, and its events in the audit log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from proxy.core.dependency_keys import token_key
from proxy.core.kinds import Kind
from proxy.store.change import Change


class ChangedToken(Protocol):
    """What an event says about its token: a row, or an active token as policies see it."""

    @property
    def id(self) -> str:
        """The token's id."""
        ...

    @property
    def prefix(self) -> str:
        """The public prefix."""
        ...

    @property
    def kind(self) -> Kind:
        """The kind, which is in the name of the action."""
        ...

    @property
    def name(self) -> str:
        """The name that its creator gave it."""
        ...

    @property
    def user_id(self) -> str | None:
        """The owner; None for a token of an organisation."""
        ...


def record(
    change: Change, verb: str, token: ChangedToken, org_ids: Iterable[str], details: Mapping[str, object]
) -> None:
    """Touch the token's dependency key and record ``verb`` on the log of each organisation of ``org_ids``.

    Without an organisation there is one event, on the log of the account.
    """
    change.touched(token_key(token.id))
    for org_id in tuple(org_ids) or ("",):
        change.audit(
            f"account.{token.kind.value}.{verb}",
            target_kind="token",
            target_id=token.id,
            target_name=token.name,
            org_id=org_id,
            user_id=token.user_id or "",
            details={"prefix": token.prefix, **details},
        )
