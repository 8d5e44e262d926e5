"""Run all fault tests and print a table.

python tests/torture.py [--kills 30] [--images 6000] [--weights 600] [--seed 0]

The faults: kills spread over a whole training run, a disk failure at each of its disk events,
mutated pictures and weight files, hostile archives, bad downloads, and what atheris finds.
"""

import argparse
import contextlib
import importlib.util
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))

import archives
import corpus
import faults
import numpy as np
import pandas
import torch

import test_image
from model import Generator
from utils import cli, downloads, files, generator_file

PATIENCE = 20  # seconds, after which a file counts as a hang

Row = tuple[str, str, str]  # kind of fault, case, and what went wrong or ""


class Hang(BaseException):
    """A file took longer than `PATIENCE`; not an Exception, which the tested code might catch."""


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Context manager that raises `Hang` if the block takes too long."""

    def give_up(*_: object) -> None:
        raise Hang(f"took more than {PATIENCE} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)


def what_went_wrong(
    function: Callable[[], None],
    name: str,
    refusals: tuple[type[Exception], ...] = (ValueError,),
) -> str:
    """Call a function that may succeed, or refuse its input in one line that has the name in it."""
    try:
        with patience(), contextlib.redirect_stdout(None):
            function()
    except refusals as error:
        clear = name in str(error) and "\n" not in str(error)
        return "" if clear else f"unclear: {error}"
    except (Exception, Hang) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def training(place: Path, kills: int) -> list[Row]:
    """Kill a training run at many moments, and let its disk fail at every event."""
    faults.make_photos(place)
    done = faults.train_with("kill", 0, place, place / "whole")
    expected = faults.state_of(place / "whole")
    events = faults.events_of(done)
    cases = []
    for index in range(kills):
        cases.append(("kill", "killed in training", 1 + index * len(events) // kills))
    disk = [event for event in events if event != "work"]
    for number, event in enumerate(disk, 1):
        fault = "broken" if number % 2 else "full"
        cases.append((fault, f"disk fails at a {event}", number))
    rows = []
    for fault, kind, number in cli.progress_bar(cases, desc="training", unit="fault", delay=0):
        wrong = faults.survives(fault, number, place, place / "run", expected)
        rows.append((kind, f"{fault} at event {number}", wrong))
    return rows


def pictures(place: Path, count: int, seed: int) -> list[Row]:
    """Enlarge mutated pictures as test_image.py does."""
    engines = test_image.Engines(Generator(2, 1).eval())
    words = ["none", "--max-pixels", "100000", "--precision", "fp32"]
    args = test_image.get_args_parser().parse_args(words)
    rows = []
    cases = corpus.mutated(count, seed)
    bar = cli.progress_bar(cases, total=count, desc="pictures", unit="file", delay=0)
    for name, content in bar:
        source = place / name
        source.write_bytes(content)
        enlarge = partial(test_image.enlarge, engines, source, place / "out.png", args)
        wrong = what_went_wrong(enlarge, name, (ValueError, OSError))
        rows.append((f"mutated {source.suffix[1:]}", name, wrong))
        source.unlink()
    return rows


def weight_files(place: Path, count: int, seed: int) -> list[Row]:
    """Load damaged weight files: each must be refused, or hold the same values as before."""
    good = place / "good.pth"
    generator_file.save(good, Generator(2, 1))
    content = good.read_bytes()
    expected = files.load_tensors(good)["state_dict"]
    path = place / "a.pth"

    def load() -> None:
        state = generator_file.load(path).state_dict()
        for name, tensor in expected.items():
            assert torch.equal(state[name], tensor), "loaded with other values"

    rows = []
    cases = corpus.damaged(content, count, seed)
    bar = cli.progress_bar(cases, total=count, desc="weights", unit="file", delay=0)
    for index, data in enumerate(bar):
        path.write_bytes(data)
        rows.append(("damaged weight file", str(index), what_went_wrong(load, path.name)))
    return rows


def hostile_archives(place: Path) -> list[Row]:
    """Unpack archives that must be refused as a whole."""
    path = place / "a.zip"

    def unpack() -> None:
        downloads.unpack(path, place / "unpacked")
        raise AssertionError("was unpacked")

    rows = []
    for what, content in archives.hostile().items():
        path.write_bytes(content)
        wrong = what_went_wrong(unpack, str(path))
        path.unlink()
        left = [other.name for other in place.iterdir()]
        rows.append(("hostile archive", what, wrong or (f"left {left}" if left else "")))
    return rows


def bad_downloads(place: Path, seed: int) -> list[Row]:
    """Download from servers that break off, refuse or serve something else, and then work again."""
    # The cases: what is served, and how
    rng = np.random.default_rng(seed)
    good = rng.bytes(300_000)
    page = b"<html></html>"
    cases: list[tuple[str, bytes, dict]] = []
    for number in range(40):
        breaks = rng.integers(0, len(good), rng.integers(1, 7)).tolist()
        behaviour = {"breaks": breaks, "resumes": bool(number % 2)}
        cases.append((f"breaks off {len(breaks)} times", good, behaviour))
    for status in (301, 403, 404, 416, 429, 500, 503):
        cases.append((f"answers {status}", good, {"statuses": [status] * 3}))
    for number, data in enumerate(corpus.damaged(good, 30, seed)):
        cases.append((f"a bit flipped or cut, {number}", data, {}))
    for count in (1, 100_000):
        cases.append(("a page", page * count, {"kind": "text/html"}))
        cases.append(("a page without a name", page * count, {}))

    # Each of them, and then a server that works
    rows = []
    path = place / "a.zip"
    wanted = archives.archive_of(good)
    for what, body, behaviour in cases:
        wrong = ""
        with archives.server() as server:
            download = partial(
                downloads.download, server.url + "a.zip", path, wanted, tries=3, pause_seconds=0
            )
            server.body = body
            vars(server).update(behaviour)
            for _ in range(3):
                wrong = what_went_wrong(download, server.url) or wrong
                if path.exists() and path.read_bytes() != good:
                    wrong = "taken for good"
                server.body = good
                server.breaks = []
                server.statuses = []
                server.kind = "application/zip"
            if not path.exists():
                wrong = wrong or "the server was well again, and the file did not come"
        rows.append(("bad download", what, wrong))
        shutil.rmtree(place)
        place.mkdir()
    return rows


def fuzzed(place: Path, target: str, seconds: int) -> list[Row]:
    """Let atheris try inputs on a target, guided by coverage; the rows are all that it tried."""
    options = [f"-max_total_time={seconds}", f"-timeout={PATIENCE}", "-max_len=20000"]
    options.append("-print_final_stats=1")
    words = [sys.executable, Path(__file__).with_name("fuzz.py"), target, place / target, *options]
    done = subprocess.run(words, capture_output=True, text=True, cwd=place, check=False)
    tried = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    kind = f"fuzzed {target}"
    rows = [(kind, str(index), "") for index in range(int(tried[1]) if tried else 1)]
    if done.returncode:
        rows[-1] = (kind, "the last", done.stderr[-2000:])
    return rows


def main(args: argparse.Namespace) -> int:
    """Try everything, print what was lost and the table."""
    # Try
    began = time.monotonic()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("archives", "downloads", "fuzz"):
            (folder / part).mkdir()
        if args.kills:
            rows += training(folder / "training", args.kills)
        rows += pictures(folder, args.images, args.seed)
        rows += weight_files(folder, args.weights, args.seed)
        rows += hostile_archives(folder / "archives")
        rows += bad_downloads(folder / "downloads", args.seed)
        if not importlib.util.find_spec("atheris"):
            print("not fuzzed: atheris, which is for Linux on x86-64, is not installed")
        elif args.fuzz_seconds:
            for target in ("pictures", "weights"):
                rows += fuzzed(folder / "fuzz", target, args.fuzz_seconds)

    # Report
    for kind, case, wrong in rows:
        if wrong:
            print(f"LOST  {kind}, {case}: {wrong}")
    table = pandas.DataFrame({"fault": [kind for kind, _, _ in rows], "tried": 1})
    table["lost"] = [int(wrong != "") for _, _, wrong in rows]
    table["survived"] = table["tried"] - table["lost"]
    table = table.groupby("fault", sort=False)[["tried", "survived", "lost"]].sum()
    seconds = time.monotonic() - began
    print(f"\n{time.strftime('%Y-%m-%d')}, {seconds:.0f} s, seed {args.seed}\n{table.to_string()}")
    return int(table["lost"].sum() > 0)


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = cli.ArgumentParser(prog="tests/torture.py", description=__doc__)
    parser.add_argument(
        "--kills", type=cli.non_negative_int, default=30, help="moments to kill at (0: no training)"
    )
    parser.add_argument("--images", type=cli.positive_int, default=6000, help="mutated pictures")
    parser.add_argument(
        "--weights", type=cli.positive_int, default=600, help="damaged weight files"
    )
    parser.add_argument(
        "--fuzz-seconds",
        type=cli.non_negative_int,
        default=60,
        help="of atheris on each of two targets",
    )
    parser.add_argument("--seed", type=cli.non_negative_int, default=0, help="of the mutations")
    return parser


if __name__ == "__main__":
    cli.run_script(main, get_args_parser())
