"""What a verdict costs: nginx that asks patgate, beside nginx that asks an nginx which just answers 200; and Envoy.

The second is the floor: what ``auth_request`` itself costs, with any server behind it. The CPU of the ingress and of
the process that it asks are added. Rounds are interleaved as in ``cpu_per_request``.
"""

from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Final

from bench.backends.origin import run_origin
from bench.load.workload import mint, write_workload
from bench.load.wrk import CONNECTIONS, drive
from bench.peers import Site
from bench.peers.forward_auth import asks_nginx, asks_patgate
from bench.peers.nginx import Nginx
from bench.report.figures import Figure, Part, Run, Spread, Table, spread
from bench.scenarios.cpu_per_request import TOKENS, Sample, check_answers, new_seed, sample, warm

#: Bounds: issue 10.
DECISION: Final = 0.6
FLOOR: Final = 1.15
REFUSAL: Final = 1.2

_STATIC: Final = "nginx with a static key"
_ASKED: Final = "nginx asks patgate"
_YES: Final = "nginx asks an nginx that answers 200"
_REFUSED: Final = "nginx asks patgate, which refuses"
_PROXIED: Final = "patgate proxies"
_DECIDED: Final = "patgate decides, without an ingress"
_ENVOY: Final = "Envoy asks patgate over HTTP"
_GRPC: Final = "Envoy asks patgate over gRPC"


def measure(run: Run) -> Part:
    """Measure all in interleaved rounds. Raises BenchError if any answer was wrong."""
    workload = write_workload(run.directory, mint(run.tokens or TOKENS))
    strangers = run.directory / "strangers"
    strangers.mkdir()
    unknown = write_workload(strangers, mint(run.tokens or TOKENS))
    rounds, seconds = run.rounds or 5, run.seconds or 2
    samples: dict[str, list[Sample]] = {}
    with ExitStack() as stack:
        origin = stack.enter_context(run_origin(run.directory, run.cores))
        site = Site(directory=run.directory, origin_port=origin.port, workload=workload, cores=run.cores)
        static = stack.enter_context(Nginx().serve(site))
        ours = stack.enter_context(asks_patgate(site))
        floor = stack.enter_context(asks_nginx(site))
        assert ours.proxied is not None
        assert ours.called is not None
        assert ours.over_http is not None
        assert ours.over_grpc is not None
        check_answers(_STATIC, static, workload)
        check_answers(_ASKED, ours.ingress, workload)
        served = {
            _STATIC: (static, workload),
            _ASKED: (ours.ingress, workload),
            _YES: (floor.ingress, workload),
            _REFUSED: (ours.ingress, unknown),
            _PROXIED: (ours.proxied, workload),
            _DECIDED: (ours.called, workload),
            _ENVOY: (ours.over_http, workload),
            _GRPC: (ours.over_grpc, workload),
        }
        for name, (one, sent) in served.items():
            if name not in (_REFUSED, _DECIDED):
                warm(one.port, sent, run.cores)
        for number in range(rounds):
            for name in list(served)[:: 1 if number % 2 == 0 else -1]:
                one, sent = served[name]
                refused, call = name == _REFUSED, name == _DECIDED
                driver = partial(
                    drive, one.port, sent, run.cores, seconds=seconds, seed=new_seed(), refused=refused, call=call
                )
                samples.setdefault(name, []).append(sample(name, one, origin, driver, reached=not refused and not call))
    decided, proxied = ([each.cpu_us for each in samples[name]] for name in (_DECIDED, _PROXIED))
    figures = (
        Figure(
            what="CPU of a decision for an ingress, ratio to a proxied request",
            spread=_ratio(decided, proxied),
            bound=DECISION,
        ),
        Figure(
            what="CPU of nginx and patgate's decision, ratio to nginx with an upstream that answers 200",
            spread=_ratio(_totals(samples[_ASKED]), _totals(samples[_YES])),
            bound=FLOOR,
        ),
        Figure(
            what="CPU of a refusal through nginx, ratio to an allowance",
            spread=_ratio(_totals(samples[_REFUSED]), _totals(samples[_ASKED])),
            bound=REFUSAL,
        ),
        Figure(
            what="CPU of a decision over gRPC, ratio to one over HTTP",
            spread=_ratio(*([each.beside_us["verdict"] for each in samples[name]] for name in (_GRPC, _ENVOY))),
        ),
    )
    return Part(figures=figures, tables=(_table(samples),), notes=_notes(rounds, seconds))


def _totals(own: list[Sample]) -> list[float]:
    """CPU of the ingress and of the process that it asks, µs a request."""
    return [each.cpu_us + each.beside_us.get("verdict", 0.0) for each in own]


def _ratio(ours: list[float], theirs: list[float]) -> Spread:
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def _table(samples: dict[str, list[Sample]]) -> Table:
    rows = []
    for name, own in samples.items():
        total = spread(_totals(own))
        asked = median(each.beside_us.get("verdict", 0.0) for each in own)
        ratio = _ratio(_totals(own), _totals(samples[_STATIC]))
        rows.append(
            (
                name,
                f"{total.median:.1f} ({total.low:.1f}–{total.high:.1f})",
                f"{total.median - asked:.1f} + {asked:.1f}" if asked else "",
                f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})",
                f"{median(each.driven.rate for each in own):,.0f}",
            )
        )
    head = ("on one core", "CPU per request, µs", "ingress + the one it asks", "ratio to a static key", "requests/s")
    return Table(head=head, rows=tuple(rows))


def _notes(rounds: int, seconds: float) -> tuple[str, ...]:
    return (
        f"{rounds} interleaved rounds of {seconds:g} s each, the requests and the backend of `cpu`, {CONNECTIONS} "
        "kept-alive connections; ratios are taken within a round.",
        "A decision without an ingress is for the calls that nginx sends; the load generator is on the other core, as "
        "for a proxied request.",
        "An ingress and the process that it asks share one core. nginx sends the call as HEAD and copies nine "
        "identity headers, from either upstream; Envoy copies them too.",
        "A refusal is 401, for tokens that nobody has made; no backend sees it.",
    )
