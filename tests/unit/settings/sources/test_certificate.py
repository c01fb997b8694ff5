"""Certificates of listeners and upstreams: validity periods and mismatched keys."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from proxy.core.errors import ConfigurationError
from proxy.settings import rules
from proxy.settings.load import load
from proxy.settings.model import Settings
from proxy.settings.sources.certificate import validity
from tests.support.certificates import Pair, pair


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair(tmp_path_factory.mktemp("certificates"))


def configured(tmp_path: Path, certificate: Path, key: Path) -> Settings:
    file = tmp_path / "patgate.yaml"
    tls = {"certificate": str(certificate), "key": str(key)}
    upstreams = {"app": {"servers": ["https://backend"], "tls": dict(tls)}}
    file.write_text(yaml.safe_dump({"listen": {"proxy": {"tls": tls}}, "upstreams": upstreams}, sort_keys=False))
    return load(file, {})


def warned(settings: Settings) -> list[str]:
    return [warning.message for warning in rules.warnings(settings)]


def test_a_certificate_within_its_validity_period_has_no_warning(made: Pair, tmp_path: Path) -> None:
    found = validity(made.certificate)
    assert found is not None
    assert found.begins <= datetime.now(UTC) < found.ends
    assert found.ends - found.begins == timedelta(days=1)
    assert warned(configured(tmp_path, made.certificate, made.key)) == []


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("2020-01-01 12:00:00", "the certificate expired on 2020-01-02"),
        ("2070-01-01 12:00:00", "the certificate is not valid before 2070-01-01"),
    ],
)
def test_certificates_outside_their_validity_period_have_a_warning(when: str, message: str, tmp_path: Path) -> None:
    """A time after 2049 has another form (RFC 5280 section 4.1.2.5)."""
    old = pair(tmp_path, made=when)
    assert warned(configured(tmp_path, old.certificate, old.key)) == [message, message]


def test_a_key_of_another_certificate_is_a_mistake_with_its_line(made: Pair, tmp_path: Path) -> None:
    other = pair(tmp_path, "other")
    with pytest.raises(ConfigurationError) as refused:
        configured(tmp_path, made.certificate, other.key)
    found = [(problem.line, problem.path, problem.message) for problem in refused.value.problems]
    assert found == [
        (5, "listen.proxy.tls.key", "the key belongs to another certificate"),
        (12, "upstreams.app.tls.key", "the key belongs to another certificate"),
    ]


@pytest.mark.parametrize("cut", [0, 10, 60, 200])
def test_a_file_without_a_certificate_has_no_validity(cut: int, made: Pair, tmp_path: Path) -> None:
    text = made.certificate.read_text()
    broken = tmp_path / "broken.pem"
    lines = text.splitlines()
    broken.write_text("\n".join([lines[0], text.replace("\n", "")[27 : 27 + cut], lines[-1]]))
    assert validity(broken) is None
    assert validity(tmp_path / "none.pem") is None
    broken.write_bytes(b"\xff" * 100)
    assert validity(broken) is None
