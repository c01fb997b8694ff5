"""Fuzzing of what reads bytes that strangers send.

``targets/`` has one module for each: a plain function ``target(data)`` that raises when something is wrong, the seeds
it starts from (every regression among them) and the pieces that its language is made of. The same function is run

* by hypothesis, in ``make test`` (``test_targets.py``): all seeds, and some hundred mutations of them;
* by atheris with coverage of our bytecode, in ``make fuzz`` (``__main__.py``): FUZZ_SECONDS for each target.

Each target compares with something that shares no code with us: llhttp, a tiny decoder written from the standard, or
the wire sentinel.
"""
