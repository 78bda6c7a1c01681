"""Where notifications arrive: a mail server, and a listener for Slack and webhooks."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword
from helpers.servers import free_port


@dataclass(frozen=True)
class Mail:
    time: float
    message: EmailMessage

    def text(self, kind: str = "plain") -> str:
        body = self.message.get_body((kind,))
        assert body is not None
        return str(body.get_content())


@dataclass(frozen=True)
class Post:
    time: float
    path: str
    authorization: str
    content: Any


class Mailbox:
    """A real mail server that takes mail from a sender that knows the password."""

    user, password = "alerts@example.com", "sesame"

    def __init__(self) -> None:
        self.mails: list[Mail] = []

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if not session.authenticated:
            return "530 Who are you?"
        message = message_from_bytes(envelope.content, policy=policy.default)
        assert isinstance(message, EmailMessage)
        self.mails.append(Mail(time.time(), message))
        return "250 OK"

    def _authenticate(self, *arguments: Any) -> AuthResult:
        data = arguments[-1]
        assert isinstance(data, LoginPassword)
        known = (data.login.decode(), data.password.decode()) == (self.user, self.password)
        return AuthResult(success=known)

    @contextmanager
    def listening(self) -> Iterator[int]:
        controller = Controller(
            self,
            hostname="127.0.0.1",
            port=free_port(),
            authenticator=self._authenticate,
            auth_require_tls=False,
            # Alertmanager does not know the prompts of its LOGIN.
            auth_exclude_mechanism=["LOGIN"],
        )
        controller.start()
        try:
            yield controller.port
        finally:
            controller.stop()


class Posts:
    """What was posted to it."""

    def __init__(self) -> None:
        self.posts: list[Post] = []

    def to(self, path: str) -> list[Post]:
        return [post for post in self.posts if post.path.startswith(path)]

    @contextmanager
    def listening(self) -> Iterator[int]:
        posts = self.posts

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                token = self.headers.get("Authorization", "")
                posts.append(Post(time.time(), self.path, token, body))
                self.send_response(200)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
