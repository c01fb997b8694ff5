"""Errors of a start or a reload.

PatgateError
└── StartError
    ├── ListenerRefused     an address cannot be listened on
    ├── StartupRefused      a process reported why it cannot start, or ended without a report
    └── ReloadRefused       a changed configuration cannot be used; the former stays in use
"""

from proxy.core.errors import Origin, PatgateError


class StartError(PatgateError):
    """A start or a reload failed; a failed start leaves nothing running."""

    origin = Origin.OPERATOR


class ListenerRefused(StartError):
    """An address cannot be listened on: it is taken, not permitted, or not one of this host."""


class StartupRefused(StartError):
    """A process of the gateway did not start; the message is the process's own sentence, if it reported one."""


class ReloadRefused(StartError):
    """A changed configuration is not used; the former stays in use, and nothing has changed."""
