"""The settings, section by section, with the type and range of every field; ``rules`` has the rules between fields.

The docstring under a field is its description in the JSON Schema (``schema``). Everything is frozen. Durations are
float seconds, sizes int bytes, file paths absolute after loading. JSON leaves out secrets; only ``to_boot_json``, with
which the supervisor passes settings to the authority, includes them.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    Field,
    FieldSerializationInfo,
    SecretStr,
    field_serializer,
    model_validator,
)

from proxy.core.identity import IdentityField
from proxy.core.model import Access
from proxy.core.request.second_targets import UNJUDGED
from proxy.settings.addresses import (
    Bind,
    BindAddress,
    HostField,
    HostName,
    RequestTarget,
    ServerAddress,
    StoreUrl,
    TrustedNetwork,
    WebhookUrl,
    without_password,
)
from proxy.settings.names import (
    Brand,
    EntityName,
    HeaderName,
    HostPattern,
    Method,
    Name,
    OperationName,
    PathPattern,
    PermissionText,
    TrustedClaim,
)
from proxy.settings.section import FilePath, Section, Timeout
from proxy.settings.sources.secret import SECRET_KEY_BYTES, decode_key, decode_webhook_secret
from proxy.settings.values import Duration, Size, Statuses, StatusRange, Whole

_BOOT: Final = "boot"
_DAY: Final = 86400.0


class Tls(Section):
    """The certificate of a listener."""

    certificate: FilePath
    """PEM file with the certificate and its chain."""
    key: FilePath
    """PEM file with the private key, without password."""


HeaderBytes = Annotated[Size, Field(ge=1024, le=1024 * 1024)]
HeaderCount = Annotated[Whole, Field(ge=8, le=10_000)]
RequestLine = Annotated[Size, Field(ge=256, le=1024 * 1024)]
Connections = Annotated[Whole, Field(ge=1, le=1_000_000)]


class ListenerLimits(Section):
    """The limits of one listener, where they differ from `limits`."""

    header_bytes: HeaderBytes | None = None
    """Replaces `limits.header_bytes`."""
    headers: HeaderCount | None = None
    """Replaces `limits.headers`."""
    request_line: RequestLine | None = None
    """Replaces `limits.request_line`."""
    body: Size | None = None
    """Replaces `limits.body`."""


class ProxyListener(Section):
    """The listener of the reverse proxy."""

    bind: BindAddress = Bind(host="0.0.0.0", port=8080)  # noqa: S104 - the listener for clients
    """Address of the reverse proxy."""
    tls: Tls | None = None
    """Serve HTTPS with this certificate; without it, HTTP."""
    trusted: tuple[TrustedNetwork, ...] = ()
    """Peers whose `X-Forwarded-For`, `-Proto` and `-Host` are trusted; from all other peers they are dropped."""
    trusted_claims: tuple[TrustedClaim, ...] = ()
    """More headers to pass on from trusted peers, such as `X-Real-Ip`; from all other peers they are dropped."""
    proxy_protocol: tuple[TrustedNetwork, ...] = ()
    """Peers whose connections must all begin with a PROXY protocol header, which names the client."""
    half_close: bool = False
    """Answer a client that closes its sending side after its request; `false` treats such a client as disconnected."""
    connections: Connections | None = None
    """Most open connections of one worker; `null`: as many as its file descriptors allow, at most 16384."""
    limits: ListenerLimits = ListenerLimits()
    """Limits of this listener only; `null` uses the value from `limits`."""


class ForwardAuthListener(Section):
    """The listener of forward auth."""

    bind: BindAddress = Bind(host="127.0.0.1", port=8082)
    """Address to which an ingress sends a request for a decision before it forwards it."""
    trusted: tuple[TrustedNetwork, ...] = ()
    """The addresses of the ingresses. Required: every other peer gets 403."""
    timeout: Timeout = 1.0
    """Longest wait for the authority if a decision needs it; then 503. Keep it below the timeout of the ingress."""
    connections: Connections | None = None
    """Most open connections of one worker; `null`: as many as its file descriptors allow, at most 16384."""
    limits: ListenerLimits = ListenerLimits()
    """Limits of this listener only; `null` uses the value from `limits`."""


class ControlListener(Section):
    """The listener of the control API, health and metrics."""

    bind: BindAddress = Bind(host="127.0.0.1", port=8081)
    """Address of the control API, health and metrics."""


class Listen(Section):
    """The listeners."""

    proxy: ProxyListener = ProxyListener()
    """The reverse proxy."""
    forward_auth: ForwardAuthListener | None = None
    """Forward auth for an ingress; off by default."""
    control: ControlListener = ControlListener()
    """Control API, health and metrics."""


class UpstreamTls(Section):
    """TLS to the servers of an upstream."""

    ca: FilePath | None = None
    """PEM file of the certificate authorities to trust instead of those of the system."""
    verify: bool = True
    """Verify the servers' certificates and names."""
    name: HostName | None = None
    """Name for SNI and for the verification of all servers' certificates, instead of each server's own name."""
    certificate: FilePath | None = None
    """PEM file with the client certificate for the servers, and its chain."""
    key: FilePath | None = None
    """PEM file with the private key of that certificate, without password."""


class UpstreamHealth(Section):
    """Health checks of the servers of an upstream."""

    path: RequestTarget
    """Path that each check requests with GET."""
    host: HostField | None = None
    """Value of Host in the checks, instead of each server's own name."""
    interval: Timeout = 5.0
    """Time between two checks of a server, plus or minus a tenth."""
    timeout: Timeout = 2.0
    """Longest wait for the head of the response, including the connection."""
    rise: Annotated[Whole, Field(ge=1, le=1000)] = 2
    """Consecutive checks that must pass before an unhealthy server gets requests again."""
    fall: Annotated[Whole, Field(ge=1, le=1000)] = 3
    """Consecutive checks that must fail before a server gets no more requests."""
    expect: Annotated[tuple[Statuses, ...], Field(min_length=1)] = (StatusRange(first=200, last=399),)
    """Statuses with which a check passes."""


class Upstream(Section):
    """A backend and its servers."""

    servers: Annotated[tuple[ServerAddress, ...], Field(min_length=1)]
    """Addresses: `http://host:port`, `https://host:port` or `unix:/path`, without path, query or password."""
    connect_timeout: Timeout = 2.0
    """Longest wait for a connection; then 504."""
    response_timeout: Timeout = 60.0
    """Longest wait for the head of a response (then 504) and for more of its body (then the connection is closed)."""
    idle_timeout: Timeout = 60.0
    """How long an idle connection is kept open."""
    max_idle: Annotated[Whole, Field(ge=0, le=65536)] = 64
    """Most idle connections per worker and server."""
    preserve_host: bool = True
    """Send the client's Host; `false` sends the server's own name."""
    resolve_interval: Timeout = 30.0
    """How long the addresses of a server's name are used before the name is resolved again."""
    health: UpstreamHealth | None = None
    """Check the servers' health and send requests only to healthy ones; off by default."""
    tls: UpstreamTls = UpstreamTls()
    """TLS settings for https servers."""


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
    operations: Annotated[dict[Method, OperationName], Field(min_length=1)] | None = None
    """Operation of each method, instead of the defaults; other methods are refused."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] | None = None
    """Match only these methods; HEAD counts as GET."""
    host: HostPattern | None = None
    """Match only this Host: a name, or `*.example.com`."""
    allow: tuple[Literal["encoded_slash", "semicolon", "empty_segment"], ...] = ()
    """Ambiguous path forms that the backend is known to read as patgate does."""
    second_targets: tuple[HeaderName, ...] = ()
    """Headers of `headers.second_targets` that are passed on unchecked, because this backend checks them itself."""
    enforce: bool = True
    """`false`: report-only, which logs and counts refusals of tokens but lets the requests through."""


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


class Policy(Section):
    """The policy for new tokens."""

    max_lifetime: Annotated[Duration, Field(gt=0.0)] | None = None
    """Longest lifetime of a new token; `null` is no limit."""
    require_expiry: bool = False
    """Refuse new tokens that never expire."""
    tokens_per_user: Annotated[Whole, Field(ge=1)] | None = None
    """Most active tokens of a user; `null` is no limit."""
    org_tokens_per_org: Annotated[Whole, Field(ge=1)] | None = None
    """Most active organisation tokens of an organisation; `null` is no limit."""
    inactive_after: Annotated[Duration, Field(ge=60.0)] | None = None
    """Revoke tokens that have not been used for this long; `null` revokes none."""
    require_scopes: bool = False
    """Refuse new tokens without scopes."""
    forbidden_scopes: tuple[PermissionText, ...] = ()
    """Refuse new tokens without scopes, or with a scope that covers one of these, such as `*:*`."""
    admin_rights: tuple[Literal["revoke", "delete"], ...] = ()
    """What administrators may do with the tokens of other users, besides seeing them."""


class Invitations(Section):
    """Invitations to organisations."""

    lifetime: Annotated[Duration, Field(ge=60.0, le=366 * _DAY)] = 14 * _DAY
    """How long an invitation is valid, unless its request says otherwise."""
    per_org: Annotated[Whole, Field(ge=1, le=1_000_000)] = 100
    """Most open invitations of an organisation."""


class Limits(Section):
    """Limits of the size of a request."""

    header_bytes: HeaderBytes = 32 * 1024
    """Largest header section of a request; a larger one gets 431."""
    headers: HeaderCount = 100
    """Most header fields of a request; more get 431."""
    request_line: RequestLine = 8 * 1024
    """Longest request line; a longer one gets 414."""
    body: Size | None = None
    """Largest request body; a larger one gets 413; `null` is no limit."""

    def under(self, own: ListenerLimits) -> "Limits":
        """These limits with the ones that a listener replaces."""
        return Limits(
            header_bytes=self.header_bytes if own.header_bytes is None else own.header_bytes,
            headers=self.headers if own.headers is None else own.headers,
            request_line=self.request_line if own.request_line is None else own.request_line,
            body=self.body if own.body is None else own.body,
        )


class Timeouts(Section):
    """Timeouts of client connections and of the shutdown."""

    handshake: Timeout = 10.0
    """Longest wait for the PROXY protocol header, and then for the TLS handshake."""
    request_head: Timeout = 10.0
    """Longest time from the first byte of a request to the end of its head; then 408."""
    request_body_idle: Timeout = 30.0
    """Longest pause inside a request body."""
    client_rate: Size = 240
    """Minimum average of bytes per second at which a client sends a body or reads a response; 0 is no minimum."""
    keepalive: Timeout = 75.0
    """How long a client connection may be idle between requests."""
    tunnel: Timeout = 3600.0
    """How long a WebSocket may be idle in both directions."""
    stream: Timeout = 3600.0
    """How long an event stream (`text/event-stream`) may be idle."""
    grace: Annotated[Duration, Field(ge=0.0, le=600.0)] = 0.0
    """At shutdown, how long requests are still accepted while `/readyz` returns 503, so that load balancers notice."""
    drain: Timeout = 25.0
    """At shutdown, how long running requests may take to end."""


class Cache(Section):
    """The grant cache of a worker."""

    entries: Annotated[Whole, Field(ge=1, le=100_000_000)] = 200_000
    """Most grants in the cache of a worker."""
    absent: Annotated[Whole, Field(ge=1, le=100_000_000)] = 20_000
    """Most unknown prefixes in the cache of a worker, in addition to the grants."""


class Argon2(Section):
    """The parameters of Argon2id, by which tokens are hashed."""

    memory: Annotated[Size, Field(ge=64 * 1024, le=4 * 2**30)] = 19 * 2**20
    """Memory for one hash (OWASP Password Storage Cheat Sheet, argon2id, second choice: 19 MiB, 2, 1)."""
    iterations: Annotated[Whole, Field(ge=1, le=1000)] = 2
    """Passes over the memory."""
    parallelism: Annotated[Whole, Field(ge=1, le=8)] = 1
    """Lanes of one hash."""
    threads: Annotated[Whole, Field(ge=1, le=64)] = 2
    """Most hashes computed at the same time."""
    queue: Annotated[Whole, Field(ge=1, le=100_000)] = 64
    """Most hashes that may wait; more get 503."""


class Log(Section):
    """The log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """The lowest level that is logged."""
    format: Literal["json", "text"] = "json"
    """One JSON document a line, or text for people."""
    access: Literal["off", "refusals", "all"] = "refusals"
    """Requests in the access log, at any level: none, those that are refused or fail, or all."""
    access_format: Literal["json", "combined"] = "json"
    """JSON with all fields, or the combined format of web servers."""


class Audit(Section):
    """The audit log."""

    requests: Literal["off", "refused", "writes", "all"] = "writes"
    """Requests recorded as events: none; refused ones, also of the control API; allowed writes as well; or all."""
    retention: Annotated[Duration, Field(ge=3600.0)] | None = None
    """How long events are kept; `null`: for ever."""


def _webhook_secret(secret: SecretStr) -> SecretStr:
    if decode_webhook_secret(secret.get_secret_value()) is None:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes")
    return secret


class Notices(Section):
    """Expiry notices."""

    days: Annotated[tuple[Annotated[Whole, Field(ge=1, le=365)], ...], Field(min_length=1, max_length=8)] = (14, 7, 1)
    """How many days before the expiry of a token its notices are sent."""
    webhook: Annotated[WebhookUrl | None, Field(repr=False)] = None
    """URL to which each notice is sent once; `null` sends none."""
    secret: Annotated[SecretStr, AfterValidator(_webhook_secret)] | None = None
    """Key for signing the notices (Standard Webhooks): `whsec_` and the base64 of 24 to 64 random bytes."""

    @field_serializer("secret")
    def _write_secret(self, value: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        return value.get_secret_value() if value is not None and _is_boot(info) else None

    @field_serializer("webhook")
    def _write_webhook(self, value: str | None, info: FieldSerializationInfo) -> str | None:
        # The URLs of many receivers are secrets themselves.
        return value if _is_boot(info) else None


def _secret_key(secret: SecretStr) -> SecretStr:
    if decode_key(secret.get_secret_value()) is None:
        raise ValueError(f"must be at least {SECRET_KEY_BYTES} bytes of text, base64 or hexadecimal")
    return secret


class Settings(Section):
    """The whole configuration."""

    brand: Brand = "patgate"
    """First part of every token: `acme` gives `acme_pat_…` and `acme_key_…`."""
    data_dir: Annotated[FilePath, Field(validate_default=True)] = Path("data")
    """Directory of the embedded store, keys and sockets; relative to the configuration file."""
    store: Annotated[StoreUrl, Field(repr=False)] = "sqlite"
    """`sqlite`: embedded, in `data_dir`. `postgresql://user@host/database` is not supported yet."""
    # The sockets of two listeners for all workers must fit into one message of descriptors (SCM_MAX_FD, unix(7)).
    workers: Annotated[Whole, Field(ge=1, le=120)] = 2
    """Number of gateway processes."""
    listen: Listen = Listen()
    """The addresses to listen on."""
    credentials: Annotated[tuple[Literal["bearer", "basic", "x-api-key"], ...], Field(min_length=1)] = (
        "bearer",
        "basic",
        "x-api-key",
    )
    """Where a request may carry its token."""
    upstreams: dict[Name, Upstream] = {}  # noqa: RUF012 - pydantic copies defaults
    """The backends, by name."""
    roles: dict[Name, tuple[PermissionText, ...]] = {}  # noqa: RUF012 - pydantic copies defaults
    """The permissions of each role."""
    routes: tuple[RouteSettings, ...] = ()
    """The first match wins; a request without a match is refused."""
    identity: Identity = Identity()
    """The identity headers for the backends."""
    headers: Headers = Headers()
    """The handling of client headers."""
    policy: Policy = Policy()
    """Requirements for new tokens."""
    invitations: Invitations = Invitations()
    """Invitations to organisations."""
    limits: Limits = Limits()
    """Limits of the size of a request."""
    timeouts: Timeouts = Timeouts()
    """Timeouts of client connections and of the shutdown."""
    secret_key: Annotated[SecretStr, AfterValidator(_secret_key)] | None = None
    """At least 32 random bytes, the same on all nodes of one store; by default a key is created in `data_dir`."""
    lease: Annotated[Duration, Field(ge=0.1, le=60.0)] = 5.0
    """How long a worker still decides from its cache without the authority; then 503."""
    cache: Cache = Cache()
    """Size of the grant cache of a worker."""
    argon2: Argon2 = Argon2()
    """Cost of the hash under which tokens are stored."""
    log: Log = Log()
    """Content and format of the log."""
    notices: Notices = Notices()
    """Notices of tokens that expire soon."""
    audit: Audit = Audit()
    """Content and retention of the audit log."""

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, data: Any) -> Any:
        """Use the defaults for a section whose lines are all commented out, which is null in YAML."""
        if not isinstance(data, dict):
            return data
        kept = {name: value for name, value in data.items() if value is not None or name not in _CONTAINERS}
        listen = kept.get("listen")
        if isinstance(listen, dict):
            kept["listen"] = {k: v for k, v in listen.items() if v is not None or k not in ("proxy", "control")}
        return kept

    @field_serializer("secret_key")
    def _write_secret_key(self, value: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        return value.get_secret_value() if value is not None and _is_boot(info) else None

    @field_serializer("store")
    def _write_store(self, value: str, info: FieldSerializationInfo) -> str:
        return value if _is_boot(info) else without_password(value)

    def secret_key_bytes(self) -> bytes | None:
        """The configured key; None if the node uses its own key file (``secret.load_or_create``)."""
        return None if self.secret_key is None else decode_key(self.secret_key.get_secret_value())

    def to_boot_json(self) -> str:
        """JSON with secrets: only for an inherited descriptor, never for a log, a file or an argument."""
        return self.model_dump_json(context={_BOOT: True})

    def to_worker_json(self) -> str:
        """JSON without secrets, for gateway workers, which need none."""
        return self.model_dump_json()

    @classmethod
    def from_boot_json(cls, text: str | bytes) -> "Settings":
        """Parse the result of ``to_boot_json`` or ``to_worker_json``; checks types, not the rules between fields."""
        return cls.model_validate_json(text)


_CONTAINERS: Final = frozenset(
    name
    for name in Settings.model_fields
    if name not in ("brand", "data_dir", "store", "workers", "credentials", "secret_key", "lease")
)


def _is_boot(info: FieldSerializationInfo) -> bool:
    return bool(isinstance(info.context, dict) and info.context.get(_BOOT))
