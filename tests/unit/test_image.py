"""The Dockerfile, checked without building it: user, packages, volume, health check."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """Each instruction of the Dockerfile with its arguments, without comments, with continued lines joined."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(head, rest.strip()) for line in joined.splitlines() if line for head, _, rest in [line.partition(" ")]]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    starts = [index for index, (head, _) in enumerate(found) if head == "FROM"]
    assert len(starts) == 2
    return found[starts[-1] :]


def only(name: str) -> str:
    [value] = [rest for head, rest in final_stage() if head == name]
    return value


def test_it_runs_as_a_numbered_user_that_is_not_root() -> None:
    """Kubernetes' runAsNonRoot can verify a number, not a name."""
    user = re.fullmatch(r"(\d+):(\d+)", only("USER"))
    assert user
    assert "0" not in user.groups()


def test_its_health_check_is_the_command_patgate_health() -> None:
    command = only("HEALTHCHECK").partition("CMD ")[2]
    assert json.loads(command) == ["patgate", "health"]


def test_it_serves_by_default_and_gets_signals_itself() -> None:
    """With the exec form, no shell is between the runtime's SIGTERM and the supervisor."""
    assert json.loads(only("ENTRYPOINT")) == ["patgate"]
    assert json.loads(only("CMD")) == ["serve"]


def test_only_the_data_volume_is_written_to() -> None:
    environment = only("ENV")
    assert json.loads(only("VOLUME")) == ["/var/lib/patgate"]
    assert "PATGATE_DATA_DIR=/var/lib/patgate" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment


def test_it_holds_no_secret_and_takes_none_at_build_time() -> None:
    for head, rest in instructions():
        if head in {"ENV", "ARG", "COPY", "ADD"}:
            assert not re.search(r"(?i)secret|password|token|\.pem|\.key|\.env", rest), f"{head} {rest}"


def test_its_packages_come_from_the_hashed_lock() -> None:
    installs = [rest for head, rest in instructions() if head == "RUN" and "pip install" in rest]
    assert installs
    assert all("--require-hashes" in rest or "--no-deps" in rest for rest in installs)


def test_it_contains_the_extra_for_envoy_over_grpc() -> None:
    """Users of an image without ``pip`` cannot add it (decision 21)."""
    (lock,) = {
        word for head, rest in instructions() if head == "RUN" and "/opt/patgate/bin/pip install" in rest
        for word in rest.split() if word.endswith(".lock")
    }  # fmt: skip
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["grpc"]
    pinned = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / lock).read_text(), re.MULTILINE))
    assert {re.split(r"[<>=]", each)[0] for each in extra} <= pinned


def test_the_build_context_has_exactly_the_copied_files() -> None:
    sent = {line[1:].rstrip("/") for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        word for head, rest in instructions() if head == "COPY" and "--from" not in rest for word in rest.split()[:-1]
    }
    assert sent == copied
    assert all((ROOT / name).exists() for name in copied)


def test_its_gateway_is_compiled_in_a_build_stage() -> None:
    found = instructions()
    start = found.index(final_stage()[0])
    building = [rest for head, rest in found[:start] if head == "RUN"]
    assert any("PATGATE_COMPILE=1" in rest and "pip wheel" in rest for rest in building)
    assert any("apt-get install" in rest and "gcc" in rest for rest in building)
    assert not [rest for head, rest in final_stage() if "apt-get" in rest or "compiler" in rest]
