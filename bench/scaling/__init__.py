"""Sizing many nodes on one PostgreSQL: costs measured on small numbers, large fleets simulated (docs/scaling.md).

    python -m bench.scaling measure     real statements on a private PostgreSQL; --write stores the costs
    python -m bench.scaling simulate    one deployment: --nodes, --changes, --lease, --cores
    python -m bench.scaling page        docs/scaling.md from the stored costs; --write writes it

``measure`` starts a ``postgres`` of its own, fills it (``dataset``), and takes the cost of each statement of the
protocol (``statements``, ``probe``) and the times of small fleets (``fleet``). The result is ``measurements``, stored
in bench/scaling.json. Everything else is computed from it: ``protocol`` simulates acknowledgements on ``engine``,
``cold_cache`` the caches, ``sizing`` multiplies, ``page`` renders. Equal measurements give an equal page.
"""
