"""What a request costs: patgate beside the proxies people know, on one core.

    python -m bench              every part that takes a minute or two
    python -m bench cpu          one part: CPU per authenticated request and its ratio to other proxies
    python -m bench --help       the others

A part is a module of ``scenarios`` with ``measure(run: Run) -> Part`` (``report.figures``) and one line in
``__main__.SUBCOMMANDS``. ``report.results`` stores its result and ``report.markdown`` renders it into
docs/benchmarks.md, each figure beside its bound.

How a comparison runs: ``system.machine`` divides the cores, ``backends.origin`` starts the one cheap backend that all
share, each ``Peer`` (``peers``: nginx, patgate) starts its own gateway in front of it, ``load.wrk`` drives wrk with
``wrk.lua``, which builds each request when it is sent (``load.workload``), and ``system.cpu_time`` reads the kernel's
account of the process under test before and after. ``scenarios.cpu_per_request`` alternates the peers in short rounds,
so that other load of the machine affects all of them.

Scenarios that need routes, timeouts or backends of their own run patgate in a ``testbed``, from stores filled by
``datasets``.

A round in which one answer was wrong, one connection failed, or one request did not reach the backend is an error,
never a figure. A new peer is one more class in ``peers`` and one more line in ``cpu_per_request.PEERS``.

``python -m bench.scaling`` is about many nodes on one PostgreSQL (docs/scaling.md).
"""
