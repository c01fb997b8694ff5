"""Each random token is sent once, and each answer is counted."""

from __future__ import annotations

import re

from bench.scenarios import random_tokens
from bench.testbed import received
from tests.support.process import HANGS_SECONDS
from tests.unit.bench.serving import REFUSAL, running, serving


def test_every_random_token_is_sent_once_and_its_answer_counted() -> None:
    count = 3 * random_tokens.CONNECTIONS * random_tokens.AHEAD + 7
    with serving(REFUSAL) as server, running(lambda pipe: random_tokens.flood(pipe, server.port, count)) as pipe:
        assert received(pipe, HANGS_SECONDS, "all were answered") == {401: count}
    tokens = re.findall(rb"Bearer (\S+)", b"".join(server.received.values()))
    assert len(tokens) == len(set(tokens)) == count
