"""Every target by its name."""

from __future__ import annotations

from typing import Final

from tests.fuzz.targets import (
    answer,
    canonical_path,
    chunked_body,
    connection,
    proxy_protocol,
    redactor,
    request_head,
    response_head,
    token,
)
from tests.fuzz.targets.target import Target

TARGETS: Final[dict[str, Target]] = {
    module.TARGET.name: module.TARGET
    for module in (
        request_head,
        response_head,
        canonical_path,
        chunked_body,
        token,
        redactor,
        proxy_protocol,
        connection,
        answer,
    )
}
