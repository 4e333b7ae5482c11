"""HTTP server of pages on this machine, which answers to this machine's names only."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import InputError

HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
)


class OwnHosts:
    """Refuses requests for other hosts' names, and adds HEADERS to answers.

    A site that a browser visits can point a name of its own to this machine and read what is served
    under it (DNS rebinding). Allowed are IP addresses, localhost, and this machine's names.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._names = {"localhost", socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 421 for another host; pass the others on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self.allows(hosts[0]):
            text = f"Host: found {', '.join(hosts) or 'none'}; want an address or a name of this machine\n"
            await PlainTextResponse(text, 421)(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def allows(self, host: str) -> bool:
        """Whether a Host header (``NAME``, ``NAME:PORT``, ``[IPV6]:PORT``) is this machine's."""
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name.lower() in self._names
        return True


def application(routes: Sequence[Route]) -> Starlette:
    """An application of these routes behind :class:`OwnHosts`."""
    return Starlette(routes=list(routes), middleware=[Middleware(OwnHosts)])


def listen(host: str, port: int) -> socket.socket:
    """A socket for :func:`serve`; port 0: any free one.

    Raises:
        InputError: the port is in use, or the address is not this machine's.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"{host}:{port}: {error.strerror}; name another --port") from None


def serve(app: ASGIApp, listener: socket.socket) -> None:
    """Serve until interrupted."""
    import uvicorn

    settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="off")
    uvicorn.Server(settings).run(sockets=[listener])
