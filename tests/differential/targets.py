"""Targets: known tricks, mutations of them from a seed, and hypothesis strategies over the same pieces.

A target is the part of a request line between method and version. ``HOST`` is a placeholder for the request's host. No
target contains CRLF: that would be another request, not another target.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from hypothesis import strategies as st

BASES = (
    *("/public/", "/public/x", "/open/", "/open/x", "/open/x/y", "/v1/things", "/v1/things/7", "/v1/things/77"),
    *("/v1/other/7", "/lenient/things/7", "/loose/", "/loose/x/y", "/m/", "/m/x/y", "/m/open/x", "/m/v1/things/7"),
)
FORBIDDEN = (
    *("/admin/", "/admin/x", "/open/secret/", "/open/secret/x", "/v1/things/special", "/admin", "/nowhere"),
    *("/m/admin/x", "/m/open/secret/x"),
)

#: Ways to leave a segment, or to seem to.
STEPS = (
    *("..", ".", "%2e%2e", "%2E%2E", ".%2e", "%2e.", "%2e", "..;", "..;x=y", "%2e%2e;", ";..", ";/..", ".;", ";"),
    *(";x", "..%2f", "%2f..", "..%2F..", "..%5c", "%5c..", "..\\", "\\..", "%2e%2e%2f", "%252e%252e"),
    *("%25%32%65%25%32%65", "%%32%65%%32%65", "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%u002e%u002e"),
    *("%EF%BC%8E%EF%BC%8E", "..%00", "%00..", "..%20", "%20..", "..%09", "..%0a", "..%0d", ".%00.", ".\t.", "..?"),
    *("..#", "..%23", "..%3f", "...", "....", "%C2%A0..", "..%C2%A0", "..%E3%80%80", "%E2%80%8B..", "..%E2%80%8B"),
    *("..%C2%AD", "..%EF%BB%BF", "..%C2%85", "%E3%80%82%E3%80%82", "..%E2%88%95", "..%EF%BC%8F", "..%c0%af"),
    *("..%252f", "..%25252f", "..%c1%9c", "..:", "..::$DATA", ". .", ".%2520", "..+", "~", "~root", "", "%2f", "%2F"),
    *("%5c", "/", "%2f%2f", "..,", "..=", "..&", "..|", "..^", "..["),
)  # fmt: skip

#: Pieces that mutations insert anywhere.
NASTY = (
    *STEPS,
    *("/../", "/./", "//", "///", "/..;/", "/;/", "/%2e/", "/.", "/..", "?", "#", "%23", "%3f", "%3F"),
    *("?x=/../admin/", "%25", "%252f", "%252e", "%2", "%", "%zz", "%g0", "%0", "\\", "%5C", "%00", "%01", "%0A"),
    *("%1b", "%7f", "%20", "%09", "%80", "%ff", "%c3", "%a9", "%ed%a0%80", "%f4%90%80%80", "%c0%af", "\x7f", "\x80"),
    *("\xff", "\xc3\xa9", "\t", " ", "\n", "http://HOST", "http:", "https://HOST", "HOST", "//HOST", "@", ":80"),
    *("@HOST", "file:", "*", "**", "{id}", "{", "}", "`", '"', "<", ">", "[", "]", "|", "^", "'", "(", ")", "!", "$"),
    *("&", ",", "=", "+", "~", "-", "_", "%u002f", "%U002E", "admin", "ADMIN", "Admin", "secret", "special", "public"),
    *("open", "things", "v1", "7", "77", "lenient", "loose", "x"),
)  # fmt: skip

#: The pieces that a canonical path may contain: most mutations should pass the gateway, or nothing is compared.
KIND = (
    *("%61", "%41", "%7e", "%7E", "%2d", "%5f", "%37", "%76", "%20", "%22", "%3c", "%3e", "%7b", "%7d", "%60", "%5b"),
    *("%5D", "%7c", "%5e", "%23", "%3f", "%3F", "%24", "%26", "%27", "%28", "%2a", "%2b", "%2c", "%3a", "%3d", "%40"),
    *("%21", "%25", "%25a", "%25%20", "%25.", "%C3%A9", "%65%CC%81", "%E2%82%AC", "%F0%9F%90%8D", "%EF%BC%8E"),
    *("%EF%BC%8F", "%E2%88%95", "%C2%A0", "%C2%AD", "%E2%80%8B", "%E2%80%AE", "%EF%BB%BF", "%E3%80%82", "%EF%BF%BD"),
    *("%ef%bd%a1", "%CA%BC", "%C4%B1", "...", ".x", "x.", "..x", "x..", "._.", ".-", "~", "~root", "*", "**", ":"),
    *("@", "$", "!", "'", "(", ")", ",", "=", "+", "&", "|", "^", "[", "]", "-", "_", "a", "Z", "0", "admin"),
    *("secret", "special", "public", "things", "7", "x:y@z", "?", "?x=1", "?/../admin/", "?%2e%2e/", "??", "?;"),
    *("?http://HOST/admin/", "?\\", '?"<>{}|^`'),
)  # fmt: skip

#: Pieces that need an allowance of the route, so that lenient routes are compared as well.
LENIENT = (
    "%2561",
    "%252F",
    "%25ab",
    "a%2520b",
    "%2f",
    "%2F",
    ";",
    "%3b",
    ";x=y",
    "a%2Fb",
    "a;b",
    ";x=%2f",
    "//",
    "%2f%2f",
    "%2fadmin%2fx",
    ";/",
    "/;x/",
)

_ATOM = re.compile(rb"%[0-9A-Fa-f]{2}|[A-Za-z0-9]+|.", re.DOTALL)


def atoms(target: bytes) -> list[bytes]:
    """The target in meaningful pieces: escapes, words, otherwise single bytes."""
    return _ATOM.findall(target)


def fit(text: str) -> bytes:
    """A target of these characters, one byte each, without bytes that would end the request line."""
    target = text.encode("latin-1").replace(b"\r\n", b"\n")
    return target or b"/"


def corpus() -> list[bytes]:
    """Every trick from every allowed path to every forbidden one, and every disguise of each path."""
    found = dict.fromkeys((*BASES, *FORBIDDEN, "/", "*", "HOST", "HOST:80", "http://HOST", "http://HOST/admin/x"))
    for base in BASES:
        for step in STEPS:
            place = base.rstrip("/")
            found[f"{place}/{step}"] = None
            for goal in FORBIDDEN[:5]:
                found[f"{place}/{step}{goal}"] = None
                found[f"{place}/{step}/{step}{goal}"] = None
                found[f"{place}{step}{goal}"] = None
    for place in (*BASES, *FORBIDDEN):
        found[f"http://HOST{place}"] = None
        found[f"//HOST{place}"] = None
        found[f"/{place}"] = None
        found[f"\\{place}"] = None
        found[place[1:]] = None
        for at in range(1, len(place)):
            byte = ord(place[at])
            for digits in {f"%{byte:02x}", f"%{byte:02X}", f"%25{byte:02x}", f"%u{byte:04x}", f"%c0%{byte | 0x80:02x}"}:
                found[place[:at] + digits + place[at + 1 :]] = None
            found[place[:at] + place[at].swapcase() + place[at + 1 :]] = None
            for piece in ("%20", ".", ";", "%00", "%C2%AD", "%E2%80%8B", "/", "\\", "?", "#", "\t"):
                found[place[:at] + piece + place[at:]] = None
        for piece in (*KIND, *LENIENT):
            found[place + piece] = None
            found[f"{place}/{piece}"] = None
            found[f"{place}/{piece}/"] = None
    return [fit(text) for text in found]


def mutations(seed: int) -> Iterator[bytes]:
    """An endless stream of targets, the same for the same seed."""
    choose = random.Random(seed)
    known = corpus()
    gentle = [place.encode() for place in (*BASES, "/v1/things/7", "/lenient/things/7")]
    while True:
        # Some start from a trick, most of which are refused; the others start from an allowed path.
        rough = choose.random() < 0.25
        target = choose.choice(known if rough else gentle)
        for _ in range(choose.choice((1, 1, 2, 2, 3, 5))):
            target = _mutated(target, choose, known, rough=rough)
        yield fit(target.decode("latin-1")[:2000])


def _mutated(target: bytes, choose: random.Random, known: list[bytes], *, rough: bool) -> bytes:
    parts = atoms(target) or [b"/"]
    # A gentle change is after the first segment: in the first one, most changes give a path without a route.
    first = 0 if rough else min(3, len(parts) - 1)
    at = choose.randrange(first, len(parts))
    kind = choose.random()
    if kind < 0.35:
        parts.insert(choose.randint(first, len(parts)), _piece(choose, rough=rough))
    elif kind < 0.6:
        # An unneeded escape: another spelling of the same path at any position.
        at = choose.randrange(len(parts))
        word = parts[at]
        inside = choose.randrange(len(word))
        if word[inside] not in b"/%" or rough:
            digits = choose.choice((b"%%%02x", b"%%%02X")) % word[inside]
            parts[at] = word[:inside] + digits + word[inside + 1 :]
    elif kind < 0.7:
        parts.insert(at, parts[choose.randrange(len(parts))])
    elif kind < 0.78:
        del parts[at]
    elif kind < 0.84:
        parts[at] = _piece(choose, rough=rough)
    elif kind < 0.88:
        parts[at] = parts[at].swapcase()
    elif kind < 0.92 and rough:
        parts[at] = parts[at].replace(b"%", b"%25")
    elif kind < 0.96 and rough:
        other = atoms(choose.choice(known))
        parts = parts[:at] + other[choose.randrange(len(other)) :]
    else:
        parts.append(b"/" + _piece(choose, rough=rough))
    return b"".join(parts)


def _piece(choose: random.Random, *, rough: bool) -> bytes:
    pieces = NASTY if rough else LENIENT if choose.random() < 0.15 else KIND
    return choose.choice(pieces).encode("latin-1")


_PIECES = st.one_of(st.sampled_from(KIND), st.sampled_from(LENIENT), st.sampled_from(NASTY))
_PLACES = st.sampled_from((*BASES, *FORBIDDEN, "/", ""))

#: Hypothesis shrinks this: a path, then pieces.
targets = st.one_of(
    st.tuples(_PLACES, st.lists(_PIECES, max_size=5)).map(lambda made: fit(made[0] + "".join(made[1]))),
    st.tuples(st.sampled_from(BASES), st.lists(st.sampled_from(KIND), max_size=6)).map(
        lambda made: fit(made[0] + "".join(made[1]))
    ),
    st.tuples(st.sampled_from(BASES), st.text(max_size=6)).map(
        lambda made: fit(made[0] + "".join(f"%{byte:02X}" for byte in made[1].encode("utf-8", "surrogatepass")))
    ),
    st.tuples(st.sampled_from(BASES), st.binary(max_size=8)).map(lambda made: fit(made[0] + made[1].decode("latin-1"))),
)
