"""``patgate doctor URL``: probes a deployment as users reach it, and says what is wrong in it."""

import os
import re
import ssl
import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import click

from proxy.cli.doctor.client import Address
from proxy.cli.doctor.deployment import PRESET_NAMES, Deployment, is_loopback
from proxy.cli.doctor.examination import examine
from proxy.cli.doctor.findings import CheckVerdict, Finding
from proxy.cli.options import REFUSED, Invocation, command
from proxy.cli.output import plain
from proxy.core.errors import PatgateError
from proxy.core.model import Access
from proxy.settings.addresses import Bind
from proxy.settings.compile import identity_outputs
from proxy.settings.model import Settings

_TOKEN_VARIABLE: Final = "PATGATE_TOKEN"  # noqa: S105 - the name of a variable
_PATH: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)+")
_TOKEN: Final = re.compile(r"[\x21-\x7e]{1,4096}")
_PORTS: Final = {"http": 80, "https": 443}
_WIDTH: Final = 17


class UrlType(click.ParamType[str]):
    """``http://host``, ``https://host:port``: an address without path, query or password."""

    name = "url"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check an address; raises a usage error, which does not repeat the value: it may have a password."""
        try:
            parts = urlsplit(value)
            good = parts.scheme in _PORTS and parts.hostname and parts.port != 0
        except ValueError:
            good = False
            parts = urlsplit("")
        if not good or "@" in parts.netloc or parts.path not in ("", "/") or "?" in value or "#" in value:
            self.fail("write http://host:port or https://host, without path or password", param, ctx)
        return str(value)


class PathType(click.ParamType[str]):
    """A path of plain segments, which every server reads in the same way."""

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check a path; raises a usage error for anything else."""
        segments = str(value).split("/")
        if _PATH.fullmatch(str(value)) is None or "." in segments or ".." in segments:
            self.fail("write a path of letters, digits and . _ ~ - such as /v1/things/1", param, ctx)
        return str(value)


URL: Final = UrlType()
PATH: Final = PathType()


@click.command()
@click.argument("url", type=URL)
@click.option("--echo", type=PATH, help="A path that needs a token and is routed to a running `patgate whoami`.")
@click.option("--path", type=PATH, help="A path that needs a token; default: that of --echo.")
@click.option(
    "--token", type=click.Choice(["-"]), help=f"Read the token from standard input; or set {_TOKEN_VARIABLE}."
)
@click.option("--backend", "backends", type=URL, multiple=True, help="A backend that must not be reachable from here.")
@click.option("--forward-auth", type=URL, help="The forward-auth listener, which must refuse this machine.")
@click.option(
    "--ca", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Authorities for https, in PEM."
)
@click.option("--insecure", is_flag=True, help="Verify no certificate.")
@command
def doctor(
    invocation: Invocation,
    url: str,
    echo: str | None,
    path: str | None,
    token: str | None,
    backends: tuple[str, ...],
    forward_auth: str | None,
    ca: Path | None,
    insecure: bool,
) -> None:
    """Probe the deployment at URL, as users reach it, and say what is wrong in it.

    URL is the address of the ingress, or of patgate without one. With a token and --echo it compares what arrives at
    the backend with what was sent; without them it checks what can be seen from outside, and names the checks that it
    skips. It sends about forty requests, one after the other, changes nothing, and exits 1 if it finds a problem.
    """
    if insecure and ca is not None:
        raise click.UsageError("--insecure and --ca exclude each other.")
    tls = _context(ca, insecure=insecure)
    settings = None if invocation.config is None else invocation.settings()
    listener = None if forward_auth is None else _address(forward_auth, tls)
    servers = [_address(each, tls) for each in backends]
    facts: dict[str, Any] = {}
    if settings is not None:
        servers += _servers(settings, tls)
        listener = listener or _listener(settings)
        facts = _configured(settings)
    deployment = Deployment(
        front=_address(url, tls),
        path=path or echo or "/",
        path_given=bool(path or echo),
        token=_token(token),
        echo=echo is not None,
        backends=tuple(servers),
        forward_auth=listener,
        **facts,
    )
    if echo is not None and path is not None and path != echo:
        raise click.UsageError("--path and --echo must name the same path; --echo alone is enough.")
    found: list[Finding] = []
    for finding in examine(deployment):
        found.append(finding)
        invocation.out.line(_line(finding))
    problems = sum(finding.verdict is CheckVerdict.PROBLEM for finding in found)
    document = {"url": url, "ok": not problems, "problems": problems, "checks": [each.as_dict() for each in found]}
    invocation.out.document(document)
    skipped = sum(finding.verdict is CheckVerdict.SKIPPED for finding in found)
    if problems:
        invocation.out.note(f"{problems} of {len(found)} checks found a problem.")
        raise SystemExit(REFUSED)
    made = f"The {len(found) - skipped} checks that were made found no problem"
    invocation.out.note(f"{made}; {skipped} were skipped." if skipped else f"{made}.")


def _line(finding: Finding) -> str:
    """A finding as one line: verdict, check, what was seen, what to do."""
    text = f"{finding.verdict.value:<8} {finding.check:<{_WIDTH}} {finding.seen}"
    return plain(f"{text}; {finding.advice}" if finding.advice else text)


def _token(source: str | None) -> str | None:
    token = sys.stdin.readline().strip() if source == "-" else os.environ.get(_TOKEN_VARIABLE, "").strip()
    if not token:
        if source == "-":
            raise PatgateError("There is no token on standard input.")
        return None
    if _TOKEN.fullmatch(token) is None:
        raise PatgateError("The token has characters that no token has.")
    return token


def _context(ca: Path | None, *, insecure: bool) -> ssl.SSLContext:
    if insecure:
        # The operator asked for it, to find problems behind a certificate that is not valid yet.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    try:
        return ssl.create_default_context(cafile=ca)
    except (ssl.SSLError, OSError):
        raise PatgateError(f"The file {ca} has no certificate in PEM form.") from None


def _address(url: str, tls: ssl.SSLContext) -> Address:
    parts = urlsplit(url)
    port = parts.port or _PORTS[parts.scheme]
    return Address(
        name=parts.hostname or "", port=port, host=parts.netloc, tls=tls if parts.scheme == "https" else None
    )


def _servers(settings: Settings, tls: ssl.SSLContext) -> list[Address]:
    """The servers of the configuration that listen on a network."""
    return [
        Address(
            name=server.host, port=server.port, host=server.authority, tls=tls if server.scheme == "https" else None
        )
        for upstream in settings.upstreams.values()
        for server in upstream.servers
        if server.scheme != "unix"
    ]


def _listener(settings: Settings) -> Address | None:
    """The forward-auth listener of the configuration, unless only this machine reaches it."""
    listener = settings.listen.forward_auth
    if listener is None:
        return None
    bind: Bind = listener.bind
    try:
        if bind.host in ("0.0.0.0", "::") or is_loopback(bind.host):  # noqa: S104 - nothing is bound here
            return None
    except OSError:
        return None
    return Address(name=bind.host, port=bind.port, host=str(bind))


def _configured(settings: Settings) -> dict[str, Any]:
    """What the configuration tells about the deployment: brand, identity headers, and paths that need no token."""
    outputs = identity_outputs(settings)
    own = [name for each in (outputs, *outputs.upstreams.values()) for name in each.header_names]
    literal = [
        route.path
        for route in settings.routes
        if route.access in (Access.PUBLIC, Access.PASSTHROUGH) and _PATH.fullmatch(route.path)
    ]
    return {
        "brand": settings.brand,
        "identity_names": tuple(dict.fromkeys((*own, *PRESET_NAMES))),
        "open_paths": tuple(literal[:2]) or ("/", "/healthz"),
    }
