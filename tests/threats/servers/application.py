"""A WSGI application that reports every text variable of its environment and the size of the body.

waitress serves it (``python application.py PORT SEEN_FILE``), or gunicorn (``application:application``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

SEEN = Path(os.environ["SEEN_FILE"])


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    chunked = environ.get("HTTP_TRANSFER_ENCODING") == "chunked"
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read() if chunked else environ["wsgi.input"].read(length)
    with SEEN.open("a") as seen:
        seen.write(f"{environ['REQUEST_METHOD']} {environ['SCRIPT_NAME']}{environ['PATH_INFO']}\n")
    told = {name: value for name, value in environ.items() if isinstance(value, str)}
    told |= {"REQUEST_SCHEME": environ["wsgi.url_scheme"], "BODY_SHA256": sha256(body).hexdigest()}
    answer = "".join(f"{name}={value}\n" for name, value in told.items()).encode("latin-1")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(answer)))])
    return [answer] if environ["REQUEST_METHOD"] != "HEAD" else []


if __name__ == "__main__":
    from waitress import serve  # type: ignore[import-untyped,import-not-found,unused-ignore]

    serve(application, host="127.0.0.1", port=int(sys.argv[1]), threads=4, channel_timeout=600)
