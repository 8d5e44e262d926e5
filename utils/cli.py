"""What every script shares: exit statuses, one-line errors, progress bars, stopping on a signal.

Exit status 0: done. 2: the user's input is wrong. 1: the run itself failed (loss not finite, out of
memory, a bug). 128+n: stopped by signal n.
Set SRGAN_TRACEBACK=1 to see the traceback behind a one-line error.
"""

import argparse
import errno
import io
import math
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor
from types import FrameType
from typing import Any, NoReturn, TypeVar

from tqdm import tqdm

Item = TypeVar("Item")

VERSION = "0.3.0"
STOP_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class UserError(ValueError):
    """An error that the user can fix; the message says what is wrong, where, and how to fix it.

    Exit status 2.
    """


class RunError(ArithmeticError):
    """A failure of the run itself, such as a loss that is not finite. Exit status 1."""


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that keeps the description's line breaks and shows every informative default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_enough = action.default is None or action.default is False  # but a 0 is shown
        if says_enough or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """A parser whose help keeps line breaks, and that reports a wrong option in one line."""

    def __init__(self, **options: Any):
        super().__init__(**{"formatter_class": HelpFormatter, **options})

    def error(self, message: str) -> NoReturn:
        """Print one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}; see --help\n")


def heeded_signals() -> list[int]:
    """Return the signals that stop a script: not SIGHUP under `nohup`, which ignores it."""
    ignored = hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in STOP_SIGNALS if not (ignored and number == signal.SIGHUP)]


# torchrun, `timeout` and schedulers signal a process and then its group: that is one request
_ECHO_SECONDS = 2


class StopRequest:
    """Context manager in which the first Ctrl-C, SIGTERM or SIGHUP only sets `number`.

    A second one ends the process at once. A signal repeated within two seconds is part of the same
    request, except a Ctrl-C outside torchrun: a person pressed it.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._since = 0.0

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._receive) for number in heeded_signals()}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None:
            by_hand = number == signal.SIGINT and "TORCHELASTIC_RUN_ID" not in os.environ
            if by_hand or time.monotonic() - self._since > _ECHO_SECONDS:
                raise SystemExit(128 + number)
            return
        self.number = number
        self._since = time.monotonic()
        name = signal.Signals(number).name
        print(f"\n{name}: saving after this step; send it again to stop at once", file=sys.stderr)


def positive_int(text: str) -> int:
    """Parse an option that counts something: a whole number, 1 or more."""
    return _number(text, int, 1)


def non_negative_int(text: str) -> int:
    """Parse a whole number, 0 or more."""
    return _number(text, int, 0)


def non_negative_float(text: str) -> float:
    """Parse a finite number, 0 or more."""
    return _number(text, float, 0)


def whole_number_between(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `least` to `most`."""
    return lambda text: _number(text, int, least, most)


def tile_side(text: str) -> int | None:
    """Parse the side of a tile in LR pixels: `auto` (None), or 0 for the whole image, or more."""
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


def part(text: str) -> tuple[int, int]:
    """Parse K/N, the K-th of N parts, counted from 1."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    number, count = map(int, match.groups()) if match else (0, 0)
    if not 1 <= number <= count:
        raise argparse.ArgumentTypeError(f"{text!r} is not K/N with K from 1 to N, such as 1/4")
    return number, count


def _number(text: str, kind: Callable[[str], float], least: float, most: float = math.inf) -> Any:
    """Parse a finite number of a kind (`int` or `float`) from `least` to `most`."""
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if least <= value <= most and value != math.inf:
        return value
    what = "whole number" if kind is int else "number"
    allowed = f"of at least {least}" if most == math.inf else f"from {least} to {most}"
    raise argparse.ArgumentTypeError(f"{text!r} is not a {what} {allowed}")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, in the singular or the plural: `1 image`, `1,200 images`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def listed(items: Sequence[object], separator: str = ", ", most: int = 10) -> str:
    """Return items as text, the first ones by name and the others counted: `a, b, c and 7 more`."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(map(str, items[:most])) + more


def progress_bar(iterable: Iterable[Item] | None = None, **options: Any) -> "tqdm[Item]":
    """Return a progress bar that appears after two seconds.

    If stderr is not a terminal, it is redrawn only every ten seconds.

    Args:
        iterable: what to iterate over; None for a bar that is advanced by hand.
        options: of tqdm, instead of these defaults.
    """
    defaults = {
        "delay": 2,
        "leave": False,
        "dynamic_ncols": True,
        "mininterval": 0.2 if sys.stderr.isatty() else 10,
    }
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's processes, but not the first
        defaults["disable"] = True
    options = {**defaults, **options}
    return tqdm(iterable, **options)  # type: ignore[return-value]  # the stub's `tqdm[Never]`


def is_dead_helper(error: BaseException) -> bool:
    """Tell whether an error means that another process of the run was killed or crashed."""
    if isinstance(error, BrokenExecutor):
        return True
    if not isinstance(error, RuntimeError) or _reported(error):
        return False
    signs = (
        r"DataLoader worker \(pid.*(is killed by signal|exited unexpectedly)"
        r"|/gloo/|ncclRemoteError|closed by peer"
    )
    return re.search(signs, str(error)) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of PyTorch, OpenVINO, NumPy or the system means that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    signs = (
        r"out of memory|can't allocate memory|Cannot allocate memory|^Caught MemoryError"
        r"|bad_alloc|[Ff]ailed to allocate"
        # CUDA's libraries; cuDNN finds no engine when none has room for its workspace
        r"|(CUDNN|CUBLAS)_STATUS_\w*ALLOC\w*_FAILED|unable to find an engine to execute"
    )
    return isinstance(error, RuntimeError) and re.search(signs, str(error)) is not None


def _reported(error: BaseException) -> str:
    """Return the last line of the traceback in an exception of a loader's worker, else ""."""
    text = str(error).strip()
    return text.splitlines()[-1] if "Original Traceback" in text else ""


def _names_a_file(error: BaseException) -> bool:
    """Tell whether an error is a system error about a named file."""
    if not isinstance(error, OSError):
        return False
    if error.filename is not None:
        return True
    # An error from a loader's worker has the name only in its text
    return re.search(r"\[Errno \d+\] .+: '", _reported(error)) is not None


def describe(error: BaseException) -> str:
    """Return an error as one line that names the file it is about."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        if error.errno == errno.ENAMETOOLONG:
            text += "; choose a shorter name"
    else:
        text = str(error) or type(error).__name__
        reported = _reported(error)
        if reported:
            text = reported.partition(": ")[2] or reported
    return " ".join(text.split())


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Add `--version` and parse the command line; exit if it asks for help or is wrong."""
    parser.add_argument(
        "--version", action="version", version=f"{parser.prog} {VERSION}", help="show the version"
    )
    return parser.parse_args()


def run_script(
    main: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    memory_advice: str = "",
) -> None:
    """Parse the command line, run `main(args)`, and exit with the project's exit status.

    `UserError` and a system error about a named file give one line and status 2; `RunError`,
    exhausted memory and a killed helper process give one line and status 1. Anything else keeps
    its traceback: a shape error is not the user's mistake.

    Args:
        main: takes the parsed options and returns the exit status, or None for 0.
        parser: the command line; see `parse`.
        memory_advice: what to do when memory runs out.
    """

    # Signals and streams
    def stop(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for signal_number in heeded_signals():
        signal.signal(signal_number, stop)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal cannot show is no reason to fail
            stream.reconfigure(errors="backslashreplace")

    # Run
    args = parse(parser)
    try:
        status = main(args) or 0
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has closed it
        # Python would complain when it flushes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)
    except Exception as error:
        if os.environ.get("SRGAN_TRACEBACK") == "1":
            raise
        message = describe(error)
        if is_out_of_memory(error):
            status = 1
            message = f"out of memory: {message}"
            if memory_advice:
                message += f"; {memory_advice}"
        elif isinstance(error, RunError):
            status = 1
        elif is_dead_helper(error):
            status = 1
            message = (
                "another process of this run has ended (killed, often because memory ran out); run "
                "the same command again, with fewer --workers or processes if it happens again"
            )
        elif isinstance(error, UserError) or _names_a_file(error):
            status = 2
        else:
            raise
        print(f"{parser.prog}: error: {message}", file=sys.stderr)
        sys.exit(status)
