"""The upstreams: servers, timeouts, health checks and TLS."""

from typing import Annotated

from pydantic import Field

from proxy.settings.addresses import HostField, HostName, RequestTarget, ServerAddress
from proxy.settings.section import FilePath, Section, Timeout
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
