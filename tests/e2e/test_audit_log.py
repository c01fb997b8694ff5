"""The audit log of a running gateway: logged heads, detection of a truncated end, command-line users as actors."""

from __future__ import annotations

import json
import os
import pwd
import sqlite3
import sys
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import operate
from tests.support.gateway import ROOT, Patgate
from tests.support.process import Process, wait_until
from tests.support.recorder import Recorder

ME = f"uid:{os.geteuid()}"
NAMED = f"{pwd.getpwuid(os.geteuid()).pw_name} (uid {os.geteuid()})"


def config_of(recorder: Recorder) -> dict[str, Any]:
    return {
        "workers": 1,
        "upstreams": {"app": {"servers": [recorder.url]}},
        "roles": {"editor": ["things:*"]},
        "routes": [{"path": "/v1/{entity}/{id}", "upstream": "app"}],
    }


def heads(node: Patgate) -> list[str]:
    """The audit log heads that this node has logged, oldest first."""
    return [record["head"] for record in node.records() if record.get("event") == "audit log head"]


def cut(node: Patgate, events: int) -> None:
    """Delete the newest events, and set the store's head back so that they seem never to have existed."""
    with sqlite3.connect(node.data / "patgate.db") as file:
        ((last,),) = file.execute("SELECT max(n) FROM audit_events").fetchall()
        file.execute("DELETE FROM audit_events WHERE n > ?", (last - events,))
        file.execute(
            "UPDATE audit_chain SET head_n = ?, head_hash = (SELECT hash FROM audit_events WHERE n = ?)",
            (last - events, last - events),
        )
    file.close()


def test_a_log_whose_end_was_cut_off_is_found_by_the_heads_that_the_gateway_logged(
    tmp_path: Path, recorder: Recorder
) -> None:
    with Patgate(tmp_path, config_of(recorder)) as node:
        node.expects("the audit log is not whole")
        first = wait_until(lambda: heads(node), "the head in the log", process=node.process)[0]
        node.add_user("ada@example.org", "editor")
        assert operate.metric(node, "patgate_audit_last_sequence") >= int(first.partition(":")[0]) + 1
        assert operate.metric(node, "patgate_audit_end_whole") == 1
        with node.connect() as connection:
            changes = operate.metric(node, "patgate_audit_last_sequence")
            for _ in range(3):
                assert connection.request("GET", "/v1/things/1").status == 401
        # What a busy worker cannot report in a second is lost when it ends.
        wait_until(lambda: operate.metric(node, "patgate_audit_last_sequence") >= changes + 3, "the events recorded")
        node.stop()
        last = heads(node)[-1]
        assert last != first, "said at the end, with what came last"
        for head in (first, last):
            assert node.here("audit", "verify", "--head", head).returncode == 0
        # These two are events of requests, so no change lacks its event.
        cut(node, 2)
        assert node.here("audit", "verify").returncode == 0
        done = node.here("audit", "verify", "--head", last)
        assert done.returncode == 1
        assert f"before event {last.partition(':')[0]} whose hash was given" in done.stderr
        # Now the event of a change is missing, too.
        cut(node, 2)
        done = node.here("audit", "verify")
        assert done.returncode == 1
        assert "the event of change" in done.stderr
        node.start()
        told = wait_until(
            lambda: [one for one in node.records() if one.get("event") == "the audit log is not whole"],
            "the error",
            process=node.process,
        )
        assert (told[0]["level"], "the event of change" in told[0]["problem"]) == ("error", True)
        assert operate.metric(node, "patgate_audit_end_whole") == 0


def test_who_is_at_the_command_line_is_named_whether_a_gateway_runs_or_not(tmp_path: Path, recorder: Recorder) -> None:
    def actors(node: Patgate) -> dict[str, tuple[str, str, str]]:
        events = node.cli("audit", "--action", "account.user.add")
        return {one["target_name"]: (one["actor_kind"], one["actor_id"], one["actor_name"]) for one in events}

    with Patgate(tmp_path, config_of(recorder)) as node:
        assert node.run("user", "add", "ada@example.org", "--role", "editor").returncode == 0
        node.stop()
        assert node.run("user", "add", "bob@example.org", "--role", "editor").returncode == 0
        found = actors(node)
        assert found == dict.fromkeys(("ada@example.org", "bob@example.org"), ("system", ME, NAMED))
        assert NAMED in node.run("audit", "--action", "account.user.add").stdout
        reads = node.cli("audit", "--action", "api.audit.list")
        assert {(one["actor_id"], one["details"]["filter"]["action"]) for one in reads} >= {(ME, "account.user.add")}


def _shows(process: Process, text: str) -> bool:
    return text in process.output


def test_following_the_log_for_many_polls_is_one_read(tmp_path: Path, recorder: Recorder) -> None:
    with Patgate(tmp_path, config_of(recorder)) as node:
        command = [sys.executable, "-m", "proxy", "audit", "--follow", "--json", "--action", "account.user."]
        command += ["--config", str(node.config_file)]
        follower = Process(command, name="follow", directory=tmp_path, environ=node.environ, cwd=ROOT)
        try:
            for number in range(4):
                node.add_user(f"p{number}@example.org", "editor")
                wait_until(partial(_shows, follower, f"p{number}@"), "the event", process=follower)
        finally:
            follower.end()
        reads = wait_until(
            lambda: node.cli("audit", "--action", "api.audit.list", "--actor", ME)[1:],
            "the events of the reads",
            process=node.process,
        )
        ours = [one for one in node.cli("audit", "--action", "api.audit.list") if "account.user." in json.dumps(one)]
        assert reads and [one["details"]["order"] for one in ours] == ["recorded", "newest"]
