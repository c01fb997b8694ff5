"""What a request costs: patgate beside the proxies people know, on one core.

    python -m bench              every part that takes a minute or two
    python -m bench cpu          one part: CPU per authenticated request and its ratio to other proxies
    python -m bench --help       the others

A part is a module with ``measure(run: Run) -> Part`` (``figures``) and one line in ``__main__.SUBCOMMANDS``. What it
found is kept by ``results`` and rendered by ``report`` into docs/benchmarks.md, the figures beside their bounds.

How a comparison runs: ``machine`` divides the cores, ``origin`` starts the one cheap backend that all share, each
``Peer`` (``peers``: nginx, patgate) starts its own gateway before it, ``load`` drives wrk with ``wrk.lua``, which
builds every request anew (``workload``), and ``cpu`` reads the kernel's account of the process under test before and
after. ``compare`` alternates the peers in short rounds, so that whatever else the machine does falls on all of them.

A round in which one answer was wrong, one connection failed, or one request did not reach the backend is an error,
never a figure. A new peer is one more class in ``peers`` and one more line in ``compare.PEERS``.
"""
