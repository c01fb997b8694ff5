"""Configuration and example requests of quickstart: what to send, the expected status, and why."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

ADMIN: Final = "admin@example.com"
DEMO_BACKEND: Final = "# The upstream is quickstart's own echo backend"

_DEMO_ROUTES: Final = """\
  - { path: "/billing/**", upstream: app, access: denied }   # refused for every token
  - { path: "/v1/{entity}", upstream: app }                  # GET is list, POST is create
  - { path: "/v1/{entity}/{id}", upstream: app }             # GET read, PUT and PATCH update, DELETE delete
"""
_UPSTREAM_ROUTES: Final = """\
  - path: "/**"                                              # replace it with routes for your entities
    upstream: app
    entity: api
    operations: { GET: read, POST: create, PUT: update, PATCH: update, DELETE: delete }
"""


def configuration(*, data_dir: Path, proxy: str, control: str, upstream: str, demo: bool) -> str:
    """A first configuration, as YAML with comments."""
    note = f"{DEMO_BACKEND}; start it with `patgate whoami` when you use `patgate serve`.\n" if demo else ""
    return (
        f"# Written by `patgate quickstart`; yours to change. Continue with `patgate serve --config FILE`.\n{note}"
        "brand: demo                     # tokens begin demo_pat_\n"
        f"data_dir: {json.dumps(str(data_dir))}\n"
        "store: sqlite\n"
        "workers: 1\n"
        "listen:\n"
        f'  proxy: {{ bind: "{proxy}" }}\n'
        f'  control: {{ bind: "{control}" }}\n'
        "upstreams:\n"
        f"  app: {{ servers: [{json.dumps(upstream)}] }}\n"
        "roles:\n"
        '  admin: ["*:*"]\n'
        '  viewer: ["*:read", "*:list"]\n'
        "routes:                         # first match wins; no match is refused\n"
        f"{_DEMO_ROUTES if demo else _UPSTREAM_ROUTES}"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickstartStep:
    """One request to try: what to send, the expected status, and why."""

    method: str
    url: str
    path: str
    headers: tuple[tuple[str, str], ...]
    basic: tuple[str, str] | None = None
    body: str | None = None
    expect: int | None
    why: str

    @property
    def curl(self) -> str:
        """The curl command that sends this request, on one line."""
        words = ["curl", "-i"]
        if self.method != "GET" and not (self.method == "POST" and self.body is not None):
            words += ["-X", self.method]
        if self.basic is not None:
            words += ["-u", ":".join(self.basic)]
        for name, value in self.headers:
            words += ["-H", f"{name}: {value}"]
        if self.body is not None:
            words += ["-d", self.body]
        return shlex.join([*words, self.url])

    def as_dict(self) -> dict[str, Any]:
        """The step for ``--json``."""
        return {"curl": self.curl, "method": self.method, "url": self.url, "expect": self.expect, "why": self.why}


def demo_steps(address: str, token: str) -> tuple[QuickstartStep, ...]:
    """Requests for the echo backend: two that are allowed and one that is not."""
    bearer = (("Authorization", f"Bearer {token}"),)
    return (
        _step(
            address,
            "GET",
            "/v1/things/7",
            headers=bearer,
            expect=200,
            why="admin may read things; the response shows the identity headers that the backend got, and no token",
        ),
        _step(
            address,
            "POST",
            "/v1/things",
            headers=(("Content-Type", "application/json"),),
            basic=("admin", token),
            body='{"name": "lamp"}',
            expect=200,
            why="admin may create things; the token is the password here, as git and pip send it",
        ),
        _step(
            address,
            "GET",
            "/billing/invoices",
            headers=bearer,
            expect=403,
            why="refused, because no token reaches /billing, whatever its owner may do",
        ),
    )


def upstream_steps(address: str, token: str) -> tuple[QuickstartStep, ...]:
    """Requests for an unknown backend: only the refusal has an expected status."""
    return (
        _step(
            address,
            "GET",
            "/",
            headers=(("Authorization", f"Bearer {token}"),),
            expect=None,
            why="your API answers, and knows the caller from the identity headers",
        ),
        _step(
            address,
            "GET",
            "/",
            headers=(),
            basic=("admin", token),
            expect=None,
            why="the same with the token as the password, as git and pip send it",
        ),
        _step(address, "GET", "/", headers=(), expect=401, why="refused, because there is no token"),
    )


def _step(address: str, method: str, path: str, **rest: Any) -> QuickstartStep:
    return QuickstartStep(method=method, url=f"http://{address}{path}", path=path, **rest)


async def perform(steps: Sequence[QuickstartStep]) -> list[dict[str, Any]]:
    """Send the requests, one after the other; returns status, reason and body of each response."""
    results: list[dict[str, Any]] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        for step in steps:
            auth = aiohttp.BasicAuth(*step.basic) if step.basic is not None else None
            async with session.request(
                step.method, step.url, headers=list(step.headers), auth=auth, data=step.body, allow_redirects=False
            ) as answer:
                text = (await answer.read()).decode("utf-8", "replace")
                results.append({"status": answer.status, "reason": answer.reason or "", "body": text})
    return results
