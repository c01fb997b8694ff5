"""patgate itself: one worker, the embedded store, everything on except the access log, as ``patgate serve`` runs it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.datasets.tokens import fill
from bench.errors import BenchError
from bench.load.workload import BRAND, ENTITIES
from bench.load.wrk import ask
from bench.peers import Pair, Serving, Site
from bench.system.build import Build, chosen
from bench.system.machine import command_line, descendants, pin, until
from bench.system.nginx import free_port

_CONFIGURATION = """\
brand: {brand}
data_dir: {data_dir}
workers: 1
listen:
  proxy: {{ bind: "127.0.0.1:{port}"{tls} }}
{entry}  control: {{ bind: "127.0.0.1:{control}" }}
upstreams:
  origin: {{ servers: ["http://127.0.0.1:{origin}"] }}
roles:
  admin: ["*:*"]
  editor: [{editor}]
  viewer: ["*:read", "*:list"]
routes:
  - {{ path: "/healthz", upstream: origin, access: public }}
  - {{ path: "/ui/**", upstream: origin, access: passthrough }}
  - {{ path: "/billing/**", upstream: origin, access: denied }}
  - path: "/v1/channels/{{id}}/messages"
    upstream: origin
    entity: channels
    operations: {{ POST: publish, GET: subscribe }}
  - {{ path: "/v1/{{entity}}", upstream: origin }}
  - {{ path: "/v1/{{entity}}/{{id}}", upstream: origin }}
  - {{ path: "/orgs/{{org}}/things/{{id}}", upstream: origin, entity: things }}
log: {{ access: "{access}" }}
{store}"""
#: Run by another checkout's own modules, of any version: this module and these two names of it are in all of them.
_INSTALL = """
import json, sys
from pathlib import Path
from bench.peers.patgate import fill, install
site = json.loads(sys.argv[1])
options = {}
if site["pair"]:
    from bench.peers import Pair
    options["pair"] = Pair(certificate=Path(site["pair"][0]), key=Path(site["pair"][1]))
made = install(Path(site["directory"]), site["origin"], **options)
fill(made.data_dir, Path(site["tokens"]).read_text().split())
ports = {"port": made.port, "control": made.control}
print(json.dumps({"config": str(made.config), "data_dir": str(made.data_dir), **ports}))
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Installation:
    """A configuration file and the ports that it names, in a directory of its own."""

    config: Path
    data_dir: Path
    port: int
    control: int
    forward_auth: int | None = None
    ext_authz: int | None = None

    def ready(self) -> bool:
        """Whether /readyz answers 200 now."""
        try:
            return ask(self.control, "/readyz")[0] == 200
        except OSError:
            return False

    def compiled(self) -> bool | None:
        """Whether the gateway logged that it is compiled; None before it has."""
        found = re.search(r'"compiled":(true|false)', self.config.with_name("serve.log").read_text(errors="replace"))
        return found and found[1] == "true"

    def log_end(self, characters: int = 1500) -> str:
        """The end of the log of its processes."""
        return self.config.with_name("serve.log").read_text(errors="replace").strip()[-characters:]


def install(
    directory: Path,
    origin_port: int,
    *,
    access: str = "off",
    pair: Pair | None = None,
    for_ingresses: bool = False,
    store: str = "",
    secret_key: str = "",
) -> Installation:
    """Write the configuration into ``directory``, with ``log.access``; the data directory is not created.

    With ``pair`` the proxy listener speaks TLS; with ``for_ingresses`` there are the listeners ``forward_auth`` and
    ``ext_authz`` as well. With ``store`` (an address of PostgreSQL) it needs a ``secret_key``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    data_dir, port, control = directory / "data", free_port(), free_port()
    editor = ", ".join(f'"{entity}:*"' for entity in ENTITIES)
    config = directory / "patgate.yaml"
    entries = {name: free_port() for name in ("forward_auth", "ext_authz") if for_ingresses}
    entry = "".join(
        f'  {name}: {{ bind: "127.0.0.1:{own}", trusted: ["127.0.0.1/32"] }}\n' for name, own in entries.items()
    )
    tls = f', tls: {{ certificate: "{pair.certificate}", key: "{pair.key}" }}' if pair else ""
    config.write_text(
        _CONFIGURATION.format(
            brand=BRAND,
            data_dir=data_dir,
            port=port,
            control=control,
            origin=origin_port,
            editor=editor,
            access=access,
            tls=tls,
            entry=entry,
            store=f'store: "{store}"\nsecret_key: "{secret_key}"\n' if store else "",
        )
    )
    return Installation(config=config, data_dir=data_dir, port=port, control=control, **entries)


def start(installation: Installation, build: Build | None = None) -> subprocess.Popen[bytes]:
    """Execute ``patgate serve`` of ``build``, or of the chosen one; its log goes beside its configuration."""
    command = [sys.executable, "-m", "proxy", "serve", "--config", str(installation.config)]
    with installation.config.with_name("serve.log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=installation.config.parent, stdout=subprocess.DEVNULL, stderr=log,
            env=(build or chosen()).environ(),
        )  # fmt: skip


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it as an operator would, and at once if it does not."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def processes(supervisor: int) -> Mapping[str, int]:
    """The processes below the supervisor by role. Raises BenchError unless there is one authority and one gateway."""
    found: dict[str, int] = {}
    for pid in descendants(supervisor):
        for role in ("authority", "gateway"):
            if role in command_line(pid):
                if role in found:
                    raise BenchError(f"patgate runs more than one {role}.")
                found[role] = pid
    if len(found) != 2:
        raise BenchError("patgate is up without a gateway or without an authority.")
    return found


@contextmanager
def running(installation: Installation, build: Build | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """``patgate serve`` from ready until the context ends. Raises BenchError with the end of its log if it fails."""
    process = start(installation, build)
    try:
        try:
            until(lambda: process.poll() is not None or installation.ready(), "patgate answers 200 on /readyz", 60)
        except BenchError as error:
            raise BenchError(f"{error} Its log ends: {installation.log_end()}") from None
        if process.poll() is not None:
            raise BenchError(f"patgate ended with status {process.returncode}. Its log ends: {installation.log_end()}")
        until(lambda: installation.compiled() is not None, "patgate says which build it is")
        (build or chosen()).check(processes(process.pid)["gateway"])
        yield process
    finally:
        stop(process)


class Patgate:
    """A patgate: this checkout's, or that of another's ``build``."""

    does = (
        "patgate refuses non-canonical targets, strips every alias of the identity headers, verifies the token by its "
        "keyed digest, checks epoch and lease, matches the route among seven, decides by role and scopes, sets the "
        "identity and forwarding headers, and counts."
    )

    def __init__(
        self, name: str = "patgate", *, access: str = "off", build: Build | None = None, pair: Pair | None = None
    ) -> None:
        self.name = name
        self._access = access
        self._build = build
        self._pair = pair

    @contextmanager
    def serve(self, site: Site) -> Iterator[Serving]:
        installation = self._installed(site)
        with running(installation, self._build) as process:
            found = processes(process.pid)
            pin(found["gateway"], site.cores.subject)
            for pid in (found["authority"], process.pid):
                pin(pid, site.cores.rest)
            yield Serving(port=installation.port, workers=(found["gateway"],), tls=self._pair is not None,
                          beside={"authority": found["authority"], "supervisor": process.pid})  # fmt: skip

    def _installed(self, site: Site) -> Installation:
        directory = site.directory / self.name
        if self._build is None:
            installation = install(directory, site.origin_port, access=self._access, pair=self._pair)
            fill(installation.data_dir, site.workload.tokens)
            return installation
        # Its settings and its store's schema may be others than ours, so it is installed by its own checkout.
        pair = [str(self._pair.certificate), str(self._pair.key)] if self._pair else None
        values = {"directory": str(directory), "origin": site.origin_port, "tokens": str(site.workload.tokens_file),
                  "pair": pair}  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", _INSTALL, json.dumps(values)],
            env={**self._build.environ(), "PYTHONPATH": str(self._build.root)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise BenchError(f"{self.name} could not be installed: {done.stderr.strip()[-1500:]}")
        made = json.loads(done.stdout)
        return Installation(config=Path(made["config"]), data_dir=Path(made["data_dir"]), port=made["port"],
                            control=made["control"])  # fmt: skip
