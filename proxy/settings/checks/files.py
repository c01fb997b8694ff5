"""Rules about the files that settings name: keys and certificates."""

import os
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.model import Settings
from proxy.settings.problems import Loc
from proxy.settings.sections.listeners import ForwardAuthListener
from proxy.settings.sections.upstreams import UpstreamTls
from proxy.settings.sources.certificate import validity
from proxy.settings.sources.shared_secret import SharedSecretError, read_digests
from proxy.settings.values import quoted_path


def files(candidate: Candidate) -> Iterator[RuleViolation]:
    """Files that are missing, unreadable or no key pairs."""
    tls = candidate.settings.listen.proxy.tls
    if tls is not None:
        yield from _key_pair(("listen", "proxy", "tls"), tls.certificate, tls.key)
    for listener, own in candidate.settings.listen.for_ingresses():
        yield from _for_ingress(candidate, listener, own)
    for name, upstream in candidate.settings.upstreams.items():
        yield from _client_pair(candidate, ("upstreams", name, "tls"), upstream.tls)
        ca = upstream.tls.ca
        loc: Loc = ("upstreams", name, "tls", "ca")
        if ca is not None and candidate.sound(loc):
            yield from _authorities(loc, ca)


def _for_ingress(candidate: Candidate, name: str, listener: ForwardAuthListener) -> Iterator[RuleViolation]:
    own: Loc = ("listen", name)
    tls, secret = listener.tls, listener.secret
    # Where a path is missing or invalid, that has been reported.
    if tls is not None and candidate.sound((*own, "tls", "certificate")) and candidate.sound((*own, "tls", "key")):
        yield from _key_pair((*own, "tls"), tls.certificate, tls.key)
    if tls is not None and tls.client_ca is not None and candidate.sound((*own, "tls", "client_ca")):
        yield from _authorities((*own, "tls", "client_ca"), tls.client_ca)
    loc: Loc = (*own, "secret", "file")
    if secret is not None and candidate.sound(loc):
        unreadable = _unreadable(secret.file)
        if unreadable is not None:
            yield RuleViolation(loc=loc, message=unreadable)
            return
        try:
            read_digests(secret.file)
        except (SharedSecretError, OSError) as error:
            yield RuleViolation(loc=loc, message=str(error) if isinstance(error, SharedSecretError) else "is no file")


def _authorities(loc: Loc, path: Path) -> Iterator[RuleViolation]:
    unreadable = _unreadable(path)
    if unreadable is not None:
        yield RuleViolation(loc=loc, message=unreadable)
        return
    try:
        ssl.create_default_context(cafile=path)
    except (ssl.SSLError, OSError):
        yield RuleViolation(loc=loc, message="holds no certificate in PEM form")


def _client_pair(candidate: Candidate, loc: Loc, tls: UpstreamTls) -> Iterator[RuleViolation]:
    if not candidate.sound((*loc, "certificate")) or not candidate.sound((*loc, "key")):
        return
    if tls.certificate is not None and tls.key is not None:
        yield from _key_pair(loc, tls.certificate, tls.key)
    elif tls.certificate is not None:
        yield RuleViolation(loc=(*loc, "certificate"), message="is given without its key")
    elif tls.key is not None:
        yield RuleViolation(loc=(*loc, "key"), message="is given without its certificate")


def _key_pair(loc: Loc, certificate: Path, key: Path) -> Iterator[RuleViolation]:
    missing = [
        RuleViolation(loc=(*loc, name), message=unreadable)
        for name, path in (("certificate", certificate), ("key", key))
        if (unreadable := _unreadable(path)) is not None
    ]
    if missing:
        yield from missing
        return
    try:
        # With an empty password an encrypted key is an error here, instead of a prompt on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        mismatch = isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH"
        why = (
            "belongs to another certificate" if mismatch else "and the certificate are not a PEM pair without password"
        )
        yield RuleViolation(loc=(*loc, "key"), message=f"the key {why}")


def _unreadable(path: Path) -> str | None:
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return f"the file {quoted_path(path)} cannot be read: {os.strerror(error.errno or 0)}"


def certificate_dates(settings: Settings) -> Iterator[RuleViolation]:
    """Certificates that have expired or are not valid yet."""
    certificates: list[tuple[Loc, Path | None]] = [
        (("upstreams", name, "tls", "certificate"), upstream.tls.certificate)
        for name, upstream in settings.upstreams.items()
    ]
    if settings.listen.proxy.tls is not None:
        certificates.append((("listen", "proxy", "tls", "certificate"), settings.listen.proxy.tls.certificate))
    for name, listener in settings.listen.for_ingresses():
        if listener.tls is not None:
            certificates.append((("listen", name, "tls", "certificate"), listener.tls.certificate))
    now = datetime.now(UTC)
    for loc, path in certificates:
        dates = None if path is None else validity(path)
        if dates is not None and dates.ends < now:
            yield RuleViolation(loc=loc, message=f"the certificate expired on {dates.ends:%Y-%m-%d}")
        elif dates is not None and dates.begins > now:
            yield RuleViolation(loc=loc, message=f"the certificate is not valid before {dates.begins:%Y-%m-%d}")
