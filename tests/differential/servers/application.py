"""A WSGI application that reports how it reads a request.

waitress decodes the path into PATH_INFO (PEP 3333), which werkzeug's router matches. Runs in the backends' environment:
``python application.py PORT SEEN_FILE``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from waitress import serve  # type: ignore[import-untyped,import-not-found,unused-ignore]
from werkzeug.exceptions import HTTPException  # type: ignore[import-not-found,unused-ignore]
from werkzeug.routing import Map, RequestRedirect, Rule  # type: ignore[import-not-found,unused-ignore]

CONTROL = re.compile(r"[\x00-\x1f\x7f]")
ROUTES = Map(
    [
        *(
            Rule(f"{prefix}{rest}", endpoint=area)
            for prefix, area in (
                ("/admin/", "admin"),
                ("/public/", "public"),
                ("/open/secret/", "secret"),
                ("/open/", "open"),
                ("/loose/", "loose"),
            )
            for rest in ("", "<path:rest>")
        ),
        Rule("/v1/things/special", endpoint="special"),
        Rule("/v1/<entity>", endpoint="collection"),
        Rule("/v1/<entity>/<id>", endpoint="item"),
        Rule("/lenient/<entity>/<id>", endpoint="lenient"),
    ]
)


def main(port: int, seen: Path) -> None:
    with seen.open("a", buffering=1) as log:

        def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            case = environ.get("HTTP_X_CASE", "-")
            log.write(case + "\n")
            path = environ["PATH_INFO"]
            if CONTROL.search(path):
                # A header cannot carry this path; only a target that no gateway has checked can have it.
                start_response("400 Bad Request", [("Content-Length", "0")])
                return []
            try:
                area, found = ROUTES.bind_to_environ(environ).match()
            except RequestRedirect:
                # The router redirects to a path with another slash and runs nothing.
                area, found = "redirect", {}
            except HTTPException:
                area, found = "other", {}
            start_response(
                "204 No Content",
                [
                    ("X-Case", case),
                    ("X-Area", area),
                    ("X-Entity", f"[{bare(found.get('entity', ''))}]"),
                    ("X-Id", f"[{bare(found.get('id', ''))}]"),
                    ("X-Path", f"[{path}]"),
                    ("X-Method", environ["REQUEST_METHOD"]),
                ],
            )
            return []

        serve(application, host="127.0.0.1", port=port, threads=4, channel_timeout=600, connection_limit=500)


def bare(text: str) -> str:
    """A text with one character for each byte, as in WSGI headers."""
    return text.encode().decode("latin-1")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
