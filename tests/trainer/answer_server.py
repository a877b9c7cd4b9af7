"""A server in this process that speaks the OpenAI protocol and answers, or fails to, as a test says."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "org/tiny"


@dataclass(frozen=True)
class Reply:
    """content: JSON, or bytes as they are; None breaks the connection. delay: seconds."""

    content: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0


@dataclass
class Request:
    """number: counted from 0, the trials of one token and /models not counted."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    number: int

    @property
    def said(self) -> Any:
        return self.body["messages"] if "messages" in self.body else self.body["prompt"]


def answer(request: Request, text: str | None = None, finish_reason: str = "stop", **message: Any) -> Reply:
    """As a model at temperature 0: the answer depends on what was said alone."""
    if text is None:
        text = f"The answer is {hashlib.sha256(json.dumps(request.said).encode()).hexdigest()[:8]}."
    said = (
        {"text": text} if "prompt" in request.body else {"message": {"role": "assistant", "content": text, **message}}
    )
    return Reply({"choices": [{**said, "finish_reason": finish_reason}], "usage": {"completion_tokens": 5}})


class Speaker:
    """requests: in the order of their arrival; most: of them at one time."""

    def __init__(self, reply: Callable[[Request], Reply]) -> None:
        self.reply = reply
        self.models = Reply({"data": [{"id": MODEL, "max_model_len": 4096, "owned_by": "test"}]})
        self.trial: Callable[[Request], Reply] = answer
        self.requests: list[Request] = []
        self.running = self.most = 0
        self.lock = threading.Lock()
        self.url = ""

    def respond(self, request: Request) -> Reply:
        if request.body.get("max_tokens") == 1:
            return self.trial(request)
        with self.lock:
            request.number = len(self.requests)
            self.requests.append(request)
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            reply = self.reply(request)
            time.sleep(reply.delay)
            return reply
        finally:
            with self.lock:
                self.running -= 1


@contextmanager
def speaking(reply: Callable[[Request], Reply] = answer) -> Iterator[Speaker]:
    speaker = Speaker(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and content in one piece: TCP delays a second one

        def do_GET(self) -> None:
            self._send(speaker.models if self.path == "/v1/models" else Reply({"error": "Not Found"}, 404))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._send(speaker.respond(Request(self.path, body, dict(self.headers), -1)))

        def _send(self, reply: Reply) -> None:
            if reply.content is None:
                self.close_connection = True
                return
            data = reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
            try:
                self.send_response(reply.status)
                for name, value in {**reply.headers, "content-length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except OSError:  # whoever asked has gone
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    speaker.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield speaker
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
