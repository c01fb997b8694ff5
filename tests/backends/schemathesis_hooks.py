"""Schemathesis hooks: protect the callers' own accounts, and avoid the limit on failed authentication.

Schemathesis learns names from responses and uses them. ``PATGATE_KEEP`` holds the names, separated by spaces, that no
request may delete or change: in such a request they are replaced by names that do not exist. Every connection comes
from a loopback address of its own, because failures are counted by address and a third of its requests are meant to
fail.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import requests  # type: ignore[import-untyped,import-not-found,unused-ignore]
import schemathesis  # type: ignore[import-not-found,unused-ignore]
import urllib3.util.connection as connections  # type: ignore[import-not-found,unused-ignore]

KEEP = frozenset(os.environ.get("PATGATE_KEEP", "").split())
NOBODY = {"user": "nobody@example.org", "token": "000000000000", "key": "000000000000", "role": "nobody"}

_addresses = itertools.count(1)
_connect = connections.create_connection
_send = requests.adapters.HTTPAdapter.send


def _connect_from_elsewhere(address: Any, *args: Any, **kwargs: Any) -> Any:
    number = next(_addresses)
    kwargs["source_address"] = (f"127.{number >> 16 & 127 | 1}.{number >> 8 & 255}.{number & 255}", 0)
    return _connect(address, *args, **kwargs)


def _send_once(adapter: Any, request: Any, **kwargs: Any) -> Any:
    request.headers.setdefault("Connection", "close")
    return _send(adapter, request, **kwargs)


connections.create_connection = _connect_from_elsewhere
requests.adapters.HTTPAdapter.send = _send_once


@schemathesis.hook  # type: ignore[untyped-decorator,unused-ignore]
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Replace names that the run depends on in requests that could change them."""
    del context, kwargs
    if case.operation.method.upper() == "GET":
        return
    for name, value in dict(case.path_parameters or {}).items():
        if str(value).lower() in KEEP or str(value) in KEEP:
            case.path_parameters[name] = NOBODY.get(name, "nobody")
    if case.operation.label == "DELETE /tokens":
        case.query = {**(case.query or {}), "user": NOBODY["user"]}
