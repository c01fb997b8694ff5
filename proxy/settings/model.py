"""The settings, section by section. What a field may hold is said here; what fields may hold *together* in ``rules``.

Everything is frozen. Durations are float seconds, sizes int bytes, file paths absolute once loaded. The plain JSON
form leaves secrets out; ``to_boot_json`` is the one form with them, for the supervisor's hand-over to its processes.
"""

from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

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
    TrustedNetwork,
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
    certificate: FilePath
    """PEM file with the certificate and its chain."""
    key: FilePath
    """PEM file with the private key, not encrypted."""


HeaderBytes = Annotated[Size, Field(ge=1024, le=1024 * 1024)]
HeaderCount = Annotated[Whole, Field(ge=8, le=10_000)]
RequestLine = Annotated[Size, Field(ge=256, le=1024 * 1024)]
Connections = Annotated[Whole, Field(ge=1, le=1_000_000)]


class ListenerLimits(Section):
    header_bytes: HeaderBytes | None = None
    """Instead of limits.header_bytes."""
    headers: HeaderCount | None = None
    """Instead of limits.headers."""
    request_line: RequestLine | None = None
    """Instead of limits.request_line."""
    body: Size | None = None
    """Instead of limits.body."""


class ProxyListener(Section):
    bind: BindAddress = Bind(host="0.0.0.0", port=8080)  # noqa: S104 - the listener for clients
    """Address of the reverse proxy."""
    tls: Tls | None = None
    """Serve HTTPS with this certificate; without it, HTTP."""
    trusted: tuple[TrustedNetwork, ...] = ()
    """Peers whose own X-Forwarded-For, -Proto and -Host are believed; from all others they are dropped."""
    trusted_claims: tuple[TrustedClaim, ...] = ()
    """More headers that a trusted peer may send on to backends, such as X-Real-Ip; dropped from all others."""
    proxy_protocol: tuple[TrustedNetwork, ...] = ()
    """Peers whose connections must all begin with a PROXY protocol header, which names the client."""
    half_close: bool = False
    """Answer a client that closes its sending side after its request; false treats such a client as gone."""
    connections: Connections | None = None
    """Most open connections of one worker; null is as many as its file descriptors allow, 16384 at most."""
    limits: ListenerLimits = ListenerLimits()
    """Limits of this listener alone; null takes the value from limits."""


class ForwardAuthListener(Section):
    bind: BindAddress = Bind(host="127.0.0.1", port=8082)
    """Address at which an ingress asks for a verdict before it forwards a request."""
    trusted: tuple[TrustedNetwork, ...] = ()
    """The addresses of the ingresses. Required: every other peer gets 403."""
    timeout: Timeout = 1.0
    """Longest wait for the authority when a verdict needs it; then 503. Keep it below the ingress's own timeout."""
    connections: Connections | None = None
    """Most open connections of one worker; null is as many as its file descriptors allow, 16384 at most."""
    limits: ListenerLimits = ListenerLimits()
    """Limits of this listener alone; null takes the value from limits."""


class ControlListener(Section):
    bind: BindAddress = Bind(host="127.0.0.1", port=8081)
    """Address of the control API, health and metrics."""


class Listen(Section):
    proxy: ProxyListener = ProxyListener()
    """The reverse proxy."""
    forward_auth: ForwardAuthListener | None = None
    """The forward-auth hook for an ingress; off unless given."""
    control: ControlListener = ControlListener()
    """Control API, health and metrics."""


class UpstreamTls(Section):
    ca: FilePath | None = None
    """PEM file of the authorities to trust instead of the system's."""
    verify: bool = True
    """Check the servers' certificates and names."""
    name: HostName | None = None
    """Name that the servers are asked for (SNI) and that their certificates must have, instead of each one's own."""
    certificate: FilePath | None = None
    """PEM file with the certificate, and its chain, that is shown to the servers."""
    key: FilePath | None = None
    """PEM file with that certificate's private key, not encrypted."""


class UpstreamHealth(Section):
    path: RequestTarget
    """Path that each check requests with GET."""
    host: HostField | None = None
    """Host to ask with, instead of each server's own."""
    interval: Timeout = 5.0
    """Time between two checks of a server, give or take a tenth."""
    timeout: Timeout = 2.0
    """Longest wait for the head of the answer, the connection included."""
    rise: Annotated[Whole, Field(ge=1, le=1000)] = 2
    """Checks that must pass in a row before a server that failed gets requests again."""
    fall: Annotated[Whole, Field(ge=1, le=1000)] = 3
    """Checks that must fail in a row before a server gets no more requests."""
    expect: Annotated[tuple[Statuses, ...], Field(min_length=1)] = (StatusRange(first=200, last=399),)
    """Statuses that pass."""


class Upstream(Section):
    servers: Annotated[tuple[ServerAddress, ...], Field(min_length=1)]
    """Where the backend is: http://host:port, https://host:port or unix:/path, without a path, query or password."""
    connect_timeout: Timeout = 2.0
    """Longest wait for a connection; then 504."""
    response_timeout: Timeout = 60.0
    """Longest wait for the head of a response, and for more of its body; then 504 or a broken connection."""
    idle_timeout: Timeout = 60.0
    """How long an unused connection is kept."""
    max_idle: Annotated[Whole, Field(ge=0, le=65536)] = 64
    """Unused connections kept per worker and server."""
    preserve_host: bool = True
    """Send the client's Host; false sends the server's own name."""
    resolve_interval: Timeout = 30.0
    """How long the addresses of a server's name are used before the name is resolved again."""
    health: UpstreamHealth | None = None
    """Check the servers' health and send requests only to healthy ones; off unless given."""
    tls: UpstreamTls = UpstreamTls()
    """For https servers."""


class RouteSettings(Section):
    path: PathPattern
    """Pattern: {name} is one segment, ** at the end is the rest; {entity}, {id} and {org} have a meaning."""
    upstream: Name | None = None
    """Which upstream serves it. Required unless access is denied."""
    access: Access = Access.TOKEN
    """token, public (anyone, no identity), passthrough (the backend's own login) or denied."""
    entity: EntityName | None = None
    """What the path is about, where the pattern has no {entity}."""
    operations: Annotated[dict[Method, OperationName], Field(min_length=1)] | None = None
    """Operation by method, instead of the default ones; other methods are refused."""
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] | None = None
    """Match these methods only; HEAD counts as GET."""
    host: HostPattern | None = None
    """Match this Host only: a name, or *.example.com."""
    allow: tuple[Literal["encoded_slash", "semicolon", "empty_segment"], ...] = ()
    """Ambiguous path forms that the backend is known to read as patgate does."""
    second_targets: tuple[HeaderName, ...] = ()
    """Headers of headers.second_targets that this route's backend judges itself: they are passed on unjudged."""
    enforce: bool = True
    """false: only report what would have been refused."""


class Identity(Section):
    preset: Literal["patgate", "oauth2-proxy", "remote-user"] = "patgate"
    """Which headers tell the backend who is asking."""
    names: dict[IdentityField, str] | None = None
    """The headers one by one, instead of a preset."""


class Headers(Section):
    dropped: tuple[HeaderName, ...] = ()
    """More headers that no client may send to a backend, dropped in every spelling."""
    second_targets: tuple[HeaderName, ...] = ("Destination", "If", *UNJUDGED)
    """Headers that name a second resource: Destination and If are judged, all others are refused."""
    misplaced_tokens: Literal["refuse", "drop"] = "refuse"
    """A token in any other header than its own: refuse the request, or drop that header."""


class Policy(Section):
    max_lifetime: Annotated[Duration, Field(gt=0.0)] | None = None
    """Longest lifetime that a new token may have; null is no limit."""
    require_expiry: bool = False
    """Refuse new tokens that never expire."""
    tokens_per_user: Annotated[Whole, Field(ge=1)] | None = None
    """Most living tokens that a user may have; null is no limit."""
    org_tokens_per_org: Annotated[Whole, Field(ge=1)] | None = None
    """Most living organisation tokens that an organisation may have; null is no limit."""
    inactive_after: Annotated[Duration, Field(ge=60.0)] | None = None
    """End tokens that have not been used for this long; null ends none."""
    require_scopes: bool = False
    """Refuse new tokens that name no scopes."""
    forbidden_scopes: tuple[PermissionText, ...] = ()
    """Refuse new tokens with a scope that covers one of these, such as *:*, or without scopes."""
    admin_rights: tuple[Literal["revoke", "delete"], ...] = ()
    """What administrators may do to the tokens of others, beside seeing them."""


class Invitations(Section):
    lifetime: Annotated[Duration, Field(ge=60.0, le=366 * _DAY)] = 14 * _DAY
    """How long an invitation stays open, unless its request says otherwise."""
    per_org: Annotated[Whole, Field(ge=1, le=1_000_000)] = 100
    """Most open invitations that an organisation may have."""


class Limits(Section):
    header_bytes: HeaderBytes = 32 * 1024
    """Longest header section of a request; beyond it 431."""
    headers: HeaderCount = 100
    """Most header fields of a request; beyond it 431."""
    request_line: RequestLine = 8 * 1024
    """Longest request line; beyond it 414."""
    body: Size | None = None
    """Longest request body; beyond it 413; null is no limit."""

    def under(self, own: ListenerLimits) -> "Limits":
        """The limits of a listener that has some of its own."""
        return Limits(
            header_bytes=self.header_bytes if own.header_bytes is None else own.header_bytes,
            headers=self.headers if own.headers is None else own.headers,
            request_line=self.request_line if own.request_line is None else own.request_line,
            body=self.body if own.body is None else own.body,
        )


class Timeouts(Section):
    handshake: Timeout = 10.0
    """Longest wait for the PROXY protocol's header, and then for the TLS handshake."""
    request_head: Timeout = 10.0
    """From the first byte of a request to the end of its head; then 408."""
    request_body_idle: Timeout = 30.0
    """Longest pause inside a request body."""
    client_rate: Size = 240
    """Fewest bytes per second, on average, at which a client may send a body or read an answer; 0 is no minimum."""
    keepalive: Timeout = 75.0
    """How long a client connection may stay idle between requests."""
    tunnel: Timeout = 3600.0
    """How long a WebSocket may be silent in both directions."""
    stream: Timeout = 3600.0
    """How long an event stream (text/event-stream) may be silent."""
    grace: Annotated[Duration, Field(ge=0.0, le=600.0)] = 0.0
    """At shutdown, how long requests are taken while /readyz says 503, so that load balancers see it in time."""
    drain: Timeout = 25.0
    """At shutdown, how long requests that have begun may take to end."""


class Cache(Section):
    entries: Annotated[Whole, Field(ge=1, le=100_000_000)] = 200_000
    """Grants kept per worker."""
    absent: Annotated[Whole, Field(ge=1, le=100_000_000)] = 20_000
    """Unknown prefixes remembered per worker, apart from the grants."""


class Argon2(Section):
    memory: Annotated[Size, Field(ge=64 * 1024, le=4 * 2**30)] = 19 * 2**20
    """Memory of one hash (OWASP Password Storage Cheat Sheet, argon2id, second choice: 19 MiB, 2, 1)."""
    iterations: Annotated[Whole, Field(ge=1, le=1000)] = 2
    """Passes over the memory."""
    parallelism: Annotated[Whole, Field(ge=1, le=8)] = 1
    """Lanes of one hash."""
    threads: Annotated[Whole, Field(ge=1, le=64)] = 2
    """Hashes that may run at once."""
    queue: Annotated[Whole, Field(ge=1, le=100_000)] = 64
    """Hashes that may wait; beyond it 503."""


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important records to write."""
    format: Literal["json", "text"] = "json"
    """One JSON document a line, or text for people."""
    access: Literal["off", "refusals", "all"] = "refusals"
    """Which requests get a line, whatever the level is: none, those that are refused or fail, or all."""
    access_format: Literal["json", "combined"] = "json"
    """JSON with everything, or the combined format of web servers."""


class Audit(Section):
    requests: Literal["off", "refused", "writes", "all"] = "writes"
    """Which requests leave an event: none; those refused, by the control API too; allowed writes as well; or all."""
    retention: Annotated[Duration, Field(ge=3600.0)] | None = None
    """How long events are kept; null is for ever."""


def _webhook(text: str) -> str:
    try:
        parts = urlsplit(text)
        plain = text.isascii() and text.isprintable() and " " not in text and not parts.fragment
        good = plain and parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not parts.username
    except ValueError:
        good = False
    if not good:
        raise ValueError("must be an address such as https://hooks.example.com/patgate, without user and fragment")
    return text


def _webhook_secret(secret: SecretStr) -> SecretStr:
    if decode_webhook_secret(secret.get_secret_value()) is None:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 random bytes")
    return secret


class Notices(Section):
    days: Annotated[tuple[Annotated[Whole, Field(ge=1, le=365)], ...], Field(min_length=1, max_length=8)] = (14, 7, 1)
    """How many days before a token expires a notice of it is sent."""
    webhook: Annotated[Annotated[str, AfterValidator(_webhook)] | None, Field(repr=False)] = None
    """URL to which each notice is sent once; null sends none."""
    secret: Annotated[SecretStr, AfterValidator(_webhook_secret)] | None = None
    """Key that notices are signed with (Standard Webhooks): whsec_ and the base64 of 24 to 64 random bytes."""

    @field_serializer("secret")
    def _write_secret(self, value: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        return value.get_secret_value() if value is not None and _is_boot(info) else None

    @field_serializer("webhook")
    def _write_webhook(self, value: str | None, info: FieldSerializationInfo) -> str | None:
        # Many receivers' addresses are secrets by themselves.
        return value if _is_boot(info) else None


def _store(text: str) -> str:
    if text == "sqlite":
        return text
    try:
        parts = urlsplit(text)
        good = parts.scheme == "postgresql" and parts.hostname and parts.path.strip("/") and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("must be sqlite")
    return text


def _secret_key(secret: SecretStr) -> SecretStr:
    if decode_key(secret.get_secret_value()) is None:
        raise ValueError(f"must be at least {SECRET_KEY_BYTES} bytes of text, base64 or hexadecimal")
    return secret


class Settings(Section):
    """The whole configuration."""

    brand: Brand = "patgate"
    """First part of every token: acme gives acme_pat_… and acme_key_…."""
    data_dir: Annotated[FilePath, Field(validate_default=True)] = Path("data")
    """Directory of the embedded store, keys and sockets; relative to the configuration file."""
    store: Annotated[str, AfterValidator(_store), Field(repr=False)] = "sqlite"
    """sqlite: embedded, in data_dir. postgresql://user@host/database is not supported yet."""
    # What two listeners of each come to must fit into one message of descriptors (SCM_MAX_FD, unix(7)).
    workers: Annotated[Whole, Field(ge=1, le=120)] = 2
    """Gateway processes."""
    listen: Listen = Listen()
    """Where to listen."""
    credentials: Annotated[tuple[Literal["bearer", "basic", "x-api-key"], ...], Field(min_length=1)] = (
        "bearer",
        "basic",
        "x-api-key",
    )
    """Where a token may be presented."""
    upstreams: dict[Name, Upstream] = {}  # noqa: RUF012 - pydantic copies defaults
    """The backends, by name."""
    roles: dict[Name, tuple[PermissionText, ...]] = {}  # noqa: RUF012 - pydantic copies defaults
    """The permissions of each role."""
    routes: tuple[RouteSettings, ...] = ()
    """First match wins; what matches none is refused."""
    identity: Identity = Identity()
    """The headers that tell a backend who is asking."""
    headers: Headers = Headers()
    """What a client may say to a backend in headers."""
    policy: Policy = Policy()
    """What new tokens must keep to."""
    invitations: Invitations = Invitations()
    """How people are asked to join an organisation."""
    limits: Limits = Limits()
    """How large a request may be."""
    timeouts: Timeouts = Timeouts()
    """How slow a client may be."""
    secret_key: Annotated[SecretStr, AfterValidator(_secret_key)] | None = None
    """At least 32 random bytes, the same on all nodes of one store; without it, one is made in data_dir."""
    lease: Annotated[Duration, Field(ge=0.1, le=60.0)] = 5.0
    """How long a worker decides on its own when the authority is gone; then 503."""
    cache: Cache = Cache()
    """How much a worker remembers."""
    argon2: Argon2 = Argon2()
    """Cost of the hash that tokens are stored under."""
    log: Log = Log()
    """What is logged, and how."""
    notices: Notices = Notices()
    """Notices of tokens that are about to expire."""
    audit: Audit = Audit()
    """What the audit log holds, and for how long."""

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, data: Any) -> Any:
        """A section whose lines are all commented out is null in YAML; it means the defaults."""
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
        """The configured key; None where the node makes its own (``secret.load_or_create``)."""
        return None if self.secret_key is None else decode_key(self.secret_key.get_secret_value())

    def to_boot_json(self) -> str:
        """Everything, secrets included: for an inherited descriptor, never for a log, a file or an argument."""
        return self.model_dump_json(context={_BOOT: True})

    def to_worker_json(self) -> str:
        """As ``to_boot_json`` without secrets: a gateway worker needs none, so it is given none."""
        return self.model_dump_json()

    @classmethod
    def from_boot_json(cls, text: str | bytes) -> "Settings":
        """What ``to_boot_json`` or ``to_worker_json`` wrote; it was checked before, so only its types are here."""
        return cls.model_validate_json(text)


_CONTAINERS: Final = frozenset(
    name
    for name in Settings.model_fields
    if name not in ("brand", "data_dir", "store", "workers", "credentials", "secret_key", "lease")
)


def without_password(url: str) -> str:
    """A store's address as it may be shown: the password, if any, is ***."""
    scheme, found, rest = url.partition("://")
    user, at, host = rest.rpartition("@")
    if not found or ":" not in user:
        return url
    return f"{scheme}://{user.partition(':')[0]}:***{at}{host}"


def _is_boot(info: FieldSerializationInfo) -> bool:
    return bool(isinstance(info.context, dict) and info.context.get(_BOOT))
