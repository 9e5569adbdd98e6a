"""A hub on loopback: serves folders of checkpoints in the API that huggingface_hub speaks, so that its real client runs in tests.

    with serve({"owner/name": {"main": {"config.json": bytes, ...}, "step0": {...}}}) as hub:
        os.environ["HF_ENDPOINT"] = hub.url

It answers three things: the list of branches, the tree of one of them (with each large file's sha256), and files (HEAD and GET).
`hub.log` lists what was asked, `hub.bodies` replaces what is sent for a file, its metadata left as they are: a fault of the transport.
"""
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def commit_of(branch, files):
    """40 hexadecimal digits that change with the content, as a commit does."""
    return hashlib.sha1(repr((branch, sorted((k, hashlib.sha256(v).hexdigest()) for k, v in files.items()))).encode()).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16                # headers and body in one piece: sent apart, each reply would wait 40 ms for an acknowledgement

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

    def missing(self, code):
        self.reply(json.dumps({"error": code}).encode(), 404, X_Error_Code=code, X_Error_Message=code)

    def do_GET(self):
        hub, path = self.server, self.path.split("?")[0]
        hub.log.append((self.command, path))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(refs|tree)(?:/([^/]+))?", path) or \
            re.fullmatch(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)", path)
        if not found or found[1] not in hub.repositories:
            return self.missing("RepoNotFound")
        branches = hub.repositories[found[1]]
        commits = {name: commit_of(name, files) for name, files in branches.items()}
        if found[2] == "refs":
            refs = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in commits.items()]
            return self.reply(json.dumps({"branches": refs, "tags": [], "converts": []}).encode(), Content_Type="application/json")
        branch = next((n for n, c in commits.items() if found[3] in (n, c)), None)
        if branch is None:
            return self.missing("RevisionNotFound")
        if found[2] == "tree":
            entries = []
            for name, body in branches[branch].items():
                entries.append({"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()})
                if not name.endswith(".json"):
                    entries[-1]["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
            entries.append({"type": "directory", "path": "notes", "oid": "0" * 40, "size": 0})
            return self.reply(json.dumps(entries).encode(), Content_Type="application/json")
        if found[4] not in branches[branch]:
            return self.missing("EntryNotFound")
        body = branches[branch][found[4]]
        headers = {"X_Repo_Commit": commits[branch], "ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X_Linked_Size": len(body)}
        self.reply(hub.bodies.get((branch, found[4]), body) if self.command == "GET" else body, **headers)

    do_HEAD = do_GET


@contextlib.contextmanager
def serve(repositories):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.repositories, server.log, server.bodies = repositories, [], {}
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
