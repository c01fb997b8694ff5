"""Webhook delivery over HTTP: notices are signed, redirects are not followed, and failures name the status."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from proxy.authority.webhook import DeliveryFailed, Endpoint, signature, webhook_client

KEY = bytes(range(32))


@dataclass
class Receiver:
    url: str = ""
    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        self.got.append((dict(request.headers), await request.read()))
        return web.Response(status=self.status, headers=self.headers)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    found = Receiver()
    app = web.Application()
    app.router.add_post("/hook", found.take)
    app.router.add_post("/elsewhere", found.take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    yield found
    await runner.cleanup()


async def send(url: str) -> None:
    async with webhook_client(4) as client:
        await client.deliver(Endpoint(url=url, key=KEY), "msg_1", "token.expiring", {"prefix": "acme_pat_x"})


async def test_a_notice_is_signed_over_its_id_its_timestamp_and_its_exact_bytes(receiver: Receiver) -> None:
    await send(receiver.url)
    ((headers, body),) = receiver.got
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    scheme, _, given = headers["webhook-signature"].partition(",")
    assert scheme == "v1"
    assert hmac.compare_digest(base64.b64decode(given), hmac.digest(KEY, signed, "sha256"))
    document = json.loads(body)
    assert (document["type"], document["data"]) == ("token.expiring", {"prefix": "acme_pat_x"})
    assert headers["Content-Type"] == "application/json"


def test_the_signature_is_that_of_the_standards_example() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    message, expected = "msg_p5jXN8AQM9LWM0D4loKWxJek", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(key, message, 1614265330, body) == expected


@pytest.mark.parametrize(
    ("status", "rejected"), [(302, True), (400, True), (410, True), (408, False), (429, False), (500, False)]
)
async def test_a_response_without_a_success_status_is_a_failure(
    receiver: Receiver, status: int, rejected: bool
) -> None:
    receiver.status = status
    receiver.headers = {"Location": "/elsewhere"}
    with pytest.raises(DeliveryFailed, match=f"it answered {status}") as raised:
        await send(receiver.url)
    assert raised.value.rejected is rejected
    assert len(receiver.got) == 1, "a redirection is not followed"


async def test_an_unreachable_receiver_is_a_failure_that_may_be_retried(receiver: Receiver) -> None:
    with pytest.raises(DeliveryFailed, match="cannot be reached") as raised:
        await send("http://127.0.0.1:1/hook")
    assert not raised.value.rejected
