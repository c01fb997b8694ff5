"""``patgate check``: reports all problems of a configuration at once."""

import os
from collections.abc import Mapping

import click

from proxy.cli.options import Invocation, command
from proxy.settings import rules
from proxy.settings.compile import identity_outputs, route_table
from proxy.settings.model import Settings
from proxy.settings.problems import path_of
from proxy.settings.sources import environment


@click.command()
@command
def check(invocation: Invocation) -> None:
    """Check a configuration: every problem with its line on standard error, exit 1 if there is any."""
    path = invocation.config_path()
    settings = invocation.settings()
    table = route_table(settings)
    identity_outputs(settings)
    routes = [
        {
            "path": r.path,
            "query": r.query,
            "access": str(r.access),
            "upstream": r.upstream,
            "host": r.host,
            "enforce": r.enforce,
        }
        for r in settings.routes
    ]
    listeners = _listeners(settings)
    warnings = [{"path": path_of(warning.loc), "message": warning.message} for warning in rules.warnings(settings)]
    warnings += [
        {"path": name, "message": "names no setting and is ignored"} for name in environment.ignored(os.environ)
    ]
    invocation.out.document(
        {
            "ok": True,
            "config": str(path),
            "listeners": listeners,
            "workers": settings.workers,
            "routes": routes,
            "warnings": warnings,
        }
    )
    for warning in warnings:
        invocation.out.note(f"warning: {warning['path']}: {warning['message']}")
    facts = [*listeners.items(), ("workers", settings.workers), ("roles", list(settings.roles))]
    invocation.out.facts(f"{path} is valid.", facts)
    columns = {"path": "ROUTE", "access": "ACCESS", "upstream": "UPSTREAM", "host": "HOST", "enforce": "ENFORCED"}
    invocation.out.line()
    rows = [{**route, "path": compiled.name} for route, compiled in zip(routes, table.routes, strict=True)]
    invocation.out.table(columns, rows, "There are no routes: every request will be refused.")


def _listeners(settings: Settings) -> Mapping[str, str]:
    listen = settings.listen
    addresses = {"proxy": str(listen.proxy.bind), "control": str(listen.control.bind)}
    addresses.update({name: str(listener.bind) for name, listener in listen.for_ingresses()})
    return addresses
