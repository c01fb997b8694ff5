"""The log has every word of a problem that ``patgate check`` prints: the redactor takes none for a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.core.errors import ConfigurationError
from proxy.observe.logs import redact
from proxy.settings.load import load
from proxy.settings.problems import path_of

NAMES = ("Authorization", "authorization", "Proxy-Authorization", "X-API-Key", "Cookie", "X-Other-Cookie")


def lines(directory: Path, text: str) -> list[str]:
    """The problems of a configuration, as the log of a refused reload has them."""
    file = directory / "patgate.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        load(file, {})
    return [problem.located(file) for problem in caught.value.problems]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "text",
    [
        "upstreams: {{ app: {{ servers: ['http://127.0.0.1:1'], set_headers: {{ {0}: {{ file: none }} }} }} }}",
        "upstreams: {{ app: {{ servers: ['http://127.0.0.1:1'], set_headers: {{ {0}: {{}} }} }} }}",
        "upstreams: {{ app: {{ servers: ['http://127.0.0.1:1'], set_headers: {{ {0}: {{ other: 1 }} }} }} }}",
        "upstreams: {{ {0}: 7 }}",
        "roles: {{ {0}: 7 }}",
        "{0}: 7",
        "routes: [ {{ path: /x, access: denied, query: {{ {0}: 'a b' }} }} ]",
        "routes: [ {{ path: /x, access: denied, operations: {{ {0}: 'a b' }} }} ]",
    ],
    ids=["file", "no value", "unknown", "upstream", "role", "setting", "query", "method"],
)
def test_no_word_of_a_problem_is_redacted_because_its_path_ends_with_the_name_of_a_credential_header(
    text: str, name: str, tmp_path: Path
) -> None:
    found = lines(tmp_path, text.format(name))
    assert found
    assert [redact(line) for line in found] == found
    assert any(name in line for line in found)


def test_the_name_of_a_credential_header_is_quoted_in_a_path() -> None:
    assert path_of(("upstreams", "app", "set_headers", "Authorization")) == 'upstreams.app.set_headers["Authorization"]'
    assert path_of(("upstreams", "app", "set_headers", "X-Mine", "file")) == "upstreams.app.set_headers.X-Mine.file"
