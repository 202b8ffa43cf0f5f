"""The few paths of a Kubernetes API that `cdrl submit` and `cdrl jobs` ask, over HTTP on the loopback."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import yaml

__all__ = ["Api", "serving"]

TOKEN = "right"
JOBS = re.compile(r"/apis/ray\.io/v1/namespaces/([\w-]+)/rayjobs(?:/([\w-]+))?")
CORE = re.compile(r"/api/v1/namespaces/([\w-]+)/(resourcequotas|pods)(?:/([\w-]+)/log)?")


class Api:
    """What the cluster holds.

    Attributes:
        jobs: name -> RayJob. A test plays the operator and writes their status.
        pods: of the namespace.
        logs: name of a pod -> text.
        has_kuberay: whether the custom resource is known.
        forbidden: paths' ends that the caller may not ask for.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.quotas: list[dict[str, Any]] = []
        self.pods: list[dict[str, Any]] = []
        self.logs: dict[str, str] = {}
        self.has_kuberay = True
        self.forbidden: tuple[str, ...] = ()

    def answer(self, verb: str, path: str, query: dict[str, list[str]], body: Any) -> tuple[int, Any]:
        """Status and content."""
        if path.endswith(self.forbidden or "\0"):
            return 403, f"{path.rsplit('/', 1)[1]} is forbidden: no role"
        if match := JOBS.fullmatch(path):
            return self._job(verb, match[2], body) if self.has_kuberay else (404, None)
        if match := CORE.fullmatch(path):
            if match[3]:
                return 200, self.logs[match[3]].encode()
            if match[2] == "resourcequotas":
                return 200, {"items": self.quotas}
            key, _, value = query["labelSelector"][0].partition("=")
            return 200, {"items": [pod for pod in self.pods if pod["metadata"]["labels"].get(key) == value]}
        return 404, None

    def _job(self, verb: str, name: str | None, body: Any) -> tuple[int, Any]:
        if verb == "POST":
            name = body["metadata"]["name"]
            if name in self.jobs:
                return 409, f'rayjobs.ray.io "{name}" already exists'
            number = len(self.jobs)
            body["metadata"]["creationTimestamp"] = f"2026-11-22T18:00:{number:02}Z"
            self.jobs[name] = body
            return 201, body
        if name is None:
            return 200, {"items": list(self.jobs.values())}
        if name not in self.jobs:
            return 404, f'rayjobs.ray.io "{name}" not found'
        if verb == "PATCH":
            self.jobs[name]["spec"] |= body["spec"]
        return 200, self.jobs[name]


@contextmanager
def serving(kubeconfig: Path, token: str = TOKEN) -> Iterator[Api]:
    """An API that runs, and a file for KUBECONFIG that leads there with this token."""
    api = Api()

    class Handler(BaseHTTPRequestHandler):
        def respond(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
            path, _, query = self.path.partition("?")
            status, content = api.answer(self.command, path, parse_qs(query), body)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, content = 401, "Unauthorized"
            if content is None:
                content = b"404 page not found\n"
            elif isinstance(content, str):
                content = {"kind": "Status", "status": "Failure", "message": content, "code": status}
            sent = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/plain" if isinstance(content, bytes) else "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_POST = do_PATCH = respond

        def log_message(self, *_: object) -> None: ...

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=web.serve_forever, args=(0.05,))
    thread.start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
        "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{web.server_port}"}}],
        "users": [{"name": "me", "user": {"token": token}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    try:
        yield api
    finally:
        web.shutdown()
        web.server_close()
        thread.join()
