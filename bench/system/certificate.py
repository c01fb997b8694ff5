"""A throw-away certificate for the listeners that are measured: ECDSA on P-256, as public certificates mostly are."""

import subprocess
from pathlib import Path

from bench.errors import BenchError
from bench.peers import Pair
from bench.system.machine import require


def self_signed(directory: Path) -> Pair:
    """Make a certificate for localhost and its key in ``directory``. Raises BenchError."""
    pair = Pair(certificate=directory / "localhost.crt", key=directory / "localhost.key")
    command = [require("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += [
        "-nodes",
        "-days",
        "30",
        "-subj",
        "/CN=localhost",
        "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1",
    ]
    command += ["-keyout", str(pair.key), "-out", str(pair.certificate)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        raise BenchError(f"openssl made no certificate: {done.stderr.strip()[-500:]}")
    return pair
