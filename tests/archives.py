"""Archives made by an attacker or a bad connection, and a server that misbehaves on demand."""

import contextlib
import hashlib
import io
import re
import stat
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from utils.downloads import Archive


def zipped(
    members: dict[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED
) -> bytes:
    """Return a zip archive of these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def picture(size: int = 40) -> bytes:
    """Return a PNG file."""
    buffer = io.BytesIO()
    Image.effect_noise((size, size), 50).save(buffer, "PNG")
    return buffer.getvalue()


def archive_of(data: bytes) -> Archive:
    """Return the size and checksum that an archive has to have."""
    return Archive(len(data), hashlib.sha256(data).hexdigest())


def special(name: str, kind: int) -> zipfile.ZipInfo:
    """Return a member that unpacks to a link, a pipe or a device."""
    info = zipfile.ZipInfo(name)
    info.external_attr = (kind | 0o777) << 16
    return info


def hostile() -> dict[str, bytes]:
    """Archives that must be refused, by what is wrong with them; each also holds a good file."""
    names = {
        "a parent folder": "../a.png",
        "a parent folder deep in the name": "x/../../a.png",
        "an absolute name": "/tmp/srgan-escaped.png",
        "backslashes": "x\\..\\..\\a.png",
        "a drive": "C:/a.png",
        "a drive with backslashes": "C:\\a.png",
        "no name": "/",
        "a link": special("link", stat.S_IFLNK),
        "a pipe": special("pipe", stat.S_IFIFO),
        "a device": special("device", stat.S_IFCHR),
    }
    return {
        what: zipped({"good.png": picture(), name: b"/etc/passwd"}) for what, name in names.items()
    }


@contextlib.contextmanager
def server() -> Iterator[ThreadingHTTPServer]:
    """A server of `body` that may break off, answer with other statuses or ignore `Range`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            owner.requests.append(self.headers.get("Range"))
            status = owner.statuses.pop(0) if owner.statuses else 200
            if status != 200:
                self.send_error(status)
                return
            start = (
                re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) if owner.resumes else None
            )
            body = owner.body[int(start[1]) :] if start else owner.body
            self.send_response(206 if start else 200)
            self.send_header("Content-Type", owner.kind)
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the other side has seen enough
                self.wfile.write(body[: owner.breaks.pop(0)] if owner.breaks else body)

        def log_message(self, *_args):
            pass

    owner = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    owner.body, owner.breaks, owner.requests, owner.statuses, owner.resumes = b"", [], [], [], True
    owner.kind = "application/zip"
    owner.url = f"http://127.0.0.1:{owner.server_port}/"
    threading.Thread(target=owner.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield owner
    finally:
        owner.shutdown()
        owner.server_close()
