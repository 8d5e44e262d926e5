"""What a Gradio page needs beside its controls: its looks, its visitors, messages to them, and files that do not stay.

Gradio is optional, so it is imported only when a page is built.
"""

import contextlib
import html
import os
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from utils import cli, files

KEPT_SECONDS = 3600  # what was uploaded or made is removed after this time
SCRIPT, STYLE = (Path(__file__).with_suffix(suffix) for suffix in (".js", ".css"))
PERMANENT = "permanent"  # the folder in the temporary one whose files stay as long as the server
_PREFIX = "srgan-page-"


def import_gradio(folder: Path) -> ModuleType:
    """Import Gradio with its statistics, downloads and caches turned off; `folder` holds what is uploaded and made.

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
        import gradio
    except ImportError as error:
        raise cli.UserError(f"package {error.name or 'gradio'} is missing; pip install gradio") from error
    return gradio


def looks(gr: ModuleType) -> dict[str, Any]:
    """Return the options of `serve` for how a page looks: the fonts of the user's system, so that none is fetched."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    names = ("body_text_color_subdued", "block_info_text_color")  # too pale in Gradio's own theme
    readable = {name: "*neutral_600" for name in names} | {f"{name}_dark": "*neutral_300" for name in names}
    script = f"<script>{SCRIPT.read_text('utf-8')}</script>"
    return {"theme": gr.themes.Base(**fonts).set(**readable), "css": STYLE.read_text("utf-8"), "head": script}


# --- visitors -----------------------------------------------------------------------------------------------------


class Cancelled(Exception):
    """A visitor no longer wants the result."""


class Stops:
    """Who no longer wants a result; visitors are told apart by Gradio's session hash."""

    def __init__(self):
        self._events: dict[str, threading.Event] = {}

    def start(self, session: str) -> None:
        """Begin anew for a visitor; earlier work for the same one ends."""
        self.stop(session)
        self._events[session] = threading.Event()

    def check(self, session: str) -> Callable[[], None]:
        """Return a function that raises Cancelled once the visitor's work, which is about to begin, is to end."""
        event = self._events.setdefault(session, threading.Event())

        def check() -> None:
            if event.is_set():
                raise Cancelled

        return check

    def stop(self, session: str) -> None:
        """End a visitor's work."""
        if session in self._events:
            self._events[session].set()

    def forget(self, session: str) -> None:
        """End the work of a visitor who has left."""
        self.stop(session)
        self._events.pop(session, None)

    def stop_all(self) -> None:
        """End all work."""
        for session in list(self._events):
            self.stop(session)


def message(text: str, alert: bool = False) -> str:
    """Return a line of text as HTML that screen readers read out."""
    return f'<p role="{"alert" if alert else "status"}">{html.escape(text)}</p>'


def explained(error: Exception) -> str:
    """Return an error as visitors are told it: a UserError in its words, others in general ones; the terminal has details."""
    if isinstance(error, cli.UserError):
        return str(error)
    traceback.print_exception(error)
    if cli.is_out_of_memory(error):
        return "The server has too little memory for this picture. Try a smaller one."
    if isinstance(error, cli.RunError):
        return "This generator gave no picture: its weights are damaged or diverged."
    return "Something went wrong on the server; its terminal says what."


# --- files --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def temporary_folder(kept_seconds: float = KEPT_SECONDS) -> Iterator[Path]:
    """Yield a folder whose files are removed when they are old; remove it at the end, and those of killed servers first."""
    place = Path(tempfile.gettempdir()).resolve()
    for old in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, cli.UserError), files.lock(old / ".lock"):
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    ended = threading.Event()

    def keep_tidy() -> None:
        while not ended.wait(min(60, kept_seconds)):
            remove_old(folder, kept_seconds)

    try:
        with files.lock(folder / ".lock"):
            threading.Thread(target=keep_tidy, daemon=True).start()
            yield folder
    finally:
        ended.set()
        shutil.rmtree(folder, ignore_errors=True)


def remove_old(folder: Path, kept_seconds: float) -> None:
    """Remove the files in the subfolders of `folder` that are older than `kept_seconds`, and subfolders that are empty."""
    oldest = time.time() - kept_seconds
    for path in sorted(folder.glob("*/**/*"), reverse=True) + list(folder.glob("*/")):
        with contextlib.suppress(OSError):  # the file of an upload can be renamed meanwhile
            if PERMANENT not in path.relative_to(folder).parts and path.stat().st_mtime < oldest:
                path.rmdir() if path.is_dir() else path.unlink()
