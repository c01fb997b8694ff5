"""The example systemd unit and Prometheus alerts, which are checked without running them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click import Context, Group

from proxy.cli.main import patgate
from proxy.core.reasons import Reason
from proxy.observe.metrics import BY_NAME, MetricKind, Outcome
from proxy.settings.model import Settings

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "config" / "systemd" / "patgate.service"
BEFORE_253 = UNIT.with_name("before-253.conf")
RULES = ROOT / "config" / "prometheus" / "patgate.rules.yaml"
SERIES = {
    f"{metric.name}{suffix}": metric
    for metric in BY_NAME.values()
    for suffix in (("_bucket", "_sum", "_count") if metric.kind is MetricKind.HISTOGRAM else ("",))
}
TARGET_LABELS = {"instance", "job"}


def unit(file: Path = UNIT) -> Iterator[tuple[str, str, str]]:
    """Section, key and value of every line of the unit."""
    section = ""
    for line in file.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            yield section, key, value


def service() -> dict[str, str]:
    found = [(key, value) for section, key, value in unit() if section == "Service"]
    assert len(found) == len(dict(found)), "a duplicate key"
    return dict(found)


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_the_unit_has_the_three_sections_and_starts_with_the_system() -> None:
    assert {section for section, _, _ in unit()} == {"Unit", "Service", "Install"}
    assert ("Install", "WantedBy", "multi-user.target") in set(unit())


def test_the_unit_starts_an_existing_command_with_existing_options() -> None:
    program, noun, *options = shlex.split(service()["ExecStart"])
    assert Path(program).name == "patgate"
    assert isinstance(patgate, Group)
    command = patgate.get_command(Context(patgate), noun)
    assert command is not None
    known = {option for parameter in command.params for option in parameter.opts}
    assert {option for option in options if option.startswith("-")} <= known


def test_the_unit_keeps_its_data_in_a_private_state_directory() -> None:
    found = service()
    assert found["Environment"] == f"PATGATE_DATA_DIR=/var/lib/{found['StateDirectory']}"
    assert found["StateDirectoryMode"] == "0700"
    assert found["User"] not in ("", "root")


def test_the_unit_lets_the_supervisor_drain_before_it_kills() -> None:
    """SIGTERM to the whole group would end the authority while workers still decide."""
    found = service()
    assert found["KillMode"] == "mixed"
    drain = float(Settings().timeouts.drain)
    assert int(found["TimeoutStopSec"]) >= drain + 10


def test_a_systemd_before_253_gets_a_type_that_it_knows_and_a_command_to_reload() -> None:
    """It ignores ``notify-reload``: a start would return at once, and a reload would be refused."""
    assert service()["Type"] == "notify-reload"
    signal, wait = "/bin/kill -HUP $MAINPID", "/bin/sleep 1"
    assert list(unit(BEFORE_253)) == [
        ("Service", "Type", "notify"),
        ("Service", "ExecReload", signal),
        ("Service", "ExecReload", wait),
    ]


def test_the_unit_drops_all_privileges() -> None:
    found = service()
    assert found["NoNewPrivileges"] == "yes"
    assert found["ProtectSystem"] == "strict"
    assert found["CapabilityBoundingSet"] == found["AmbientCapabilities"] == ""


def test_there_are_a_few_alerts_and_each_has_a_description() -> None:
    found = rules()
    assert 4 <= len(found) <= 6
    assert len({rule["alert"] for rule in found}) == len(found)
    for rule in found:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["for"]
        for text in ("summary", "description"):
            assert rule["annotations"][text].endswith(".")


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_uses_existing_metrics_labels_and_values(rule: dict[str, Any]) -> None:
    expression = rule["expr"]
    names = re.findall(r"\bpatgate_\w+", expression)
    assert names
    assert set(names) <= set(SERIES)
    labels = {label for name in names for label in SERIES[name].labels} | TARGET_LABELS
    grouped = {label.strip() for group in re.findall(r"\bby \(([^)]*)\)", expression) for label in group.split(",")}
    shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert grouped | shown <= labels
    values = {"outcome": {str(value) for value in Outcome}, "reason": {str(value) for value in Reason}}
    for name, selectors in re.findall(r"\b(patgate_\w+)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r"(\w+)(=~|!=|!~|=)\"([^\"]*)\"", selectors):
            assert label in SERIES[name].labels
            if operator in ("=", "!="):
                assert value in values[label]
            else:
                for part in value.split("|"):
                    assert any(re.fullmatch(part, known) for known in values[label]), part
    assert expression.count("(") == expression.count(")")
