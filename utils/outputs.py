"""Which pictures or clips a script enlarges, what their results are called, and one after another.

Names are compared without regard to case, as many file systems do.
"""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from pathlib import Path

from utils import cli, images

ResultFiles = Callable[[Path], list[Path]]  # the files that are written for a result's path


@dataclass(frozen=True)
class Kind:
    """What a script enlarges.

    Attributes:
        script: name of the script, for its messages.
        noun: what messages call one of the files.
        sort: returns a folder's files of this kind and its other files, as `images.sorted_by_kind`.
        suffixes: suffixes that results can have, in lower case.
        ending: the longest text that may follow the scale in the name of a file that is written.
        advice: returns what a message adds about a folder's files that cannot be read, if anything.
    """

    script: str
    noun: str
    sort: Callable[[Path, bool], tuple[list[str], list[str]]]
    suffixes: Container[str]
    ending: str
    advice: Callable[[list[str]], str] = lambda others: ""


# --- inputs -------------------------------------------------------------------------------------


def find(
    kind: Kind, inputs: list[Path], out: Path | None, suffix: str, recursive: bool
) -> list[tuple[Path, Path]]:
    """Return every input file with the folder for its result.

    A folder's subfolders are repeated in `out`. `earlier_results` are left out, and so is what lies
    in an `out` inside an input folder.

    Raises:
        UserError: an input does not exist, or a folder holds nothing of this kind.
    """
    found = []
    for path in inputs:
        if not path.exists():
            raise cli.UserError(f"{path}: no such {kind.noun} or folder")
        if not path.is_dir():
            found.append((path, out or path.parent))
            continue
        out_inside = None
        if out is not None and path.resolve() in out.resolve().parents:
            out_inside = out.resolve()
        names, others = kind.sort(path, recursive)
        if not names:
            raise cli.UserError(f"{path}: no {kind.noun} in this folder{kind.advice(others)}")
        if others:
            listed = cli.listed(others, most=5)
            advice = kind.advice(others)
            print(f"{path}: not {kind.noun}s that can be read ({len(others)}): {listed}{advice}")
        earlier = earlier_results(kind, names, suffix)
        if earlier:
            print(
                f"{path}: earlier results, left out ({len(earlier)}): {min(earlier)}, ...; "
                "to enlarge one, name it on the command line"
            )
        for name in names:
            file = path / name
            if name in earlier or (out_inside and out_inside in file.resolve().parents):
                continue
            found.append((file, (out or path) / Path(name).parent))
    if not found:
        raise cli.UserError(f"{inputs[0]}: no {kind.noun} in this folder")
    return found


def earlier_results(kind: Kind, names: list[str], suffix: str) -> set[str]:
    """Return those files of a folder that are named as the result or comparison of another one.

    A result's name is that of its input with `suffix` or with a scale or a size, such as `_x4` or
    `_1920x`. If only the result is there, it is an input like any other.

    Args:
        kind: of the files.
        names: their paths, relative to the folder.
        suffix: of this run's results.
    """
    ending = re.compile(rf"({re.escape(suffix)}|_x\d[\d.]*|_\d+x\d*)?(_compare)?")
    places = set()  # of inputs, as results are named after them
    for name in names:
        folder, file_name = os.path.split(name)
        stem, form = os.path.splitext(file_name)
        for named in (stem, f"{stem}_{form[1:].lower()}"):
            places.add(os.path.join(folder, images.fitting_name(named, suffix + kind.ending)))
    earlier = set()
    for name in names:
        folder, file_name = os.path.split(name)
        stem, form = os.path.splitext(file_name)
        if form.lower() not in kind.suffixes:
            continue
        for begin in range(1, len(stem)):  # wherever the ending may begin
            source = os.path.join(folder, stem[:begin])
            if source in places and ending.fullmatch(stem, begin):
                earlier.add(name)
                break
    return earlier


# --- results ------------------------------------------------------------------------------------


def only_input(found: list[tuple[Path, Path]], inputs: list[Path], out: Path) -> Path:
    """Return the one input whose result is to be the file `out`.

    Raises:
        UserError: there are several inputs, or a folder.
    """
    if len(found) > 1 or inputs[0].is_dir():
        raise cli.UserError(
            f"--out {out}: one file cannot hold several results, or those of a folder; "
            "name a folder"
        )
    return found[0][0]


def name_results(
    kind: Kind, found: list[tuple[Path, Path]], suffix: str, result_form: Callable[[Path], str]
) -> dict[Path, Path]:
    """Return the path of the result of every input.

    If results would share a name, the formats of their inputs are added: `a_png_x4.png`,
    `a_jpg_x4.png`.

    Args:
        kind: of the inputs.
        found: inputs with the folders for their results.
        suffix: what is added to names, such as `_x4`.
        result_form: the suffix of an input's result, such as `.png`.
    """
    plan = {}
    for path, folder in found:
        stem = images.fitting_name(path.stem, suffix + kind.ending)
        plan[path] = folder / f"{stem}{suffix}{result_form(path)}"
    uses = Counter(_comparable(target) for target in plan.values())
    for path, folder in found:
        if uses[_comparable(plan[path])] > 1:
            named = f"{path.stem}_{path.suffix[1:].lower()}"
            stem = images.fitting_name(named, suffix + kind.ending)
            plan[path] = folder / f"{stem}{suffix}{result_form(path)}"
    return plan


def check_apart(plan: dict[Path, Path], result_files: ResultFiles) -> None:
    """Check that no file of a plan would be written twice, or be an input.

    Raises:
        UserError: one would.
    """
    taken: dict[str, Path] = {}
    for path, target in plan.items():
        for result in result_files(target):
            other = taken.setdefault(_comparable(result), path)
            if other != path:
                raise cli.UserError(
                    f"{other} and {path} would both be written to {result}; enlarge them one by one"
                )
    for path in plan:
        if _comparable(path) in taken:
            raise cli.UserError(
                f"{path} is an input and would be overwritten; choose another --out"
            )


def _comparable(path: Path) -> str:
    """Return text that is equal for any two paths that a file system may treat as the same."""
    return str(path.resolve()).casefold()


def unfinished(kind: Kind, plan: dict[Path, Path], result_files: ResultFiles) -> dict[Path, Path]:
    """Return the part of a plan whose results do not all exist, and say how much is skipped."""
    left = {}
    for path, target in plan.items():
        if not all(result.exists() for result in result_files(target)):
            left[path] = target
    skipped = f"{len(plan) - len(left)} of {cli.counted(len(plan), kind.noun)} skipped"
    print(f"{skipped}: their results exist")
    return left


def refuse_existing(targets: Iterable[Path], result_files: ResultFiles) -> None:
    """Raise UserError if a result exists."""
    for target in targets:
        for result in result_files(target):
            if result.exists():
                raise cli.UserError(
                    f"{result}: already exists; pass --overwrite or --skip-existing, "
                    "or choose another --out"
                )


# --- enlarging ----------------------------------------------------------------------------------


def enlarge_each(kind: Kind, plan: dict[Path, Path], enlarge: Callable[[Path, Path], None]) -> int:
    """Enlarge every input of a plan; report those that fail and continue.

    An only input's error is raised.

    Args:
        kind: of the inputs.
        plan: paths of the results by those of the inputs.
        enlarge: enlarges an input to a path; a UserError, an OSError or too little memory means
            that this one failed.

    Returns:
        The exit status: 2 if any failed, else 0.
    """
    failed = 0
    for source, target in plan.items():
        try:
            enlarge(source, target)
        except (cli.UserError, OSError, MemoryError, RuntimeError) as error:
            exhausted = cli.is_out_of_memory(error)
            is_this_one = isinstance(error, cli.UserError | OSError) or exhausted
            if not is_this_one or len(plan) == 1 or isinstance(error, BrokenPipeError):
                raise
            problem = cli.describe(error)
            if exhausted:
                problem = f"{source}: out of memory: {problem}"
            print(f"{kind.script}: error: {problem}", file=sys.stderr)
            failed += 1
    if failed:
        summary = f"{failed} of {cli.counted(len(plan), kind.noun)} could not be enlarged"
        print(f"{kind.script}: error: {summary}", file=sys.stderr)
    return 2 if failed else 0
