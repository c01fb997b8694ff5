"""Fuzzing of all parsers of untrusted bytes.

``targets/`` has one module for each: a plain function ``target(data)`` that raises if it finds a defect, the seeds
(including every regression) and the pieces from which mutations are made. The same function is run

* by hypothesis, in ``make test`` (``test_targets.py``): all seeds, and some hundred mutations of them;
* by atheris with coverage of patgate's bytecode, in ``make fuzz`` (``__main__.py``): FUZZ_SECONDS for each target.

Each target compares with an implementation that shares no code with patgate: llhttp, a small decoder written from the
standard, or the wire sentinel.
"""
