"""What every script shares: exit statuses, one-line errors, progress bars, and stopping on a signal.

Exit status 0: done. 2: the user's input is wrong. 1: the run itself failed (loss not finite, out of memory, a bug).
128+n: stopped by signal n. Set SRGAN_TRACEBACK=1 to see the traceback behind a one-line error.
"""

import argparse
import errno
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from functools import partial
from typing import NoReturn

from tqdm import tqdm

VERSION = "0.3.0"
STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class UserError(ValueError):
    """An error that the user can fix; the message says what is wrong, where, and how to fix it. Exit status 2."""


class RunError(ArithmeticError):
    """A failure of the run itself, such as a loss that is not finite. Exit status 1."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the description's line breaks and shows every informative default."""

    def _get_help_string(self, action: argparse.Action) -> str:
        if action.default in (None, False) or "default" in (action.help or ""):
            return action.help or ""
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """A parser that shows a script's docstring as its help, and reports a wrong option in one line."""

    def __init__(self, **options):
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def heeded_signals() -> list[int]:
    """Return the signals that stop a script; SIGHUP is not among them under `nohup`, which ignores it."""
    ignored = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (ignored and number == signal.SIGHUP)]


_ECHO_SECONDS = (
    2  # torchrun, `timeout` and schedulers signal a process and then its group: one request
)


class StopRequest:
    """Context manager in which the first Ctrl-C, SIGTERM or SIGHUP only sets `number`; a second one ends the process at once.

    A signal repeated within two seconds is part of the same request, except a Ctrl-C outside torchrun: a person pressed it.
    """

    def __init__(self):
        self.number: int | None = None
        self._since = 0.0

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._receive) for number in heeded_signals()}
        return self

    def __exit__(self, *_error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        if self.number is not None:
            by_hand = number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ
            if by_hand or time.monotonic() - self._since > _ECHO_SECONDS:
                raise SystemExit(128 + number)
            return
        self.number, self._since = number, time.monotonic()
        print(
            f"\n{signal.Signals(number).name}: saving after this step; send it again to stop at once",
            file=sys.stderr,
        )


def positive_int(text: str) -> int:
    """Parse an option that counts something: a whole number, 1 or more."""
    return _number(text, int, 1)


def non_negative_int(text: str) -> int:
    """Parse a whole number, 0 or more."""
    return _number(text, int, 0)


def non_negative_float(text: str) -> float:
    """Parse a finite number, 0 or more."""
    return _number(text, float, 0)


def tile_side(text: str) -> int | None:
    """Parse the side of a tile in LR pixels: `auto` (None), or a whole number; 0 means the whole image."""
    return None if text == "auto" else non_negative_int(text)


def number_between(least: float, most: float, step: float = 0.0) -> Callable[[str], float]:
    """Return a parser of numbers from `least` to `most`, in steps of `step` if that is not 0."""

    def parse(text: str) -> float:
        value = _number(text, float, least, most)
        if step and not ((value - least) / step).is_integer():
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a number from {least} to {most} in steps of {step}"
            )
        return value

    return parse


def _number(text: str, kind: type, least: float, most: float = math.inf):
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not least <= value <= most or value == math.inf:
        what = "whole number" if kind is int else "number"
        allowed = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text!r} is not a {what} {allowed}")
    return value


def listed(items: Sequence, separator: str = ", ", most: int = 10) -> str:
    """Return items as text, the first ones by name and the others counted: `a, b, c and 7 more`."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more


def progress_bar(iterable: Iterable | None = None, **options) -> tqdm:
    """Return a progress bar that appears after two seconds; if stderr is no terminal, it is redrawn only every ten seconds."""
    defaults = {
        "delay": 2,
        "leave": False,
        "dynamic_ncols": True,
        "mininterval": 0.2 if sys.stderr.isatty() else 10,
    }
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's processes, but not the first
        defaults["disable"] = True
    return tqdm(iterable, **{**defaults, **options})


def map_in_processes(
    function: Callable, items: Sequence, processes: int | None, title: str
) -> list:
    """Map a function over items in several processes (None: as many as there are cores), with a progress bar."""
    processes = max(1, min(processes or os.cpu_count() or 1, len(items) // 4))
    progress = partial(progress_bar, total=len(items), desc=title, unit="image")
    if processes == 1:
        return list(progress(map(function, items)))
    with ProcessPoolExecutor(processes, initializer=ignore_signals) as pool:
        try:
            return list(
                progress(
                    pool.map(
                        function, items, chunksize=max(1, min(64, len(items) // (8 * processes)))
                    )
                )
            )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def ignore_signals(_worker: int | None = None) -> None:
    """Ignore Ctrl-C and SIGHUP, which reach the whole process group; the main process ends its helpers with SIGTERM."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def outlive_signals(_worker: int | None = None) -> None:
    """In a loader's worker, also survive SIGTERM for a minute, so that the main process can save if the whole job gets it."""
    ignore_signals()
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, 60))


def is_dead_helper(error: BaseException) -> bool:
    """Tell whether an error means that another process of the run was killed or crashed."""
    if isinstance(error, BrokenExecutor):
        return True
    if not isinstance(error, RuntimeError) or _reported(error):
        return False
    signs = r"DataLoader worker \(pid.*(is killed by signal|exited unexpectedly)|/gloo/|ncclRemoteError|closed by peer"
    return re.search(signs, str(error)) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of PyTorch, NumPy or the system means that memory ran out."""
    if isinstance(error, MemoryError) or (
        isinstance(error, OSError) and error.errno == errno.ENOMEM
    ):
        return True
    signs = r"out of memory|can't allocate memory|Cannot allocate memory|^Caught MemoryError"
    return isinstance(error, RuntimeError) and re.search(signs, str(error)) is not None


def _reported(error: BaseException) -> str:
    """Return the last line of the traceback that a loader's worker sent with its exception; empty for other errors."""
    text = str(error).strip()
    return text.splitlines()[-1] if "Original Traceback" in text else ""


def _names_a_file(error: BaseException) -> bool:
    """Tell whether a system error is about a named file; an error from a loader's worker has the name only in its text."""
    return isinstance(error, OSError) and (
        error.filename is not None or bool(re.search(r"\[Errno \d+\] .+: '", _reported(error)))
    )


def describe(error: BaseException) -> str:
    """Return an error as one line that names the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        if error.errno == errno.ENAMETOOLONG:
            text += "; choose a shorter name"
    else:
        text = str(error) or type(error).__name__
        if reported := _reported(error):
            text = reported.partition(": ")[2] or reported
    return " ".join(text.split())


def run_script(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    memory_advice: str = "",
) -> None:
    """Parse the command line, run `main(args)`, and exit with the project's exit status.

    `UserError` and a system error about a named file give one line and status 2; `RunError`, exhausted memory and a killed
    helper process give one line and status 1. Anything else keeps its traceback: a shape error is not the user's mistake.
    """

    def stop(number, _frame):
        raise SystemExit(128 + number)

    for number in heeded_signals():
        signal.signal(number, stop)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(
            errors="backslashreplace"
        )  # a name that the terminal cannot show is no reason to fail
    parser.add_argument(
        "--version", action="version", version=f"{parser.prog} {VERSION}", help="show the version"
    )
    args = parser.parse_args()
    try:
        status = main(args) or 0
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # or Python would complain when flushing
        sys.exit(128 + 13)
    except Exception as error:
        if os.environ.get("SRGAN_TRACEBACK") == "1":
            raise
        if is_out_of_memory(error):
            message, status = (
                f"out of memory: {describe(error)}"
                + (f"; {memory_advice}" if memory_advice else ""),
                1,
            )
        elif isinstance(error, RunError):
            message, status = describe(error), 1
        elif is_dead_helper(error):
            reason = "killed, often because memory ran out"
            advice = (
                "run the same command again, with fewer --workers or processes if it happens again"
            )
            message, status = f"another process of this run has ended ({reason}); {advice}", 1
        elif isinstance(error, UserError) or _names_a_file(error):
            message, status = describe(error), 2
        else:
            raise
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        sys.exit(status)
