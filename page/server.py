"""Serve a Gradio page and nothing else: Gradio also serves copies of web pages, and any file that a call names."""

import ipaddress
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from utils import cli

if TYPE_CHECKING:
    import gradio

# All that a page asks for
_ADDRESSES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|/(assets|static)/.+"
    r"|/gradio_api/(upload|upload_progress|cancel|reset|startup-events|queue/data|heartbeat/\w+)"
)
_CALLS, _LARGEST_CALL = {"/gradio_api/queue/join", "/gradio_api/run/predict"}, 2**20
_FILE = "/gradio_api/file="
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
# Tags for previews on other sites, and examples of calls; no browser follows them, but a private page does not name them
_OUTSIDE = re.compile(
    rb'<meta\s+(property="og:|name="twitter:)[^>]*>\s*|https://[\w.]*github\w*\.com/gradio-app/[^"\\]*'
)

# --- requests -----------------------------------------------------------------------------------------------------


class OnlyThisPage:
    """ASGI middleware that answers nothing but what the page asks for, and lets neither side fetch anything from outside."""

    def __init__(self, app: Callable, folder: Path):
        self.app, self.folder = app, folder

    async def __call__(self, scope, receive, send) -> None:
        """Answer 404 to other addresses and to requests that name files elsewhere; add headers that bind the browser."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if scope["path"] in _CALLS:
            body = await _body(receive)
            allowed = body is not None and _files_are_in(self.folder, body)
            receive = _once(body, receive)
        else:
            allowed = self._allows(scope["path"])
        if not allowed:
            start = {
                "type": "http.response.start",
                "status": 404,
                "headers": [(b"content-type", b"text/plain")],
            }
            await send(start)
            return await send({"type": "http.response.body", "body": b"no such address\n"})
        if scope["path"] == "/":
            scope["headers"] = [
                pair for pair in scope["headers"] if pair[0] != b"accept-encoding"
            ]  # to be readable below
        await self.app(scope, receive, _Cleaned(send) if scope["path"] == "/" else _guarded(send))

    def _allows(self, path: str) -> bool:
        if path.startswith(_FILE):
            return _is_in(self.folder, path.removeprefix(_FILE))
        return ".." not in path and _ADDRESSES.fullmatch(path) is not None


def _is_in(folder: Path, path: str) -> bool:
    """Tell whether a path leads into a folder, not upwards again, and to nothing hidden."""
    return folder in Path(path).parents and not any(
        part.startswith(".") for part in Path(path).relative_to(folder).parts
    )


async def _body(receive) -> bytes | None:
    """Return the body of a request; None if it is larger than any of the page's."""
    body, more = b"", True
    while more and len(body) <= _LARGEST_CALL:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body if len(body) <= _LARGEST_CALL else None


def _once(body: bytes | None, receive):
    """Return an ASGI `receive` that gives the body first."""
    waiting = [{"type": "http.request", "body": body or b"", "more_body": False}]

    async def again():
        return waiting.pop() if waiting else await receive()

    return again


def _files_are_in(folder: Path, body: bytes) -> bool:
    """Tell whether a call is JSON that names files in a folder only; Gradio would read others, and fetch web addresses."""
    try:
        waiting = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if value.get("path") is not None and not _is_in(folder, str(value["path"])):
                return False
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return True


def _guarded(send):
    """Return an ASGI `send` that adds the headers of this page."""

    async def guarded(message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *_HEADERS]
        await send(message)

    return guarded


class _Cleaned:
    """An ASGI `send` for the page itself that also removes what it names elsewhere."""

    def __init__(self, send):
        self.send, self.start, self.page = _guarded(send), {}, b""

    async def __call__(self, message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            return
        self.page += message.get("body", b"")
        if not message.get("more_body"):
            page = _OUTSIDE.sub(b"", self.page)
            headers = [pair for pair in self.start["headers"] if pair[0] != b"content-length"]
            await self.send(
                {**self.start, "headers": [*headers, (b"content-length", b"%d" % len(page))]}
            )
            await self.send({"type": "http.response.body", "body": page})


# --- serving ------------------------------------------------------------------------------------------------------


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 means any free one.

    Raises:
        UserError: the address cannot be used.
    """
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except (OSError, OverflowError) as error:
        raise cli.UserError(
            f"{host}:{port}: {cli.describe(error)}; choose another --port or --host"
        ) from error


def serve(
    page: "gradio.Blocks",
    listening: socket.socket,
    folder: Path,
    stop_work: Callable[[], None],
    **options,
) -> None:
    """Serve a page until a signal ends the process, which then calls `stop_work`; `options`: see `mount_gradio_app`."""
    import fastapi
    import gradio
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, number, frame) -> None:
            stop_work()
            super().handle_exit(number, frame)

    host, port = listening.getsockname()[:2]
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    private = {
        "run_history": False,
        "enable_monitoring": False,
        "pwa": False,
        "mcp_server": False,
        "ssr_mode": False,
    }
    gradio.mount_gradio_app(
        app, page, "/", host, port, show_error=False, footer_links=[], **private, **options
    )
    page.has_launched = True  # else Gradio would take any file of this computer for an upload
    config = uvicorn.Config(
        OnlyThisPage(app, folder), log_level="critical", timeout_graceful_shutdown=1
    )
    print(address(host, port), flush=True)
    Server(config).run(sockets=[listening])


def address(host: str, port: int) -> str:
    """Return what to tell the user about the address of a page."""
    number = ipaddress.ip_address(host)
    name = "127.0.0.1" if number.is_unspecified else f"[{host}]" if number.version == 6 else host
    text = f"open http://{name}:{port} in a browser; Ctrl-C ends the server"
    return (
        text
        if number.is_loopback
        else f"{text}\nother computers can use it too: there is no password"
    )
