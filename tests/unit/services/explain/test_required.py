"""Explanations of decisions that an ingress's requirement made, by the requirement that the audit log has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.reasons import Reason
from proxy.services.explain.steps import Step
from tests.contract.kit import Kit, opened
from tests.unit.services.explain.test_service import ANN, decided, failed, happened


@pytest.fixture
async def kit(tmp_path: Path) -> AsyncIterator[Kit]:
    async with opened(tmp_path) as kit:
        await kit.basics()
        yield kit


REQUIRED: tuple[tuple[str, str, str, Reason, Step | None, str], ...] = (
    ("/v1/others/7", "entity=things&operation=read", "/v1/{entity}/{id}", Reason.ALLOWED, None, ""),
    (
        "/v1/things/7", "entity=others&operation=read&id=9", "/v1/{entity}/{id}", Reason.ROLE_DENIES, Step.ROLE,
        "does not have others/9:read",
    ),
    ("/public/x", "entity=things&operation=read", "/public/**", Reason.ALLOWED, None, ""),
    ("/nowhere", "entity=things&operation=read", "-", Reason.ALLOWED, None, ""),
    (
        "/orgs/team/things/7", "entity=things&operation=read&org=other", "/orgs/{org}/{entity}/{id}",
        Reason.ORG_MISMATCH, Step.ROUTE, "the path names team, the ingress's requirement other",
    ),
    (
        "/nowhere", "entity=things&operation=read&org=team", "-", Reason.ORG_MISMATCH, Step.ORGANISATION,
        "about team; the token is personal",
    ),
    ("/never/x", "entity=things&operation=read", "/never/**", Reason.ROUTE_DENIED, Step.ROUTE, "never"),
)  # fmt: skip


@pytest.mark.parametrize(("path", "requirement", "route", "reason", "step", "text"), REQUIRED)
async def test_a_decision_is_explained_by_the_requirement_that_the_log_has(
    kit: Kit, path: str, requirement: str, route: str, reason: Reason, step: Step | None, text: str
) -> None:
    made = await kit.mint(ANN, "ci", scopes=["things:read", "others:read"])
    outcome = "allowed" if reason is Reason.ALLOWED else "refused"
    await happened(
        kit, made, path=path, requirement=requirement, reason=reason.value, outcome=outcome, target_name=route,
        target_id="", action="request.read",
    )  # fmt: skip
    found = await decided(kit)
    assert (found.differences, found.notes) == ((), ())
    now = found.now
    assert now is not None
    assert now.judged.reason is reason
    if step is not None:
        assert (failed(now)[0], text in failed(now)[1]) == (step, True)
    document = found.as_dict()
    assert isinstance(document["then"], dict)
    assert document["then"]["requirement"] == requirement == now.as_dict()["requirement"]
    by_step = {each.step: each.text for each in now.findings.steps()}
    if reason is Reason.ALLOWED:
        assert by_step[Step.OPERATION].endswith(":read, by the ingress's requirement")
        assert dict(now.identity)["X-Auth-Email"] == ANN
    if route == "/public/**":
        assert by_step[Step.ROUTE] == "/public/** (1 of 8), needs a token by the ingress's requirement"
    if route == "-" and reason is Reason.ALLOWED:
        assert by_step[Step.ROUTE] == "no route matches; the ingress's requirement alone decides"


async def test_a_decision_by_a_requirement_that_the_log_does_not_have_is_not_explained_by_the_routes(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci")
    await happened(kit, made, path="/nowhere", target_name="-", outcome="allowed", reason="allowed")
    found = await decided(kit)
    assert (found.now, found.differences) == (None, ())
    assert "a requirement of the ingress decided" in found.notes[0]


async def test_a_redacted_requirement_makes_no_differences(kit: Kit) -> None:
    made = await kit.mint(ANN, "ci", scopes=["things/7:read"])
    await happened(
        kit, made, requirement="entity=things&operation=read&id=[redacted]", outcome="allowed", reason="allowed"
    )
    found = await decided(kit)
    assert found.differences == ()
    assert "the requirement in the log is redacted" in found.notes[0]
