"""``notices:``: the sources of its secret and its webhook, which only the authority receives."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from proxy.core.errors import ConfigurationError
from proxy.settings.load import load
from proxy.settings.model import Settings
from proxy.settings.sources.secret import decode_webhook_secret

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
URL = "https://hooks.example.com/s3cr3t-path"


def settings(**environ: str) -> Settings:
    return load(None, {f"PATGATE_NOTICES__{name.upper()}": value for name, value in environ.items()})


def problem(**environ: str) -> str:
    with pytest.raises(ConfigurationError) as raised:
        settings(**environ)
    (found,) = raised.value.problems
    assert "s3cr3t" not in found.message
    # The problem names the variable.
    return f"{found.path.removeprefix('PATGATE_').replace('__', '.').lower()}: {found.message}"


def test_the_secret_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    found = settings(webhook=URL, secret_file=str(file)).notices
    assert found.secret is not None
    assert decode_webhook_secret(found.secret.get_secret_value()) == bytes(range(32))
    assert found.webhook == URL


def test_only_the_boot_form_contains_the_secret_and_the_webhook() -> None:
    found = settings(webhook=URL, secret=SECRET)
    handed = Settings.from_boot_json(found.to_boot_json())
    assert handed == found
    for form in (
        repr(found),
        str(found),
        repr(found.notices),
        found.to_worker_json(),
        found.model_dump_json(),
        json.dumps(found.model_dump(mode="json")),
    ):
        assert SECRET.removeprefix("whsec_") not in form
        assert "s3cr3t" not in form
    worker = Settings.from_boot_json(found.to_worker_json()).notices
    assert (worker.secret, worker.webhook, worker.days) == (None, None, (14, 7, 1))


@pytest.mark.parametrize(
    "secret",
    ["hunter2", "whsec_", "whsec_!!!!", "whsec_" + base64.b64encode(b"x" * 23).decode(), SECRET + "x", SECRET[6:]],
)
def test_a_secret_that_receivers_would_not_accept_is_refused_without_repeating_it(secret: str) -> None:
    found = problem(webhook=URL, secret=secret)
    assert found.startswith("notices.secret: must be whsec_ and the base64 of 24 to 64 random bytes")
    assert secret.removeprefix("whsec_") not in found or secret == "whsec_"


@pytest.mark.parametrize(
    "url",
    ["ftp://hooks.example.com/", "hooks.example.com", "https://me:pw@hooks.example.com/", "https://hooks.example.com:0/",
     "https://hooks.example.com/#x", "https://hooks.example.com/a b", "http://[::1", "https:///x"],
)  # fmt: skip
def test_an_invalid_webhook_url_is_refused(url: str) -> None:
    assert problem(webhook=url, secret=SECRET).startswith("notices.webhook: must be a URL such as https://")


def test_a_webhook_needs_a_secret() -> None:
    assert problem(webhook=URL) == "notices.webhook: needs notices.secret, with which its notices are signed"


@pytest.mark.parametrize("days", ["[]", "[0]", "[366]", "[1.5]", "[1,2,3,4,5,6,7,8,9]"])
def test_days_are_few_whole_numbers(days: str) -> None:
    assert problem(days=days).startswith("notices.days")
