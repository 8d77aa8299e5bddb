"""A server that speaks the parts of the Hub's HTTP interface that its client uses to publish and to pull models.

Creating repositories, preupload, LFS batches (one part, or several), commits, revisions, file lists, and files by
revision with ETag, redirection of large ones and byte ranges. Tokens decide who may read and write.
"""

import base64
import gzip
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from urllib.parse import unquote, urlsplit

REPO = "someone/small"  # that tests publish to
SMALL = 600  # bytes up to which a file goes into the commit itself
PART = 10_000  # bytes of a part of an upload


class Hub:
    """The server and what it holds: the files of each commit of each repository, and objects by SHA-256.

    Attributes:
        tokens: what each may do, of "read" and "write".
        private: repositories that want a token for reading.
        requests: (method, path, range) of all that were made.
        tokens_seen: (path, authorization) of the same.
        left: by SHA-256 of a large file, how many bytes of it are sent before connections break.
        faults: by SHA-256 of a file, or by its name where it is a small one, the function that answers instead; see
            below.
        sent: how many bytes such functions have sent.
        closing: is set when the server closes, so that nothing waits on.
        refuse_parts: how many parts of uploads fail.
    """

    def __init__(self):
        self.repositories, self.objects, self.parts = {}, {}, {}
        self.tokens = {"writer": ("read", "write"), "reader": ("read",)}
        self.private, self.requests, self.tokens_seen = set(), [], []
        self.left, self.refuse_parts = {}, 0
        self.faults, self.sent, self.closing = {}, 0, Event()
        handler = type("Bound", (Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.elsewhere = f"http://localhost:{self.server.server_port}"  # the client takes it for another host
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo, revision="main"):
        """The files of a revision, or None where there is no such revision."""
        commits = self.repositories[repo]
        return commits.get(revision) if revision != "main" else list(commits.values())[-1]

    def commit(self, repo, files):
        """Add a commit and return its name."""
        oid = hashlib.sha1(f"{repo}{len(self.repositories[repo])}".encode()).hexdigest()
        self.repositories[repo][oid] = {**self.files(repo), **files}
        return oid

    def head(self, repo):
        return list(self.repositories[repo])[-1]


class Refused(Exception):
    """An answer that is none of success."""

    def __init__(self, status, code="", message=""):
        self.status, self.headers = status, {"X-Error-Code": code, "X-Error-Message": message}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *words):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        self.hub.tokens_seen.append((path, self.headers.get("Authorization")))
        length = int(self.headers.get("Content-Length", 0))
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "")
        self.body = self._chunks() if chunked else self.rfile.read(length)
        try:
            for pattern, methods, answer in ROUTES:
                if self.command in methods and (match := re.fullmatch(pattern, path)):
                    return answer(self, *match.groups())
            raise Refused(404, "", f"no route {self.command} {path}")
        except Refused as refused:
            self.send(refused.status, b"{}", {key: value for key, value in refused.headers.items() if value})

    do_POST = do_PUT = do_HEAD = do_GET

    def _chunks(self):
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def send(self, status, content=b"", headers=()):
        self.send_response(status)
        for key, value in {"Content-Length": len(content), **dict(headers)}.items():
            self.send_header(key, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def require(self, right, repo):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token and (right == "write" or repo in self.hub.private):
            raise Refused(401, "RepoNotFound", "Repository not found")
        if token and right not in self.hub.tokens.get(token, ()):
            raise Refused(403, "", "You do not have the rights for this")
        if right == "read" and repo not in self.hub.repositories:
            raise Refused(404, "RepoNotFound", "Repository not found")

    def revision(self, repo, revision):
        self.require("read", repo)
        if (files := self.hub.files(repo, revision)) is None:
            raise Refused(404, "RevisionNotFound", "Revision not found")
        return files

    # To publish
    def create(self):
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        self.require("write", repo)
        if repo in self.hub.repositories:
            return self.send(409, json.dumps({"url": f"{self.hub.address}/{repo}"}).encode())
        self.hub.repositories[repo] = {hashlib.sha1(repo.encode()).hexdigest(): {}}
        self.json({"url": f"{self.hub.address}/{repo}"})

    def validate(self):
        assert json.loads(self.body)["content"].startswith("---\n")
        self.json({})

    def preupload(self, repo, revision):
        self.require("write", repo)
        files = json.loads(self.body)["files"]
        modes = [
            {"path": f["path"], "shouldIgnore": False, "uploadMode": "regular" if f["size"] <= SMALL else "lfs"}
            for f in files
        ]
        self.json({"files": modes})

    def batch(self, repo):
        self.require("write", repo)
        self.json({"objects": [self._upload(one["oid"], one["size"]) for one in json.loads(self.body)["objects"]]})

    def _upload(self, oid, size):
        if oid in self.hub.objects:
            return {"oid": oid, "size": size}
        place = f"{self.hub.address}/upload/{oid}"
        header = {}
        if size > PART:
            header = {"chunk_size": str(PART)}
            header |= {str(number + 1): f"{place}/{number + 1}" for number in range(-(-size // PART))}
        actions = {"upload": {"href": place, "header": header}, "verify": {"href": f"{self.hub.address}/verify"}}
        return {"oid": oid, "size": size, "actions": actions}

    def upload(self, oid, part):
        if self.hub.refuse_parts:
            self.hub.refuse_parts -= 1
            raise Refused(400, "", "this part did not arrive")
        self.hub.parts[oid, int(part or 1)] = self.body
        if part is None:
            self._assemble(oid)
        self.send(200, headers={"ETag": f'"{hashlib.md5(self.body).hexdigest()}"'})

    def complete(self, oid):
        assert [part["partNumber"] for part in json.loads(self.body)["parts"]] == sorted(
            part for name, part in self.hub.parts if name == oid
        )
        self._assemble(oid)
        self.json({})

    def _assemble(self, oid):
        content = b"".join(self.hub.parts[key] for key in sorted(self.hub.parts) if key[0] == oid)
        assert hashlib.sha256(content).hexdigest() == oid
        self.hub.objects[oid] = content

    def verify(self):
        asked = json.loads(self.body)
        assert len(self.hub.objects[asked["oid"]]) == asked["size"]
        self.json({})

    def commit(self, repo, revision):
        self.require("write", repo)
        files = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
        oid = self.hub.commit(repo, files)
        self.json({"commitUrl": f"{self.hub.address}/{repo}/commit/{oid}", "commitOid": oid})

    # To pull
    def info(self, repo, revision=None):
        files = self.revision(repo, revision or "main")
        sha = revision if revision not in (None, "main") else self.hub.head(repo)
        self.json({"id": repo, "sha": sha, "siblings": [{"rfilename": name} for name in files]})

    def tree(self, repo, revision):
        files = self.revision(repo, revision)
        self.json([{"type": "file", "path": name, "size": len(files[name]), "oid": "0" * 40} for name in files])

    def resolve(self, repo, revision, name):
        files = self.revision(repo, revision)
        commit = revision if revision != "main" else self.hub.head(repo)
        if name not in files:
            raise Refused(404, "EntryNotFound", "Entry not found")
        content = files[name]
        tag = hashlib.sha256(content).hexdigest()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        if len(content) <= SMALL or name in self.hub.faults:
            return self.content(content, headers, name)
        self.hub.objects.setdefault(tag, content)
        linked = {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": len(content)}
        self.send(302, b"", {**headers, **linked, "Location": f"{self.hub.elsewhere}/store/{tag}"})

    def store(self, oid):
        self.content(self.hub.objects[oid], {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"}, oid)

    def plain(self, repo, name):
        """A mirror of the newest commit, as any web server has files."""
        content = self.revision(repo, "main").get(name)
        if content is None:
            raise Refused(404)
        self.content(content, {}, name)

    def content(self, content, headers, oid=None):
        if fault := self.hub.faults.get(oid):
            return fault(self, content)
        status, part = 200, content
        if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first, last = int(asked[1]), int(asked[2] or len(content) - 1)
            if first >= len(content):
                raise Refused(416)
            status, part = 206, content[first : last + 1]
            headers = {**headers, "Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}
        sent = min(len(part), self.hub.left.get(oid, len(part)))
        if oid in self.hub.left:
            self.hub.left[oid] -= sent
        self.send(status, part[:sent], {**headers, "Content-Length": len(part)})
        if sent < len(part):
            self.close_connection = True
            self.hub.closing.wait(0.1)  # what is on its way arrives before the end does


BOMB = gzip.compress(bytes(20_000_000), 1)


# What answers instead of a file; `start` is the byte that was asked for.
def start(handler):
    asked = re.match(r"bytes=(\d+)", handler.headers.get("Range", ""))
    return int(asked[1]) if asked else 0


def begin(handler, status, **headers):
    """Send a head that promises no length: the body ends with the connection."""
    handler.close_connection = True
    handler.send_response(status)
    for key, value in {"Connection": "close", **headers}.items():
        handler.send_header(key.replace("_", "-"), str(value))
    handler.end_headers()


def slowly(handler, content, pause):
    """Send bytes one by one until the reader is gone, or all are sent."""
    try:
        for number in range(len(content)):
            handler.wfile.write(content[number : number + 1])
            handler.hub.sent += 1
            if handler.hub.closing.wait(pause):
                return
    except OSError:  # the reader has closed
        handler.close_connection = True


def endless(handler, content, most=300_000_000):
    """Send what was asked for and then zeros, as a part of the file if a part was asked for."""
    first = start(handler)
    begin(handler, 206 if first else 200, Content_Range=f"bytes {first}-{len(content) - 1}/{len(content)}")
    block = content[first:]
    try:
        while handler.hub.sent < most and not handler.hub.closing.is_set():
            handler.wfile.write(block)
            handler.hub.sent += len(block)
            block = bytes(100_000)
    except OSError:
        pass


def another_part(handler, content):
    first = start(handler) + 1
    part = content[first:]
    headers = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}", "Content-Length": len(part)}
    handler.send(206, part, headers)


def part_of_another(handler, content):
    first = start(handler)
    handler.send(206, content[first:], {"Content-Range": f"bytes {first}-{len(content)}/{len(content) + 1}"})


def whole(handler, content):
    """Answer as a server that knows no parts."""
    handler.send(200, content)


def compressed(handler, content):
    handler.send(200, BOMB, {"Content-Encoding": "gzip"})


def silent(handler, content):
    handler.hub.closing.wait(20)
    handler.close_connection = True


def silent_after_half(handler, content):
    begin(handler, 200)
    handler.wfile.write(content[: len(content) // 2])
    silent(handler, content)


def slow(handler, content):
    begin(handler, 200)
    slowly(handler, content, 0.02)


def slow_head(handler, content):
    slowly(handler, b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 1000, 0.02)


def around(handler, content):
    handler.send(302, b"", {"Location": handler.path + "?x"})


def to_a_file(handler, content):
    handler.send(302, b"", {"Location": "file:///etc/passwd"})


def status(number):
    body = b"" if number == 204 else b"<html>\x1b[31mtrouble</html>"
    return lambda handler, content: handler.send(number, body)


ANY = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    (r"/api/repos/create", "POST", Handler.create),
    (r"/api/validate-yaml", "POST", Handler.validate),
    (rf"/api/models/{ANY}/preupload/([^/]+)", "POST", Handler.preupload),
    (rf"/{ANY}\.git/info/lfs/objects/batch", "POST", Handler.batch),
    (r"/upload/(\w+)(?:/(\d+))?", "PUT", Handler.upload),
    (r"/upload/(\w+)", "POST", Handler.complete),
    (r"/verify", "POST", Handler.verify),
    (rf"/api/models/{ANY}/commit/([^/]+)", "POST", Handler.commit),
    (rf"/api/models/{ANY}/tree/([^/]+)/?", "GET", Handler.tree),
    (rf"/api/models/{ANY}/revision/([^/]+)", "GET", Handler.info),
    (rf"/api/models/{ANY}", "GET", Handler.info),
    (rf"/{ANY}/resolve/([^/]+)/(.+)", "GET HEAD", Handler.resolve),
    (r"/store/(\w+)", "GET HEAD", Handler.store),
    (rf"/plain/{ANY}/(.+)", "GET HEAD", Handler.plain),
]
