"""One target under atheris, which ends the process: ``python -m tests.fuzz.engine TARGET [libFuzzer's options]``."""

from __future__ import annotations

import importlib
import sys


def main() -> None:
    # Atheris has a separate environment; the development environment, where types are checked, does not have it.
    atheris = importlib.import_module("atheris")
    # The larger targets create the settings again for each input, but settings do not read the input.
    with atheris.instrument_imports(include=["proxy"], exclude=["proxy.settings"]):
        table = importlib.import_module("tests.fuzz.table")
    target = table.TARGETS[sys.argv[1]]
    atheris.Setup([sys.argv[0], f"-max_len={target.longest}", "-len_control=0", *sys.argv[2:]], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
