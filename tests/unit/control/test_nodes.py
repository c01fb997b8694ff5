"""The nodes of a store over the API: of an embedded one there is one, and nothing to accept."""

from __future__ import annotations

from tests.unit.control.api_client import minted, ok, person, refused
from tests.unit.control.conftest import World

ANN, ROOT = "ann@example.org", "root@example.org"


async def test_an_embedded_store_has_one_node(world: World) -> None:
    (node,) = (await ok(world, "GET", "/nodes"))["items"]
    assert (node["self"], node["config_matches"], node["applied"]) == (True, True, world.authority.epoch)
    assert node["lease"] == 5.0 and 0 < node["lease_seconds"] <= 5.0
    assert len(node["id"]) == 32 and len(node["config_hash"]) == 64


async def test_there_is_nothing_to_accept_in_an_embedded_store(world: World) -> None:
    problem = await refused(world, "POST", "/nodes/accept")
    assert problem["status"] == 409
    assert "--accept-older-store" in problem["detail"]


async def test_only_administrators_see_the_nodes_and_accept_a_store(world: World) -> None:
    await person(world, ANN, "editor")
    await person(world, ROOT, "admin")
    ann, root = (await minted(world, ANN))["token"], (await minted(world, ROOT))["token"]
    for method, path in (("GET", "/nodes"), ("POST", "/nodes/accept"), ("POST", "/roles/apply")):
        assert (await refused(world, method, path, token=ann))["status"] == 403
    assert len((await ok(world, "GET", "/nodes", token=root))["items"]) == 1
    assert (await refused(world, "POST", "/nodes/accept", token=root))["status"] == 409


async def test_the_roles_of_the_configuration_are_applied_on_request(world: World) -> None:
    assert await ok(world, "POST", "/roles/apply") == {"changed": []}
    await ok(world, "PUT", "/roles/viewer", {"permissions": ["things:list"]})
    assert await ok(world, "POST", "/roles/apply") == {"changed": []}, "a role that was set by hand stays"
