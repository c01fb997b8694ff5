"""`/api/v1`: each handler reads a request, calls one service method and writes its view.

Answers are never cached; a secret is only in the answers that make one.  Lists are `{"items", "next_cursor"}`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Final, Protocol

from aiohttp import web

from proxy.control.models import NewOrg, NewRole, NewToken, NewUser, NoBody, RolePermissions
from proxy.control.plane import Plane
from proxy.control.requests import read_body, read_limit, read_query, read_status
from proxy.core.model import Actor, ActorKind

ROOT: Final = "/api/v1"
SOCKET_ACTOR: Final = Actor(kind=ActorKind.SYSTEM, id="control-socket", name="control-socket")
"""Who acts over the control socket: whoever may open the file."""


class View(Protocol):
    def as_dict(self) -> dict[str, object]: ...


class Api:
    """The handlers over one plane, acting as one actor."""

    def __init__(self, plane: Plane, actor: Actor) -> None:
        self._plane = plane
        self._actor = actor

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post(f"{ROOT}/users", self.add_user),
            web.get(f"{ROOT}/users", self.list_users),
            web.get(f"{ROOT}/users/{{user}}", self.show_user),
            web.delete(f"{ROOT}/users/{{user}}", self.remove_user),
            web.post(f"{ROOT}/users/{{user}}/role", self.set_role),
            web.post(f"{ROOT}/users/{{user}}/suspend", self.suspend_user),
            web.post(f"{ROOT}/users/{{user}}/resume", self.resume_user),
            web.post(f"{ROOT}/orgs", self.add_org),
            web.get(f"{ROOT}/orgs", self.list_orgs),
            web.get(f"{ROOT}/orgs/{{org}}", self.show_org),
            web.get(f"{ROOT}/roles", self.list_roles),
            web.get(f"{ROOT}/roles/{{role}}", self.show_role),
            web.put(f"{ROOT}/roles/{{role}}", self.set_permissions),
            web.post(f"{ROOT}/tokens", self.create_token),
            web.get(f"{ROOT}/tokens", self.list_tokens),
            web.get(f"{ROOT}/tokens/{{token}}", self.show_token),
            web.delete(f"{ROOT}/tokens/{{token}}", self.delete_token),
            web.post(f"{ROOT}/tokens/{{token}}/rotate", self.rotate_token),
            web.post(f"{ROOT}/tokens/{{token}}/revoke", self.revoke_token),
        ]

    async def add_user(self, request: web.Request) -> web.Response:
        body = await read_body(request, NewUser)
        view = await self._plane.users.add(self._actor, body.email, body.role, org=body.org, name=body.name)
        return _one(view, status=201)

    async def list_users(self, request: web.Request) -> web.Response:
        query = read_query(request, "limit", "cursor")
        page = await self._plane.users.list(self._actor, limit=read_limit(query), cursor=query.get("cursor"))
        return _many(page.items, page.next_cursor)

    async def show_user(self, request: web.Request) -> web.Response:
        return _one(await self._plane.users.show(self._actor, request.match_info["user"]))

    async def set_role(self, request: web.Request) -> web.Response:
        body = await read_body(request, NewRole)
        user = request.match_info["user"]
        return _one(await self._plane.users.set_role(self._actor, user, body.role, org=body.org))

    async def suspend_user(self, request: web.Request) -> web.Response:
        await read_body(request, NoBody)
        return _one(await self._plane.users.suspend(self._actor, request.match_info["user"]))

    async def resume_user(self, request: web.Request) -> web.Response:
        await read_body(request, NoBody)
        return _one(await self._plane.users.resume(self._actor, request.match_info["user"]))

    async def remove_user(self, request: web.Request) -> web.Response:
        return _one(await self._plane.users.remove(self._actor, request.match_info["user"]))

    async def add_org(self, request: web.Request) -> web.Response:
        body = await read_body(request, NewOrg)
        return _one(await self._plane.orgs.add(self._actor, body.name, display_name=body.display_name), status=201)

    async def list_orgs(self, request: web.Request) -> web.Response:
        query = read_query(request, "limit", "cursor")
        page = await self._plane.orgs.list(self._actor, limit=read_limit(query), cursor=query.get("cursor"))
        return _many(page.items, page.next_cursor)

    async def show_org(self, request: web.Request) -> web.Response:
        return _one(await self._plane.orgs.show(self._actor, request.match_info["org"]))

    async def list_roles(self, request: web.Request) -> web.Response:
        read_query(request)
        return _many(await self._plane.roles.list(self._actor), None)

    async def show_role(self, request: web.Request) -> web.Response:
        return _one(await self._plane.roles.show(self._actor, request.match_info["role"]))

    async def set_permissions(self, request: web.Request) -> web.Response:
        body = await read_body(request, RolePermissions)
        return _one(await self._plane.roles.set(self._actor, request.match_info["role"], body.permissions))

    async def create_token(self, request: web.Request) -> web.Response:
        body = await read_body(request, NewToken)
        created = await self._plane.tokens.create(
            self._actor,
            body.user,
            body.name,
            org=body.org,
            expires=body.expires,
            scopes=body.scopes,
            description=body.description,
        )
        return _one(created, status=201)

    async def list_tokens(self, request: web.Request) -> web.Response:
        query = read_query(request, "user", "status", "limit", "cursor")
        page = await self._plane.tokens.list(
            user=query.get("user"), status=read_status(query), limit=read_limit(query), cursor=query.get("cursor")
        )
        return _many(page.items, page.next_cursor)

    async def show_token(self, request: web.Request) -> web.Response:
        return _one(await self._plane.tokens.show(request.match_info["token"]))

    async def rotate_token(self, request: web.Request) -> web.Response:
        await read_body(request, NoBody)
        return _one(await self._plane.tokens.rotate(self._actor, request.match_info["token"]))

    async def revoke_token(self, request: web.Request) -> web.Response:
        await read_body(request, NoBody)
        return _one(await self._plane.tokens.revoke(self._actor, request.match_info["token"]))

    async def delete_token(self, request: web.Request) -> web.Response:
        return _one(await self._plane.tokens.delete(self._actor, request.match_info["token"]))


def _one(view: View, *, status: int = 200) -> web.Response:
    return _answer(view.as_dict(), status)


def _many(views: Iterable[View], next_cursor: str | None) -> web.Response:
    return _answer({"items": [view.as_dict() for view in views], "next_cursor": next_cursor}, 200)


def _answer(document: dict[str, object], status: int) -> web.Response:
    return web.json_response(document, status=status, headers={"Cache-Control": "no-store"}, dumps=json.dumps)
