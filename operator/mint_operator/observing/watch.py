"""Kopf in its own thread: it watches, marks, and answers the liveness probe.

It has a thread because kopf ends everything else in its event loop when it stops, and because the probe should still
answer (truthfully) while the loop is busy planning.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import kopf
import structlog

from mint_operator.handlers import children, engines, resources
from mint_operator.observing.dirt import Dirt
from mint_operator.observing.feed import Feed
from mint_operator.settings import LIVENESS_PATH

STALLED_S = 120.0  # longer than any backoff, timeout or plan
STOP_S = 10.0
RETRY_S = 5.0  # between requests, while the API server does not answer

log = structlog.get_logger()


class Watch:
    """Kopf's side of the operator.

    The probe is answered at `liveness_at` (host:port). `progress` returns the monotonic time when the loop last made
    progress, None before it leads; `ended` is called, from kopf's thread, if kopf ends without `stop`. `kinds` are
    those of handlers.children that it may watch.
    """

    def __init__(
        self,
        dirt: Dirt,
        feed: Feed,
        namespaces: Sequence[str],
        liveness_at: str,
        progress: Callable[[], float | None],
        ended: Callable[[], None],
        kinds: Collection[str] = (),
    ) -> None:
        self._dirt = dirt
        self._feed = feed
        self._namespaces = list(namespaces)
        self._endpoint = f"http://{liveness_at}{LIVENESS_PATH}"
        self._progress = progress
        self._ended = ended
        self._kinds = kinds
        self._stopping, self._stop = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; waits for the thread, STOP_S at most."""
        self._stopping = True
        self._stop.set()
        self._thread.join(STOP_S)

    def _run(self) -> None:
        logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)  # it warns that it handles no signals
        registry, settings = kopf.OperatorRegistry(), kopf.OperatorSettings()
        self._configure(settings)
        self._register(registry, settings)
        try:
            asyncio.run(self._operate(registry, settings))
        except Exception:  # whatever ended the watch, the process must end with it and say why
            log.exception("kopf ended")
        finally:
            if not self._stopping:
                self._ended()

    async def _operate(self, registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings) -> None:
        try:
            await kopf.operator(
                registry=registry,
                settings=settings,
                # Only peers would use it, but without it kopf asks for the user's name, which a pod may lack.
                identity="mint-operator",  # type: ignore[arg-type]  # a kind of str that kopf does not export
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                liveness_endpoint=self._endpoint,
                stop_flag=self._stop,
            )
        finally:
            self._stop.set()  # a thread of kopf's waits for this, and asyncio.run for the thread

    @staticmethod
    def _configure(settings: kopf.OperatorSettings) -> None:
        settings.posting.enabled = False
        settings.peering.standalone = True
        settings.scanning.disabled = True  # no rights on CRDs and namespaces are needed
        settings.watching.server_timeout = 300
        settings.watching.client_timeout = 330
        settings.watching.connect_timeout = settings.networking.connect_timeout = 10
        # Kopf would end after a minute: a process that is started again and again waits ever longer in between.
        # It repeats requests that are refused (403), too.
        settings.networking.error_backoffs = itertools.repeat(RETRY_S)

    def _register(self, registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings) -> None:
        resources.register(registry, self._dirt, self._feed)
        engines.register(registry, settings, self._dirt, self._feed)
        children.register(registry, settings, self._dirt, self._kinds)

        @kopf.on.login(registry=registry)
        def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
            return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)

        @kopf.on.probe(registry=registry, id="loop", errors=kopf.ErrorsMode.PERMANENT)
        async def loop_moves(**_: Any) -> str:
            last = self._progress()
            if last is None:
                return "standing by"
            since = time.monotonic() - last
            if since > STALLED_S:
                raise kopf.PermanentError(f"the loop has made no progress for {since:.0f} s")
            return f"made progress {since:.1f} s ago"
