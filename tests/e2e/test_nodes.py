"""Two gateways on one PostgreSQL, as an operator sees them: they list each other, and show nobody the password."""

from __future__ import annotations

from pathlib import Path

from proxy.settings.store_urls import PostgresqlUrl
from tests.support.gateway import Patgate
from tests.support.process import wait_until
from tests.support.recorder import Recorder

KEY = "0123456789abcdef" * 4
OWNER = "eve@example.org"
TARGET = "/v1/things/1"


def test_nodes_list_each_other_revoke_for_each_other_and_show_no_password(
    tmp_path: Path, recorder: Recorder, postgres_url: str
) -> None:
    secret = PostgresqlUrl.parse(postgres_url).password
    assert len(secret) > 5
    password = tmp_path / "password"
    password.touch(0o600)
    password.write_text(secret + "\n")
    config = {
        "workers": 1,
        "store": postgres_url.replace(f":{secret}@", "@"),
        "lease": "10s",
        "upstreams": {"app": {"servers": [recorder.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }
    environ = {"PATGATE_STORE_PASSWORD_FILE": str(password), "PATGATE_SECRET_KEY": KEY}
    with Patgate(tmp_path / "a", config, environ=environ) as a, Patgate(tmp_path / "b", config, environ=environ) as b:
        for node, own in ((a, 0), (b, 1)):
            listed = node.cli("nodes")
            assert [(one["self"], one["config_matches"]) for one in listed] == [(own == 0, True), (own == 1, True)]
            lines = node.run("nodes").stdout.splitlines()
            assert len(lines) == 4 and max(map(len, lines)) <= 80
            assert [line.split()[0] == "*" for line in lines[2:]] == [own == 0, own == 1]
        a.add_user(OWNER, "editor")
        token = a.token(OWNER)
        with b.connect() as connection:

            def status() -> int:
                return connection.request("GET", TARGET, headers=token.bearer).status

            wait_until(lambda: status() == 200, "a decision of the other node")
            a.cli("token", "revoke", token.id)
            assert status() == 401
        refused = b.run("nodes", "accept", "--yes")
        assert (refused.returncode, "nothing to accept" in refused.stderr) == (1, True)
        for node in (a, b):
            for pid in (node.process.pid, node.authority_pid(), *node.all_workers()):
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
                assert secret.encode() not in arguments and KEY.encode() not in arguments
            assert secret not in node.log and KEY not in node.log
            for file in node.data.iterdir():
                assert not file.is_file() or secret.encode() not in file.read_bytes()
