"""Reload requests: runs them one after the other, and reports each result to the log, the metrics and systemd."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from proxy.core.errors import ConfigurationError, PatgateError
from proxy.observe import logs
from proxy.observe.logs import Logger
from proxy.settings.model import Settings
from proxy.supervisor.children import Children
from proxy.supervisor.config_generation import Generation, StartContext
from proxy.supervisor.reload import refuse_fixed
from proxy.supervisor.sd_notify import Notifier


class Load(Protocol):
    """Reads the configuration again."""

    path: Path
    """The file, for messages."""

    def __call__(self) -> Settings:
        """Return the settings. Raises ``ConfigurationError`` with every problem. Runs in a thread."""
        ...


class ReloadQueue:
    """Runs reloads while the gateway serves. ``published`` is called with each new generation."""

    def __init__(
        self,
        children: Children,
        context: StartContext,
        load: Load,
        notifier: Notifier,
        log: Logger,
        *,
        published: Callable[[Generation], object],
    ) -> None:
        self._children = children
        self._context = context
        self._load = load
        self._notifier = notifier
        self._log = log
        self._published = published

    async def run(self, requested: asyncio.Event, stop: asyncio.Event) -> None:
        """Reload each time ``requested`` is set, until ``stop``. Requests during a reload cause one more after it."""
        stopped = asyncio.create_task(stop.wait(), name="stop requested")
        try:
            while not stop.is_set():
                waiting = asyncio.create_task(requested.wait(), name="reload requested")
                await asyncio.wait((waiting, stopped), return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                if stop.is_set():
                    return
                requested.clear()
                await self._reload(stopped)
        finally:
            stopped.cancel()

    async def _loaded(self, stopped: asyncio.Task[bool]) -> Settings | None:
        """The settings, or ``None`` when a stop comes before they are read. Raises ``ConfigurationError``."""
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[Settings] = loop.create_future()

        def settle(settings: Settings | None, error: BaseException | None) -> None:
            if loaded.done():
                return
            if settings is not None:
                loaded.set_result(settings)
            elif error is not None:
                loaded.set_exception(error)

        def load() -> None:
            settings, failure = None, None
            try:
                settings = self._load()
            except BaseException as error:  # noqa: BLE001 - raised again in the event loop
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(settle, settings, failure)

        # In a daemon thread, which the end of the process does not wait for: a file system may hang.
        threading.Thread(target=load, name="load configuration", daemon=True).start()
        await asyncio.wait((loaded, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not loaded.done():
            loaded.cancel()
            return None
        return loaded.result()

    async def _reload(self, stopped: asyncio.Task[bool]) -> None:
        self._notifier.reloading()
        self._log.info("reloading", config=str(self._load.path))
        status = "reload refused: the former configuration stays in use"
        ok = False
        try:
            settings = await self._loaded(stopped)
            if settings is None or stopped.done():
                return
            refuse_fixed(self._children.generation.settings, settings)
            generation = await self._children.reload(settings, self._context)
            # The new configuration is in use from here on, even if something below fails.
            logs.change(level=settings.log.level, line_format=settings.log.format)
            ok, status, addresses = True, "serving the configuration that was reloaded", generation.addresses
            self._publish(generation)
            self._log.info("reloaded", workers=settings.workers, routes=len(settings.routes), addresses=addresses)
        except ConfigurationError as error:
            for problem in error.problems:
                self._log.error("configuration problem", problem=problem.located(self._load.path))
            self._log.error("reload refused: the previous configuration stays in use", problems=len(error.problems))
        except PatgateError as error:
            self._log.error("reload refused: the previous configuration stays in use", problem=str(error))
        self._children.report_state(reload_ok=ok)
        self._notifier.ready(status)

    def _publish(self, generation: Generation) -> None:
        try:
            self._published(generation)
        except PatgateError as error:
            self._log.error("the addresses of the listeners are not published", problem=str(error))
