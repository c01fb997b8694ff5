"""The explained decision equals the decision of the gateway's own phases, for generated routes, tokens and requests."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.core.challenge import Challenges
from proxy.core.credential_places import API_KEY, BASIC, BEARER, DEFAULT, CredentialPlaces, Place
from proxy.core.decision import decide
from proxy.core.identity import PRESETS, IdentityHeaders, IdentityOutputs
from proxy.core.kinds import Kind, Reach
from proxy.core.model import Access, Grant, RefusedGrant, TokenStatus, UserStatus
from proxy.core.reasons import TABLE, Challenge, Reason
from proxy.core.request.requirement import Requirement, logged_text
from proxy.core.request.target import PathAllowance
from proxy.core.routes import Route, RouteTable
from proxy.core.token import TokenFormat
from proxy.core.token_search import TokenSearch
from proxy.gateway.exchange import Exchange
from proxy.gateway.phases.parse import HeadParser
from proxy.gateway.phases.respond import Responder
from proxy.gateway.phases.route import route, route_by
from proxy.observe.logs import redact
from proxy.observe.metrics import Outcome
from proxy.services import grants
from proxy.services.explain.explanation import DescribedRequest, Gateway, explain
from proxy.services.explain.steps import FAILED, Result, Step, Subject
from proxy.store.records import OrgGrantRow, TokenGrantRow

SEARCH = TokenSearch(TokenFormat("acme"))

NOW = 1_800_000_000.0
LONGEST = 60
ORGS = ("org_aaaaaaaaaaaa", "org_bbbbbbbbbbbb")
NAMES = {"org_aaaaaaaaaaaa": "lab", "org_bbbbbbbbbbbb": "shop"}
PATTERNS = ("/v1/{entity}", "/v1/{entity}/{id}", "/orgs/{org}/{entity}/{id}", "/orgs/{org}/things", "/ui/**", "/**")
TARGETS = (
    *["/v1/things", "/v1/things/7", "/orgs/lab/things/7", "/orgs/shop/things"] * 5,
    "/v1/things", "/v1/things/7", "/v1/a%20b/7", "/orgs/lab/things/7", "/orgs/shop/things", "/orgs/nowhere/things",
    "/orgs/org_bbbbbbbbbbbb/things/7", "/ui/a", "/ui/a;b", "/ui/../v1", "/v1/things?q=1", "/é", "/a b", "*", "",
    "/" + "a" * 80,     "http://api.example/v1/things", "http://other.example/v1/things",
)  # fmt: skip
METHODS = (*["GET"] * 8, "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "get", "TRACE", "CONNECT", "PURGE", "G T")
PLACES = (
    DEFAULT,
    CredentialPlaces([BEARER]),
    CredentialPlaces([BEARER, BASIC], [BASIC]),
    CredentialPlaces([API_KEY]),
    CredentialPlaces([Place(header="Authorization", scheme="token"), BEARER]),
)
permissions = st.lists(
    st.sampled_from(("*:*", "things:*", "things:read", "things/7:update", "*:list", "*:create", "other:read")),
    max_size=3,
)

routes = st.lists(
    st.builds(
        lambda path, access, entity, methods, host, allow, enforce, operations: (
            path, access, entity, methods, host, allow, enforce, operations
        ),
        st.sampled_from(PATTERNS),
        st.sampled_from((*[Access.TOKEN] * 6, *Access)),
        st.sampled_from((None, "things")),
        st.sampled_from((None, None, None, frozenset({"GET"}), frozenset({"POST", "PURGE"}))),
        st.sampled_from((None, None, "api.example")),
        st.sampled_from((0, int(PathAllowance.SEMICOLON))),
        st.booleans(),
        st.sampled_from(({}, {"GET": "subscribe"})),
    ),
    min_size=2,
    max_size=6,
)  # fmt: skip


@st.composite
def tokens(draw: st.DrawFn) -> TokenGrantRow:
    reach = draw(st.sampled_from(tuple(Reach)))
    fitting = Kind.KEY if reach is Reach.ORGS else Kind.PAT
    kind = draw(st.sampled_from((*[fitting] * 5, *Kind)))
    owned = kind is Kind.PAT
    orgs: tuple[OrgGrantRow, ...] = ()
    if reach in (Reach.ACCOUNT, Reach.ORGS):
        orgs = tuple(
            OrgGrantRow(
                org_id=org_id,
                org_name=NAMES[org_id],
                status=draw(st.sampled_from(("active", "suspended"))),
                role="editor" if reach is Reach.ACCOUNT else None,
                permissions=draw(permissions),
            )
            for org_id in draw(st.lists(st.sampled_from(ORGS), unique=True))
        )
    return TokenGrantRow(
        id="abcdefghijkl",
        prefix=f"acme_{kind.value}_abcdefghijkl",
        kind=kind,
        reach=reach,
        name="a name",
        user_id="usr_aaaaaaaaaaaa" if owned else None,
        org_id=ORGS[0] if reach is Reach.ORG else None,
        scopes=draw(st.none() | permissions),
        status=draw(st.sampled_from((*[TokenStatus.ACTIVE] * 8, TokenStatus.REVOKED))),
        digest=None,
        expires_at=draw(st.sampled_from((*[None] * 6, NOW, NOW + 1))),
        email="ann@example.com" if owned else None,
        user_status=draw(st.sampled_from((*[UserStatus.ACTIVE] * 6, *UserStatus))) if owned else None,
        org_name="lab" if reach is Reach.ORG else None,
        org_status=draw(st.sampled_from((*["active"] * 5, "suspended"))) if reach is Reach.ORG else None,
        member_role=draw(st.sampled_from((*["viewer"] * 5, None))) if owned and reach is Reach.ORG else None,
        role=draw(st.sampled_from(("viewer", ""))),
        permissions=draw(st.none() | permissions),
        orgs=orgs,
        ip_ranges=draw(st.sampled_from((*[None] * 4, ["10.0.0.0/8"], ["192.0.2.7/32", "fd00::/8"]))),
    )


requirements = st.builds(
    Requirement,
    st.sampled_from(("things", "other")),
    st.sampled_from(("read", "update", "list")),
    st.sampled_from((None, "7", "8")),
    st.sampled_from((None, None, "lab", "org_bbbbbbbbbbbb")),
)


def subject(row: TokenGrantRow) -> Subject:
    found = grants.verdict(row.prefix, row.id, row, NOW)
    return Subject(row=row, status=row.status, revoked_at=None, found=found)


def decided(
    table: RouteTable, request: DescribedRequest, found: Grant | RefusedGrant, requirement: Requirement | None
) -> tuple[Exchange, Reason, Outcome]:
    """The result of the gateway's phases for the request with this token."""
    x = Exchange(None, 0, b"abc")
    x.keep_alive = True
    line = f"{request.method} {request.target} HTTP/1.1\r\nHost: {request.host}".encode()
    parser = HeadParser(
        search=SEARCH,
        stripped=(),
        presented=(b"x-api-key",),
        max_headers=10,
        max_request_line=LONGEST,
        max_body=None,
    )
    reason = parser.parse(x, line)
    if reason is None:
        reason = route(table, x)
        if requirement is not None:
            reason = route_by(requirement, x, reason)
    if reason is not None:
        return x, reason, Outcome.REFUSED
    assert x.match is not None
    if x.match.route.access is not Access.TOKEN:
        return x, Reason.ALLOWED, Outcome.ALLOWED
    reason = found.reason if isinstance(found, RefusedGrant) else decide(x.match, found, NOW, request.address)
    if reason is Reason.ALLOWED:
        return x, reason, Outcome.ALLOWED
    reported = not x.match.route.enforce and TABLE[reason].status in (401, 403)
    return x, reason, Outcome.REPORTED if reported else Outcome.REFUSED


@settings(max_examples=300)
@given(
    made=routes,
    row=tokens(),
    method=st.sampled_from(METHODS),
    target=st.sampled_from(TARGETS),
    places=st.sampled_from(PLACES),
    own=st.sampled_from((None, *PLACES)),
    address=st.sampled_from(("10.1.2.3", "192.0.2.7", "fd00::7")),
    requirement=st.none() | requirements,
)
def test_the_explained_verdict_is_the_one_that_the_gateway_reaches(
    made: list[tuple[str, Access, str | None, frozenset[str] | None, str | None, int, bool, dict[str, str]]],
    row: TokenGrantRow,
    method: str,
    target: str,
    places: CredentialPlaces,
    own: CredentialPlaces | None,
    address: str,
    requirement: Requirement | None,
) -> None:
    table = RouteTable(
        Route(
            index=index, path=path, access=access, entity=entity, methods=methods, host=host, allow=allow,
            enforce=enforce, operations=operations, credentials=own if index % 2 else None,
        )
        for index, (path, access, entity, methods, host, allow, enforce, operations) in enumerate(made)
    )  # fmt: skip
    challenges = Challenges(realm="acme", places=places)
    gateway = Gateway(
        routes=table,
        challenges=challenges,
        identity=IdentityOutputs((IdentityHeaders(PRESETS["patgate"]),)),
        longest=LONGEST,
    )
    request = DescribedRequest(
        method=method,
        target=target,
        host="api.example",
        address=address,
        requirement="" if requirement is None else logged_text(requirement, redact),
    )
    token = subject(row)
    explained = explain(gateway, request, token, NOW)
    x, reason, outcome = decided(table, request, token.found, requirement)
    if (explained.judged.reason, reason) == (Reason.TARGET_TOO_LONG, Reason.REQUEST_MALFORMED):
        return  # two things are wrong, and the parser of whole heads reports the other one first
    assert (explained.judged.reason, explained.judged.outcome) == (reason, outcome)
    assert explained.judged.match == x.match

    document = explained.as_dict()
    failed = [step for step in explained.findings.steps() if step.result is Result.FAIL]
    if reason is Reason.ALLOWED:
        assert failed == []
        assert document["challenge"] == [] and document["status"] is None
    else:
        (only,) = failed
        assert only.step is (Step.ROUTE if explained.judged.contradicted else FAILED.get(reason, Step.ROUTE))
        if requirement is None or requirement.org is None:
            assert not explained.judged.contradicted
        assert only.text
        answer = Responder(challenges=challenges).refusal(x, reason)
        lines = [line for line in answer.split(b"\r\n") if line.startswith(b"WWW-Authenticate: ")]
        assert [f"WWW-Authenticate: {value}".encode() for value in explained.challenge] == lines
        assert answer.startswith(f"HTTP/1.1 {document['status']} ".encode())
        here = places if x.match is None else x.match.route.credentials or places
        expected = TABLE[reason].status == 401 or BEARER in here.offers
        assert bool(lines) is (TABLE[reason].challenge is not Challenge.NONE and expected)
    results = [step.result for step in explained.findings.steps()]
    ends = next((place for place, result in enumerate(results) if result is not Result.PASS), len(results))
    assert all(result is not Result.PASS for result in results[ends:])
    assert bool(explained.identity) is (
        outcome is not Outcome.REFUSED and x.match is not None and x.match.route.access is Access.TOKEN
    )
