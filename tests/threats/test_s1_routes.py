"""Threat model §1 for routes that cut a prefix, depend on the query, compose an id, allow ``%25`` or ignore case."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.gateway import Patgate, Token
from tests.support.plugin import ADMIN, EDITOR, ROLES, VIEWER
from tests.support.pool import Pool
from tests.support.rawhttp import Response
from tests.support.recorder import Recorder

FORMS = ["encoded_slash", "encoded_percent", "empty_segment"]
ROUTES = [
    {"path": "/public/**", "upstream": "app", "access": "public"},
    {"path": "/secret/**", "access": "denied", "fold_case": True},
    {"path": "/npm/**", "upstream": "app", "access": "public", "strip_prefix": "/npm", "allow": FORMS},
    {"path": "/café/x/{id}", "upstream": "app", "entity": "things", "strip_prefix": "/café/x"},
    {"path": "/npm", "upstream": "app", "access": "public", "strip_prefix": "/npm"},
    {"path": "/percent/{id}", "upstream": "app", "entity": "things", "allow": FORMS},
    {"path": "/exact/{id}", "upstream": "app", "entity": "things"},
    {
        "path": "/{id}/info/refs",
        "upstream": "app",
        "entity": "things",
        "query": {"service": "git-receive-pack"},
        "operations": {"GET": "update"},
    },
    {"path": "/{id}/info/refs", "upstream": "app", "entity": "things", "operations": {"GET": "read"}},
    {
        "path": "/dav/{id}",
        "upstream": "app",
        "entity": "things",
        "strip_prefix": "/dav",
        "operations": {"COPY": "update", "PUT": "update"},
    },
    {"path": "/files/{id}", "upstream": "app", "entity": "things", "operations": {"COPY": "update", "PUT": "update"}},
    {"path": "/pkg/{id}", "upstream": "app", "entity": "things", "allow": ["encoded_slash"]},
    {"path": "/pkg/{scope}/{name}/-/{file}", "upstream": "app", "entity": "things", "id": "{scope}/{name}"},
    {"path": "/**", "upstream": "app", "access": "public"},
]


@pytest.fixture(scope="module")
def node(gateways: Pool, backend: Recorder) -> Iterator[Patgate]:
    config = {"upstreams": {"app": {"servers": [backend.url]}}, "roles": ROLES, "routes": ROUTES}
    with gateways.lend(config) as gateway:
        for user, role in ((ADMIN, "admin"), (EDITOR, "editor"), (VIEWER, "viewer")):
            gateway.add_user(user, role)
        yield gateway


@pytest.fixture(scope="module")
def editor(node: Patgate) -> Token:
    return node.token(EDITOR)


@pytest.fixture(scope="module")
def viewer(node: Patgate) -> Token:
    return node.token(VIEWER)


def ask(
    node: Patgate, target: bytes, token: Token | None = None, *, method: bytes = b"GET", fields: bytes = b""
) -> Response:
    login = f"Authorization: Bearer {token.value}\r\n".encode() if token else b""
    with node.connect() as connection:
        return connection.exchange(
            method + b" " + target + b" HTTP/1.1\r\nHost: gateway\r\n" + login + fields + b"\r\n"
        )


def assert_nothing_arrived(node: Patgate, recorder: Recorder) -> None:
    """Send an allowed request, and assert that the recorder got it and no earlier one."""
    assert ask(node, b"/public/afterwards").status == 200
    assert [request.target for request in recorder.requests] == [b"/public/afterwards"]


@pytest.mark.parametrize(
    ("target", "arrives"),
    [
        (b"/npm/x", b"/x"),
        (b"/npm", b"/"),
        (b"/npm?q", b"/?q"),
        (b"/npm/", b"/"),
        (b"/%6epm/%78%7E?/../%2e", b"/%78%7E?/../%2e"),
        (b"/npm/npm/npm", b"/npm/npm"),
        (b"/npm/@acme%2ftool", b"/@acme%2ftool"),
        (b"/npm/a%252Fb", b"/a%252Fb"),
        (b"/npm/http://evil.example/x", b"/http://evil.example/x"),
        (b"/npm/http:/evil.example/x", b"/http:/evil.example/x"),
        (b"/npm/x//y", b"/x//y"),
        (b"/npm/%2F", b"/%2F"),
        (b"http://gateway/npm/x?y", b"/x?y"),
        (b"HTTP://gateway/%6Epm/x", b"/x"),
    ],
)
def test_a_path_arrives_without_its_prefix_byte_for_byte(
    target: bytes, arrives: bytes, node: Patgate, recorder: Recorder
) -> None:
    fields = b"X-Forwarded-Prefix: /evil\r\nx_forwarded_prefix: /evil\r\nX-Script-Name: /evil\r\n"
    assert ask(node, target, fields=fields).status == 200
    seen = recorder.last()
    assert seen.target == arrives
    assert [value for name, value in seen.headers if b"prefix" in name.lower()] == [b"/npm"]


@pytest.mark.parametrize("target", [b"/caf%C3%A9/x/7", b"/caf%c3%a9/%78/7"])
def test_a_prefix_of_several_segments_in_any_spelling_is_cut(
    target: bytes, node: Patgate, recorder: Recorder, viewer: Token
) -> None:
    assert ask(node, target, viewer).status == 200
    assert recorder.last().target == b"/7"
    assert recorder.last().all("X-Forwarded-Prefix") == [b"/caf%C3%A9/x"]


@pytest.mark.parametrize(
    "target", [b"/npm//evil.example/x", b"/npm//", b"/%6epm//x", b"/npm///x", b"http://gateway/npm//evil.example/"]
)
def test_a_rest_that_looks_like_a_host_is_refused(target: bytes, node: Patgate, recorder: Recorder) -> None:
    response = ask(node, target)
    assert (response.status, response.json()["reason"]) == (400, "target_not_canonical")
    assert_nothing_arrived(node, recorder)


@pytest.mark.parametrize(
    "target", [b"/npm/../secret", b"/npm/..", b"/npm/%2e%2e/x", b"/npm/..%2Fx", b"/npm%2Fx/..", b"/npm/\\x"]
)
def test_no_trick_leaves_the_prefix(target: bytes, node: Patgate, recorder: Recorder) -> None:
    assert ask(node, target).status == 400
    assert_nothing_arrived(node, recorder)


@pytest.mark.parametrize("target", [b"/npmx/y", b"/NPM/y", b"/x/npm/y"])
def test_only_the_routes_own_prefix_is_cut(target: bytes, node: Patgate, recorder: Recorder) -> None:
    assert ask(node, target).status == 200
    assert recorder.last().target == target
    assert recorder.last().all("X-Forwarded-Prefix") == []


@pytest.mark.parametrize(
    ("path", "field"),
    [
        (b"/dav/a", b"Destination: /dav/b"),
        (b"/dav/a", b"Destination: http://gateway/dav/b"),
        (b"/dav/a", b"Destination: /files/b"),
        (b"/files/a", b"Destination: /dav/b"),
        (b"/dav/a", b"If: </dav/b> (<urn:x>)"),
    ],
)
def test_a_destination_beside_a_prefix_is_refused_and_nothing_arrives(
    path: bytes, field: bytes, node: Patgate, recorder: Recorder, editor: Token
) -> None:
    method = b"COPY" if field.startswith(b"D") else b"PUT"
    fields = field + b"\r\nContent-Length: 0\r\n"
    response = ask(node, path, editor, method=method, fields=fields)
    assert response.status == 403
    assert response.json()["reason"] in ("second_target", "operation_unmapped")
    assert_nothing_arrived(node, recorder)


def test_a_destination_of_other_routes_still_passes(node: Patgate, recorder: Recorder, editor: Token) -> None:
    assert ask(node, b"/files/a", editor, method=b"COPY", fields=b"Destination: /files/b\r\n").status == 200
    assert recorder.last().target == b"/files/a"
    assert ask(node, b"/dav/a", editor, method=b"COPY", fields=b"If: (<urn:x>)\r\n").status == 200
    assert recorder.last().target == b"/a"


PUSH = b"service=git-receive-pack"


@pytest.mark.parametrize(
    ("query", "status"),
    [(PUSH, 403), (b"a=1&" + PUSH, 403), (b"service=git-upload-pack", 200), (b"", 200), (b"a=" + PUSH, 200)],
)
def test_a_parameter_decides_about_the_operation(
    query: bytes, status: int, node: Patgate, recorder: Recorder, viewer: Token, editor: Token
) -> None:
    assert ask(node, b"/r/info/refs?" + query, viewer).status == status
    assert len(recorder.requests) == (status == 200)
    assert ask(node, b"/r/info/refs?" + query, editor).status == 200
    assert recorder.last().target == b"/r/info/refs?" + query


@pytest.mark.parametrize(
    "query",
    [
        PUSH + b"&" + PUSH,
        b"service=git-upload-pack&" + PUSH,
        PUSH + b"&service=git-upload-pack",
        b"Service=git-receive-pack",
        b"%73ervice=git-receive-pack",
        b"%2573ervice=git-receive-pack",
        b"service=git%2Dreceive-pack",
        b"service=git-receive-pack%00",
        b"service=GIT-RECEIVE-PACK",
        b"+service=git-receive-pack",
        b"service+=git-receive-pack",
        b"service[]=git-receive-pack",
        b"service%5B%5D=git-receive-pack",
        b"a;" + PUSH,
        b"a=1%26" + PUSH,
        b"a?" + PUSH,
    ],
)
def test_a_parameter_that_decides_is_refused_in_any_other_spelling(
    query: bytes, node: Patgate, recorder: Recorder, viewer: Token, editor: Token
) -> None:
    """Not even a token that may do both gets through: it is unknown which of the two was requested."""
    for target in (b"/r/info/refs?" + query, b"http://gateway/r/info/refs?" + query):
        for token in (viewer, editor, None):
            response = ask(node, target, token)
            assert response.status == 400
            assert "query_ambiguous" in response.body.decode()
            assert not any(part in response.body for part in (query, b"receive"))
    assert_nothing_arrived(node, recorder)


def test_the_same_query_on_another_path_is_not_read(node: Patgate, recorder: Recorder, viewer: Token) -> None:
    target = b"/exact/7?service=1&service=2&Service=3"
    assert ask(node, target, viewer).status == 200
    assert recorder.last().target == target


@pytest.mark.parametrize(
    "target", [b"/percent/100%25ab", b"/percent/a%252Fb", b"/percent/%2561", b"/percent/a%2520b", b"/percent/%2F%25ff"]
)
def test_an_encoded_percent_passes_as_it_is_where_the_route_allows_it(
    target: bytes, node: Patgate, recorder: Recorder, viewer: Token
) -> None:
    assert ask(node, target, viewer).status == 200
    assert recorder.last().target == target
    assert ask(node, target.replace(b"percent", b"exact"), viewer).status == 400


def test_an_encoded_percent_is_part_of_the_id_as_it_reads_decoded_once(node: Patgate, recorder: Recorder) -> None:
    """A token for the id ``a%2Fb`` does not reach ``a/b``, nor the other way round."""
    percent = node.token(EDITOR, name="percent", scopes=["things/a%252Fb:read"])
    slash = node.token(EDITOR, name="slash", scopes=["things/a/b:read"])
    found = [
        [ask(node, target, token).status for token in (percent, slash)]
        for target in (b"/percent/a%252Fb", b"/percent/a%2Fb")
    ]
    assert found == [[200, 403], [403, 200]]
    assert [request.target for request in recorder.requests] == [b"/percent/a%252Fb", b"/percent/a%2Fb"]


@pytest.mark.parametrize(
    "target",
    [
        b"/percent/%252e%252e",
        b"/percent/%252e",
        b"/percent/a%252F..%252Fb",
        b"/percent/%252e%2Fx",
        b"/percent/a%2500",
        b"/percent/a%255C..",
        b"/percent/a%25252Fb",
        b"/percent/%25u002e",
        b"/percent/%25c0%25ae",
    ],
)
def test_a_double_encoded_trick_is_refused_where_the_route_allows_an_encoded_percent(
    target: bytes, node: Patgate, recorder: Recorder, viewer: Token
) -> None:
    assert ask(node, target, viewer).status == 400
    assert_nothing_arrived(node, recorder)


@pytest.mark.parametrize("target", [b"/secret/x", b"/SECRET/x", b"/Secret/", b"/s%45cret/X", b"/%53ecret/x?y"])
def test_a_denied_route_that_ignores_case_is_denied_in_any_case(
    target: bytes, node: Patgate, recorder: Recorder, editor: Token
) -> None:
    for token in (editor, None):
        response = ask(node, target, token)
        assert (response.status, response.json()["reason"]) == (403, "route_denied")
    assert_nothing_arrived(node, recorder)


def test_a_segment_that_is_only_an_encoded_slash_needs_no_other_allowance(
    node: Patgate, recorder: Recorder, viewer: Token
) -> None:
    assert ask(node, b"/pkg/%2f", viewer).status == 200
    assert recorder.last().target == b"/pkg/%2f"
    for target in (b"/pkg/%2F%2F", b"/pkg/%2Fa", b"/exact/%2F"):
        assert ask(node, target, viewer).status == 400, target


def test_one_scope_covers_a_package_in_either_spelling_and_nothing_else(node: Patgate, recorder: Recorder) -> None:
    token = node.token(EDITOR, name="one package", scopes=["things/@acme/tool:read"])
    reached = [b"/pkg/@acme%2ftool", b"/pkg/%40acme%2Ftool", b"/pkg/@acme/tool/-/tool-1.0.0.tgz"]
    for target in reached:
        assert ask(node, target, token).status == 200, target
    for target in (b"/pkg/@acme", b"/pkg/@acme%2ftools", b"/pkg/@acme/tools/-/tool-1.0.0.tgz", b"/pkg/tool"):
        assert ask(node, target, token).status == 403, target
    for target in (b"/pkg/@acme%2ftool/x/-/y", b"/pkg/@acme/tool%2Fx/-/y", b"/pkg/@acme/tool/-/%2F"):
        assert ask(node, target, token).status == 400, target
    assert [request.target for request in recorder.requests] == reached
