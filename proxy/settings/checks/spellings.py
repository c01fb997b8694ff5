"""Denied routes that a request can pass by in another spelling of the path, and settings that forward auth ignores.

patgate matches paths exactly, and runs what it matched. A backend that reads paths less strictly may still run a denied
path that a later route lets through in another spelling: in another letter case, or in a form that this route allows.
"""

from collections.abc import Iterator

from proxy.core.model import Access
from proxy.core.routes import REST
from proxy.settings.checks.candidate import RuleViolation
from proxy.settings.checks.routes import covers, has_letters, some_requests
from proxy.settings.model import Settings
from proxy.settings.problems import Loc
from proxy.settings.sections.routes import RouteSettings
from proxy.settings.values import quoted


def denied_in_one_spelling(settings: Settings) -> Iterator[RuleViolation]:
    """Denied routes beside a later route that lets other spellings of the same path through; one warning for each."""
    routes = settings.routes
    # Of each open route its first segment, so that thousands of routes are fast to compare.
    opened = [
        (place, other, other.path.split("/", 2)[1])
        for place, other in enumerate(routes)
        if other.access is not Access.DENIED and ("{" in other.path or other.path.endswith(("/", REST)))
    ]
    for index, route in enumerate(routes):
        if route.access is not Access.DENIED:
            continue
        first = route.path.split("/", 2)[1]
        for place, other, its_first in opened:
            if place < index or not (its_first == first or its_first.startswith(("{", REST)) or first.startswith("{")):
                continue
            found = _spellings(route, other) if some_requests(other, route) else {}
            if "case" in found and any(each.fold_case and covers(each, route) for each in routes[:place]):
                del found["case"]
            slashed = route.model_copy(update={"path": f"{route.path}/"})
            if "slash" in found and any(covers(each, slashed) for each in routes[:place]):
                # The operator has decided on this path explicitly.
                del found["slash"]
            if found:
                yield RuleViolation(
                    loc=("routes", index, "path"),
                    message=_message(place, found),
                    other=("routes", place, "path"),
                )
                break


def _message(place: int, found: dict[str, str]) -> str:
    forms = [name for name in found if name in _ALLOWED]
    remedies = []
    if "case" in found:
        remedies.append("set fold_case: true on this route")
    if forms:
        remedies.append(f"take {' and '.join(forms)} from allow of routes[{place}], or deny it a route of its own")
    if "slash" in found:
        remedies.append("deny the path with a final slash as well")
    return (
        f"denies this spelling only. routes[{place}].path lets through {', '.join(found.values())}, which a backend "
        f"that reads paths less strictly runs as the denied path. Unless your backend is strict: {'; '.join(remedies)}"
    )


_ALLOWED = ("encoded_percent", "encoded_slash", "semicolon", "empty_segment")


def _spellings(route: RouteSettings, other: RouteSettings) -> dict[str, str]:
    """The kinds of other spellings of a denied path that ``other`` matches, each with an example."""
    mine, theirs = route.path.split("/")[1:], other.path.split("/")[1:]
    rest = theirs.index(REST) if REST in theirs else len(theirs)
    taken = [
        place
        for place, segment in enumerate(mine)
        if has_letters(segment) and (place >= rest or (place < len(theirs) and theirs[place].startswith("{")))
    ]
    found: dict[str, str] = {}
    if taken and _meet(mine, theirs):
        at = taken[0]
        name = mine[at]
        before, after = "/".join(["", *mine[:at], ""]), "/".join(["", *mine[at + 1 :]])
        if not route.fold_case:
            found["case"] = quoted(f"{before}{name.swapcase()}{after}")
        if "encoded_percent" in other.allow:
            letter = next(at for at, char in enumerate(name) if char.isascii() and char.isalpha())
            escaped = f"{name[:letter]}%25{ord(name[letter]):x}{name[letter + 1 :]}"
            found["encoded_percent"] = quoted(f"{before}{escaped}{after}")
        if "semicolon" in other.allow:
            found["semicolon"] = quoted(f"{before}{name};x{after}")
        if "empty_segment" in other.allow and at >= rest:
            found["empty_segment"] = quoted(f"{before}/{name}{after}")
    if "encoded_slash" in other.allow and taken and len(mine) > taken[0] + 1:
        at = taken[0]
        joined = "/".join(["", *mine[:at], "%2F".join(mine[at:])])
        if _meet([*mine[:at], "{joined}"], theirs):
            found["encoded_slash"] = quoted(joined)
    if mine[-1] not in (REST, "") and _meet([*mine, ""], theirs):
        found["slash"] = quoted(f"{route.path}/")
    return found


def _meet(mine: list[str], theirs: list[str]) -> bool:
    """Whether some path matches both patterns, if literals that ``theirs`` captures may be spelled in another way."""
    for own, other in zip(mine, theirs, strict=False):
        if REST in (own, other):
            return True
        if own == other:
            continue
        if "" in (own, other) or not (own.startswith("{") or other.startswith("{")):
            return False
    return len(mine) == len(theirs)


def stripped_for_an_ingress(settings: Settings) -> Iterator[RuleViolation]:
    """Routes with a prefix to strip, where an ingress may be the one that forwards."""
    if not settings.listen.for_ingresses():
        return
    for index, route in enumerate(settings.routes):
        if route.strip_prefix is not None:
            loc: Loc = ("routes", index, "strip_prefix")
            message = "has no effect on requests by forward auth: there the ingress forwards, and must strip the prefix"
            yield RuleViolation(loc=loc, message=message)
