"""A hub on loopback, so that the real client of huggingface_hub runs in tests.

    with serve({"owner/name": {"main": {"config.json": bytes, ...}, "step0": {...}}}) as hub:
        os.environ["HF_ENDPOINT"] = hub.url

It answers four things: the lists of branches and tags, and of commits, the tree of one of them
(with the sha256 of each large file), and files (HEAD and GET).  A revision called "tag NAME" is a
tag, and "commit TITLE" a commit of main that has no other name.
`hub.log` lists what was asked.  `hub.bodies` replaces what
is sent for a file, and leaves its metadata as they are: a fault of the transport.
"""
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def commit_of(branch, files):
    """40 hexadecimal digits that change with the content, as a commit does."""
    content = sorted((name, hashlib.sha256(body).hexdigest()) for name, body in files.items())
    return hashlib.sha1(repr((branch, content)).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body go in one piece: sent apart, each reply would wait 40 ms.
    wbufsize = 1 << 16

    def log_message(self, *args):
        pass

    def reply(self, body=b"", status=200, **headers):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body)

    def reply_json(self, value):
        self.reply(json.dumps(value).encode(), Content_Type="application/json")

    def missing(self, code):
        body = json.dumps({"error": code}).encode()
        self.reply(body, 404, X_Error_Code=code, X_Error_Message=code)

    def do_GET(self):
        hub, path = self.server, self.path.split("?")[0]
        hub.log.append((self.command, path))
        found = (re.fullmatch(r"/api/models/([^/]+/[^/]+)/(refs|tree|commits)(?:/([^/]+))?", path)
                 or re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path))
        if not found or found[1] not in hub.repositories:
            return self.missing("RepoNotFound")
        branches = hub.repositories[found[1]]
        commits = {name: commit_of(name, files) for name, files in branches.items()}
        if found[2] == "refs":
            return self.refs(commits)
        named = [name for name, commit in commits.items()
                 if found[3] in (name.removeprefix("tag "), commit)]
        if not named:
            return self.missing("RevisionNotFound")
        branch = named[0]
        if found[2] == "tree":
            return self.tree(branches[branch])
        if found[2] == "commits":
            return self.commits(commits)
        if found[4] not in branches[branch]:
            return self.missing("EntryNotFound")
        self.file(branch, found[4], branches[branch][found[4]], commits[branch])

    do_HEAD = do_GET

    def refs(self, commits):
        found = {"branches": [], "tags": [], "converts": []}
        for name, commit in commits.items():
            kind, short = "heads", name
            if name.startswith("tag "):
                kind, short = "tags", name.removeprefix("tag ")
            if not name.startswith("commit "):
                found["tags" if kind == "tags" else "branches"].append(
                    {"name": short, "ref": f"refs/{kind}/{short}", "targetCommit": commit})
        self.reply_json(found)

    def commits(self, commits):
        self.reply_json([{"id": commit, "title": name.removeprefix("commit "), "message": "",
                          "date": "2025-01-01T00:00:00.000Z", "authors": []}
                         for name, commit in commits.items() if name.startswith("commit ")])

    def tree(self, files):
        entries = []
        for name, body in files.items():
            sha1, sha256 = hashlib.sha1(body).hexdigest(), hashlib.sha256(body).hexdigest()
            entry = {"type": "file", "path": name, "size": len(body), "oid": sha1}
            if not name.endswith(".json"):
                entry["lfs"] = {"oid": sha256, "size": len(body), "pointerSize": 134}
            entries.append(entry)
        entries.append({"type": "directory", "path": "notes", "oid": "0" * 40, "size": 0})
        self.reply_json(entries)

    def file(self, branch, name, body, commit):
        sha256 = hashlib.sha256(body).hexdigest()
        sent = self.server.bodies.get((branch, name), body) if self.command == "GET" else body
        self.reply(sent, X_Repo_Commit=commit, ETag=f'"{sha256}"', X_Linked_Size=len(body))


@contextlib.contextmanager
def serve(repositories):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.log, server.bodies = repositories, [], {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05},
                              daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
