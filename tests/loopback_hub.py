"""A Hub on this machine, for tests: what huggingface_hub 2.4 asks of it.

Repositories are dicts of commits; large files go through the LFS batch
endpoint. `fail` makes the next requests go wrong.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = {"hf_owner": "user", "hf_reader": None}
NAME = r"(?P<repo>[\w.-]+/[\w.-]+)"


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status, code=None, message="", **body):
        super().__init__(status)
        self.status, self.body = status, body
        self.headers = {"X-Error-Code": code, "X-Error-Message": message}


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LoopbackHub(ThreadingHTTPServer):
    """The server; use it in a `with`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos, self.lfs, self.requests, self.faults = {}, {}, [], []

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *args):
        self.shutdown()
        self.server_close()

    def fail(self, pattern, what, times=1):
        """Lets requests whose 'METHOD /path' matches go wrong.

        `what` is a status, "cut" (half of the body), or "flip" (a wrong bit).
        """
        self.faults.append([pattern, what, times])

    def add(self, repo, files, private=False, gated=False):
        """Commits files, {path: bytes}; returns the commit."""
        content = dict(self.files(repo)) if repo in self.repos else {}
        content.update(files)
        described = repr(sorted((n, git_oid(c)) for n, c in content.items()))
        commit = hashlib.sha1(described.encode()).hexdigest()
        there = self.repos.setdefault(
            repo, {"commits": {}, "private": private, "gated": gated}
        )
        there["commits"][commit] = content
        there["main"] = commit
        return commit

    def files(self, repo):
        """The files of a repository's newest commit."""
        there = self.repos[repo]
        return there["commits"].get(there.get("main"), {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def respond(self):
        hub = self.server
        path = self.path.split("?")[0]
        size = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunked()
        else:
            self.body = self.rfile.read(size)
        asked = f"{self.command} {path}"
        hub.requests.append(asked)
        self.fault = None
        for fault in hub.faults:
            if fault[2] > 0 and re.search(fault[0], asked):
                fault[2] -= 1
                self.fault = fault[1]
                break
        try:
            if isinstance(self.fault, int):
                raise Refused(self.fault)
            for method, pattern, do in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and self.command in method:
                    return do(self, **found.groupdict())
            raise Refused(404)
        except Refused as refused:
            self.send(refused.status, refused.body, refused.headers)

    do_GET = do_HEAD = do_POST = do_PUT = respond

    def read_chunked(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, status, content, headers=()):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        headers = {"Content-Length": len(content), **dict(headers)}
        for name, value in headers.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            if self.fault == "cut":
                content = content[: len(content) // 2]
                self.close_connection = True
            if self.fault == "flip" and content:
                middle = len(content) // 2
                content = bytearray(content)
                content[middle] ^= 1
            self.wfile.write(content)

    # who may do what --------------------------------------------------------

    def token(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in TOKENS:
            raise Refused(
                401, None, "Invalid credentials in Authorization header"
            )
        return token

    def readable(self, repo):
        token = self.token()
        there = self.server.repos.get(repo)
        if there is None or (there["private"] and token != "hf_owner"):
            raise Refused(404 if token else 401, "RepoNotFound")
        if there["gated"] and token != "hf_owner":
            raise Refused(403, "GatedRepo")
        return there

    def writable(self, repo):
        there = self.readable(repo)
        if self.token() != "hf_owner":
            raise Refused(403, None, "You may not write here")
        return there

    # endpoints --------------------------------------------------------------

    def create(self):
        if not self.token():
            raise Refused(401, None, "Invalid username or password.")
        if self.token() != "hf_owner":
            raise Refused(403, None, "You may not create this")
        asked = json.loads(self.body)
        repo = f"{asked.get('organization') or 'user'}/{asked['name']}"
        if repo in self.server.repos:
            raise Refused(409, None, "It is there", url=self.url_of(repo))
        private = asked.get("private") or asked.get("visibility") == "private"
        self.server.repos[repo] = {
            "commits": {},
            "private": bool(private),
            "gated": False,
        }
        self.server.add(repo, {})
        self.send(200, {"url": self.url_of(repo)})

    def url_of(self, repo):
        return f"{self.server.url}/{repo}"

    def validate(self):
        front = json.loads(self.body)["content"].split("---\n")
        good = len(front) > 2 and "library_name" in front[1]
        errors = [] if good else [{"message": "no metadata"}]
        self.send(200 if good else 400, {"errors": errors, "warnings": []})

    def info(self, repo, revision="main"):
        there = self.readable(repo)
        commit = self.commit_of(repo, revision)
        files = there["commits"][commit]
        self.send(
            200,
            {
                "id": repo,
                "modelId": repo,
                "sha": commit,
                "private": there["private"],
                "siblings": [{"rfilename": name} for name in files],
            },
        )

    def commit_of(self, repo, revision):
        there = self.server.repos[repo]
        commit = there["main"] if revision == "main" else revision
        if commit not in there["commits"]:
            raise Refused(404, "RevisionNotFound")
        return commit

    def tree(self, repo, revision):
        there = self.readable(repo)
        files = there["commits"][self.commit_of(repo, revision)]
        listed = [
            {
                "type": "file",
                "path": name,
                "size": len(content),
                "oid": git_oid(content),
            }
            for name, content in files.items()
        ]
        self.send(200, listed)

    def preupload(self, repo, revision):
        self.writable(repo)
        there, answer = self.server.files(repo), []
        for file in json.loads(self.body)["files"]:
            name = file["path"]
            large = name.endswith((".safetensors", ".wav"))
            content = there.get(name)
            oid = None
            if content is not None:
                oid = (
                    hashlib.sha256(content).hexdigest()
                    if large
                    else git_oid(content)
                )
            answer.append(
                {
                    "path": name,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": oid,
                }
            )
        self.send(200, {"files": answer})

    def batch(self, repo):
        self.writable(repo)
        objects = []
        for asked in json.loads(self.body)["objects"]:
            entry = {"oid": asked["oid"], "size": asked["size"]}
            if asked["oid"] not in self.server.lfs:
                href = f"{self.server.url}/lfs/{asked['oid']}"
                entry["actions"] = {"upload": {"href": href, "header": {}}}
            objects.append(entry)
        self.send(200, {"transfer": "basic", "objects": objects})

    def put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400)
        self.server.lfs[oid] = self.body
        self.send(200, {})

    def commit(self, repo, revision):
        self.writable(repo)
        files = {}
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.lfs[value["oid"]]
        commit = self.server.add(repo, files)
        url = f"{self.url_of(repo)}/commit/{commit}"
        self.send(200, {"commitUrl": url, "commitOid": commit})

    def resolve(self, repo, revision, name):
        there = self.readable(repo)
        commit = self.commit_of(repo, revision)
        headers = {"X-Repo-Commit": commit}
        files = there["commits"][commit]
        if name not in files:
            self.send(404, {}, {"X-Error-Code": "EntryNotFound", **headers})
            return
        content = files[name]
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        wanted = self.headers.get("Range")
        if wanted:
            start = int(re.match(r"bytes=(\d+)-", wanted)[1])
            headers["Content-Range"] = (
                f"bytes {start}-{len(content) - 1}/{len(content)}"
            )
            self.send(206, content[start:], headers)
        else:
            self.send(200, content, headers)


ROUTES = [
    (("POST",), "/api/repos/create", Handler.create),
    (("POST",), "/api/validate-yaml", Handler.validate),
    (("GET",), f"/api/models/{NAME}", Handler.info),
    (
        ("GET",),
        f"/api/models/{NAME}/revision/(?P<revision>[^/]+)",
        Handler.info,
    ),
    (("GET",), f"/api/models/{NAME}/tree/(?P<revision>[^/]+)", Handler.tree),
    (
        ("POST",),
        f"/api/models/{NAME}/preupload/(?P<revision>[^/]+)",
        Handler.preupload,
    ),
    (
        ("POST",),
        f"/api/models/{NAME}/commit/(?P<revision>[^/]+)",
        Handler.commit,
    ),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.batch),
    (("PUT",), "/lfs/(?P<oid>[0-9a-f]+)", Handler.put),
    (
        ("GET", "HEAD"),
        f"/{NAME}/resolve/(?P<revision>[^/]+)/(?P<name>.+)",
        Handler.resolve,
    ),
]
