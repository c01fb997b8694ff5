"""``patgate doctor`` finds what is wrong in real deployments, each fault by its name, and nothing in sound ones."""

from __future__ import annotations

import getpass
import json
import re
import shutil
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.cli.doctor import examination
from proxy.cli.doctor.deployment import outward_address
from tests.support.backends import program
from tests.support.certificates import pair
from tests.support.command import command
from tests.support.gateway import ROOT, Patgate, Token, clean_environ
from tests.support.ingress import INGRESS, INGRESSES, NGINX_MAIN, asked_port
from tests.support.leaks import SECRETS
from tests.support.plugin import EDITOR, ROLES
from tests.support.pool import Pool
from tests.support.process import LOOPBACK, Process, accepts, free_port, wait_until
from tests.support.recorder import Recorded, Recorder

ECHO = "/v1/things/1"
SITE = next(file for file in (INGRESS / "nginx.conf", INGRESS / "nginx" / "nginx.conf") if file.exists())
#: Until the shipped file builds refusals from headers, nginx makes pages of its own of them, and a 500 of a 400.
LOST_BY_NGINX = set() if "x_patgate_reason" in SITE.read_text() else {"refusals"}


@contextmanager
def whoami(directory: Path, host: str) -> Iterator[int]:
    port = free_port()
    argv = [sys.executable, "-m", "proxy", "whoami", "--bind", f"{host}:{port}"]
    with Process(argv, name="whoami", directory=directory, environ=clean_environ(None), cwd=ROOT) as process:
        wait_until(lambda: accepts(port), "whoami listening", process=process)
        yield port


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of ``patgate whoami``, which listens on this machine's loopback address only."""
    with whoami(tmp_path_factory.mktemp("echo"), LOOPBACK) as port:
        yield port


def configuration(echo: int, **proxy: Any) -> dict[str, Any]:
    return {
        "workers": 1,
        "listen": {
            "forward_auth": {"trusted": ["127.0.0.1/32"]},
            "ext_authz": {"trusted": ["127.0.0.1/32"]},
            "proxy": proxy,
        },
        "upstreams": {"app": {"servers": [f"http://{LOOPBACK}:{echo}"]}},
        "roles": ROLES,
        "routes": [
            {"path": "/healthz", "upstream": "app", "access": "public"},
            {"path": "/v1/{entity}/{id}", "upstream": "app"},
        ],
    }


@pytest.fixture(scope="module")
def node(gateways: Pool, echo: int) -> Iterator[Patgate]:
    with gateways.lend(configuration(echo)) as node:
        node.add_user(EDITOR, "editor")
        yield node


@pytest.fixture(scope="module")
def token(node: Patgate) -> Token:
    return node.token(EDITOR, name="doctor")


@contextmanager
def nginx(directory: Path, node: Patgate, application: int, change: Callable[[str], str]) -> Iterator[str]:
    """Start nginx with the shipped file, changed by ``change``; yield its URL."""
    port = free_port()
    site = SITE.read_text()
    for written, used in (
        ("server 127.0.0.1:8082;", f"server {LOOPBACK}:{node.forward_auth_port};"),
        ("server 127.0.0.1:3000;", f"server {LOOPBACK}:{application};"),
        ("listen 8080;", f"listen {LOOPBACK}:{port};"),
    ):
        assert written in site
        site = site.replace(written, used)
    changed = change(site)
    (directory / "site.conf").write_text(changed)
    (directory / "nginx.conf").write_text(changed)
    shutil.copy(SITE.parent / "nginx-claims.conf", directory)
    main = directory / "main.conf"
    main.write_text(NGINX_MAIN.format(directory=directory, user=getpass.getuser()))
    argv = [program("nginx"), "-c", str(main), "-p", str(directory), "-e", "stderr"]
    with Process(argv, name="nginx", directory=directory) as process:
        wait_until(lambda: accepts(port), "nginx listening", process=process)
        yield f"http://{LOOPBACK}:{port}"


def examine(
    url: str, *arguments: str, token: Token | None = None, config: Patgate | None = None
) -> dict[str, dict[str, str]]:
    """The findings of a run by their checks."""
    environ = {} if token is None else {"PATGATE_TOKEN": token.value}
    if config is not None:
        environ["PATGATE_CONFIG"] = str(config.config_file)
    done = command("doctor", url, *arguments, "--json", environ=environ)
    document = json.loads(done.stdout)
    found = {each["check"]: each for each in document["checks"]}
    assert tuple(found) == examination.CHECKS
    problems = [name for name, each in found.items() if each["verdict"] == "problem"]
    assert (done.returncode, document["ok"]) == ((1, False) if problems else (0, True))
    assert all(each["advice"] for name, each in found.items() if each["verdict"] == "problem")
    if token is not None:
        assert token.value not in done.stdout + done.stderr
    return found


def problems(found: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, each in found.items() if each["verdict"] == "problem"}


def skipped(found: dict[str, dict[str, str]]) -> set[str]:
    return {name for name, each in found.items() if each["verdict"] == "skipped"}


def without(*lines: str) -> Callable[[str], str]:
    """The file without these lines, given as expressions."""

    def change(site: str) -> str:
        for line in lines:
            assert re.search(line, site), line
            site = re.sub(rf"\n[ ]*{line}[^\n]*", "", site)
        return site

    return change


def replaced(before: str, after: str) -> Callable[[str], str]:
    def change(site: str) -> str:
        assert re.search(before, site), before
        return re.sub(before, after, site)

    return change


def open_on_errors(site: str) -> str:
    """Errors of the call lead to the application: the fault of a hook that permits what it cannot judge."""
    site = re.sub(r"\n[ ]*(error_page|proxy_intercept_errors)[^\n]*", "", site)
    site = site.replace("auth_request /patgate;", "auth_request /patgate;\n        error_page 403 500 = @open;")
    return site.rstrip().removesuffix("}") + "    location @open { proxy_pass http://application; }\n}\n"


BROKEN = {
    "a header that is not replaced": (without(r"proxy_set_header X-Auth-Role"), "identity-headers"),
    "aliases that pass": (replaced("underscores_in_headers off", "underscores_in_headers on"), "identity-headers"),
    "a nominated header": (
        replaced(
            r"proxy_set_header Connection \$websocket_connection;", "proxy_set_header Connection $http_connection;"
        ),
        "identity-headers",
    ),
    "the decoded path": (
        lambda site: site.replace("$request_uri;", "$decoded;").replace(
            "auth_request /", "set $decoded $uri;\n auth_request /"
        ),
        "paths",
    ),
    "another path to the application": (
        replaced("proxy_pass http://application;", "proxy_pass http://application$uri;"),
        "paths",
    ),
    "a path in proxy_pass": (replaced("proxy_pass http://application;", "proxy_pass http://application/;"), "paths"),
    "no call to patgate": (without("auth_request /patgate;"), "no-token"),
    "a target that the client describes": (
        without(r"proxy_set_header X-Original-Method", r"proxy_set_header X-Original-URI    \$request_uri"),
        "forged-target",
    ),
    "the client's own address": (
        replaced(r"X-Forwarded-For( +)\$remote_addr", r"X-Forwarded-For\1$proxy_add_x_forwarded_for"),
        "client-claims",
    ),
    "claims that pass": (without("include nginx-claims.conf"), "client-claims"),
    "the token that passes": (without("proxy_set_header Authorization"), "credential"),
    "every upgrade": (
        lambda site: site.replace("$websocket_upgrade;\n", "$http_upgrade;\n", 1).replace(
            "$websocket_connection;", "upgrade;", 1
        ),
        "upgrades",
    ),
    "errors that permit": (open_on_errors, "fail-open"),
    "a challenge that is lost": (
        lambda site: re.sub(r"\n[ ]*add_header WWW-Authenticate[^\n]*", "", site).replace(
            "location = /patgate {", "location = /patgate {\n        proxy_hide_header WWW-Authenticate;"
        ),
        "refusals",
    ),
}


@pytest.mark.parametrize("name", INGRESSES)
def test_an_ingress_with_its_shipped_file_has_no_problem(
    name: str, tmp_path: Path, node: Patgate, echo: int, token: Token
) -> None:
    with INGRESSES[name](tmp_path, application=echo, forward_auth=asked_port(name, node)) as ingress:
        found = examine(f"http://{LOOPBACK}:{ingress.port}", "--echo", ECHO, token=token, config=node)
    assert problems(found) == (LOST_BY_NGINX if name == "nginx" else set()), found
    assert skipped(found) == {"forward-auth"}


@pytest.mark.parametrize(
    ("change", "named"),
    BROKEN.values(),
    ids=list(BROKEN),
)
def test_a_broken_nginx_is_found_by_name(
    change: Callable[[str], str], named: str, tmp_path: Path, node: Patgate, echo: int, token: Token
) -> None:
    with nginx(tmp_path, node, echo, change) as url:
        found = examine(url, "--echo", ECHO, token=token)
    assert named in problems(found), found


OUTAGES: dict[str, tuple[Callable[[str], str], str, str]] = {
    "patgate is down": (
        replaced(r"(upstream patgate_forward_auth \{\s+server) [^;]+;", r"\1 127.0.0.1:9;"),
        "503 (unavailable)",
        "whether patgate runs",
    ),
    "the call goes to another ingress's path": (
        replaced("forward_auth/nginx;", "forward_auth/traefik?entity=things;"),
        "400 (requirement_invalid)",
        "its file in config/ingress",
    ),
    "the call does not describe the request": (
        without("proxy_set_header X-Original-Method"),
        "400 (forwarded_invalid)",
        "its file in config/ingress",
    ),
}


@pytest.mark.parametrize(("change", "seen", "advice"), OUTAGES.values(), ids=list(OUTAGES))
def test_an_ingress_that_gets_no_verdicts_is_told_what_to_look_at(
    change: Callable[[str], str], seen: str, advice: str, tmp_path: Path, node: Patgate, echo: int, token: Token
) -> None:
    with nginx(tmp_path, node, echo, change) as url:
        found = examine(url, "--echo", ECHO, token=token)
    assert problems(found) == {"refusals", "echo"}, found
    for name in ("refusals", "echo"):
        assert seen in found[name]["seen"]
        assert advice in found[name]["advice"]


def test_an_ingress_that_patgate_does_not_trust_is_told_which_setting_names_it(
    gateways: Pool, tmp_path: Path, echo: int
) -> None:
    config = configuration(echo)
    config["listen"]["forward_auth"]["trusted"] = ["192.0.2.0/24"]
    with gateways.lend(config) as strict, nginx(tmp_path, strict, echo, lambda site: site) as url:
        for path in ([], ["--path", ECHO]):
            found = examine(url, *path)
            assert problems(found) == {"refusals"}, found
            assert "403 (peer_untrusted)" in found["refusals"]["seen"]
            assert "listen.forward_auth.trusted" in found["refusals"]["advice"]


def test_a_backend_that_is_down_is_named_as_the_cause(node: Patgate, gateways: Pool, tmp_path: Path) -> None:
    closed = free_port()
    with gateways.lend(configuration(closed)) as lonely:
        lonely.add_user(EDITOR, "editor")
        token = lonely.token(EDITOR)
        behind_patgate = examine(lonely.base_url, "--echo", ECHO, token=token)
        with nginx(tmp_path, lonely, closed, lambda site: site) as url:
            behind_nginx = examine(url, "--echo", ECHO, token=token)
    assert problems(behind_patgate) == problems(behind_nginx) == {"echo"}
    assert "from the backend" in behind_patgate["echo"]["advice"]
    assert "from patgate or from the backend" in behind_nginx["echo"]["advice"]


def test_a_report_ends_with_the_number_of_checks_that_were_made(node: Patgate, token: Token) -> None:
    done = command("doctor", node.base_url, "--echo", ECHO, environ={"PATGATE_TOKEN": token.value})
    assert done.stderr == "The 12 checks that were made found no problem; 2 were skipped.\n"


def test_patgate_itself_has_no_problem_with_or_without_its_configuration(node: Patgate, token: Token) -> None:
    found = examine(node.base_url, "--echo", ECHO, token=token, config=node)
    assert problems(found) == set(), found
    assert skipped(found) == {"forward-auth"}
    found = examine(node.base_url, "--echo", ECHO, token=token)
    assert problems(found) == set(), found
    assert skipped(found) == {"backends", "forward-auth"}


def test_without_a_token_it_checks_what_is_seen_from_outside_and_names_the_rest(node: Patgate) -> None:
    found = examine(node.base_url, "--path", ECHO)
    assert problems(found) == set(), found
    arrivals = {"echo", "identity-headers", "client-claims", "credential", "upgrades"}
    assert skipped(found) == {*arrivals, "backends", "forward-auth"}
    assert all("PATGATE_TOKEN" in found[name]["advice"] for name in arrivals)


def test_a_path_that_it_chose_itself_and_that_is_open_is_no_problem(echo: int) -> None:
    found = examine(f"http://{LOOPBACK}:{echo}")
    assert "paths" in problems(found)
    assert {"no-token", "wrong-token", "fail-open", "forged-target", "refusals"} <= skipped(found)
    assert "--path" in found["no-token"]["advice"]


def test_a_gateway_that_trusts_this_machine_is_found(gateways: Pool, echo: int) -> None:
    with gateways.lend(configuration(echo, trusted=["127.0.0.1/32"])) as node:
        node.add_user(EDITOR, "editor")
        found = examine(node.base_url, "--echo", ECHO, token=node.token(EDITOR))
    assert problems(found) == {"client-claims"}, found
    assert "X-Forwarded-For" in found["client-claims"]["seen"]


def test_a_forward_auth_listener_that_trusts_this_machine_is_found(gateways: Pool, echo: int, node: Patgate) -> None:
    listener = f"http://{LOOPBACK}:{node.forward_auth_port}"
    found = examine(node.base_url, "--path", ECHO, "--forward-auth", listener)
    assert problems(found) == {"forward-auth"}, found
    config = configuration(echo)
    config["listen"]["forward_auth"]["trusted"] = ["192.0.2.0/24"]
    with gateways.lend(config) as strict:
        listener = f"http://{LOOPBACK}:{strict.forward_auth_port}"
        found = examine(strict.base_url, "--path", ECHO, "--forward-auth", listener)
    assert found["forward-auth"]["verdict"] == "ok", found


def test_a_backend_that_answers_around_patgate_is_found(node: Patgate, tmp_path: Path, token: Token) -> None:
    outward = outward_address()
    with whoami(tmp_path, "0.0.0.0") as port:
        for named in (LOOPBACK, outward or LOOPBACK):
            found = examine(node.base_url, "--path", ECHO, "--backend", f"http://{named}:{port}", token=token)
            if outward is None:
                assert found["backends"]["verdict"] == "ok"  # a machine without a network
            else:
                assert problems(found) == {"backends"}, found
                assert f"http://{outward}:{port} answers 200" in found["backends"]["seen"]


def test_a_backend_that_only_its_own_machine_reaches_is_no_problem(node: Patgate, echo: int) -> None:
    found = examine(node.base_url, "--path", ECHO, "--backend", f"http://{LOOPBACK}:{echo}")
    assert found["backends"]["verdict"] == "ok", found
    closed = f"http://{LOOPBACK}:{free_port()}"
    assert examine(node.base_url, "--path", ECHO, "--backend", closed)["backends"]["verdict"] == "ok"


def test_what_lies_around_patgate_gets_no_token_from_it(node: Patgate, token: Token) -> None:
    """Every recorder fails the run if a token's secret reaches it."""
    assert token.value in SECRETS
    with Recorder(watched=False) as listener, Recorder(watched=False, host="0.0.0.0") as backend:
        examine(node.base_url, "--path", ECHO, "--backend", backend.url, "--forward-auth", listener.url, token=token)
        requests = [*backend.requests, *listener.requests]
        assert [b"Authorization" in request.head for request in requests] == [False] * (1 + bool(outward_address()))


def test_a_backend_of_the_configuration_that_listens_on_every_address_is_found(gateways: Pool, tmp_path: Path) -> None:
    outward = outward_address()
    with whoami(tmp_path, "0.0.0.0") as port, gateways.lend(configuration(port)) as node:
        found = examine(node.base_url, "--path", ECHO, config=node)
    if outward is None:
        assert found["backends"]["verdict"] == "ok"  # a machine without a network
    else:
        assert problems(found) == {"backends"}, found
        assert f"http://{outward}:{port}" in found["backends"]["seen"]


def test_an_address_where_nothing_or_no_http_answers_is_the_problem(tmp_path: Path) -> None:
    found = examine(f"http://{LOOPBACK}:{free_port()}")
    assert problems(found) == {"answers"}
    assert len(skipped(found)) == len(found) - 1
    with Recorder(lambda _: b"SSH-2.0-OpenSSH_9.2\r\n", watched=False) as server:
        found = examine(server.url)
    assert problems(found) == {"answers"}
    assert "not HTTP" in found["answers"]["seen"]


def test_what_a_server_answers_cannot_control_the_terminal() -> None:
    def script(request: Recorded) -> bytes:
        body = json.dumps({"path": "/\x1b[2J", "headers": [["X-\x1b[2J", "doctor-spoofed"], ["X-Auth-User", "u"]]})
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    with Recorder(script, watched=False) as server:
        done = command("doctor", server.url, "--echo", "/x", environ={"PATGATE_TOKEN": "acme_pat_x"})
    assert done.returncode == 1
    assert "\x1b" not in done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(examination.CHECKS)


def test_the_number_of_requests_is_fixed_and_small() -> None:
    """A server that serves everything gets them all: no request ends a check early."""

    def script(request: Recorded) -> bytes:
        headers = [[name.decode(), value.decode()] for name, value in request.headers]
        body = (
            json.dumps({"path": request.target.decode(), "headers": headers}) if b"Bearer acme" in request.head else ""
        )
        status = "200 OK" if body else "401 Unauthorized"
        return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()

    with Recorder(script, watched=False) as server:
        examine(server.url, "--echo", ECHO, token=Token(id="", prefix="", value="acme_pat_x"))
        first = len(server.requests)
        examine(server.url, "--echo", ECHO, token=Token(id="", prefix="", value="acme_pat_x"))
        assert len(server.requests) == 2 * first < 90


def test_the_token_comes_from_the_environment_or_standard_input_and_never_from_an_argument(node: Patgate) -> None:
    done = command("doctor", node.base_url, "--token", "acme_pat_value", environ={})
    assert (done.returncode, "'-'" in done.stderr) == (2, True)
    done = command("doctor", node.base_url, "--token", "-", environ={})
    assert (done.returncode, done.stderr) == (1, "There is no token on standard input.\n")
    done = command("doctor", node.base_url, environ={"PATGATE_TOKEN": "two words"})
    assert (done.returncode, "two words" in done.stderr) == (1, False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["ftp://x"],
        ["http://user:hunter2@x"],
        ["http://x/path"],
        ["http://x?q"],
        ["http://x:99999"],
        ["http://x", "--path", "/a/../b"],
        ["http://x", "--echo", "no-slash"],
        ["http://x", "--insecure", "--ca", __file__],
        ["http://x", "--echo", "/a", "--path", "/b"],
    ],
)
def test_what_it_cannot_probe_is_a_usage_error(arguments: list[str]) -> None:
    done = command("doctor", *arguments, environ={})
    assert done.returncode == 2
    assert "hunter2" not in done.stderr


def test_a_certificate_is_verified_unless_it_is_told_not_to(tmp_path: Path) -> None:
    made = pair(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    listener = socket.create_server((LOOPBACK, 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(client, server_side=True) as wrapped:
                    wrapped.recv(65536)
                    wrapped.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
            except OSError:
                continue

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    url = f"https://{LOOPBACK}:{listener.getsockname()[1]}"
    try:
        assert "certificate is not accepted" in examine(url)["answers"]["seen"]
        assert examine(url, "--insecure")["answers"]["verdict"] == "ok"
        assert examine(url, "--ca", str(made.certificate))["answers"]["verdict"] == "ok"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(10)
