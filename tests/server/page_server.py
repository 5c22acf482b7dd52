"""A server for the live page that follows a test's script: the page's files, and events as the test sends them."""

import asyncio
import collections
import contextlib
import json
import threading
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from jaxserve.server import page

PATIENCE_S = 30.0

END = object()  # the stream ends in good order
BREAK = object()  # its connection is reset


class ScriptedServer:
    """Sends what the test hands it, to the stream that was opened last, or to the next one.

    Attributes:
        url: of the page.
        token: what a stream has to show; None while nobody is asked.
        status: what streams are answered with in place of events, if not 200.
        authorizations: the header of each stream that was asked for, in order.
    """

    def __init__(self) -> None:
        self.url = ""
        self.token: str | None = None
        self.status = 200
        self.authorizations: list[str | None] = []
        self._script: collections.deque[Any] = collections.deque()
        self._more = asyncio.Event()
        self._stop = asyncio.Event()
        self._newest: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._started = threading.Event()
        self._files = {file.path: file for file in page.files()}

    def send(self, *script: Any) -> None:
        """Adds snapshots, END or BREAK to what streams are sent."""
        assert self._loop is not None

        def add() -> None:
            self._script.extend(script)
            self._more.set()

        self._loop.call_soon_threadsafe(add)

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator["ScriptedServer"]:
        """A server in a thread, whose loop the browser's own does not meet."""
        server = cls()
        thread = threading.Thread(target=asyncio.run, args=(server._serve(),), name="scripted-server")
        thread.start()
        try:
            assert server._started.wait(PATIENCE_S), "the scripted server did not start"
            yield server
        finally:
            if server._loop is not None:
                server._loop.call_soon_threadsafe(server._stop.set)
            thread.join(PATIENCE_S)

    async def _serve(self) -> None:
        application = web.Application()
        application.router.add_get("/events", self._events)
        application.router.add_get("/{path:.*}", self._file)
        # A handler ends with its client, so that none that is left over takes what the next stream is to have.
        runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
            self._loop = asyncio.get_running_loop()
            self._started.set()
            await self._stop.wait()
        finally:
            await runner.cleanup()

    async def _file(self, request: web.Request) -> web.Response:
        file = self._files.get(request.path)
        if file is None:
            raise web.HTTPNotFound
        return web.Response(body=file.body, headers={**page.HEADERS, "Content-Type": file.content_type})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        self.authorizations.append(authorization)
        if self.token is not None and authorization != f"Bearer {self.token}":
            return web.json_response({"error": "a token is needed"}, status=401, headers={"WWW-Authenticate": "Bearer"})
        if self.status != 200:
            return web.json_response({"error": "as the test says"}, status=self.status)
        self._newest = asyncio.current_task()
        self._more.set()
        stream = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await stream.prepare(request)
        await stream.write(b": opened\n\n")
        while True:
            while not self._script:
                self._more.clear()
                await self._more.wait()
            transport = request.transport
            if transport is None or self._newest is not asyncio.current_task():
                return stream  # what is to come is for the stream that took its place
            step = self._script.popleft()
            if step is END:
                return stream
            if step is BREAK:
                transport.abort()
                return stream
            await stream.write(f"event: snapshot\ndata: {json.dumps(step)}\n\n".encode())
