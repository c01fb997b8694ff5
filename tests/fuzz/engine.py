"""One target under atheris, which ends the process: ``python -m tests.fuzz.engine TARGET [libFuzzer's options]``."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    # In an environment of its own; the development environment, which is checked for types, does not have it.
    atheris = importlib.import_module("atheris")
    # The settings are made anew for each input of the larger targets and read none of it.
    with atheris.instrument_imports(include=["proxy"], exclude=["proxy.settings"]):
        table = importlib.import_module("tests.fuzz.table")
    target = table.TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], f"-max_len={target.longest}", "-len_control=0", *sys.argv[2:]], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
