"""The grammar of HTTP/1.1 heads (RFC 9110 section 5, RFC 9112 sections 2 to 5) as compiled expressions.

Rules of this module:
1. An expression matches a whole head or nothing; there is no leniency switch and no repair.
2. CR and LF occur only as the CRLF that ends a line: bare ones, folded lines, NUL and other control characters do not
   match anything here.
3. Every repetition is possessive or separated by a byte it cannot contain, so matching is linear in the input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from typing import Final

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# The group is not possessive: CPython 3.11.2 matches nothing when it is. Its lines delimit themselves all the same.
_FIELDS: Final = rb"((?:\r\n" + _TOKEN + rb":[\t\x20-\x7e\x80-\xff]*+)*)\r\n\r\n"

REQUEST_HEAD: Final = re.compile(
    rb"(" + _TOKEN + rb") ([\x21-\x3e\x40-\x7e\x80-\xff]++)(\?[\x21\x22\x24-\x7e]*+)? HTTP/1\.([01])" + _FIELDS
)
"""Groups: method, target up to its query, query with its "?" or None, minor version, field lines (each with its CRLF in
front). A query is visible ASCII without "#"; what is allowed in front of it is for `core.target` to say."""

RESPONSE_HEAD: Final = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})((?: [\t\x20-\x7e\x80-\xff]*+)?)" + _FIELDS)
"""Groups: minor version, status code, reason phrase with its leading space, field lines."""

_LABEL: Final = rb"[A-Za-z0-9_~\-]{1,63}+"
_HOST: Final = re.compile(rb"(" + _LABEL + rb"(?:\." + _LABEL + rb")*+\.?|\[[0-9A-Fa-f:.]{2,45}+\])(?::[0-9]{0,5})?")
_HOST_LIMIT: Final = 255 + len(":65535")


def host_name(authority: bytes) -> str | None:
    """The name in `Host` or in the authority of an absolute-form target, in lower case; None if it is none.

    Names as the DNS has them (RFC 9110 section 7.2, RFC 1035 section 2.3.4): labels of at most 63 bytes, 255 in all, no
    escapes, no user information; or an IPv6 address in brackets.
    """
    matched = _HOST.fullmatch(authority) if len(authority) <= _HOST_LIMIT else None
    return None if matched is None else matched[1].decode("ascii").lower()


_Trie = dict[str, "_Trie"]
"""Names by their characters; the empty character ends one."""

SHORTEST_LINE: Final = len(b"\r\na:")
"""Bytes of the shortest field line that the grammar knows, its CRLF included."""

TOKEN: Final = re.compile(_TOKEN)


def field_splitter(names: Iterable[bytes]) -> re.Pattern[bytes]:
    """Compile an expression that splits field lines at the lines whose name is one of `names`.

    `names` are folded (`core.identity.fold`): lower case, with "-" for all punctuation; each matches in any case and
    with any punctuation.
    `re.split` then gives: lines, name, value, lines, name, value, … in the order received. The names are compiled as a
    trie, which keeps a line that is none of them at one comparison or two.
    """
    trie: _Trie = {}
    for name in names:
        node = trie
        for character in name.decode("ascii"):
            node = node.setdefault(character, {})
        node[""] = {}
    return re.compile(f"\\r\\n({_emit(trie)}):[ \\t]*+([^\\r]*+)".encode("ascii"))


def without_fields(lines: bytes, names: Set[bytes]) -> bytes:
    """Field lines without those whose lower-case name is one of `names`, such as `Connection` nominates."""
    return b"\r\n".join(line for line in lines.split(b"\r\n") if line.partition(b":")[0].lower() not in names)


def _emit(node: _Trie) -> str:
    branches: list[str] = []
    for character, below in sorted(node.items()):
        if not character:
            continue
        if character == "-":
            one = "[-!#$%&'*+._`|~^]"
        elif character.isalpha():
            one = f"[{character}{character.upper()}]"
        else:
            one = re.escape(character)
        branches.append(one + _emit(below))
    if not branches:
        return ""
    body = branches[0] if len(branches) == 1 and "" not in node else f"(?:{'|'.join(branches)})"
    return f"{body}?" if "" in node else body
