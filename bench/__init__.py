"""What a request costs: patgate beside the proxies people know, on one core.

    python -m bench              CPU per authenticated request and its ratio to nginx
    python -m bench coldstart    from exec of `patgate serve` to ready, with a full store
    python -m bench memory       a worker's memory with a full cache of grants

How a comparison runs: ``machine`` divides the cores, ``origin`` starts the one cheap backend that all share, each
``Peer`` (``peers``: nginx, patgate) starts its own gateway before it, ``load`` drives wrk with ``wrk.lua``, which
builds every request anew (``workload``), and ``cpu`` reads the kernel's account of the process under test before and
after. ``compare`` alternates the peers in short rounds, so that whatever else the machine does falls on all of them,
and ``report`` prints the table and writes it between its markers in ``docs/benchmarks.md``.

A round in which one answer was wrong, one connection failed, or one request did not reach the backend is an error,
never a figure. A new peer is one more class in ``peers`` and one more line in ``compare.PEERS``.
"""
