"""Serves a directory with wsgidav on waitress, without authentication: ``python dav.py PORT DIRECTORY``."""

from __future__ import annotations

import sys

from waitress import serve  # type: ignore[import-untyped,import-not-found,unused-ignore]
from wsgidav.wsgidav_app import WsgiDAVApp  # type: ignore[import-untyped,import-not-found,unused-ignore]

if __name__ == "__main__":
    port, directory = sys.argv[1:]
    config = {
        "provider_mapping": {"/": directory},
        "simple_dc": {"user_mapping": {"*": True}},
        "verbose": 1,
        "logging": {"enable_loggers": []},
    }
    serve(WsgiDAVApp(config), host="127.0.0.1", port=int(port), threads=4, channel_timeout=600)
