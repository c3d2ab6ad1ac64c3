"""The command `speechbrain-sim explore`: opens models, and serves their page."""

import shlex
import socket
import threading
import webbrowser
from contextlib import contextmanager, suppress
from pathlib import Path

from speechbrain_sim.data.search import list_files
from speechbrain_sim.explorer.clips import Clips
from speechbrain_sim.explorer.engine import Engine
from speechbrain_sim.explorer.guard import EXTRA
from speechbrain_sim.explorer.page import save_page
from speechbrain_sim.explorer.server import make_app
from speechbrain_sim.extras import import_extra
from speechbrain_sim.inference import SmoothInfoMax


def explore(sources, files, port, browser=True, save=None):
    """Opens models and recordings, and serves them; yields lines to print.

    Arguments
    ---------
    sources : list of str
        One model, or two: see `SmoothInfoMax.from_pretrained`.
    files : list of str
        Audio files or folders; none for the examples of the models.
    port, browser : int, bool
        Of this machine, 0 for any that is free; whether to open a browser.
    save : str, optional
        A file for a page without a server, which is written instead.
    """
    if save is not None:
        models, clips = open_sources(sources, files)
        first = {clip.name: clip.read() for clip in list(clips)[:2]}
        command = shlex.join(["speechbrain-sim", "explore", *sources])
        save_page(save, models, first, command)
        yield f"Saved {save}, of {' and '.join(first)}."
        return
    for module in ("fastapi", "uvicorn"):  # before models are opened
        import_extra(module, EXTRA)
    with listen(port) as sock:
        models, clips = open_sources(sources, files)
        server = make_server(Engine(models, clips), sock, " | ".join(models))
        address = f"http://127.0.0.1:{sock.getsockname()[1]}/"
        yield f"{address} (stop by Ctrl+C)"
        if browser:
            threading.Timer(0.5, webbrowser.open, [address]).start()
        with suppress(KeyboardInterrupt):
            server.run(sockets=[sock])
        server.config.app.state.queue.close()


def open_sources(sources, files):
    """Returns one or two models by their titles, and Clips."""
    if len(sources) > 2:
        raise ValueError(f"{len(sources)} models are given: one or two.")
    models, paths = {}, []
    for source in sources:
        place = Path(source)
        title = place.resolve().name if place.is_dir() else source
        title += " (2)" if title in models else ""
        models[title] = SmoothInfoMax.from_pretrained(source)
    for path in map(Path, files):
        paths += list_files(path) if path.is_dir() else [path]
    if not files:
        paths = [p for model in models.values() for p in model.examples]
    if not paths:
        where = " and ".join(files) or " and ".join(sources)
        raise ValueError(f"{where} holds no recordings: name some by --files.")
    return models, Clips(paths)


def listen(port):
    """Opens a port of this machine for itself; 0 is any that is free."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("127.0.0.1", port))
        sock.listen()  # who asks early waits
    except (OSError, OverflowError) as error:
        sock.close()
        raise ValueError(
            f"Port {port} cannot be opened ({error}): give another, or "
            f"--port 0 for any that is free."
        ) from error
    return sock


def make_server(engine, sock, title="Explorer"):
    """Makes a uvicorn Server for an open port; `run(sockets=[sock])` serves."""
    app = make_app(engine, sock.getsockname()[1], title)
    options = {"log_level": "warning", "access_log": False, "lifespan": "off"}
    options |= {"server_header": False, "ws": "none", "limit_concurrency": 64}
    options |= {"timeout_graceful_shutdown": 2}
    uvicorn = import_extra("uvicorn", EXTRA)
    return uvicorn.Server(uvicorn.Config(app, **options))


@contextmanager
def served(engine, title="Explorer"):
    """Serves in a thread, at a free port; yields the address."""
    with listen(0) as sock:
        server = make_server(engine, sock, title)
        options = {"kwargs": {"sockets": [sock]}, "daemon": True}
        thread = threading.Thread(target=server.run, **options)
        thread.start()
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
            server.config.app.state.queue.close()
