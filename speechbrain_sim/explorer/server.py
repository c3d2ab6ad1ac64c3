"""The explorer's server: requests of the page on this machine -> answers in json.

    GET /                       the page
    GET /api/model              {models: [{name, title, layers, probes}], clips,
                                limits: {seconds, bytes}}
        layer: name, kind (layer, sae, vsc, vib), origin, channels, frame_rate,
        center (s), posterior, decodes, pooled; probe: label, layer, classes, kind
    POST /api/clips?name        a sound file -> {id, name, seconds}
    GET /api/clips/ID           {id, name, seconds, outline, mel, sound (address)}
    GET /api/clips/ID/sound     audio/wav
    GET /api/latent?model&clip&layer
                                {frames, order, rows, range, picture}
        `rows` are the dimensions in the picture: all, or the most varying 512
    GET /api/latent?...&dimension
                                {mean, std or null, center, deviation}
        `center` and `deviation` are what an edit "set" counts in
    GET /api/probes?model&clip  [{label, layer, spans: [{start, end, class,
                                probability}]}]
    POST /api/decode            see below
    GET /api/features?model&layer&clip&search&offset    {total, features}
        50 at once; feature: feature, name, mean, share, peak, at, start, stop
    GET /api/feature?model&layer&clip&feature           {activation, largest}
        of "vsc" the probability that the gate is open; `largest` is the code's
        largest value in the clip, for "features" edits
    GET /api/halves?model&layer&clip    {label, transcript: [..]}, or {label,
                                prediction, probability, attention: {own, text}}

Bytes (outline, picture, mel, difference, sound of /api/decode) are base64.
`{client, model, clip, layer, edits}` decodes to `{sound, type, seconds, gain,
outline, mel, difference, delta, milliseconds: {waited, worked}}`: a wav, and how
its log-mel differs from that of the decoded clip, both times one gain. Of each
`client` (a page) the newest request wins, older ones end with 409.

Edits are applied in order, in all frames or in a `span` ([start, end], seconds):

    {kind: interpolate, other, amount}  (1 - a) z + a z', from 0 to 1
    {kind: set, dimension, deviations, of}  from -3 to 3 deviations from the mean,
        both of the aggregate posterior over the clip; of the prior with `of`:
        "prior" instead of "clip"
    {kind: swap, other, count}          the dimensions that differ most
    {kind: noise, seed}                 a draw from N(0, I)
    {kind: features, layer, features: {number: value}, how}     as
        `SmoothInfoMax.steer`

Where an edit takes another clip, the longer one is cut; with a span, the clip
keeps its length. Errors are `{"error": sentence}`: 400 bad input, 403 another Host
or Origin, 404 unknown name, 409 superseded, 413 too large, 415 no sound, 503 busy.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
import socket
import threading
import webbrowser
from pathlib import Path

from speechbrain_sim.data.search import list_files
from speechbrain_sim.explorer import codes
from speechbrain_sim.explorer.clips import BYTES, Clips
from speechbrain_sim.explorer.engine import Engine
from speechbrain_sim.explorer.jobs import Queue, Refused, left
from speechbrain_sim.explorer.page import explorer_page, save_page
from speechbrain_sim.extras import import_extra
from speechbrain_sim.inference import SmoothInfoMax

logger = logging.getLogger(__name__)

EXTRA = "explore"
HOSTS = ("127.0.0.1", "localhost")
#: bytes of a request that is no upload; seconds in which a body must arrive
SMALL, PATIENCE = 64 << 10, 30
#: uploads that are received at once
UPLOADS = 2
#: of every answer
HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
#: of the page, whose script and style are inside
PAGE_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; "
    "img-src data: blob:; media-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(engine, port, title="Explorer"):
    """Makes the application; `engine` is an Engine."""
    fastapi = import_extra("fastapi", EXTRA)
    responses = import_extra("fastapi.responses", EXTRA)
    errors = import_extra("starlette.exceptions", EXTRA)
    Request, Response = fastapi.Request, fastapi.Response
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.queue = queue = Queue()
    uploads = asyncio.Semaphore(UPLOADS)

    async def work(request, function, client=None):
        """Queues a function and waits for it, or for the client to go."""
        job = queue.add(function, client)
        done = asyncio.wrap_future(job.future)
        gone = asyncio.ensure_future(disconnected(request))
        try:
            await asyncio.wait({done, gone}, return_when="FIRST_COMPLETED")
            if not done.done():
                queue.drop(job)
            return await done, job
        finally:
            queue.drop(job)  # if this task was cancelled
            gone.cancel()

    def problem(refused):
        # names that a request gave may hold what is no text
        sentence = str(refused)[:500].encode(errors="replace").decode()
        return responses.JSONResponse({"error": sentence}, refused.status)

    app.add_middleware(Guard, port=port)

    @app.exception_handler(Refused)
    async def on_refused(request: Request, error: Refused):
        return problem(error)

    @app.exception_handler(ValueError)
    async def on_value(request: Request, error: ValueError):
        return problem(Refused(400, str(error)))

    @app.exception_handler(errors.HTTPException)
    async def on_http(request: Request, error: errors.HTTPException):
        return problem(Refused(error.status_code, f"{error.detail}."))

    @app.exception_handler(fastapi.exceptions.RequestValidationError)
    async def on_invalid(
        request: Request, error: fastapi.exceptions.RequestValidationError
    ):
        where = error.errors()[0]
        return problem(Refused(400, f"{where['loc'][-1]}: {where['msg']}."))

    @app.exception_handler(Exception)
    async def on_bug(request: Request, error: Exception):
        logger.error("explorer", exc_info=error)
        return problem(Refused(500, "This is a bug: see the terminal."))

    html = explorer_page(title)
    policy = {"Content-Security-Policy": page_policy(html)}

    @app.get("/")
    async def page():
        return responses.HTMLResponse(html, headers=policy)

    @app.get("/api/model")
    async def model(request: Request):
        return engine.describe()

    @app.post("/api/clips")
    async def upload(request: Request, name: str = "recording"):
        if uploads.locked():
            raise Refused(503, "Too many files arrive at once: try again soon.")
        async with uploads:
            data = await body_of(request, BYTES)
            name = "".join(filter(str.isprintable, name))[:200]
            answer, _ = await work(
                request, lambda check: engine.upload(data, name, check)
            )
        return answer

    @app.get("/api/clips/{clip}")
    async def clip(request: Request, clip: str):
        return (await work(request, lambda check: engine.clip(clip)))[0]

    @app.get("/api/clips/{clip}/sound")
    async def sound(request: Request, clip: str):
        wav, _ = await work(request, lambda check: engine.sound(clip))
        return Response(wav, media_type="audio/wav")

    @app.get("/api/latent")
    async def latent(
        request: Request,
        model: str,
        clip: str,
        layer: str,
        dimension: int | None = None,
    ):
        given = model, clip, layer, dimension
        show = lambda check: engine.show_latent(*given, check)  # noqa: E731
        return (await work(request, show))[0]

    @app.get("/api/probes")
    async def probes(request: Request, model: str, clip: str):
        show = lambda check: engine.show_probes(model, clip, check)  # noqa: E731
        return (await work(request, show))[0]

    @app.get("/api/features")
    async def features(
        request: Request,
        model: str,
        layer: str,
        clip: str,
        search: str = "",
        offset: int = 0,
    ):
        given = engine, model, layer, clip, search[:200], max(offset, 0)
        show = lambda check: codes.list_features(*given, check)  # noqa: E731
        return (await work(request, show))[0]

    @app.get("/api/feature")
    async def feature(
        request: Request, model: str, layer: str, clip: str, feature: int
    ):
        given = engine, model, layer, clip, feature
        show = lambda check: codes.show_feature(*given, check)  # noqa: E731
        return (await work(request, show))[0]

    @app.get("/api/halves")
    async def halves(request: Request, model: str, layer: str, clip: str):
        given = engine, model, layer, clip
        show = lambda check: codes.show_half(*given, check)  # noqa: E731
        return (await work(request, show))[0]

    @app.post("/api/decode")
    async def decode(request: Request):
        try:
            given = json.loads(await body_of(request, SMALL))
        except (ValueError, RecursionError):
            given = None
        if not isinstance(given, dict):
            raise Refused(400, "The request is no object in json.")
        client = str(given.get("client", ""))[:100]
        answer, job = await work(
            request, lambda check: engine.decode(given, check), client
        )
        return {**answer, "milliseconds": job.milliseconds()}

    return app


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


async def disconnected(request):
    """Returns when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def body_of(request, limit):
    """Reads a request's body, of so many bytes at most, in limited time."""
    stated = request.headers.get("content-length", "0")
    if not stated.isdecimal() or int(stated) > limit:
        raise Refused(413, f"At most {limit} bytes are taken.")

    async def read():
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise Refused(413, f"At most {limit} bytes are taken.")
        return bytes(body)

    gone = import_extra("starlette.requests", EXTRA).ClientDisconnect
    try:
        return await asyncio.wait_for(read(), PATIENCE)
    except asyncio.TimeoutError:
        raise Refused(400, "The request arrives too slowly.") from None
    except gone:
        raise left() from None


class Guard:
    """ASGI middleware: refuses other hosts and origins, adds `HEADERS`."""

    def __init__(self, app, port):
        self.app, self.port = app, port

    async def __call__(self, scope, receive, send):
        """Answers a request, or hands it on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = import_extra("starlette.datastructures", EXTRA).Headers
        refused = foreign(headers(scope=scope), self.port)
        app = self.app
        if refused:
            responses = import_extra("fastapi.responses", EXTRA)
            app = responses.JSONResponse({"error": refused}, 403)

        async def send_with_headers(message):
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(
                        (name.lower().encode(), value.encode())
                        for name, value in HEADERS.items()
                        if name.lower().encode() not in there
                    ),
                ]
            await send(message)

        await app(scope, receive, send_with_headers)


def foreign(headers, port):
    """Returns why a request is not of this page; None if it is.

    Another Host may be a name that was bound to 127.0.0.1 (DNS rebinding);
    another Origin is a page elsewhere.
    """
    own = {f"{host}:{port}" for host in HOSTS}
    if headers.get("host") not in own:
        return "Open the explorer by the address that it printed."
    origin = headers.get("origin")
    if origin is not None and origin not in {f"http://{host}" for host in own}:
        return "The explorer answers its own page only."
    if headers.get("sec-fetch-site") not in (None, "none", "same-origin"):
        return "The explorer answers its own page only."
    return None


def listen(port):
    """Opens a port of this machine for itself; 0 is any that is free."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        sock.close()
        raise ValueError(
            f"Port {port} cannot be opened ({error}): give another, or "
            f"--port 0 for any that is free."
        ) from error
    return sock


def make_server(engine, sock, title="Explorer"):
    """Makes a uvicorn Server for an open port; `run(sockets=[sock])` serves."""
    uvicorn = import_extra("uvicorn", EXTRA)
    app = make_app(engine, sock.getsockname()[1], title)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        limit_concurrency=64,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def serve(engine, sock, title, browser=True):
    """Serves the explorer until it is interrupted."""
    server = make_server(engine, sock, title)
    if browser:
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/"
        threading.Timer(0.5, webbrowser.open, [address]).start()
    try:
        server.run(sockets=[sock])
    except KeyboardInterrupt:
        pass
    finally:
        server.config.app.state.queue.close()


def explore(sources, files, port, browser=True, save=None):
    """Opens models and recordings, and serves them; yields lines to print.

    Arguments
    ---------
    sources : list of str
        One model, or two: see `SmoothInfoMax.from_pretrained`.
    files : list of str
        Audio files or folders; none for the examples of the first model.
    port, browser : int, bool
        Of this machine, 0 for any that is free; whether to open a browser.
    save : str, optional
        A file for a page without a server, which is written instead.
    """
    if save is not None:
        models, clips = open_sources(sources, files)
        first = {clip.name: clip.read() for clip in list(clips)[:2]}
        command = f"speechbrain-sim explore {' '.join(sources)}"
        save_page(save, models, first, command)
        yield f"Saved {save}, of {' and '.join(first)}."
        return
    for module in ("fastapi", "uvicorn"):
        import_extra(module, EXTRA)
    with listen(port) as sock:
        models, clips = open_sources(sources, files)
        engine = Engine(models, clips)
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/ (stop by Ctrl+C)"
        serve(engine, sock, " | ".join(models), browser)


def open_sources(sources, files):
    """Returns one or two models by their titles, and Clips."""
    if len(sources) > 2:
        raise ValueError(f"{len(sources)} models are given: one or two.")
    models = {}
    for source in sources:
        place = Path(source)
        title = place.resolve().name if place.is_dir() else source
        title += " (2)" if title in models else ""
        models[title] = SmoothInfoMax.from_pretrained(source)
    paths = list_inputs(files)
    if not files:
        paths = [p for model in models.values() for p in model.examples]
    if not paths:
        raise ValueError(
            f"{sources[0]} has no example recordings: give --files."
        )
    return models, Clips(paths)


def list_inputs(inputs):
    """Lists files, and the audio files of folders."""
    paths = []
    for path in map(Path, inputs):
        paths += list_files(path) if path.is_dir() else [path]
    return paths
