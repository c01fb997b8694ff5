"""The copy in which tests run, the table of the nearest tests, and a whole run on a small sample tree."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.mutation import __main__ as command
from tests.mutation import table
from tests.mutation.operators import mutants
from tests.mutation.tree import Outcome, Tree

SMALL: Mapping[str, str] = {
    ".gitignore": "left/\n",
    "proxy/__init__.py": "",
    "proxy/rule.py": "def allowed(number: int) -> bool:\n    return number < 5\n",
    "tests/test_rule.py": """\
import os, subprocess, sys
from proxy import rule

def test_rule():
    assert rule.allowed(4)

def test_a_process_elsewhere_has_the_same_rule(tmp_path):
    done = subprocess.run([sys.executable, "-c", "import proxy.rule; print(proxy.rule.__file__)"], cwd=tmp_path,
                          capture_output=True, text=True, check=True)
    assert done.stdout.strip() == rule.__file__
    assert rule.__file__.startswith(os.getcwd())
""",
    "tests/test_slow.py": "import time\n\ndef test_slow():\n    time.sleep(600)\n",
    "left/behind.py": "",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name, text in SMALL.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


@pytest.fixture
def tree(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    # Loading unused plugins would take most of the time of each run.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    (tmp_path / "copy").mkdir()
    return Tree(tmp_path / "copy", checkout)


def test_tests_import_the_mutant_in_the_copy_and_the_checkout_is_unchanged(tree: Tree, checkout: Path) -> None:
    rule = ["tests/test_rule.py"]
    assert tree.run(rule, 120).outcome is Outcome.PASSED
    tree.write("proxy/rule.py", SMALL["proxy/rule.py"].replace("<", ">"))
    verdict = tree.run(rule, 120)
    assert (verdict.outcome, verdict.test.partition(" - ")[0]) == (
        Outcome.FAILED,
        "FAILED tests/test_rule.py::test_rule",
    )
    # The same second and the same size: the bytecode of the previous text must not be used.
    tree.write("proxy/rule.py", SMALL["proxy/rule.py"])
    assert tree.run(rule, 120).outcome is Outcome.PASSED
    assert {name: (checkout / name).read_text() for name in SMALL} == SMALL
    assert not (tree.root / "left").exists()


def test_a_mutant_that_makes_a_test_hang_is_killed_by_the_time_limit(tree: Tree) -> None:
    assert tree.run(["tests/test_slow.py"], 3).outcome is Outcome.TIMEOUT


def test_a_test_that_fails_without_a_mutant_is_left_out(tree: Tree, capsys: pytest.CaptureFixture[str]) -> None:
    (tree.root / "tests/test_red.py").write_text("def test_red():\n    assert False\n")
    tests, seconds = command.Clean().of(tree, ["tests/test_red.py", "tests/test_rule.py"])
    assert tests == ["tests/test_rule.py"]
    assert seconds > 0
    assert "test_red.py" in capsys.readouterr().out


def test_a_survivor_is_distinguished_from_a_killed_mutant(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "stages", lambda path, root: [["tests/test_rule.py"]])
    source, clean = SMALL["proxy/rule.py"], command.Clean()
    found = {}
    for one in mutants(source):
        case = command.Case(path="proxy/rule.py", source=source, mutant=one)
        found[case.key[1]] = command.tried(tree, case, clean, 3).outcome
    assert found == {
        "return number <= 5": Outcome.PASSED,
        "return number < 6": Outcome.PASSED,
        "return True": Outcome.PASSED,
        "return False": Outcome.FAILED,
    }


def test_every_module_of_the_table_exists_and_has_tests_near_it() -> None:
    for path in table.paths():
        assert (table.ROOT / path).is_file(), path
        stages = table.stages(path)
        assert stages, path
        tests = [test for stage in stages for test in stage]
        assert len(set(tests)) == len(tests)
        assert all((table.ROOT / test).is_file() for test in tests), path
    assert set(table.NEAR) <= set(table.paths())
    assert all((table.ROOT / test).is_file() for tests in table.NEAR.values() for test in tests)
    assert set(table.FAR) == {path.split("/")[1] for path in table.MODULES}


def test_paths_selects_modules_by_package_or_module() -> None:
    core = [path for path in table.MODULES if path.startswith("proxy/core/")]
    assert core
    assert table.paths(["core"]) == table.paths(["proxy/core"]) == core
    assert table.paths(["proxy/gateway/phases/revalidate.py", "gateway/phases/revalidate"]) == [
        "proxy/gateway/phases/revalidate.py"
    ]
    with pytest.raises(KeyError):
        table.paths(["nowhere"])


def test_every_known_equivalent_is_still_a_mutant() -> None:
    assert command.unknown() == []
    assert command.unknown({"proxy/authority/grants/lease.py": {("no such line", "another"): "for this test"}}) != []


def test_a_seed_repeats_its_sample(capsys: pytest.CaptureFixture[str]) -> None:
    outputs = []
    for seed in ("1", "1", "2"):
        assert command.main(["--list", "--sample", "5", "--seed", seed, "authority/grants/lease"]) == 0
        outputs.append(capsys.readouterr().out.partition("\n")[2])
    assert outputs[0] == outputs[1] != outputs[2]
    assert outputs[0].count("+++ mutant") == 5


def test_the_required_rate_decides_the_exit_status() -> None:
    rates = command.Rates()
    for killed in (True, True, True, False):
        rates.note("core", killed)
    assert rates.total() == 0.75
    assert rates.text() == "3 of 4 mutants killed (75.0%): core 3/4"
