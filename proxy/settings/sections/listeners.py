"""The listeners: addresses, TLS, trusted peers and the limits of each."""

from typing import Annotated

from pydantic import Field

from proxy.settings.addresses import Bind, BindAddress, LocalBindAddress, SocketMode, TrustedNetwork
from proxy.settings.names import HeaderName, TrustedClaim
from proxy.settings.section import FilePath, Section, Timeout
from proxy.settings.values import Size, Whole


class Tls(Section):
    """The certificate of a listener."""

    certificate: FilePath
    """PEM file with the certificate and its chain."""
    key: FilePath
    """PEM file with the private key, without password."""


class IngressTls(Section):
    """The certificate of the forward-auth listener, and the CAs of its clients."""

    certificate: FilePath
    """PEM file with the certificate and its chain."""
    key: FilePath
    """PEM file with the private key, without password."""
    client_ca: FilePath | None = None
    """PEM file with CA certificates. With it, an ingress without a certificate from one of them is disconnected."""


class SharedSecret(Section):
    """A secret in a header of each forward-auth call, which shows that the ingress sent it."""

    header: HeaderName = "X-Patgate-Secret"
    """The header in which the ingress sends the secret."""
    file: FilePath
    """File with the secret, at least 32 characters. While it is changed, the file may hold two, on two lines."""


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
    """Peers that are believed about the client: its address, scheme, host, port, prefix and request id."""
    trusted_claims: tuple[TrustedClaim, ...] = ()
    """More headers to pass on from trusted peers, such as `CF-Connecting-IP`; from all other peers they are dropped."""
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

    bind: LocalBindAddress = Bind(host="127.0.0.1", port=8082)
    """Address to which an ingress sends its calls: host and port, or `unix:/run/patgate/auth.sock`."""
    socket_mode: SocketMode = "0660"
    """Mode of a unix socket: `"0660"` for the user and group of patgate, or `"0600"` for the user only."""
    tls: IngressTls | None = None
    """Serve HTTPS with this certificate; without it, HTTP."""
    trusted: tuple[TrustedNetwork, ...] = ()
    """The addresses of the ingresses. Required, except with a unix socket: every other peer gets 403."""
    secret: SharedSecret | None = None
    """A secret that each call must contain, in addition to `trusted`; without it the call gets 403."""
    timeout: Timeout = 1.0
    """Longest wait for the authority if a decision needs it; then 503. Keep it below the timeout of the ingress."""
    connections: Connections | None = None
    """Most open connections of one worker; `null`: as many as its file descriptors allow, at most 16384."""
    limits: ListenerLimits = ListenerLimits()
    """Limits of this listener only; `null` uses the value from `limits`."""


class ExtAuthzListener(ForwardAuthListener):
    """The listener of Envoy's ``ext_authz`` over gRPC. Its settings are those of forward auth, and its own."""

    bind: LocalBindAddress = Bind(host="127.0.0.1", port=8084)
    """Address to which Envoy sends its gRPC calls: host and port, or `unix:/run/patgate/ext-authz.sock`."""


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
    ext_authz: ExtAuthzListener | None = None
    """Envoy's `ext_authz` over gRPC; off by default. It needs the extra `patgate[grpc]`."""
    control: ControlListener = ControlListener()
    """Control API, health and metrics."""

    def for_ingresses(self) -> tuple[tuple[str, ForwardAuthListener], ...]:
        """Name and settings of each listener that answers ingresses."""
        both = (("forward_auth", self.forward_auth), ("ext_authz", self.ext_authz))
        return tuple((name, listener) for name, listener in both if listener is not None)
