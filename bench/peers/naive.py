"""The gateway one would write in an afternoon: an aiohttp server and a ClientSession (``naive_server.py``)."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.load.workload import all_paths
from bench.peers import Serving, Site
from bench.system.daemon import run_daemon
from bench.system.nginx import free_port

_SERVER: Final = Path(__file__).with_name("naive_server.py")


class Naive:
    """aiohttp in the environment that patgate runs in."""

    name = "aiohttp"
    does = (
        "aiohttp is `bench/peers/naive_server.py`: the token looked up in a `dict`, the request sent on by a "
        "`ClientSession` with one identity header, the answer read and returned; access log off, asyncio's own loop."
    )

    @contextmanager
    def serve(self, site: Site) -> Iterator[Serving]:
        directory, port = site.directory / self.name, free_port()
        directory.mkdir()
        with run_daemon(
            [sys.executable, str(_SERVER), str(port), str(site.origin_port), str(site.workload.tokens_file)],
            directory,
            port=port,
            path=all_paths()[0],
            token=site.workload.tokens[0],
            cores=site.cores.subject,
        ) as pid:
            yield Serving(port=port, workers=(pid,))
