"""As much of the Hugging Face hub as its client needs, on this machine."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import threading
from unittest import mock

TOKEN = "hf_secretOfTheTests"
REPOSITORY = "((?:spaces/)?[^/]+/[^/]+)"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self):
        server = self.server
        self.body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        server.requests.append(f"{self.command} {self.path}")
        for part, faults in server.faults.items():
            if part in self.path and faults:
                fault = faults.pop(0)
                if fault == "cut":
                    self.close_connection = True
                    self.connection.close()
                elif fault is not None:
                    self.refuse(fault)
                if fault is not None:
                    return
        if self.command in ("POST", "PUT") and not self.has_token():
            self.refuse(401)
            return
        for command, pattern, method in ROUTES:
            match = re.fullmatch(pattern, self.path.split("?")[0])
            if match and self.command in command:
                method(self, *match.groups())
                return
        self.refuse(404, "RepoNotFound")

    def has_token(self):
        # Storage is not the hub: its addresses are signed.
        return self.path.startswith("/storage/") or (
            self.headers["Authorization"] == f"Bearer {TOKEN}"
        )

    def refuse(self, status, code=None):
        # A careless proxy may send back what it was sent.
        echo = self.headers["Authorization"] or ""
        self.send(status, {"error": f"refused {echo}"}, {"X-Error-Code": code})

    def send(self, status, content, headers=None):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {
            "Content-Length": len(content),
            **(headers or {}),
        }.items():
            if value is not None:
                self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def create(self):
        wanted = json.loads(self.body)
        name = f"{wanted['organization']}/{wanted['name']}"
        if wanted.get("type") == "space":
            # The hub makes no Space without the kind of it.
            if "sdk" not in wanted:
                self.refuse(400)
                return
            name = f"spaces/{name}"
        existed = name in self.server.repositories
        if not existed:
            self.server.repositories[name] = {"main": {}}
            self.server.private[name] = wanted.get("visibility") == "private"
        url = f"{self.server.address}/{name}"
        self.send(409 if existed else 200, {"url": url})

    def branch(self, name, branch):
        branches = self.server.repositories[name]
        existed = branch in branches
        branches.setdefault(branch, dict(branches["main"]))
        self.send(409 if existed else 200, {})

    def check_card(self):
        card = json.loads(self.body)["content"]
        self.send(200, {"errors": [], "warnings": [], "content": card})

    def preupload(self, name, revision):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs"
                if re.search(r"\.(ckpt|safetensors|onnx|wasm)$", file["path"])
                else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(self.body)["files"]
        ]
        self.send(200, {"files": files})

    def large_files(self, name):
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            if wanted["oid"] not in self.server.storage:
                address = f"{self.server.address}/storage/{wanted['oid']}"
                wanted["actions"] = {"upload": {"href": address}}
            objects.append(wanted)
        content = {"transfer": "basic", "objects": objects}
        kind = "application/vnd.git-lfs+json"
        self.send(200, content, {"Content-Type": kind})

    def store(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.refuse(400)
            return
        self.server.storage[oid] = self.body
        self.send(200, b"")

    def commit(self, name, revision):
        files = self.server.repositories[name][revision]
        for line in self.body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                content = base64.b64decode(value["content"])
                files[value["path"]] = content
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.server.storage[value["oid"]]
        self.server.commits += 1
        commit = commit_of(files)
        address = f"{self.server.address}/{name}/commit/{commit}"
        self.send(200, {"commitUrl": address, "commitOid": commit})

    def resolve(self, name, revision, path):
        branches = self.server.repositories.get(name)
        if branches is None or (
            self.server.private[name] and not self.has_token()
        ):
            self.refuse(401, "RepoNotFound")
            return
        commits = {commit_of(files): files for files in branches.values()}
        files = {**commits, **branches}.get(revision, {})
        headers = {"X-Repo-Commit": commit_of(files)}
        if path not in files:
            self.send(404, b"", {"X-Error-Code": "EntryNotFound", **headers})
            return
        content = files[path]
        digest = hashlib.sha256(content).hexdigest()
        self.send(200, content, {"ETag": f'"{digest}"', **headers})

    def log_message(self, *arguments):
        pass


def commit_of(files):
    """The commit in which a branch has these files."""
    digest = hashlib.sha1()
    for name, content in sorted(files.items()):
        digest.update(name.encode() + hashlib.sha256(content).digest())
    return digest.hexdigest()


# The API says what a repository is, and leaves that out for models elsewhere.
MODELS = r"/api/(?:models/)?((?:spaces/)?[^/]+/[^/]+)"
ROUTES = (
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.check_card),
    ("POST", f"{MODELS}/branch/([^/]+)", Handler.branch),
    ("POST", f"{MODELS}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"{MODELS}/commit/([^/]+)", Handler.commit),
    (
        "POST",
        f"/{REPOSITORY}.git/info/lfs/objects/batch",
        Handler.large_files,
    ),
    ("PUT", "/storage/([0-9a-f]+)", Handler.store),
    (("GET", "HEAD"), f"/{REPOSITORY}/resolve/([^/]+)/(.+)", Handler.resolve),
)


@contextlib.contextmanager
def serve_hub():
    """Serves an empty hub at ``address``.

    ``repositories`` has the files of each branch of each; ``private`` says
    which are; ``commits`` counts; ``requests`` lists what was asked for.
    ``faults`` maps a part of a path to what the next requests for it get: an
    HTTP status, "cut" for a broken connection, or None for an answer.
    """
    with (
        mock.patch.dict(os.environ, no_proxy="127.0.0.1"),
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
    ):
        server.repositories, server.private, server.storage = {}, {}, {}
        server.faults, server.requests, server.commits = {}, [], 0
        server.address = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
