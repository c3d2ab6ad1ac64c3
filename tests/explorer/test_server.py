"""The server: answers of the contract, refusals, loads, clients that go away."""

import base64
import gc
import hashlib
import io
import json
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
import soundfile as sf
from fastapi.testclient import TestClient
from PIL import Image

from speechbrain_sim.explorer import command, guard, server
from speechbrain_sim.explorer.jobs import Refused
from tests.explorer.test_clips import encoded, noise
from tests.explorer.test_edits import no

HERE = "http://127.0.0.1:8000"
SET = {"kind": "set", "dimension": 5, "deviations": 2}


@pytest.fixture(scope="module")
def app(engine):
    app = server.make_app(engine, 8000)
    yield app
    app.state.queue.close()


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, HERE, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def clips(engine):
    return [clip.id for clip in engine.clips]


@pytest.fixture
def place(clips):
    return {"model": "m0", "clip": clips[0], "layer": "module3"}


def picture(data):
    return Image.open(io.BytesIO(base64.b64decode(data))).size


def wav_of(answer):
    return sf.read(io.BytesIO(base64.b64decode(answer["sound"])))[0]


def error(response, status):
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    return response.json()["error"]


def test_models_layers_probes_and_clips_are_described(client, engine):
    described = client.get("/api/model").json()
    assert [m["title"] for m in described["models"]] == ["coded", "SIM"]
    layers = {x["name"]: x for x in described["models"][0]["layers"]}
    assert {name: x["kind"] for name, x in layers.items()} == {
        **dict.fromkeys(("module1", "module2", "module3", "context"), "layer"),
        "module3.sae": "sae",
        "module3.vsc": "vsc",
        "module3.mean": "sae",
        "context.vib.text": "vib",
        "context.vib.sex": "vib",
    }
    assert layers["module3"] == {
        "name": "module3",
        "kind": "layer",
        "origin": "module3",
        "channels": 64,
        "frame_rate": 100,
        "center": 20 / 16000,
        "posterior": True,
        "decodes": True,
        "pooled": False,
    }
    decodes = {name for name, x in layers.items() if x["decodes"]}
    codes = {"module3.sae", "module3.vsc", "module3.mean"}
    assert decodes == {"module1", "module2", "module3", *codes}
    probes = described["models"][1]["probes"]
    assert [(p["label"], p["layer"], p["kind"]) for p in probes] == [
        ("phones", "context", "frames"),
        ("speaker", "module2", "utterance"),
    ]
    assert [c["name"] for c in described["clips"]] == ["a.wav", "b.wav"]
    assert described["limits"]["seconds"] == 60


def test_a_clip_is_drawn_and_played(client, clips):
    clip = client.get(f"/api/clips/{clips[0]}").json()
    assert (
        clip["seconds"] == 0.64
        and len(base64.b64decode(clip["outline"])) == 1280
    )
    assert picture(clip["mel"]) == (65, 80)
    sound = client.get(clip["sound"])
    assert sound.headers["content-type"] == "audio/wav"
    wav, rate = sf.read(io.BytesIO(sound.content))
    assert rate == 16000 and len(wav) == 10240
    assert np.abs(wav).max() == pytest.approx(0.9, abs=1e-3)


def test_means_and_deviations_of_a_layer(client, engine, place):
    latent = engine.latent("m0", place["clip"], "module3", no)
    shown = client.get("/api/latent", params=place).json()
    assert shown["frames"] == 64 and picture(shown["picture"]) == (64, 64)
    variance = latent.mean[0].var(0)
    assert shown["order"][0] == int(variance.argmax())
    assert sorted(shown["order"]) == shown["rows"] == list(range(64))
    one = client.get("/api/latent", params={**place, "dimension": 5}).json()
    mean, std = latent.mean[0, :, 5], (0.5 * latent.log_var[0, :, 5]).exp()
    np.testing.assert_allclose(one["mean"], mean, rtol=1e-3)
    np.testing.assert_allclose(one["std"], std, rtol=1e-3)
    codes = {**place, "layer": "module3.sae", "dimension": 5}
    assert client.get("/api/latent", params=codes).json()["std"] is None


def test_probes_are_what_the_model_classifies(
    client, engine, place, recordings
):
    spans = client.get("/api/probes", params=place).json()
    model = engine.models["m0"].model
    phones, speaker = (
        next(x for x in spans if x["label"] == label)
        for label in ("phones", "speaker")
    )
    (expected,) = model.classify_file(recordings[0], "phones").names()
    names = [s["class"] for s in phones["spans"]]
    assert names == [
        n for n, m in zip(expected, [None, *expected], strict=False) if n != m
    ]
    times = [t for s in phones["spans"] for t in (s["start"], s["end"])]
    assert times == sorted(times) and len(names) > 3
    assert times[0] == 0 and times[-1] == pytest.approx(0.64, abs=0.01)
    ((whole,),) = model.classify_file(recordings[0], "speaker").names()
    (span,) = speaker["spans"]
    assert (span["class"], span["start"], span["end"]) == (whole, 0, 0.64)


def test_a_decoded_clip_is_that_of_the_model(client, engine, place):
    answer = client.post("/api/decode", json=place).json()
    latent = engine.latent("m0", place["clip"], "module3", no)
    sound = engine.models["m0"].model.decode(latent.mean, "module3", 10240)[0]
    expected = answer["gain"] * sound.numpy()
    np.testing.assert_allclose(wav_of(answer), expected, atol=2e-3)
    assert answer["seconds"] == 0.64 and answer["delta"] is None
    assert picture(answer["mel"]) == picture(answer["difference"]) == (65, 80)
    assert answer["milliseconds"].keys() == {"waited", "worked"}


def test_every_edit_is_heard_and_a_swap_has_a_delta(client, place, clips):
    def decode(*edits, **changes):
        given = {**place, **changes, "client": "page", "edits": edits}
        response = client.post("/api/decode", json=given)
        assert response.status_code == 200, response.text
        return response.json()

    features = {"kind": "features", "layer": "module3.sae"}
    edits = [
        SET,
        SET | {"span": [0.1, 0.2]},
        {"kind": "interpolate", "other": clips[1], "amount": 0.5},
        {"kind": "noise", "seed": 1},
        {"kind": "noise", "seed": 2},
        features | {"features": {"7": 9.0}},
    ]
    sounds = [decode()["sound"], *(decode(edit)["sound"] for edit in edits)]
    assert len({*sounds}) == len(sounds)
    assert decode(SET)["sound"] == sounds[1]
    swap = {"kind": "swap", "other": clips[1]}
    deltas = [decode(swap | {"count": n})["delta"] for n in (0, 16, 64)]
    assert [d["value"] for d in deltas][::2] == [1, 0]
    assert 0 < deltas[1]["value"] < 1
    assert deltas[1]["count"] == 16 and deltas[1]["of"] == "log-mel"
    whole = {"kind": "interpolate", "other": clips[1], "amount": 1}
    cut = decode(swap | {"count": 3, "span": [0, 0.5]}, whole)
    assert cut["seconds"] == pytest.approx(0.4, abs=0.01)
    codes = decode(SET, layer="module3.sae")
    assert codes["sound"] not in sounds
    assert decode(SET, model="m1")["sound"] == sounds[1]  # the same box


def test_features_are_ranked_searched_and_drawn(client, engine, place):
    at = {**place, "layer": "module3.sae"}
    found = client.get("/api/features", params=at).json()
    means = [f["mean"] for f in found["features"]]
    assert found["total"] > 20 and means == sorted(means, reverse=True)
    assert len(means) == min(found["total"], 50)
    best = found["features"][0]
    codes = engine.latent("m0", place["clip"], "module3.sae", no).mean[0]
    assert best["feature"] == int(codes.mean(0).argmax())
    assert best["peak"] == pytest.approx(float(codes[:, best["feature"]].max()))
    assert 0 <= best["start"] <= best["at"] <= best["stop"] <= 0.64
    rest = client.get("/api/features", params={**at, "offset": 3}).json()
    assert rest["features"][0] == found["features"][3]
    name = f"unit {best['feature']} & <b>"
    named = client.get("/api/features", params={**at, "search": name.upper()})
    assert [f["name"] for f in named.json()["features"]] == [name]
    number = {**at, "search": str(best["feature"])}
    assert client.get("/api/features", params=number).json()["features"] == [
        best
    ]
    one = {**at, "feature": best["feature"]}
    one = client.get("/api/feature", params=one).json()
    expected = codes[:, best["feature"]]
    np.testing.assert_allclose(one["activation"], expected, rtol=1e-3)
    assert one["largest"] == pytest.approx(best["peak"], rel=1e-3)


def test_gates_of_variational_codes_and_codes_of_means(client, engine, place):
    at = {**place, "layer": "module3.vsc", "feature": 3}
    shown = client.get("/api/feature", params=at).json()["activation"]
    coder = engine.models["m0"].encoder.bottleneck_of("module3.vsc")
    below = engine.latent("m0", place["clip"], "module3", no).mean[0]
    gate = coder.posterior(below).gate[:, 3].detach()
    np.testing.assert_allclose(shown, gate, rtol=1e-3)
    at |= {"layer": "module3.mean"}
    assert len(client.get("/api/feature", params=at).json()["activation"]) == 1
    best = client.get("/api/features", params=at).json()["features"][0]
    assert (best["start"], best["at"], best["stop"]) == (0, 0.32, 0.64)


def test_halves_are_transcribed_and_attended_to(client, place):
    text = {**place, "layer": "context.vib.text"}
    half = client.get("/api/halves", params=text).json()
    assert half["label"] == "chars" and {*half["transcript"]} <= {"A", "B"}
    half = client.get(
        "/api/halves", params={**text, "layer": "context.vib.sex"}
    )
    half = half.json()
    assert half["label"] == "sex" and half["prediction"] in ("f", "m")
    for weights in half["attention"].values():
        assert len(weights) == 64 and sum(weights) == pytest.approx(1, abs=0.01)


def test_an_upload_is_a_clip_and_its_name_is_text(client, place):
    name = "<img src=x>\n\u202e"
    upload = client.post(
        "/api/clips",
        params={"name": name},
        content=encoded(noise(44100), 44100),
    )
    clip = upload.json()
    assert clip["seconds"] == 1 and clip["name"] == "<img src=x>"
    assert clip in client.get("/api/model").json()["clips"]
    answer = client.post("/api/decode", json={**place, "clip": clip["id"]})
    assert answer.json()["seconds"] == 1
    short = client.post("/api/clips", content=encoded(noise(30)))
    assert "too short" in error(short, 400)
    assert "no sound" in error(client.post("/api/clips", content=b"?"), 415)


def test_uploads_are_bounded_while_they_are_read(client, monkeypatch):
    monkeypatch.setattr(server, "BYTES", 5000)
    read = []

    def chunks():
        for i in range(100):
            read.append(i)
            yield bytes(1000)

    assert "5000 bytes" in error(
        client.post("/api/clips", content=chunks()), 413
    )
    stated = client.post("/api/clips", content=bytes(5001))
    assert "5000 bytes" in error(stated, 413)
    odd = {"content-length": "-5"}
    error(client.post("/api/clips", content=b"x", headers=odd), 413)
    large = b'{"client": "' + b"x" * server.SMALL + b'"}'
    error(client.post("/api/decode", content=large), 413)


def test_a_long_clip_is_decoded_in_blocks_and_stopped_between_them(
    engine, place, monkeypatch
):
    place = {**place, "edits": [SET]}
    whole = wav_of(engine.decode(place, no))
    monkeypatch.setattr("speechbrain_sim.explorer.engine.BLOCK", 3200)
    calls = []
    parts = wav_of(engine.decode(place, lambda: calls.append(1)))
    np.testing.assert_allclose(parts, whole, atol=2e-3)
    assert len(calls) > 2

    def stop():
        calls.pop()
        if not calls:
            raise Refused(409, "stopped")

    with pytest.raises(Refused, match="stopped"):
        engine.decode(place, stop)


@pytest.mark.parametrize(
    "address",
    [
        "/api/clips/nothing",
        "/api/clips/..%2f..%2fetc%2fpasswd",
        "/api/clips/nothing/sound",
        "/api/latent?model=m9&clip=x&layer=module3",
        "/api/latent?model=m0&clip={clip}&layer=module9",
        "/api/latent?model=m0&clip={clip}&layer=module3.sae.decoded",
        "/api/latent?model=m0&clip={clip}&layer=module3&dimension=64",
        "/api/latent?model=m0&clip=..%2fx&layer=module3",
        "/api/probes?model=m0&clip=x",
        "/api/feature?model=m0&layer=module3.sae&clip={clip}&feature=-1",
        "/docs",
        "/redoc",
        "/openapi.json",
        "/../setup.py",
    ],
)
def test_what_there_is_not_is_not_found(client, clips, address):
    error(client.get(address.format(clip=clips[0])), 404)


@pytest.mark.parametrize(
    "address",
    [
        "/api/latent",
        "/api/latent?model=m0&clip={clip}&layer=module3&dimension=x",
        "/api/features?model=m0&layer=module3&clip={clip}",
        "/api/features?model=m0&layer=context.vib.sex&clip={clip}",
        "/api/halves?model=m0&layer=module3.sae&clip={clip}",
    ],
)
def test_what_cannot_be_shown_gets_a_sentence(client, clips, address):
    error(client.get(address.format(clip=clips[0])), 400)


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"[]",
        b"[" * 60_000,
        b'{"clip": NaN}',
        b'{"model": ["m0"], "clip": {}, "layer": 3}',
        {"layer": "context"},
        {"layer": "context.vib.sex"},
        {"edits": {"kind": "set"}},
        {"edits": [{"kind": "shout"}]},
        {"edits": [{"kind": "interpolate", "other": "x\ud800", "amount": 1}]},
        {"edits": [{"kind": "features", "layer": "\ud800", "features": {}}]},
        {"edits": [SET | {"dimension": 10**400}]},
    ],
)
def test_a_request_to_decode_that_is_none_gets_a_sentence(client, place, given):
    if isinstance(given, dict):
        given = json.dumps({**place, **given}).encode()
    response = client.post("/api/decode", content=given)
    assert error(response, 404 if b"interpolate" in given else 400)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),
        ({"host": "localhost:8000"}, 200),
        ({"host": "127.0.0.1:8000", "origin": HERE}, 200),
        ({"sec-fetch-site": "same-origin"}, 200),
        ({"host": "evil.example"}, 403),  # a name bound to 127.0.0.1
        ({"host": "127.0.0.1:9000"}, 403),
        ({"host": "127.0.0.1:8000.evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://127.0.0.1:9000"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
@pytest.mark.parametrize("address", ["/", "/api/model"])
def test_only_the_page_of_this_machine_is_answered(
    client, address, headers, status
):
    response = client.get(address, headers=headers)
    assert response.status_code == status
    for name in guard.HEADERS:
        assert name.lower() in response.headers
    refused = client.post("/api/clips", content=b"x", headers=headers)
    assert refused.status_code == (415 if status == 200 else 403)


def test_the_page_runs_its_own_scripts_and_asks_nobody_else(client):
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "connect-src 'self'" in policy and "default-src 'none'" in policy
    script = policy.partition("script-src ")[2].partition(";")[0]
    assert "unsafe" not in script and "*" not in policy
    html = "<script>one()</script><p><script id=x>\ntwo()</script>"
    hashes = [
        base64.b64encode(hashlib.sha256(text).digest()).decode()
        for text in (b"one()", b"\ntwo()")
    ]
    assert all(f"'sha256-{x}'" in guard.page_policy(html) for x in hashes)


def test_a_bug_is_no_answer_but_a_sentence(client, engine, monkeypatch):
    monkeypatch.setattr(engine, "wav", lambda clip: 1 / 0)
    assert "bug" in error(client.get("/api/clips/x/sound"), 500)
    assert client.get("/api/model").status_code == 200
    answer = client.get("/api/clips/x/sound")
    assert {name.lower() for name in guard.HEADERS} <= {*answer.headers}


def test_a_link_to_the_page_may_be_anywhere_but_reads_nothing(client):
    link = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}
    page = client.get("/", headers=link)
    assert page.status_code == 200 and "<!DOCTYPE html>" in page.text
    assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
    for address, own in (
        ("/api/model", link),
        ("/", link | {"origin": "https://evil.example"}),
        ("/", link | {"sec-fetch-dest": "iframe"}),
    ):
        error(client.get(address, headers=own), 403)


@pytest.fixture(scope="module")
def address(engine):
    """The address of a real server."""
    with command.listen(0) as sock:
        served = command.make_server(engine, sock)
        thread = threading.Thread(target=served.run, args=[[sock]])
        thread.start()
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        served.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
        served.config.app.state.queue.close()


def memory():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_a_load_of_200_requests_leaves_nothing_behind(address, engine, place):
    def requests_of(number, count):
        statuses = []
        with httpx.Client(base_url=address, timeout=60) as http:
            for i in range(count):
                kind = i % 5
                if kind < 3:
                    edit = SET | {"dimension": i, "deviations": number / 4}
                    given = {**place, "client": number, "edits": [edit]}
                    response = http.post("/api/decode", json=given)
                elif kind == 3:
                    data = encoded(noise(3000 + 100 * number + i))
                    response = http.post("/api/clips", content=data)
                else:
                    clip = place["clip"]
                    response = http.get(f"/api/clips/{clip}")
                statuses.append(response.status_code)
        return statuses

    def load(count):
        with ThreadPoolExecutor(8) as pool:
            done = pool.map(lambda n: requests_of(n, count), range(8))
            return [status for statuses in done for status in statuses]

    load(5)
    threads, before = threading.active_count(), memory()
    statuses = load(25)
    # of 40 uploads, two are received at once
    assert len(statuses) == 200 and {*statuses} <= {200, 503}
    assert statuses.count(200) >= 160
    assert threading.active_count() <= threads
    assert memory() - before < 64 << 20
    assert len(list(engine.clips)) == 2 + engine.clips.kept
    assert engine.kept.size() <= engine.kept.limit


def test_a_client_that_goes_away_is_not_worked_for(
    address, engine, place, monkeypatch
):
    begun, seen = threading.Event(), []

    def decode(given, check):
        begun.set()
        end = time.monotonic() + 30
        while time.monotonic() < end:
            time.sleep(0.01)
            try:
                check()
            except Refused as error:
                seen.append(error.status)
                raise
        return {}

    monkeypatch.setattr(engine, "decode", decode)
    host, port = address.removeprefix("http://").split(":")
    head = f"Host: {host}:{port}\r\nContent-Length: 2\r\n\r\n{{}}"
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(f"POST /api/decode HTTP/1.1\r\n{head}".encode())
        assert begun.wait(30)
    # answered only when the thread is free again
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(f"POST /api/clips HTTP/1.1\r\n{head[:-1]}".encode())
    clip = httpx.get(f"{address}/api/clips/{place['clip']}", timeout=60)
    assert clip.status_code == 200 and seen == [499]


def test_of_quick_moves_the_newest_is_decoded(address, place):
    def decode(i):
        edit = SET | {"dimension": i % 64}
        given = {**place, "client": "slider", "edits": [edit]}
        return httpx.post(f"{address}/api/decode", json=given, timeout=60)

    with ThreadPoolExecutor(20) as pool:
        statuses = [r.status_code for r in pool.map(decode, range(20))]
    assert {*statuses} <= {200, 409} and statuses.count(200) >= 1
    assert decode(3).status_code == 200


def test_a_body_that_does_not_arrive_is_not_waited_for(address, monkeypatch):
    monkeypatch.setattr(guard, "PATIENCE", 0.05)
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as sock:
        head = f"Host: {host}:{port}\r\nContent-Length: 9\r\n\r\nRIFF"
        sock.sendall(f"POST /api/clips HTTP/1.1\r\n{head}".encode())
        assert b"400" in sock.recv(100)


def test_the_command_serves_the_examples_or_what_it_is_given(
    recordings, monkeypatch, tmp_path
):
    (line,) = [next(command.explore(["sim-small"], [], 0, False))]
    assert re.fullmatch(r"http://127.0.0.1:\d+/ \(stop by Ctrl\+C\)", line)
    folder = str(recordings[0].parent)
    models, clips = command.open_sources(["sim-small"] * 2, [folder])
    assert list(models) == ["sim-small", "sim-small (2)"]
    assert [clip.name for clip in clips] == ["a.wav", "b.wav"]
    for sources, files, sentence in (
        (["sim-small"] * 3, [], "one or two"),
        (["sim-small"], [str(tmp_path)], "no recordings"),
        (["sim-small"], [str(tmp_path / "x.wav")], "missing"),
    ):
        with pytest.raises(ValueError, match=sentence):
            next(command.explore(sources, files, 0, False))
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ImportError, match=r"speechbrain-sim\[explore\]"):
        next(command.explore(["nothing"], [], 0, False))


def test_a_port_that_is_taken_gets_a_sentence():
    with command.listen(0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ValueError, match="--port 0"):
            command.listen(port)
    with pytest.raises(ValueError, match="--port 0"):
        command.listen(70000)
