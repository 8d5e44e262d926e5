"""Serve a Gradio page and nothing else.

Gradio alone would also serve copies of web pages, and any file that a call names.
"""

import ipaddress
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from utils import cli

if TYPE_CHECKING:
    import gradio

# ASGI's types
Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

# All that a page asks for
_ADDRESSES = re.compile(
    r"/|/(config|theme\.css|favicon\.ico|manifest\.json|robots\.txt)|/(assets|static)/.+"
    r"|/gradio_api/(upload|upload_progress|cancel|reset|startup-events|queue/data|heartbeat/\w+)"
)
_FILE = "/gradio_api/file="
_CALLS = {"/gradio_api/queue/join", "/gradio_api/run/predict"}
_LARGEST_CALL = 2**20  # bytes
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'",
    ),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
# Tags for previews on other sites, and examples of calls. No browser follows these addresses, but a
# private page does not name them.
_OUTSIDE = re.compile(
    rb'<meta\s+(property="og:|name="twitter:)[^>]*>\s*'
    rb'|https://[\w.]*github\w*\.com/gradio-app/[^"\\]*'
)

# --- requests -----------------------------------------------------------------------------------


class OnlyThisPage:
    """ASGI middleware that answers only what the page asks for.

    Neither the server nor the browser can be made to fetch anything from elsewhere.
    """

    def __init__(self, app: Application, folder: Path):
        """Protect `app`, which may serve files of `folder` and no others."""
        self.app = app
        self.folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 404 to other addresses and to calls that name other files; add headers."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        # Refuse
        path = scope["path"]
        if path in _CALLS:
            body = await _body(receive)
            allowed = body is not None and _files_are_in(self.folder, body)
            receive = _replayed(body or b"", receive)
        elif path.startswith(_FILE):
            allowed = _is_in(self.folder, path.removeprefix(_FILE))
        else:
            allowed = ".." not in path and _ADDRESSES.fullmatch(path) is not None
        if not allowed:
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 404, "headers": headers})
            await send({"type": "http.response.body", "body": b"no such address\n"})
            return

        # Pass on
        send = _with_headers(send)
        if path == "/":
            # A compressed page could not be cleaned
            scope["headers"] = [
                header for header in scope["headers"] if header[0] != b"accept-encoding"
            ]
            send = _Cleaned(send)
        await self.app(scope, receive, send)


def _is_in(folder: Path, path: str) -> bool:
    """Tell whether a path leads into a folder, not upwards again, and to nothing hidden."""
    if folder not in Path(path).parents:
        return False
    return not any(part.startswith(".") for part in Path(path).relative_to(folder).parts)


def _files_are_in(folder: Path, body: bytes) -> bool:
    """Tell whether a call is JSON that names no files but those in a folder.

    Gradio would read other files, and fetch web addresses.
    """
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


async def _body(receive: Receive) -> bytes | None:
    """Return the body of a request, or None if it is larger than any of the page's."""
    body = b""
    while len(body) <= _LARGEST_CALL:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body", False):
            break
    return body if len(body) <= _LARGEST_CALL else None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return an ASGI `receive` that first gives a body that has been read already."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _with_headers(send: Send) -> Send:
    """Return an ASGI `send` that adds the headers of this page."""

    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *_HEADERS]
        await send(message)

    return with_headers


class _Cleaned:
    """An ASGI `send` for the page itself; it removes the names of other sites."""

    def __init__(self, send: Send):
        self.send = send
        self.start: Message = {}
        self.page = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            return
        self.page += message.get("body", b"")
        if not message.get("more_body"):
            page = _OUTSIDE.sub(b"", self.page)
            headers = [pair for pair in self.start["headers"] if pair[0] != b"content-length"]
            headers.append((b"content-length", b"%d" % len(page)))
            await self.send({**self.start, "headers": headers})
            await self.send({"type": "http.response.body", "body": page})


# --- serving ------------------------------------------------------------------------------------


def prepare_gradio(folder: Path) -> None:
    """Turn off Gradio's statistics, downloads and caches; call this before Gradio is imported.

    Args:
        folder: where Gradio keeps what is uploaded and made.

    Raises:
        UserError: the package is missing.
    """
    os.environ |= {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
    }
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise cli.UserError(
            f"package {error.name or 'gradio'} is missing; pip install gradio"
        ) from error


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens at an address; port 0 means any free one.

    Raises:
        UserError: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise cli.UserError(
            f"{host}:{port}: {cli.describe(error)}; choose another --port or --host"
        ) from error


def serve(
    page: "gradio.Blocks",
    listening: socket.socket,
    folder: Path,
    stop_work: Callable[[], None],
    max_file_size: str,
    looks: dict[str, Any],
) -> None:
    """Serve a page until a signal ends the process.

    Args:
        page: the page.
        listening: socket that listens for visitors.
        folder: where the files of the page are.
        stop_work: called when the signal comes.
        max_file_size: limit for uploads, such as 100mb.
        looks: options of Gradio for how the page looks.
    """
    import fastapi
    import gradio
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            stop_work()
            super().handle_exit(sig, frame)

    host, port = listening.getsockname()[:2]
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gradio.mount_gradio_app(
        app,
        page,
        "/",
        host,
        port,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=max_file_size,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        **looks,
    )
    page.has_launched = True  # else Gradio would take any file of this computer for an upload
    config = uvicorn.Config(
        OnlyThisPage(app, folder), log_level="critical", timeout_graceful_shutdown=1
    )
    print(invitation(host, port), flush=True)
    Server(config).run(sockets=[listening])


def invitation(host: str, port: int) -> str:
    """Return what the user is told about the address of a page and who can use it."""
    number = ipaddress.ip_address(host)
    if number.is_unspecified:
        name = "127.0.0.1"
    elif number.version == 6:
        name = f"[{host}]"
    else:
        name = host
    text = f"open http://{name}:{port} in a browser; Ctrl-C ends the server"
    if not number.is_loopback:
        text += "\nother computers can use it too: there is no password"
    return text
