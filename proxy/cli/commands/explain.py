"""``patgate explain``: why a token's request is, or was, allowed or refused."""

import os
import re
from typing import Final

import click

from proxy.cli.client import Json, call
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
@click.option("--ip", metavar="ADDRESS", help="The client's address, for a token with IP ranges.")
@command
def explain(invocation: Invocation, asked: tuple[str, ...], host: str | None, ip: str | None) -> None:
    """Explain a token's request by method and path, or a decision by its id.

    TOKEN_ID is the 12 characters of the public prefix, or the whole prefix; never the token itself. PATH may be a whole
    URL. DECISION_ID is in the response and the log line of every refusal. The exit status is 0 for a refusal, too.
    """
    if len(asked) not in (1, 3) or (len(asked) == 1 and (host is not None or ip is not None)):
        raise click.UsageError("Give TOKEN_ID METHOD PATH, or one DECISION_ID.")
    settings = invocation.settings()
    _refuse_whole(settings, asked)
    # Bytes that are not UTF-8 are not canonical in a path, so it does not matter what replaces them.
    texts = [os.fsencode(text).decode("utf-8", "replace") for text in asked]
    names = ("token", "method", "path") if len(texts) == 3 else ("decision",)
    query: dict[str, str | None] = dict(zip(names, texts, strict=True))
    document = call(settings, lambda control: control.get("/explain", {**query, "host": host, "ip": ip}))
    invocation.out.document(document)
    if "decision" in document:
        _decision(invocation.out, document)
    else:
        _request(invocation.out, document)


def _refuse_whole(settings: Settings, texts: tuple[str, ...]) -> None:
    """Refuse a whole token before it is sent anywhere."""
    whole = re.compile(token_format(settings).embedded_pattern)
    if any(whole.search(text) for text in texts):
        raise Invalid("token", WHOLE_TOKEN)


def _decision(out: Output, document: Json) -> None:
    then = document["then"]
    status = "" if then["status"] is None else f", {then['status']}"
    facts = [
        ("at", then["at"]),
        ("request", f"{then['method'] or '?'} {then['host'] or ''}{then['path'] or '?'}"),
        ("second target", _second(then["second_target"])),
        ("requirement", then["requirement"]),
        ("route", then["route"]),
        ("token", _named(then["token_name"], then["token_id"]) or None),
        ("owner", then["user"]),
        ("organisation", then["org"]),
        ("from", then["address"]),
    ]
    headline = f"Decision {document['decision']}: {then['verdict']}, {then['reason']}{status}"
    out.facts(headline, [fact for fact in facts if fact[1] is not None])
    for text in (*document["differences"], *document["notes"]):
        out.line(f"  {sentence(text)}")
    if document["now"] is not None and not document["differences"] and not document["notes"]:
        out.line("  The same request gets the same verdict now.")
    if document["since"]:
        out.line()
        out.line("Changes since then")
        out.table(_SINCE, document["since"], "")
    if document["now"] is not None:
        out.line()
        out.line("The same request now")
        _request(out, document["now"])


def _request(out: Output, document: Json) -> None:
    facts = [
        ("request", f"{document['method']} {document['host'] or ''}{document['path']}"),
        ("from", document["ip"]),
        ("second target", _second(document["second_target"])),
        ("requirement", document["requirement"]),
        ("route", document["route"]),
        ("upstream", document["upstream"]),
        ("needs", document["permission"]),
        ("organisation", document["org"]),
        *_token(document),
    ]
    out.facts(_headline(document), [fact for fact in facts if fact[1] is not None])
    rows = [{**step, "result": _MARKS[step["result"]]} for step in document["steps"]]
    out.table(_STEPS, rows, "")
    if document["verdict"] != "allowed":
        would = "would get" if document["verdict"] == "reported" else "gets"
        out.line(f"The client {would} {document['status']} with the reason {document['public_reason']}")
        for value in document["challenge"]:
            out.line(f"  WWW-Authenticate: {plain(value)}")
    if document["identity"]:
        out.line("The backend receives")
        for header in document["identity"]:
            out.line(f"  {header['name']}: {plain(header['value'])}".rstrip())


def _second(named: Json | None) -> str | None:
    """The second target that was refused, and the header that names it."""
    if named is None:
        return None
    checked = "" if named["path"] is None else f" (checked as {named['method']} {named['path']})"
    return f"in the header {named['header']}{checked}"


def _headline(document: Json) -> str:
    if document["verdict"] == "allowed":
        return "Allowed"
    if document["verdict"] == "reported":
        return f"Allowed and reported: without `enforce: false` on the route it would be refused, {document['reason']}"
    return f"Refused: {document['reason']}. {document['detail']}"


def _token(document: Json) -> list[tuple[str, object]]:
    token = document["token"]
    if token is None:
        return [("token", "does not exist")]
    facts: list[tuple[str, object]] = [
        ("token", f"{_named(token['name'], token['prefix'])}, {token['status']}"),
        (
            "role",
            f"{document['role']} in {document['role_org']}"
            if document["role"] and document["role_org"]
            else document["role"],
        ),
        ("scopes", "all of the role's" if document["scopes"] is None else document["scopes"]),
        ("usable from", token["ip_ranges"]),
    ]
    if token["user"] is not None:
        facts.insert(1, ("owner", f"{token['user']}, {token['user_status'] or 'unknown'}"))
    return facts


def _named(name: str | None, key: str | None) -> str:
    return plain(f"{name} ({key})" if name and key else name or key)
