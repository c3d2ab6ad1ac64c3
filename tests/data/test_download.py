"""Downloads against a server of our own, which misbehaves when asked to."""

import contextlib
import errno
import hashlib
import io
import os
import random
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from filelock import FileLock

from speechbrain_sim.data.download import BLOCK, fetch, fetch_archive, unpack

CONTENT = bytes(range(256)) * 4000
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Sends at most `server.cuts[0]` bytes of a file per request."""

    def do_GET(self):  # noqa: N802
        server = self.server
        content = server.files.get(self.path)
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if content is None:
            self.send_error(404)
            return
        if server.errors:
            error = server.errors.pop(0)
            if isinstance(error, int):
                self.send_error(error)
            else:
                self.wfile.write(error)
            return
        start = int(asked[6:-1]) if asked and server.resumes else 0
        if start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked and server.resumes else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        cut = server.cuts.pop(0) if server.cuts else len(content)
        self.wfile.write(content[start : start + cut])

    def log_message(self, *args):
        pass


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """Seconds that were to be waited; nobody waits."""
    seconds = []
    monkeypatch.setattr("time.sleep", seconds.append)
    return seconds


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cuts, server.ranges = {"/a.bin": CONTENT}, [], []
    server.resumes, server.errors = True, []
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_a_file_arrives_once(server, tmp_path):
    for _ in range(2):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", MD5)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges == ["bytes=0-"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_a_cut_body_is_continued(server, tmp_path):
    server.cuts = [5 * BLOCK + 7, 0, 3 * BLOCK]
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", MD5)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges == [
        f"bytes={blocks * BLOCK}-" for blocks in (0, 5, 5, 8)
    ]


def test_another_run_goes_on(server, tmp_path):
    arrived = 9 * BLOCK
    server.cuts = [arrived, 0]
    with pytest.raises(ConnectionError, match=f"after the {arrived} bytes"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", MD5, attempts=1)
    assert not (tmp_path / "a.bin").exists()
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", MD5)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={arrived}-"


def test_a_server_that_cannot_resume_sends_all_again(server, tmp_path):
    server.cuts, server.resumes = [9 * BLOCK], False
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", MD5)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT
    assert server.ranges == ["bytes=0-", f"bytes={9 * BLOCK}-"]


def test_a_part_that_is_whole_or_of_another_file(server, tmp_path):
    part = tmp_path / "a.bin.part"
    part.write_bytes(CONTENT)
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", MD5)
    assert server.ranges == [f"bytes={len(CONTENT)}-"]
    (tmp_path / "a.bin").unlink()
    part.write_bytes(CONTENT + b"more")
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", MD5)
    assert (tmp_path / "a.bin").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    with pytest.raises(ValueError, match="md5 .*, not 0123"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin", "md5:0123")
    assert not list(tmp_path.iterdir())
    sha = "sha256:" + hashlib.sha256(CONTENT).hexdigest().upper()
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", sha)


def test_an_unchecked_file_is_warned_of(server, tmp_path, caplog):
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert "not checked" in caplog.text


def test_what_is_not_there_is_not_asked_for_again(server, tmp_path):
    with pytest.raises(FileNotFoundError, match="--download_from"):
        fetch(f"{server.url}/b.bin", tmp_path / "b.bin")
    assert len(server.ranges) == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [400, 401, 403, 451])
def test_a_server_that_refuses_is_not_asked_again(server, tmp_path, code):
    server.errors = [code]
    with pytest.raises(ConnectionError, match=f"{code}.*address") as caught:
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert "Start again" not in str(caught.value)
    assert len(server.ranges) == 1


def test_troubles_that_pass(server, tmp_path, pauses):
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server.errors = [
        *(408, 429, 500, 503),
        *(b"garbage\r\n", chunked + b"5\r\nabcde\r\n100\r\nxx"),
    ]
    fetch(f"{server.url}/a.bin", tmp_path / "a.bin", attempts=7)
    assert pauses == [2, 4, 8, 16, 32, 1]  # new bytes arrived with the last
    assert len(server.ranges) == 7


def test_nobody_answers(tmp_path, pauses):
    with pytest.raises(ConnectionError, match="Start again"):
        fetch("http://127.0.0.1:9/a", tmp_path / "a", attempts=3)
    assert pauses == [2, 4]


def test_two_runs_do_not_write_one_file(server, tmp_path):
    archive = pack(tmp_path / "sub.tar.gz", {"L/S.TXT": b"s"})
    server.files["/sub.tar.gz"] = archive.read_bytes()
    url, out = f"{server.url}/sub.tar.gz", tmp_path / "new/out"
    archive = out / "sub.tar.gz"
    with FileLock(f"{archive}.lock"):
        for _ in range(2):  # while it is downloaded, or unpacked
            with pytest.raises(BlockingIOError, match=f"run .* {archive}"):
                fetch_archive(url, out)
            archive.touch()
        assert server.ranges == []
    archive.unlink()
    fetch_archive(url, out)
    assert (out / "L/S.TXT").read_bytes() == b"s"
    assert sorted(path.name for path in out.iterdir()) == ["L", "sub.tar.gz"]


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_said_at_once(server, tmp_path, monkeypatch, pauses):
    archive = pack(tmp_path / "sub.tar.gz", {"L/S.TXT": CONTENT})
    monkeypatch.setattr("shutil.copyfileobj", full_disk)
    with pytest.raises(OSError, match="No space left .* takes more than") as e:
        unpack(archive, tmp_path / "out")
    assert e.value.errno == errno.ENOSPC
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr("speechbrain_sim.data.download._receive", full_disk)
    with pytest.raises(ConnectionError, match="No space left .* Start again"):
        fetch(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert pauses == []


# --- archives ----------------------------------------------------------------


def pack(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_an_archive_is_unpacked_whole_or_not_at_all(tmp_path):
    files = {"L/S.TXT": b"s", "L/sub/1/2/a.flac": CONTENT[::-1] * 3}
    archive = pack(tmp_path / "sub.tar.gz", files)
    (tmp_path / "cut.tar.gz").write_bytes(archive.read_bytes()[:-4000])
    with pytest.raises(ValueError, match="download it again"):
        unpack(tmp_path / "cut.tar.gz", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())

    killed = tmp_path / "out/.sub.tar.gz.partial/L/sub/1"
    killed.mkdir(parents=True)
    (tmp_path / "out/L").mkdir()
    (tmp_path / "out/L/S.TXT").write_text("mine")
    unpack(archive, tmp_path / "out")
    found = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {"S.TXT", "a.flac"}
    assert (tmp_path / "out/L/S.TXT").read_text() == "mine"
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["L"]


def test_a_flipped_byte_is_found(tmp_path):
    noise = random.Random(0).randbytes(400_000)
    content = pack(tmp_path / "a.tar.gz", {"L/sub/1/a.flac": noise})
    content = content.read_bytes()
    whole = []
    for place in range(20, len(content), 20_000):
        damaged = bytearray(content)
        damaged[place] ^= 0xFF
        (tmp_path / "x.tar.gz").write_bytes(damaged)
        with contextlib.suppress(ValueError):
            unpack(tmp_path / "x.tar.gz", tmp_path / "out")
            whole.append(place)
        assert whole == [] and not list((tmp_path / "out").iterdir())


def test_an_archive_writes_nothing_outside(tmp_path):
    archive = pack(tmp_path / "sub.tar.gz", {"../../evil": b"x"})
    with pytest.raises(ValueError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "deep/out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_an_archive_holds_no_links(tmp_path, kind):
    (tmp_path / "out").mkdir()
    archive = tmp_path / "sub.tar"
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo("L/link")
        info.type, info.linkname = kind, "L/other"
        tar.addfile(info)
    with pytest.raises(
        ValueError, match="cannot be unpacked .L/link is a link"
    ):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
