"""Who uses a page, what is said to them, and the files that lie on the server for them for a while."""

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

KEPT_SECONDS = 3600  # what was uploaded or made is removed after this time
PERMANENT = "permanent"  # the folder in the temporary one whose files stay as long as the server
_PREFIX = "srgan-page-"


class Cancelled(Exception):
    """A visitor no longer wants the result."""


class Work:
    """The enlarging of one picture file; another thread can end it."""

    def __init__(self, path: Path | None = None):
        self.path = path
        self._ended = threading.Event()

    def check(self) -> None:
        """Raise Cancelled if it is to end, or has ended."""
        if self._ended.is_set():
            raise Cancelled

    def end(self) -> None:
        """End it."""
        self._ended.set()

    @property
    def ended(self) -> bool:
        """Whether it has ended, or is about to."""
        return self._ended.is_set()


class Stops:
    """Who is waiting for a result, and who no longer wants it; visitors are told apart by Gradio's session hash."""

    def __init__(self):
        self._work: dict[str, Work] = {}

    def start(self, session: str, path: Path | None) -> None:
        """Begin with another picture for a visitor; earlier work for the same one ends."""
        self.stop(session)
        self._work[session] = Work(path)

    def work(self, session: str) -> Work:
        """Return a visitor's work, which is about to begin."""
        return self._work.setdefault(session, Work())

    def busy(self, session: str) -> bool:
        """Tell whether a visitor's work has started and not ended."""
        return session in self._work and not self._work[session].ended

    def stop(self, session: str) -> None:
        """End a visitor's work."""
        if session in self._work:
            self._work[session].end()

    def forget(self, session: str) -> None:
        """End the work of a visitor who has left."""
        self.stop(session)
        self._work.pop(session, None)

    def stop_all(self) -> None:
        """End all work."""
        for session in list(self._work):
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
        return (
            "This generator gave no picture: its file is gone or damaged, or its weights diverged."
        )
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
