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
import inspect
import json
from functools import partial

from speechbrain_sim.explorer import codes
from speechbrain_sim.explorer.clips import BYTES
from speechbrain_sim.explorer.guard import (
    EXTRA,
    Guard,
    body_of,
    disconnected,
    page_policy,
)
from speechbrain_sim.explorer.jobs import Queue, Refused
from speechbrain_sim.explorer.page import explorer_page
from speechbrain_sim.extras import import_extra

#: bytes of a request that is no upload; uploads that are received at once
SMALL, UPLOADS = 64 << 10, 2


def make_app(engine, port, title="Explorer"):
    """Makes the application, whose `state.queue` is to be closed in the end.

    Arguments
    ---------
    engine, port, title : Engine, int, str
        What answers; where it is served, on 127.0.0.1; of the page.
    """
    fastapi = import_extra("fastapi", EXTRA)
    responses = import_extra("fastapi.responses", EXTRA)
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.state.queue, receiving = Queue(), asyncio.Semaphore(UPLOADS)
    Request, work = fastapi.Request, partial(wait_for, app.state.queue)
    html = explorer_page(title)
    policy = {"Content-Security-Policy": page_policy(html)}

    async def on_error(request, error):
        refused = refusal(error)
        return responses.JSONResponse({"error": str(refused)}, refused.status)

    for kind in kinds_of_errors():
        app.add_exception_handler(kind, on_error)

    @app.get("/")
    async def page():
        return responses.HTMLResponse(html, headers=policy)

    @app.post("/api/clips")
    async def upload(request: Request, name: str = "recording"):
        if receiving.locked():
            raise Refused(503, "Too many files arrive at once: try again soon.")
        async with receiving:
            data = await body_of(request, BYTES)
            job = await work(request, partial(engine.upload, data, name))
        return responses.JSONResponse(job.future.result())

    @app.post("/api/decode")
    async def decode(request: Request):
        given = object_of(await body_of(request, SMALL))
        client = given.get("client")
        client = None if client is None else str(client)[:100]
        job = await work(request, partial(engine.decode, given), client)
        answer, time = job.future.result(), {"milliseconds": job.milliseconds}
        return responses.JSONResponse(answer | time)

    def endpoint(function):
        async def answer(request, **query):
            job = await work(request, partial(function, **query))
            if isinstance(made := job.future.result(), bytes):
                return responses.Response(made, media_type="audio/wav")
            return responses.JSONResponse(made)

        answer.__signature__ = query_of(function, Request)
        return answer

    for address, function in gets_of(engine).items():
        app.get(address)(endpoint(function))
    return Guard(app, port)  # outermost: answers to bugs have its headers, too


def kinds_of_errors():
    """Lists what `refusal` makes a sentence of."""
    http = import_extra("starlette.exceptions", EXTRA).HTTPException
    query = import_extra("fastapi.exceptions", EXTRA).RequestValidationError
    return [http, query, ValueError, Exception]


def gets_of(engine):
    """Returns what answers each address, with its query as arguments."""
    return {
        "/api/model": engine.describe,
        "/api/clips/{clip}": engine.clip,
        "/api/clips/{clip}/sound": engine.sound,
        "/api/latent": engine.show_latent,
        "/api/probes": engine.show_probes,
        "/api/features": partial(codes.list_features, engine),
        "/api/feature": partial(codes.show_feature, engine),
        "/api/halves": partial(codes.show_half, engine),
    }


def query_of(function, request):
    """Returns the signature of an endpoint: of a function without `check`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    given = inspect.signature(function).parameters.values()
    given = [p.replace(kind=kind) for p in given if p.name != "check"]
    own = inspect.Parameter("request", kind, annotation=request)
    return inspect.Signature([own, *given])


async def wait_for(queue, request, function, client=None):
    """Queues a function, and waits for it: a Job that is done.

    It is dropped if the client of the request goes away.
    """
    job = queue.add(function, client)
    done = asyncio.wrap_future(job.future)
    gone = asyncio.ensure_future(disconnected(request))
    try:
        await asyncio.wait({done, gone}, return_when="FIRST_COMPLETED")
        if not done.done():
            queue.drop(job)
        await asyncio.shield(done)  # else the job's own future were cancelled
    finally:
        queue.drop(job)  # also if this task was cancelled
        gone.cancel()
    return job


def object_of(data):
    """Returns the object that bytes hold as json; a Refused (400) if none."""
    try:
        given = json.loads(data)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise Refused(400, "The request is no object in json.")
    return given


def refusal(error):
    """Returns an error as a `Refused`, with a sentence that is text."""
    status, sentence = 500, "This is a bug: the terminal shows more."
    if isinstance(error, Refused):
        status, sentence = error.status, str(error)
    elif hasattr(error, "status_code"):  # starlette's: there is no such address
        status, sentence = error.status_code, f"{error.detail}."
    elif hasattr(error, "errors"):  # fastapi's, of a query
        first = error.errors()[0]
        status, sentence = 400, f"{first['loc'][-1]}: {first['msg']}."
    elif isinstance(error, ValueError):
        status, sentence = 400, str(error)
    # names in a request may hold what is no text
    return Refused(status, sentence[:500].encode(errors="replace").decode())
