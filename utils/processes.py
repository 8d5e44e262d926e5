"""Helper processes: work on many images at once, and what helpers do when a signal arrives."""

import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from utils import cli, machine

Item = TypeVar("Item")
Result = TypeVar("Result")

_MOST_PROCESSES = 61  # on Windows, a pool takes no more


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], processes: int | None, title: str
) -> list[Result]:
    """Map a function over items in several processes, with a progress bar.

    Args:
        function: what to call; picklable, as are the items and the results.
        items: its arguments.
        processes: how many; None: as many as there are cores for this process.
        title: of the progress bar.
    """
    processes = max(1, min(processes or machine.cores(), len(items) // 4, _MOST_PROCESSES))
    if processes == 1:
        results = map(function, items)
        return list(cli.progress_bar(results, total=len(items), desc=title, unit="image"))
    chunk = max(1, min(64, len(items) // (8 * processes)))
    with ProcessPoolExecutor(processes, initializer=ignore_signals) as pool:
        try:
            parallel = pool.map(function, items, chunksize=chunk)
            return list(cli.progress_bar(parallel, total=len(items), desc=title, unit="image"))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def ignore_signals() -> None:
    """Ignore Ctrl-C and SIGHUP in a helper process, since both reach the whole process group.

    The main process ends its helpers with SIGTERM.
    """
    for number in cli.STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)


def outlive_signals(_worker: int | None = None) -> None:
    """Also survive SIGTERM for a minute, in a loader's worker.

    If the whole job gets the signal, the main process can then still save.
    """
    ignore_signals()
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, 60))
