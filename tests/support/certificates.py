"""Creates self-signed certificates with openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.support.backends import program
from tests.support.process import HANGS_SECONDS


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    certificate: Path
    key: Path


def pair(directory: Path, name: str = "gateway", *, made: str = "", local: bool = True) -> Pair:
    """Create a one-day certificate for ``name`` and, with ``local``, localhost.

    ``made`` is its start date, such as "2020-01-01".
    """
    found = Pair(certificate=directory / f"{name}.pem", key=directory / f"{name}.key")
    argv = [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    argv += ["-days", "1", "-subj", f"/CN={name}", "-addext"]
    argv.append(f"subjectAltName=DNS:{name}{',DNS:localhost,IP:127.0.0.1' if local else ''}")
    argv += ["-keyout", str(found.key), "-out", str(found.certificate)]
    if made:
        argv = [program("faketime"), made, *argv]
    subprocess.run(argv, check=True, capture_output=True, timeout=HANGS_SECONDS)
    return found
