"""Loading: the settings of a valid configuration, and the problems of an invalid one."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from proxy.core.errors import ConfigurationError, ConfigurationProblem
from proxy.settings.load import load
from proxy.settings.model import Settings

SECRET = "correct-horse-battery"  # too short to be a key, long enough to be found in a message
Check = Callable[..., list[ConfigurationProblem]]
Load = Callable[..., Settings]

MINIMAL = """\
upstreams:
  app: { servers: ["http://127.0.0.1:3000"] }
roles:
  viewer: ["things:read"]
routes:
  - { path: "/v1/{entity}", upstream: app }
"""


@pytest.fixture
def good(tmp_path: Path) -> Load:
    """Loads a text as a configuration file."""

    def run(text: str | bytes, environ: Mapping[str, str] | None = None) -> Settings:
        path = tmp_path / "patgate.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(path, environ or {})

    return run


@pytest.fixture
def bad(good: Load) -> Check:
    """The problems of a text as a configuration file."""

    def run(text: str | bytes, environ: Mapping[str, str] | None = None) -> list[ConfigurationProblem]:
        with pytest.raises(ConfigurationError) as caught:
            good(text, environ)
        return list(caught.value.problems)

    return run


def shown(problems: list[ConfigurationProblem]) -> list[tuple[int | None, str]]:
    return [(problem.line, problem.path) for problem in problems]


def test_the_example_that_operators_copy_loads(good: Load) -> None:
    settings = load(Path(__file__).parents[3] / "config" / "patgate.yaml", {})
    assert settings.brand == "acme"
    assert len(settings.routes) == 7


def test_the_examples_optional_lines_load_too(good: Load, tmp_path: Path) -> None:
    """The commented lines of the example are valid, except for those that name the operator's files."""
    text = (Path(__file__).parents[3] / "config" / "patgate.yaml").read_text()
    for off, on in (
        ("    # methods: [GET, PUT] ", "    methods: [GET, PUT] "),
        ("    # host: ", "    host: "),
        ("    # allow: ", "    allow: "),
        ("    # health: ", "    health: "),
        ("  preset: patgate ", "  # preset: patgate "),
        ("  # names: {", "  names: {"),
        ("# secret_key: …", f"secret_key: {'k' * 32}"),
        ("max_lifetime: null ", "max_lifetime: 365d "),
        ("body: null ", "body: 100MiB "),
    ):
        assert off in text
        text = text.replace(off, on)
    settings = good(text)
    assert settings.routes[5].allow == ("encoded_slash", "encoded_percent", "semicolon", "empty_segment")
    assert settings.policy.max_lifetime == 365 * 86400
    assert settings.limits.body == 100 * 2**20


def test_an_empty_file_is_the_defaults(good: Load) -> None:
    assert good("# nothing yet\n") == good("{}")


def test_sections_with_all_lines_commented_out_are_the_defaults(good: Load) -> None:
    assert good("limits:\nroutes:\nupstreams:\nlisten:\n  proxy:\n") == good("")


def test_relative_paths_start_at_the_files_directory(good: Load, tmp_path: Path) -> None:
    assert good("data_dir: ./data").data_dir == tmp_path / "data"
    assert good("").data_dir == tmp_path / "data"


def test_ten_mistakes_are_ten_messages_with_their_lines(bad: Check) -> None:
    problems = bad(
        """\
brand: Acme
workers: 0
colour: blue
listen:
  proxy: { bind: "0.0.0.0:99999" }
  forward_auth: { bind: "127.0.0.1:8082" }
credentials: [bearer, cookie]
upstreams:
  app: { servers: ["http://user:pw@127.0.0.1:3000/base"] }
roles:
  viewer: ["things"]
routes:
  - { path: "/v1/{entity}", upstream: ap }
  - { path: "/v1/{entity}/{id", upstream: app }
  - { path: "/v1/{entity}", upstream: app }
lease: soon
secret_key: too-short
"""
    )
    assert shown(problems) == [
        (1, "brand"),
        (2, "workers"),
        (3, "colour"),
        (5, "listen.proxy.bind"),
        (6, "listen.forward_auth.trusted"),
        (7, "credentials[1]"),
        (9, "upstreams.app.servers[0]"),
        (11, "roles.viewer[0]"),
        (13, "routes[0].upstream"),
        (14, "routes[1].path"),
        (15, "routes[2].path"),
        (16, "lease"),
        (17, "secret_key"),
    ]
    messages = [problem.message for problem in problems]
    assert 'did you mean "app"?' in messages[8]
    assert "(line 13)" in messages[10]
    assert not any("pw" in message or "too-short" in message for message in messages)


def test_the_other_fields_of_a_route_with_an_invalid_field_are_checked(bad: Check) -> None:
    problems = bad(MINIMAL + "  - { path: '/x', upstream: nowhere, allow: [slash], entity: things }\n")
    assert sorted(shown(problems)) == [(7, "routes[1].allow[0]"), (7, "routes[1].upstream")]


def test_a_broken_upstream_is_not_also_unknown_to_its_routes(bad: Check) -> None:
    problems = bad("upstreams:\n  app: { server: x }\nroutes:\n  - { path: '/{entity}', upstream: app }\n")
    assert shown(problems) == [(2, "upstreams.app.servers"), (2, "upstreams.app.server")]
    assert problems[1].message == 'unknown setting "server"; did you mean "servers"?'


def test_upstreams_that_are_not_a_section_hide_only_dependent_problems(bad: Check) -> None:
    problems = bad("upstreams: [app]\nroutes:\n  - { path: '/x', upstream: app }\n")
    assert shown(problems) == [(1, "upstreams"), (3, "routes[0].entity")]


def test_a_route_without_a_path_keeps_the_index_of_the_others(bad: Check) -> None:
    problems = bad("routes:\n  - { access: public }\n  - 7\n  - { path: '/x', access: public }\n")
    assert shown(problems) == [
        (2, "routes[0].path"),
        (2, "routes[0].upstream"),
        (3, "routes[1]"),
        (4, "routes[2].upstream"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("workers: two", 'must be a whole number, not "two"'),
        ("workers: 1.5", 'must be a whole number, not "1.5"'),
        ("workers: true", "must be a whole number, not true"),
        ("workers:", "must be a whole number, but is empty"),
        ("workers: 1000", "must be at most 120"),
        ("brand: 12", 'must be text, not "12"'),
        ("routes: /x", 'must be a list, not "/x"'),
        ("limits: [1]", 'must be a section of "name: value" lines, not a list'),
        ("lease: 10ms", "must be at least 0.1 seconds"),
        ("lease: -5", "must be a duration such as 500ms, 2s, 5m or 30d"),
        ("limits: { body: 3 apples }", "must be a size such as 512, 32KiB, 10MiB or 1GB"),
        ("log: { level: warn }", 'must be debug, info, warning or error, not "warn"; did you mean "warning"?'),
        ("policy: { require_expiry: maybe }", 'must be true or false, not "maybe"'),
        ("credentials: []", "must not be empty"),
        ("credentials: [bearer, bearer]", '"bearer" is listed twice'),
        ("data_dir: ''", "must be a file path"),
        ("identity: { names: { who: X-A } }", "must be user, email, org, role, scopes, token, token_name or kind"),
        (
            "identity: { names: { user: Host } }",
            "the header for user already has a meaning and cannot carry an identity",
        ),
        ("identity: { preset: patgate, names: { user: X-A } }", "conflicts with preset; keep one of the two"),
        ("store: mysql://root:hunter2@db/x", "must be sqlite or postgresql://user@host/database"),
        ("argon2: { memory: 64KiB, parallelism: 8, threads: 0 }", "must be at least 1"),
        ("argon2: { memory: 64KiB, parallelism: 9 }", "must be at most 8"),
        ("wrokers: 2", 'unknown setting "wrokers"; did you mean "workers"?'),
        ("xyzzy: 2", 'unknown setting "xyzzy"'),
    ],
)
def test_a_mistake_has_a_plain_message(bad: Check, text: str, message: str) -> None:
    [problem] = bad(text)
    assert message in problem.message
    assert problem.line == 1
    assert "hunter2" not in problem.message


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("{ path: /x, entity: a }", "upstream", "is required here, because the route is not denied"),
        ("{ path: /x, upstream: app }", "entity", "is required here, because the path has no {entity}"),
        ("{ path: '/{entity}', upstream: app, entity: a }", "entity", "conflicts with {entity} in the path"),
        (
            "{ path: /x, upstream: app, access: public, entity: a }",
            "entity",
            "has no meaning on a route whose access is public",
        ),
        ("{ path: /x, upstream: app, access: opne }", "access", "must be token, public, passthrough or denied"),
        ("{ path: x, upstream: app, entity: a }", "path", '"x" is not a path pattern: '),
        ("{ path: /x, upstream: app, entity: '*' }", "entity", '"*" is not an entity'),
        ("{ path: /x, upstream: app, entity: a, operations: {} }", "operations", "must not be empty"),
        (
            "{ path: /x, upstream: app, entity: a, operations: { GET: '*' } }",
            "operations.GET",
            '"*" is not an operation',
        ),
        ("{ path: /x, upstream: app, entity: a, operations: { get: read } }", "operations.get", "written in capitals"),
        ("{ path: /x, upstream: app, entity: a, operations: { HEAD: read } }", "operations.HEAD", "HEAD counts as GET"),
        ("{ path: /x, upstream: app, entity: a, methods: [CONNECT] }", "methods[0]", "CONNECT is always refused"),
        (
            "{ path: /x, upstream: app, entity: a, methods: [GET], operations: { POST: create } }",
            "operations.POST",
            "names POST, which methods does not list",
        ),
        ("{ path: /x, upstream: app, entity: a, host: 'api.example.com:80' }", "host", "without a port"),
        ("{ path: /x, upstream: app, entity: a, host: 'a.*.com' }", "host", "is not a host"),
        ("{ path: /x, upstream: app, entity: a, host: '[:::::::]' }", "host", "no request can name it"),
        ("{ path: /x, upstream: app, entity: a, host: '127.1' }", "host", "no request can name it"),
        ("{ path: /x, upstream: app, entity: a, query: {} }", "query", "must not be empty"),
        ("{ path: /x, upstream: app, entity: a, query: { 'a%62': b } }", 'query["a%62"]', "is not a query parameter"),
        ("{ path: /x, upstream: app, entity: a, query: { a: 'b c' } }", "query.a", "is not a value for a condition"),
        ("{ path: /x, upstream: app, entity: a, query: { a: 'b*' } }", "query.a", "or * for any"),
        ("{ path: /x, upstream: app, entity: a, query: { a: 1 } }", "query.a", 'must be text, not "1"'),
        ("{ path: '/{a}', upstream: app, entity: a, id: '{b}' }", "id", "the path has no {b}"),
        ("{ path: '/{a}/{b}', upstream: app, entity: a, id: '{a}-{b}' }", "id", "two captures need a / between them"),
        (
            "{ path: '/{a}/{b}', upstream: app, entity: a, id: '{a}/{b}', allow: [encoded_slash] }",
            "id",
            "excludes encoded_slash in allow",
        ),
        ("{ path: '/{a}', access: denied, id: '{a}' }", "id", "has no meaning on a route whose access is denied"),
        ("{ path: /x, upstream: app, entity: a, strip_prefix: x }", "strip_prefix", "is not a prefix of a path"),
        ("{ path: /x, upstream: app, entity: a, strip_prefix: /y }", "strip_prefix", "does not fit the path"),
        ("{ path: '/{y}', upstream: app, entity: a, strip_prefix: '/{y}' }", "strip_prefix", "only literal segments"),
        ("{ path: /x/y, access: denied, strip_prefix: /x }", "strip_prefix", "nothing is forwarded"),
        ("{ path: /x, upstream: app, entity: a, fold_case: true }", "fold_case", "only on a denied route"),
    ],
)
def test_an_invalid_route_has_a_plain_message(bad: Check, text: str, path: str, message: str) -> None:
    [problem] = bad(f"upstreams: {{ app: {{ servers: ['http://h'] }} }}\nroutes:\n  - {text}\n")
    assert (problem.line, problem.path) == (3, f"routes[0].{path}")
    assert message in problem.message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("path: /a/**", "path: '/a/{x}/b'"),
        ("path: /a/**", "path: /a/"),
        ("path: /a/**", "path: /a/b/**"),
        ("path: '/{x}'", "path: /a"),
        ("path: '/{x}'", "path: '/{y}'"),
        ("path: /a, methods: [GET, PUT]", "path: /a, methods: [PUT]"),
        ("path: /a, host: '*.example.com'", "path: /a, host: x.y.example.com"),
        ("path: /a", "path: /a, host: example.com"),
        ("path: /a", "path: /a, query: {x: y}"),
        ("path: /a, query: {x: y}", "path: /a, query: {x: y, z: w}"),
        ("path: /a, query: {x: '*'}", "path: /a, query: {x: y}"),
        ("path: /a, query: {x: '*'}", "path: /a, query: {z: w, x: '*'}"),
        ("path: /Admin, fold_case: true", "path: /aDMIN"),
        ("path: /Admin/**, fold_case: true", "path: '/admin/{x}', fold_case: true"),
        ("path: '/{x}'", "path: /admin, fold_case: true"),
    ],
)
def test_a_route_that_can_never_match_is_a_mistake(bad: Check, first: str, second: str) -> None:
    [problem] = bad(f"routes:\n  - {{ {first}, access: denied }}\n  - {{ {second}, access: denied }}\n")
    assert (problem.line, problem.path) == (3, "routes[1].path")
    assert problem.message.startswith("can never match")
    assert problem.message.endswith("(line 2)")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("path: /a/**", "path: /a"),
        ("path: '/a/{x}'", "path: /a/"),
        ("path: '/a/{x}'", "path: /a/**"),
        ("path: /a", "path: '/{x}'"),
        ("path: /a", "path: /A"),
        ("path: /a, methods: [GET]", "path: /a"),
        ("path: /a, methods: [GET]", "path: /a, methods: [GET, PUT]"),
        ("path: /a, host: '*.example.com'", "path: /a, host: example.com"),
        ("path: /a, host: example.com", "path: /a"),
        ("path: /a, query: {x: y}", "path: /a"),
        ("path: /a, query: {x: y}", "path: /a, query: {x: z}"),
        ("path: /a, query: {x: y}", "path: /a, query: {x: '*'}"),
        ("path: /a, query: {x: '*'}", "path: /a, query: {z: '*'}"),
        ("path: /a, query: {x: '*'}", "path: /a"),
        ("path: /a, query: {x: y, z: w}", "path: /a, query: {x: y}"),
        ("path: /admin", "path: /admin, fold_case: true"),
        ("path: /7/admin/**", "path: /7/admin/x, fold_case: true"),
    ],
)
def test_a_route_that_can_still_match_is_accepted(good: Load, first: str, second: str) -> None:
    assert len(good(f"routes:\n  - {{ {first}, access: denied }}\n  - {{ {second}, access: denied }}\n").routes) == 2


@pytest.mark.parametrize(
    "trusted",
    [
        ["0.0.0.0/0"],
        ["::/0"],
        ["0.0.0.0/1", "128.0.0.0/1"],
        ["0.0.0.0/2", "64.0.0.0/2", "128.0.0.0/2", "192.0.0.0/2"],
        ["128.0.0.0/1"],
        ["2000::/3"],
        ["2000::/4", "3000::/4"],
        ["::/1", "8000::/1"],
        ["::/64"],
    ],
)
@pytest.mark.parametrize("listener", ["proxy", "forward_auth", "ext_authz"])
def test_trusting_everyone_is_refused_however_it_is_split(bad: Check, listener: str, trusted: list[str]) -> None:
    [problem] = bad(f"listen:\n  {listener}:\n    trusted: {trusted}\n")
    assert (problem.line, problem.path) == (3, f"listen.{listener}.trusted")
    assert problem.message.startswith("trusts ")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("10.0.0.1/24", "write 10.0.0.0/24 for the whole network"),
        ("::ffff:10.0.0.0/104", "write it as IPv4"),
        ("localhost", "is not a network"),
        ("10.0.0.0/33", "is not a network"),
    ],
)
def test_an_invalid_network_is_refused(bad: Check, network: str, message: str) -> None:
    [problem] = bad(f"listen: {{ proxy: {{ trusted: ['{network}'] }} }}")
    assert message in problem.message


@pytest.mark.parametrize(
    ("proxy", "control", "clash"),
    [
        ("127.0.0.1:80", "127.0.0.1:80", True),
        ("0.0.0.0:80", "127.0.0.1:80", True),
        ("[::]:80", "[::1]:80", True),
        ("0.0.0.0:80", "localhost:80", True),
        ("127.0.0.1:80", "127.0.0.2:80", False),
        ("127.0.0.1:80", "127.0.0.1:81", False),
        ("0.0.0.0:80", "[::]:80", False),
        ("127.0.0.1:0", "127.0.0.1:0", False),
    ],
)
def test_two_listeners_may_not_share_a_port(good: Load, proxy: str, control: str, clash: bool) -> None:
    text = f"listen:\n  proxy: {{ bind: '{proxy}' }}\n  control: {{ bind: '{control}' }}\n"
    if not clash:
        assert str(good(text).listen.control.bind) == control
        return
    with pytest.raises(ConfigurationError) as caught:
        good(text)
    [problem] = caught.value.problems
    assert (problem.line, problem.path) == (3, "listen.control.bind")
    assert "(line 2)" in problem.message


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("http://h/base", "must not have a path"),
        ("http://h?x=1", "must not have a query"),
        ("http://h#x", "must not have a fragment"),
        (f"http://user:{SECRET}@h", "must not contain a user name or password"),
        ("ftp://h", "must begin with http://"),
        ("h:80", "must begin with http://"),
        ("http://", "must begin with http://"),
        ("http://h:0", "the port must be a number from 1 to 65535"),
        ("http://h:", "the port must be a number"),
        ("http://1.2.3", "the host is not an IP address"),
        ("http://a b", "plain characters"),
        ("http://[::1", "is not an address"),
        ("unix:run/app.sock", "absolute path"),
        ("unix://host/app.sock", "absolute path"),
    ],
)
def test_an_invalid_server_is_refused_with_the_reason(bad: Check, server: str, message: str) -> None:
    [problem] = bad(f"upstreams:\n  app:\n    servers: ['{server}']\n")
    assert (problem.line, problem.path) == (3, "upstreams.app.servers[0]")
    assert message in problem.message
    assert SECRET not in problem.message


def test_a_server_listed_twice_and_useless_tls_are_mistakes(bad: Check) -> None:
    problems = bad("upstreams:\n  app:\n    servers: ['http://h', 'http://h:80/']\n    tls: { verify: false }\n")
    assert shown(problems) == [(3, "upstreams.app.servers[1]"), (4, "upstreams.app.tls")]


def test_missing_or_mismatched_tls_files_are_mistakes(bad: Check, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nothing")
    problems = bad(
        "listen: { proxy: { tls: { certificate: cert.pem, key: none.pem } } }\n"
        "upstreams: { app: { servers: ['https://h'], tls: { ca: cert.pem } } }\n"
    )
    assert shown(problems) == [(1, "listen.proxy.tls.key"), (2, "upstreams.app.tls.ca")]
    assert problems[0].message.endswith("cannot be read: No such file or directory")
    [problem] = bad("listen: { proxy: { tls: { certificate: cert.pem, key: cert.pem } } }")
    assert "are not a PEM pair" in problem.message


@pytest.mark.parametrize(
    ("health", "place", "message"),
    [
        ("{ interval: 1s }", "path", "is required here"),
        ("{ path: healthz }", "path", "must be a path such as /healthz"),
        ("{ path: '/a b' }", "path", "must be a path such as /healthz"),
        ("{ path: '/a#b' }", "path", "must be a path such as /healthz"),
        ("{ path: /, host: 'a/b' }", "host", "neither an IP address nor a host name"),
        ("{ path: /, host: 'a:x' }", "host", "the port must be a number"),
        ("{ path: /, interval: 0s }", "interval", "must be more than 0 seconds"),
        ("{ path: /, rise: 0 }", "rise", "must be at least 1"),
        ("{ path: /, expect: [] }", "expect", "must not be empty"),
        ("{ path: /, expect: 200 }", "expect", "must be a list"),
        ("{ path: /, expect: [2xx] }", "expect[0]", "must be a status such as 200"),
        ("{ path: /, expect: [399..200] }", "expect[0]", "must be a status such as 200"),
        ("{ path: /, expect: [101] }", "expect[0]", "must be a status such as 200"),
        ("{ path: /, expect: [true] }", "expect[0]", "must be a status such as 200"),
    ],
)
def test_an_invalid_health_check_is_refused_with_the_reason(bad: Check, health: str, place: str, message: str) -> None:
    [problem] = bad(f"upstreams:\n  app:\n    servers: ['http://h']\n    health: {health}\n")
    assert (problem.line, problem.path) == (4, f"upstreams.app.health.{place}")
    assert message in problem.message


def test_a_health_check_survives_the_json_for_workers(good: Load) -> None:
    settings = good(
        "upstreams:\n  app:\n    servers: ['http://h']\n"
        "    health: { path: '/up?deep=1', host: 'App.Internal:81', expect: [200..299, 401] }\n"
    )
    handed = Settings.from_boot_json(settings.to_worker_json()).upstreams["app"].health
    assert handed == settings.upstreams["app"].health
    assert handed is not None
    assert (handed.path, handed.host) == ("/up?deep=1", "app.internal:81")
    assert [str(each) for each in handed.expect] == ["200..299", "401"]
    assert [status in handed.expect[0] for status in (199, 200, 299, 300)] == [False, True, True, False]


def test_a_client_certificate_needs_its_key_and_both_files_at_their_lines(bad: Check, tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("nothing")
    start = "upstreams:\n  app:\n    servers: ['https://h']\n    tls:\n"
    for text, line, place, message in (
        ("      certificate: cert.pem\n", 5, "certificate", "is given without its key"),
        ("      key: cert.pem\n", 5, "key", "is given without its certificate"),
        ("      certificate: cert.pem\n      key: none.pem\n", 6, "key", "cannot be read"),
        ("      certificate: none.pem\n      key: cert.pem\n", 5, "certificate", "cannot be read"),
        ("      certificate: cert.pem\n      key: cert.pem\n", 6, "key", "are not a PEM pair"),
        ("      name: 10.0.0.1\n", 5, "name", "must be a host name"),
    ):
        [problem] = bad(start + text)
        assert (problem.line, problem.path) == (line, f"upstreams.app.tls.{place}")
        assert message in problem.message


def test_a_missing_configuration_file_is_reported_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^The configuration file .*none.yaml\" cannot be read: No such file or directory\.$"
    ):
        load(tmp_path / ("deep" * 12) / "none.yaml", {})


@pytest.mark.parametrize("text", ["- a\n", "text\n", "12\n"])
def test_a_file_that_is_not_a_mapping_is_one_problem(bad: Check, text: str) -> None:
    [problem] = bad(text)
    assert (problem.line, problem.message) == (1, 'must be "name: value" lines, such as brand: acme')


def test_values_that_may_be_secret_are_never_echoed(bad: Check) -> None:
    problems = bad(
        f"secret_key: {SECRET}\nstore: {SECRET}\nstore_session: {SECRET}\nunknown: {SECRET}\nfailover: sure\n"
    )
    assert len(problems) == 5
    assert SECRET not in " ".join(map(str, problems))
    for name in ("secret_key", "store_password"):
        [problem] = bad(f"{name}: [{SECRET}]\n")
        assert SECRET not in str(problem)


def test_quoted_values_are_escaped_and_short(bad: Check) -> None:
    problems = bad('brand: "a\\e[31m\\r\\n\\"é' + "x" * 500 + '"\n"\\e[2J": 1\n')
    for problem in problems:
        assert str(problem).isascii() or "…" in str(problem)
        assert str(problem).replace("…", "").isprintable()
        assert len(str(problem)) < 250
