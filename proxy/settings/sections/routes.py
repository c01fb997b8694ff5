"""The routes, and the headers that a request may and may not bring: identity, second targets, misplaced tokens."""

from typing import Annotated, Literal

from pydantic import Field

from proxy.core.identity import IdentityField
from proxy.core.model import Access, RefusalFormat
from proxy.core.request.second_targets import UNJUDGED
from proxy.settings.names import (
    EntityName,
    HeaderName,
    HostPattern,
    Method,
    Name,
    OperationName,
    PathPattern,
    PathPrefix,
    QueryName,
    QueryValue,
)
from proxy.settings.section import Section
from proxy.settings.sections.cors import Cors
from proxy.settings.sections.credentials import Challenged, Places


class RouteSettings(Section):
    """A route."""

    path: PathPattern
    """Pattern: `{name}` is one segment, `**` at the end is the rest; `{entity}`, `{id}` and `{org}` have a meaning."""
    upstream: Name | None = None
    """The upstream for this route. Required unless `access` is `denied`."""
    access: Access = Access.TOKEN
    """`token`, `public` (anyone, no identity), `passthrough` (the backend's own login) or `denied`."""
    entity: EntityName | None = None
    """The entity of the path, if the pattern has no `{entity}`."""
    id: str | None = None
    """The id, composed of segments of the path: `{scope}/{name}`. By default the segment `{id}`."""
    operations: Annotated[dict[Method, OperationName], Field(min_length=1)] | None = None
    """Operation of each method, instead of the defaults; other methods are refused."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] | None = None
    """Match only these methods; HEAD counts as GET."""
    host: HostPattern | None = None
    """Match only this Host: a name, or `*.example.com`."""
    query: Annotated[dict[QueryName, QueryValue], Field(min_length=1)] | None = None
    """Match only requests with these query parameters; a request that repeats one or spells it otherwise is refused."""
    fold_case: bool = False
    """For a denied route: match letters in any case, because the backend does."""
    strip_prefix: PathPrefix | None = None
    """First segments of the path that the backend does not get; it finds them in `X-Forwarded-Prefix`."""
    allow: tuple[Literal["encoded_slash", "encoded_percent", "semicolon", "empty_segment"], ...] = ()
    """Ambiguous path forms that the backend is known to read as patgate does."""
    second_targets: tuple[HeaderName, ...] = ()
    """Headers of `headers.second_targets` that are passed on unchecked, because this backend checks them itself."""
    enforce: bool = True
    """`false`: report-only, which logs and counts refusals of tokens but lets the requests through."""
    credentials: Places | None = None
    """Where a request on this route may carry its token; `null`: as in `credentials`."""
    challenge: Challenged | None = None
    """Schemes that a 401 of this route offers, in this order; `null`: those of its places."""
    cors: Cors | None = None
    """CORS on this route; `null`: as in `cors`."""
    refusals: RefusalFormat | None = None
    """The body of a refusal on this route; `null`: as in `refusals`."""


class Identity(Section):
    """The identity headers."""

    preset: Literal["patgate", "oauth2-proxy", "remote-user"] = "patgate"
    """A preset of identity headers for backends."""
    names: dict[IdentityField, str] | None = None
    """The headers one by one, instead of a preset."""


class Headers(Section):
    """The handling of client headers."""

    dropped: tuple[HeaderName, ...] = ()
    """More headers that are always removed from a client's request, in every spelling."""
    second_targets: tuple[HeaderName, ...] = ("Destination", "If", *UNJUDGED)
    """Headers that name a second resource: `Destination` and `If` are checked, all others are refused."""
    misplaced_tokens: Literal["refuse", "drop"] = "refuse"
    """For a token in a header where none is expected: refuse the request, or drop that header."""
