"""Run all fault tests and print a table: python tests/torture.py [--kills 30] [--images 6000] [--weights 600] [--seed 0].

Kills spread over a whole training run, a disk failure at each of its disk events, mutated pictures and weight files,
hostile archives, bad downloads, and what atheris finds.
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


class Hang(BaseException):
    """A file took longer than `PATIENCE`; not an Exception, which the tested code might catch."""


@contextlib.contextmanager
def patience():
    """Context manager that raises `Hang` if the block takes too long."""

    def give_up(*_):
        raise Hang(f"took more than {PATIENCE} s")

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    try:
        yield
    finally:
        signal.alarm(0)


def training(place: Path, kills: int) -> list[tuple[str, str, str]]:
    """Return (kind, case, what was lost) of every kill and of every failing disk event."""
    faults.make_photos(place)
    done = faults.train_with("kill", 0, place, place / "whole")
    events = next(line for line in done.stderr.splitlines() if line.startswith("events: ")).split()[
        1:
    ]
    expected = faults.state_of(place / "whole")
    disk = [event for event in events if event != "work"]
    cases = [
        ("kill", "killed in training", 1 + index * len(events) // kills) for index in range(kills)
    ]
    for number, event in enumerate(disk, 1):
        cases += [(("full", "broken")[number % 2], f"disk fails at a {event}", number)]
    found = []
    for fault, kind, number in cli.progress_bar(cases, desc="training", unit="fault", delay=0):
        found.append(
            (
                kind,
                f"{fault} at event {number}",
                faults.survives(fault, number, place, place / "run", expected),
            )
        )
    return found


def pictures(place: Path, count: int, seed: int) -> list[tuple[str, str, str]]:
    """Return (kind, file, what went wrong) of every mutated picture, through what test_image.py does with one."""
    generator = Generator(2, 1).eval()
    args = argparse.Namespace(max_pixels=100_000, tile=None, compare=False)
    found = []
    for name, content in cli.progress_bar(
        corpus.mutated(count, seed), total=count, desc="pictures", unit="file", delay=0
    ):
        source = place / name
        source.write_bytes(content)
        wrong = ""
        try:
            with patience(), contextlib.redirect_stdout(None):
                test_image.enlarge({"SR": generator}, source, place / "out.png", args, "fp32")
        except (ValueError, OSError) as error:
            wrong = "" if name in str(error) and "\n" not in str(error) else f"unclear: {error}"
        except (Exception, Hang) as error:
            wrong = f"{type(error).__name__}: {error}"
        found.append((f"mutated {source.suffix[1:]}", name, wrong))
        source.unlink()
    return found


def weight_files(place: Path, count: int, seed: int) -> list[tuple[str, str, str]]:
    """Return (kind, case, what went wrong) of damaged weight files: each has to be refused, or hold the same values as before."""
    good, found = place / "good.pth", []
    generator_file.save(good, Generator(2, 1))
    content, expected = good.read_bytes(), files.load_tensors(good)["state_dict"]
    cases = cli.progress_bar(
        corpus.damaged(content, count, seed), total=count, desc="weights", unit="file", delay=0
    )
    for index, data in enumerate(cases):
        path, wrong = place / "a.pth", ""
        path.write_bytes(data)
        try:
            with patience():
                state = generator_file.load(path).state_dict()
            if not all(torch.equal(state[name], tensor) for name, tensor in expected.items()):
                wrong = "loaded with other values"
        except ValueError as error:
            wrong = "" if "a.pth" in str(error) else f"unclear: {error}"
        except (Exception, Hang) as error:
            wrong = f"{type(error).__name__}: {error}"
        found.append(("damaged weight file", str(index), wrong))
    return found


def hostile_archives(place: Path) -> list[tuple[str, str, str]]:
    """Return (kind, case, what went wrong) of archives that have to be refused as a whole."""
    found = []
    for what, content in archives.hostile().items():
        path, wrong = place / "a.zip", "was unpacked"
        path.write_bytes(content)
        try:
            with patience():
                downloads.unpack(path, place / "unpacked")
        except ValueError as error:
            left = [other.name for other in place.iterdir() if other != path]
            wrong = (
                f"left {left}" if left else "" if str(path) in str(error) else f"unclear: {error}"
            )
        except (Exception, Hang) as error:
            wrong = f"{type(error).__name__}: {error}"
        found.append(("hostile archive", what, wrong))
        path.unlink()
    return found


def bad_downloads(place: Path, seed: int) -> list[tuple[str, str, str]]:
    """Return (kind, case, what went wrong) of downloads that break off, are refused or serve something else."""
    rng = np.random.default_rng(seed)
    good = rng.bytes(300_000)
    cases: list[tuple[str, bytes, dict]] = [
        (f"breaks off {len(breaks)} times", good, {"breaks": breaks, "resumes": bool(n % 2)})
        for n in range(40)
        for breaks in [rng.integers(0, len(good), rng.integers(1, 7)).tolist()]
    ]
    cases += [
        (f"answers {status}", good, {"statuses": [status] * 3})
        for status in (301, 403, 404, 416, 429, 500, 503)
    ]
    cases += [
        (f"a bit flipped or cut, {n}", data, {})
        for n, data in enumerate(corpus.damaged(good, 30, seed))
    ]
    cases += [("a page", b"<html></html>" * n, {"kind": "text/html"}) for n in (1, 100_000)]
    cases += [("a page without a name", b"<html></html>" * n, {}) for n in (1, 100_000)]
    found = []
    for what, body, behaviour in cases:
        path, wrong, wanted = place / "a.zip", "", archives.archive_of(good)
        with archives.server() as server, contextlib.redirect_stdout(None):
            server.body = body
            vars(server).update(behaviour)
            for _ in range(3):  # the last two from a server that works again
                try:
                    with patience():
                        downloads.download(
                            server.url + "a.zip", path, wanted, tries=3, pause_seconds=0
                        )
                except ValueError as error:
                    wrong = wrong or ("" if server.url in str(error) else f"unclear: {error}")
                except (Exception, Hang) as error:
                    wrong = f"{type(error).__name__}: {error}"
                if path.exists() and path.read_bytes() != good:
                    wrong = "taken for good"
                server.body, server.breaks, server.statuses, server.kind = (
                    good,
                    [],
                    [],
                    "application/zip",
                )
            if not path.exists():
                wrong = wrong or "the server was well again, and the file did not come"
        found.append(("bad download", what, wrong))
        shutil.rmtree(place)
        place.mkdir()
    return found


def fuzzed(place: Path, target: str, seconds: int) -> list[tuple[str, str, str]]:
    """Return a row for every input that atheris, guided by coverage, tried on a target in `seconds`."""
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={PATIENCE}",
        "-max_len=20000",
        "-print_final_stats=1",
    ]
    words = [sys.executable, Path(__file__).with_name("fuzz.py"), target, place / target, *options]
    done = subprocess.run(words, capture_output=True, text=True, cwd=place, check=False)
    tried = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    rows = [(f"fuzzed {target}", str(index), "") for index in range(int(tried[1]) if tried else 1)]
    if done.returncode:
        rows[-1] = (*rows[-1][:2], done.stderr[-2000:])
    return rows


def main(args: argparse.Namespace) -> int:
    """Try everything, print what was lost and the table."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = training(Path(folder, "training"), args.kills) if args.kills else []
        found += pictures(Path(folder), args.images, args.seed) + weight_files(
            Path(folder), args.weights, args.seed
        )
        for name in ("archives", "downloads", "fuzz"):
            Path(folder, name).mkdir()
        found += hostile_archives(Path(folder, "archives")) + bad_downloads(
            Path(folder, "downloads"), args.seed
        )
        if importlib.util.find_spec("atheris"):
            for target in ("pictures", "weights") if args.fuzz_seconds else ():
                found += fuzzed(Path(folder, "fuzz"), target, args.fuzz_seconds)
        else:
            print("not fuzzed: atheris, which is for Linux on x86-64, is not installed")
    for kind, case, wrong in found:
        if wrong:
            print(f"LOST  {kind}, {case}: {wrong}")
    table = pandas.DataFrame(
        [(kind, 1, int(not wrong), int(bool(wrong))) for kind, _, wrong in found]
    )
    table.columns = ["fault", "tried", "survived", "lost"]
    table = table.groupby("fault", sort=False).sum()
    print(
        f"\n{time.strftime('%Y-%m-%d')}, {time.monotonic() - began:.0f} s, seed {args.seed}\n{table.to_string()}"
    )
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
