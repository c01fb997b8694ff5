"""The upstreams: servers, timeouts, health checks, TLS, and the headers that their requests get."""

from typing import Annotated, Any

from pydantic import Field, FieldSerializationInfo, GetJsonSchemaHandler, SecretStr, field_serializer, model_validator
from pydantic_core import CoreSchema

from proxy.settings.addresses import HostField, HostName, RequestTarget, ServerAddress
from proxy.settings.names import EditedHeader, FieldText, FieldValue, RemovedHeader
from proxy.settings.section import FilePath, Section, Timeout, reaches_workers
from proxy.settings.sections.routes import Identity
from proxy.settings.values import Statuses, StatusRange, Whole


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


class HeaderValue(Section):
    """The value of a header that an upstream gets.

    Values may be the backend's credentials, so that they are secrets wherever they come from. Loading puts the content
    of ``file`` into ``value`` (``sources.header_values``).
    """

    value: FieldValue | None = None
    """The value itself. `Name: text` is short for `Name: { value: text }`."""
    file: FilePath | None = None
    """File with the value, read at the start and at each reload; it must not be open to other users."""
    prefix: FieldText | None = None
    """Text before the value, such as `Bearer ` or `Basic `."""

    @model_validator(mode="before")
    @classmethod
    def _text(cls, data: Any) -> Any:
        if isinstance(data, (dict, HeaderValue)):
            return data
        if isinstance(data, str):
            return {"value": data}
        raise ValueError("must be text, in quotes if it looks like a number, or a section such as { file: path }")

    @field_serializer("value")
    def _write_value(self, value: SecretStr | None, info: FieldSerializationInfo) -> str | None:
        return value.get_secret_value() if value is not None and reaches_workers(info) else None

    @property
    def text(self) -> str:
        """The whole value, a secret; "" if the file has not been read."""
        return "" if self.value is None else (self.prefix or "") + self.value.get_secret_value()


class _TextOrSection:
    """The JSON Schema of a header's value: text, or a section."""

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


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
    identity: Identity | None = None
    """The identity headers for this backend, instead of those of `identity`; `null` uses those."""
    set_headers: dict[EditedHeader, Annotated[HeaderValue, _TextOrSection()]] = {}  # noqa: RUF012 - pydantic copies defaults
    """Headers that every request to this backend gets, in place of the client's in every spelling."""
    remove_headers: tuple[RemovedHeader, ...] = ()
    """Headers of the client that this backend does not get, in every spelling."""
