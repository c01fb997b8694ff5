"""The settings, section by section, with the type and range of every field; ``rules`` has the rules between fields.

The docstring under a field is its description in the JSON Schema (``schema``). Everything is frozen. Durations are
float seconds, sizes int bytes, file paths absolute after loading. JSON leaves out secrets, except for the two forms in
which the supervisor passes settings to its children, each with the secrets that the child uses: ``to_boot_json`` for
the authority, ``to_worker_json`` for the workers.
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

from proxy.core.credential_places import DEFAULT_PLACES
from proxy.core.model import RefusalFormat
from proxy.settings.addresses import WebhookUrl
from proxy.settings.names import Brand, Name, PermissionText
from proxy.settings.section import AUTHORITY, BOOT, WORKERS, FilePath, Section, Timeout, reaches_authority
from proxy.settings.sections.cors import SiteCors
from proxy.settings.sections.credentials import Challenged, Places
from proxy.settings.sections.listeners import HeaderBytes, HeaderCount, Listen, ListenerLimits, RequestLine
from proxy.settings.sections.routes import Headers, Identity, RouteSettings
from proxy.settings.sections.upstreams import Upstream
from proxy.settings.sources.secret import SECRET_KEY_BYTES, decode_key, decode_webhook_secret
from proxy.settings.store_urls import EMBEDDED, SessionUrl, StoreUrl, has_password, with_password, without_password
from proxy.settings.values import Duration, Size, Whole

_DAY: Final = 86400.0
SHARED_LEASE: Final = 2.0
"""The default of ``lease`` for a store of several nodes, in seconds."""
LONGEST_SHARED_LEASE: Final = 20.0
"""The longest ``lease`` there, in seconds: an answer may have to wait for it, and callers give up after 30."""


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
        return value.get_secret_value() if value is not None and reaches_authority(info) else None

    @field_serializer("webhook")
    def _write_webhook(self, value: str | None, info: FieldSerializationInfo) -> str | None:
        # The URLs of many receivers are secrets themselves.
        return value if reaches_authority(info) else None


def _password(secret: SecretStr) -> SecretStr:
    text = secret.get_secret_value()
    if not text or "\0" in text:
        raise ValueError("must not be empty" if not text else "must not contain a NUL character")
    return secret


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
    """`sqlite`: embedded, in `data_dir`. For several nodes: `postgresql://user@host/database`."""
    store_session: Annotated[SessionUrl | None, Field(repr=False)] = None
    """Address of the same database without a transaction pooler; `null`: `store` has none."""
    store_password: Annotated[SecretStr, AfterValidator(_password)] | None = None
    """Password for `store` and `store_session`, if their addresses contain none."""
    store_feed: Literal["notify", "poll"] = "notify"
    """How a node notices changes: by LISTEN and NOTIFY, or, in a database without them, by polling."""
    failover: Literal["refuse", "synchronous"] = "refuse"
    """After a failover of PostgreSQL: `refuse` until an operator accepts it, or trust a `synchronous` standby."""
    # The sockets of two listeners for all workers must fit into one message of descriptors (SCM_MAX_FD, unix(7)).
    workers: Annotated[Whole, Field(ge=1, le=120)] = 2
    """Number of gateway processes."""
    listen: Listen = Listen()
    """The addresses to listen on."""
    credentials: Places = DEFAULT_PLACES
    """Where a request may carry its token."""
    challenge: Challenged | None = None
    """Schemes that a 401 offers, in this order; `null`: all of `credentials`, in their order."""
    refusals: RefusalFormat = RefusalFormat.PROBLEM
    """The body of a refusal: a `problem` document, a line of `text`, or `json` for npm, registries and Git LFS."""
    upstreams: dict[Name, Upstream] = {}  # noqa: RUF012 - pydantic copies defaults
    """The backends, by name."""
    roles: dict[Name, tuple[PermissionText, ...]] = {}  # noqa: RUF012 - pydantic copies defaults
    """The permissions of each role."""
    routes: tuple[RouteSettings, ...] = ()
    """The first match wins; a request without a match is refused."""
    identity: Identity = Identity()
    """The identity headers for the backends."""
    cors: tuple[SiteCors, ...] = ()
    """CORS of whole sites: the first entry whose host matches applies to routes that have none of their own."""
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
    """How long a worker still decides from its cache without the authority; then 503. With PostgreSQL `2s` if unset."""
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
        if kept.get("store", EMBEDDED) != EMBEDDED:
            # A node that is cut off delays every other node's revocations by a lease.
            kept.setdefault("lease", SHARED_LEASE)
        return kept

    @field_serializer("secret_key", "store_password")
    def _write_secret(self, value: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        return value.get_secret_value() if value is not None and reaches_authority(info) else None

    @field_serializer("store", "store_session")
    def _write_store(self, value: str | None, info: FieldSerializationInfo) -> str | None:
        return value if value is None or reaches_authority(info) else without_password(value)

    def store_address(self) -> str:
        """``store`` with its password: for no log and no message."""
        return self._with_password(self.store)

    def session_address(self) -> str:
        """``store_session``, or else ``store``, with its password: for no log and no message."""
        return self._with_password(self.store if self.store_session is None else self.store_session)

    def _with_password(self, url: str) -> str:
        password = self.store_password
        return url if password is None or has_password(url) else with_password(url, password.get_secret_value())

    def secret_key_bytes(self) -> bytes | None:
        """The configured key; None if the node uses its own key file (``secret.load_or_create``)."""
        return None if self.secret_key is None else decode_key(self.secret_key.get_secret_value())

    def to_boot_json(self) -> str:
        """JSON for the authority, with its secrets: only for an inherited descriptor, never for a log or a file."""
        return self.model_dump_json(context={BOOT: AUTHORITY})

    def to_worker_json(self) -> str:
        """JSON for gateway workers, only for an inherited descriptor.

        Its only secrets are the values of ``upstreams.….set_headers``, which workers send to the backends. Workers
        get them with the configuration, and read no secret's file, so that all workers of a configuration send the same
        value, also one that starts after the file has changed.
        """
        return self.model_dump_json(context={BOOT: WORKERS})

    @classmethod
    def from_boot_json(cls, text: str | bytes) -> "Settings":
        """Parse the result of ``to_boot_json`` or ``to_worker_json``; checks types, not the rules between fields."""
        return cls.model_validate_json(text)


_CONTAINERS: Final = frozenset(
    name
    for name in Settings.model_fields
    if name not in ("brand", "data_dir", "store", "workers", "credentials", "refusals", "secret_key", "lease")
    and name not in ("store_session", "store_password", "store_feed", "failover")
)
