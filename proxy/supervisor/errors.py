"""Why a gateway does not start.

PatgateError
└── StartError
    ├── ListenerRefused     an address cannot be listened on
    ├── StartupRefused      a process said why it cannot start, or ended without a word
    └── ReloadRefused       a changed configuration cannot be run on; the one before goes on
"""

from proxy.core.errors import Origin, PatgateError


class StartError(PatgateError):
    """Nothing was started, or nothing is left running."""

    origin = Origin.OPERATOR


class ListenerRefused(StartError):
    """An address cannot be listened on: taken, not permitted, not of this host."""


class StartupRefused(StartError):
    """A process of the gateway did not start; the message is its own sentence where it had one."""


class ReloadRefused(StartError):
    """A changed configuration is not taken; what ran before goes on as if nothing had been tried."""
