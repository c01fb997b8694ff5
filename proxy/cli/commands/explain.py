"""`patgate explain`: why a token's request is, or was, answered as it is."""

import os
import re
from typing import Final

import click

from proxy.cli.client import Json, ask
from proxy.cli.options import Invocation, command
from proxy.cli.output import Output, plain, sentence
from proxy.core.errors import Invalid
from proxy.core.token import WHOLE_TOKEN
from proxy.settings.compile import token_format
from proxy.settings.model import Settings

_MARKS: Final = {"pass": "pass", "fail": "FAIL", "not reached": "-"}
_STEPS: Final = {"result": "", "step": "STEP", "text": "FOUND"}
_SINCE: Final = {"at": "TIME", "action": "ACTION", "target": "TARGET", "by": "BY"}


@click.command()
@click.argument("asked", nargs=-1, required=True, metavar="TOKEN_ID METHOD PATH | DECISION_ID")
@click.option("--host", metavar="HOST", help="The host of the request, if routes depend on it.")
@command
def explain(invocation: Invocation, asked: tuple[str, ...], host: str | None) -> None:
    """Explain what a token gets for a method and path, or a decision by its id.

    TOKEN_ID is the 12 characters of the public prefix, or the whole prefix; never the token itself. PATH may be a whole
    URL. DECISION_ID is in the answer and the log line of every refusal. A refusal is an answer too: exit status 0.
    """
    if len(asked) not in (1, 3) or (len(asked) == 1 and host is not None):
        raise click.UsageError("Give TOKEN_ID METHOD PATH, or one DECISION_ID.")
    settings = invocation.settings()
    _refuse_whole(settings, asked)
    # Bytes that are no text are not canonical in a path, whatever stands for them.
    texts = [os.fsencode(text).decode("utf-8", "replace") for text in asked]
    names = ("token", "method", "path") if len(texts) == 3 else ("decision",)
    query: dict[str, str | None] = dict(zip(names, texts, strict=True))
    document = ask(settings, lambda control: control.get("/explain", {**query, "host": host}))
    invocation.out.document(document)
    if "decision" in document:
        _decision(invocation.out, document)
    else:
        _request(invocation.out, document)


def _refuse_whole(settings: Settings, texts: tuple[str, ...]) -> None:
    """A token that was pasted whole goes no further than this."""
    whole = re.compile(token_format(settings).embedded_pattern)
    if any(whole.search(text) for text in texts):
        raise Invalid("token", WHOLE_TOKEN)


def _decision(out: Output, told: Json) -> None:
    then = told["then"]
    status = "" if then["status"] is None else f", {then['status']}"
    facts = [
        ("at", then["at"]),
        ("request", f"{then['method'] or '?'} {then['host'] or ''}{then['path'] or '?'}"),
        ("second target", _second(then["second_target"])),
        ("route", then["route"]),
        ("token", _named(then["token_name"], then["token_id"]) or None),
        ("of", then["user"]),
        ("organisation", then["org"]),
        ("from", then["address"]),
    ]
    headline = f"Decision {told['decision']}: {then['verdict']}, {then['reason']}{status}"
    out.facts(headline, [fact for fact in facts if fact[1] is not None])
    for text in (*told["differences"], *told["notes"]):
        out.line(f"  {sentence(text)}")
    if told["now"] is not None and not told["differences"] and not told["notes"]:
        out.line("  The same request gets the same verdict now.")
    if told["since"]:
        out.line()
        out.line("Changes since then")
        out.table(_SINCE, told["since"], "")
    if told["now"] is not None:
        out.line()
        out.line("The same request now")
        _request(out, told["now"])


def _request(out: Output, told: Json) -> None:
    facts = [
        ("request", f"{told['method']} {told['host'] or ''}{told['path']}"),
        ("second target", _second(told["second_target"])),
        ("route", told["route"]),
        ("upstream", told["upstream"]),
        ("needs", told["permission"]),
        ("organisation", told["org"]),
        *_token(told),
    ]
    out.facts(_headline(told), [fact for fact in facts if fact[1] is not None])
    rows = [{**step, "result": _MARKS[step["result"]]} for step in told["steps"]]
    out.table(_STEPS, rows, "")
    if told["verdict"] != "allowed":
        would = "would get" if told["verdict"] == "reported" else "gets"
        out.line(f"The client {would} {told['status']} with the reason {told['public_reason']}")
        for value in told["challenge"]:
            out.line(f"  WWW-Authenticate: {plain(value)}")
    if told["identity"]:
        out.line("The backend gets")
        for header in told["identity"]:
            out.line(f"  {header['name']}: {plain(header['value'])}".rstrip())


def _second(named: Json | None) -> str | None:
    """The second target that was refused, and the header that names it."""
    if named is None:
        return None
    judged = "" if named["path"] is None else f" (judged as {named['method']} {named['path']})"
    return f"in the header {named['header']}{judged}"


def _headline(told: Json) -> str:
    if told["verdict"] == "allowed":
        return "Allowed"
    if told["verdict"] == "reported":
        return f"Let through and reported: without `enforce: false` on the route it would be refused, {told['reason']}"
    return f"Refused: {told['reason']}. {told['detail']}"


def _token(told: Json) -> list[tuple[str, object]]:
    token = told["token"]
    if token is None:
        return [("token", "none that is there")]
    facts: list[tuple[str, object]] = [
        ("token", f"{_named(token['name'], token['prefix'])}, {token['status']}"),
        ("role", f"{told['role']} in {told['role_org']}" if told["role"] and told["role_org"] else told["role"]),
        ("scopes", "all of the role's" if told["scopes"] is None else told["scopes"]),
    ]
    if token["user"] is not None:
        facts.insert(1, ("of", f"{token['user']}, {token['user_status'] or 'unknown'}"))
    return facts


def _named(name: str | None, key: str | None) -> str:
    return plain(f"{name} ({key})" if name and key else name or key)
