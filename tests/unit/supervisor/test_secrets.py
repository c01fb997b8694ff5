"""The root secret reaches the authority and no other process."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from tests.support import operate
from tests.support.gateway import Patgate
from tests.support.process import wait_until

KEY = "root-secret-of-this-test-0123456789abcdef"


CONFIG = {"upstreams": {"app": {"servers": ["http://127.0.0.1:9"]}}, "workers": 1}


def test_a_worker_has_no_secret_in_its_environment_or_settings(tmp_path: Path) -> None:
    with Patgate(tmp_path, CONFIG, environ={"PATGATE_SECRET_KEY": KEY}) as gateway:
        workers = gateway.worker_pids()
        assert workers
        for pid in workers:
            process = Path(f"/proc/{pid}")
            environ = (process / "environ").read_bytes().split(b"\0")
            ours = {line.partition(b"=")[0] for line in environ if line.startswith(b"PATGATE_")}
            assert ours == {b"PATGATE_PACKAGE"}
            for descriptor in os.listdir(process / "fd"):
                path = process / "fd" / descriptor
                with suppress(FileNotFoundError):  # closed since it was listed, for example a connection
                    if os.readlink(path).startswith("/memfd:"):
                        assert KEY.encode() not in path.read_bytes()


def test_sighup_without_a_terminal_ends_no_process(tmp_path: Path) -> None:
    with Patgate(tmp_path, CONFIG) as gateway:
        workers = gateway.worker_pids()
        os.kill(gateway.process.pid, signal.SIGHUP)
        for pid in workers:
            os.kill(pid, signal.SIGHUP)
        wait_until(lambda: operate.outcomes(gateway), "the end of the reload", process=gateway.process)
        assert operate.outcomes(gateway) == [operate.RELOADED]
        assert gateway.cli("user", "list") == []
        assert gateway.worker_pids() == workers
