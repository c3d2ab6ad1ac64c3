"""What keeps the explorer to its own page on this machine.

Only the addresses that it printed are answered (another Host may be a name that
was bound to 127.0.0.1), and only its own page (no other Origin); bodies are
limited while they are read; the page may run its own scripts, and ask no other
server.
"""

import asyncio
import base64
import hashlib
import re

from speechbrain_sim.explorer.jobs import Refused, left
from speechbrain_sim.extras import import_extra

EXTRA = "explore"
HOSTS = "127.0.0.1", "localhost"
#: seconds in which a body must arrive
PATIENCE = 30
#: of every answer
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
#: of the page, whose scripts and style are inside
PAGE_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def page_policy(html):
    """Returns the page's policy: only the scripts in it run, by their hashes.

    Example
    -------
    >>> "script-src 'sha256-" in page_policy("<script>f()</script>")
    True
    """
    hashes = []
    for script in re.findall(r"<script[^>]*>(.*?)</script>", html, re.DOTALL):
        digest = hashlib.sha256(script.encode()).digest()
        hashes.append(f"'sha256-{base64.b64encode(digest).decode()}'")
    return PAGE_POLICY.format(scripts=" ".join(hashes) or "'none'")


class Guard:
    """ASGI middleware: refuses other hosts and origins, adds `HEADERS`.

    Arguments
    ---------
    app, port : FastAPI, int
        What is guarded, whose `state` is its own; where it is served.
    """

    def __init__(self, app, port):
        self.app, self.port, self.state = app, port, app.state
        self.headers = import_extra("starlette.datastructures", EXTRA)
        self.answer = import_extra("starlette.responses", EXTRA).JSONResponse

    async def __call__(self, scope, receive, send):
        """Answers a request, or hands it on."""

        async def send_guarded(message):
            if message["type"] == "http.response.start":
                headers = self.headers.MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        app = self.app
        if scope["type"] == "http":
            headers = self.headers.Headers(scope=scope)
            if refused := foreign(headers, self.port, scope["path"]):
                app = self.answer({"error": refused}, 403)
        await app(scope, receive, send_guarded)


def foreign(headers, port, path="/"):
    """Returns why a request is not of this machine's page; None if it is.

    A link to the page may be anywhere: what follows it cannot read the page.

    Example
    -------
    >>> own = {"host": "localhost:8000", "origin": "http://localhost:8000"}
    >>> foreign(own, 8000), foreign({"host": "example.org"}, 8000)
    (None, 'Open the explorer by the address that it printed.')
    >>> foreign({"host": "localhost"}, 80)  # browsers leave it out
    """
    own = {host if port == 80 else f"{host}:{port}" for host in HOSTS}
    if headers.get("host") not in own:
        return "Open the explorer by the address that it printed."
    origin, site = (headers.get(n) for n in ("origin", "sec-fetch-site"))
    elsewhere = origin not in {None, *(f"http://{host}" for host in own)}
    link = path == "/" and headers.get("sec-fetch-dest") == "document"
    if elsewhere or not (link or site in (None, "none", "same-origin")):
        return "The explorer answers its own page only."
    return None


async def body_of(request, limit):
    """Reads a request's body, of so many bytes at most, in limited time."""
    too_large = Refused(413, f"At most {limit} bytes are taken.")
    gone = import_extra("starlette.requests", EXTRA).ClientDisconnect

    async def read():
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)

    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limit:
        raise too_large
    try:
        return await asyncio.wait_for(read(), PATIENCE)
    except asyncio.TimeoutError:
        raise Refused(400, "The request arrives too slowly.") from None
    except gone:
        raise left() from None


async def disconnected(request):
    """Returns when the client of a request, whose body was read, has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
