"""The page's visitors: their work, what they are told, and their files on the server."""

import contextlib
import html
import shutil
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from utils import cli, files

KEPT_SECONDS = 3600  # uploads and results are removed after this time
PERMANENT = "permanent"  # a folder in the temporary one; its files stay as long as the server
_PREFIX = "srgan-page-"


# --- work ---------------------------------------------------------------------------------------


class Cancelled(Exception):
    """A visitor no longer wants the result."""


class Work:
    """The enlarging of one picture file; another thread can end it."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self._ended = threading.Event()

    def check(self) -> None:
        """Raise Cancelled if the work has ended or been cancelled."""
        if self.ended:
            raise Cancelled

    def end(self) -> None:
        """Mark the work as ended, which cancels it if it is still going on."""
        self._ended.set()

    @property
    def ended(self) -> bool:
        """Whether the work has ended or been cancelled."""
        return self._ended.is_set()


class Sessions:
    """The work of each visitor; visitors are told apart by Gradio's session hash."""

    def __init__(self) -> None:
        self._work: dict[str, Work] = {}

    def start(self, session: str, path: Path | None) -> None:
        """Start work on a picture for a visitor; earlier work for the same visitor is cancelled."""
        self.stop(session)
        self._work[session] = Work(path)

    def work(self, session: str) -> Work:
        """Return the visitor's work."""
        return self._work.setdefault(session, Work())

    def busy(self, session: str) -> bool:
        """Tell whether the visitor's work has started and not ended."""
        return session in self._work and not self._work[session].ended

    def stop(self, session: str) -> None:
        """Cancel the visitor's work."""
        if session in self._work:
            self._work[session].end()

    def forget(self, session: str) -> None:
        """Cancel the work of a visitor who has left."""
        self.stop(session)
        self._work.pop(session, None)

    def stop_all(self) -> None:
        """Cancel all work."""
        for session in list(self._work):
            self.stop(session)


# --- messages -----------------------------------------------------------------------------------


def message(text: str, alert: bool = False) -> str:
    """Return a line of text as HTML that screen readers read out."""
    role = "alert" if alert else "status"
    return f'<p role="{role}">{html.escape(text)}</p>'


def explain(error: Exception) -> str:
    """Return what visitors are told about an error.

    They see the words of a UserError; the details of other errors go to the server's terminal.
    """
    if isinstance(error, cli.UserError):
        return str(error)
    traceback.print_exception(error)
    if cli.is_out_of_memory(error):
        return "The server has too little memory for this picture. Try a smaller one."
    if isinstance(error, cli.RunError):
        return (
            "This generator gave no picture: its file is gone or damaged, or its weights diverged."
        )
    return "Something went wrong on the server; its terminal shows the details."


# --- files --------------------------------------------------------------------------------------


@contextlib.contextmanager
def temporary_folder(kept_seconds: float = KEPT_SECONDS) -> Iterator[Path]:
    """Yield a folder that loses its old files and is removed at the end.

    Folders that killed servers have left behind are removed first.
    """
    # Remove what killed servers have left
    place = Path(tempfile.gettempdir()).resolve()
    for old in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, cli.UserError), files.lock(old / ".lock"):
            shutil.rmtree(old, ignore_errors=True)

    # Keep this server's folder tidy
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
    """Remove old files from the subfolders of a folder, then the subfolders that are empty."""
    oldest = time.time() - kept_seconds
    inner_first = sorted(folder.glob("*/**/*"), reverse=True)
    for path in [*inner_first, *folder.glob("*/")]:
        if PERMANENT in path.relative_to(folder).parts:
            continue
        with contextlib.suppress(OSError):  # files may vanish meanwhile; folders may not be empty
            if path.stat().st_mtime >= oldest:
                continue
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()
