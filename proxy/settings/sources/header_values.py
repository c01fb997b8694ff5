"""Reading the files of ``upstreams.….set_headers``, which may hold the backends' credentials.

1. No content of a file is part of a problem.
2. A file must belong to this user or to root, and other users may not read it. Its group may read and not write it,
   because secrets that are mounted into containers often belong to a group (``fsGroup`` of Kubernetes).
3. Only the process that loads the configuration reads the files, once for each start and each reload.
"""

import os
import stat
from pathlib import Path
from typing import Final

from proxy.settings.checks.candidate import Candidate, RuleViolation
from proxy.settings.model import Settings
from proxy.settings.names import field_value_problem
from proxy.settings.problems import Loc
from proxy.settings.sections.upstreams import HeaderValue
from proxy.settings.values import quoted_path

_MAX_FILE_BYTES: Final = 16 * 1024


def with_header_values(candidate: Candidate) -> tuple[Settings, list[RuleViolation]]:
    """The settings with the content of every header's file, and the headers without a usable value."""
    settings, problems = candidate.settings, []
    upstreams = dict(settings.upstreams)
    for name, upstream in settings.upstreams.items():
        values = dict(upstream.set_headers)
        for header, given in upstream.set_headers.items():
            loc: Loc = ("upstreams", name, "set_headers", header)
            if not candidate.sound(loc):
                continue
            try:
                values[header] = _filled(given)
            except ValueError as error:
                problems.append(RuleViolation(loc=loc, message=str(error)))
        upstreams[name] = upstream.model_copy(update={"set_headers": values})
    return settings.model_copy(update={"upstreams": upstreams}), problems


def _filled(given: HeaderValue) -> HeaderValue:
    if (given.value is None) == (given.file is None):
        raise ValueError("needs either value or file")
    filled = given
    if given.file is not None:
        filled = HeaderValue.model_validate({"value": _content(given.file), "file": given.file, "prefix": given.prefix})
    problem = field_value_problem(filled.text)
    if problem is not None:
        raise ValueError(f"the value with its prefix {problem}")
    return filled


def _content(path: Path) -> str:
    """The content of a file without surrounding white space; more than a value's length is refused anyway."""
    try:
        # O_NONBLOCK: a named pipe in place of the file must not block the start. Mounted secrets are symbolic links.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ValueError(f"the file {quoted_path(path)} cannot be read: {os.strerror(error.errno or 0)}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{quoted_path(path)} is not a regular file")
        if status.st_uid not in (os.geteuid(), 0):
            raise ValueError(f"the file {quoted_path(path)} belongs to another user")
        if status.st_mode & 0o027:
            raise ValueError(f"the file {quoted_path(path)} is open to other users; its mode must be 0600 or 0640")
        raw = os.read(descriptor, _MAX_FILE_BYTES)
    finally:
        os.close(descriptor)
    text = raw.decode("latin-1").strip()
    problem = "must not be empty" if not text else field_value_problem(text)
    if problem is not None:
        raise ValueError(f"the content of the file {quoted_path(path)} {problem}")
    return text
