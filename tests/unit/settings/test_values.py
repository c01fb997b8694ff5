"""Durations, sizes, addresses: parsing, and round trips through text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.settings.addresses import Bind, ServerAddress
from proxy.settings.values import parse_duration, parse_size, quoted, quoted_path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("2s", 2.0),
        ("1h30m", 5400.0),
        ("30d", 2_592_000.0),
        ("1w", 604_800.0),
        ("1.5s", 1.5),
        (7, 7.0),
        (0, 0.0),
    ],
)
def test_durations_are_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "5", "s", "5 s", "-5s", "5S", "1e3s", "٣s", True, None, -1, float("inf"), float("nan"), []]
)
def test_an_invalid_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"), [(512, 512), ("512", 512), ("32KiB", 32768), ("1 MB", 10**6), ("1GiB", 2**30), ("3B", 3)]
)
def test_sizes_are_bytes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "KiB", "1kb", "1.5MiB", "-1", -1, True, 1.5, None, "٣"])
def test_an_invalid_size_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="must be a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:8080", "127.0.0.1", 8080),
        ("[::]:80", "::", 80),
        ("[0:0:0:0:0:0:0:1]:0", "::1", 0),
        ("LocalHost:1", "localhost", 1),
    ],
)
def test_a_listening_address_survives_a_round_trip(text: str, host: str, port: int) -> None:
    bind = Bind.parse(text)
    assert (bind.host, bind.port) == (host, port)
    assert Bind.parse(str(bind)) == bind


@pytest.mark.parametrize(
    "text", ["8080", ":8080", "::1:80", "[::1]", "1.2.3:80", "a b:80", "h:-1", "h:65536", "h:٣", "h:", "-h:1", ""]
)
def test_an_invalid_listening_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Bind.parse(text)


@pytest.mark.parametrize(
    ("text", "canonical", "authority"),
    [
        ("http://127.0.0.1:3000", "http://127.0.0.1:3000", "127.0.0.1:3000"),
        ("http://App/", "http://app", "app"),
        ("https://app:443", "https://app", "app"),
        ("https://[::1]:8443", "https://[::1]:8443", "[::1]:8443"),
        ("unix:/run/app.sock", "unix:/run/app.sock", "localhost"),
        ("unix:///run/app.sock", "unix:/run/app.sock", "localhost"),
    ],
)
def test_a_server_has_one_text_form(text: str, canonical: str, authority: str) -> None:
    server = ServerAddress.parse(text)
    assert str(server) == canonical
    assert server.authority == authority
    assert ServerAddress.parse(canonical) == server


@given(st.text())
def test_a_valid_server_survives_a_round_trip(text: str) -> None:
    for prefix in ("", "http://", "https://[", "unix:/"):
        try:
            server = ServerAddress.parse(prefix + text)
        except ValueError:
            continue
        assert ServerAddress.parse(str(server)) == server


@given(st.text())
def test_a_quoted_value_is_one_printable_line_of_bounded_length(text: str) -> None:
    echo = quoted(text)
    assert echo.replace("…", "").isprintable()
    assert echo.replace("…", "").isascii()
    assert len(echo) <= 40 * 10 + 3


@given(st.text())
def test_a_quoted_path_is_complete_on_one_printable_line(text: str) -> None:
    echo = quoted_path(text)
    assert echo.isprintable() and echo.isascii()
    assert echo[1:-1].replace('\\"', '"').encode("ascii").decode("unicode_escape") == text
