"""The documentation: its commands work, its links lead somewhere, and it names every option and every module.

Every command is parsed. Those that need neither a download nor a data set are run, in order and document by document, in a folder
with small stand-ins for the user's files; of trainings that differ only in numbers, the first one is run, with `--dry-run`.
"""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT, run
from PIL import Image

import test_image
import train
from utils import options

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
NOT_PYTHON = {"make", "pip", "python3", "source"}  # only looked at
DATA_SETS = ("div2k", "DIV2K", "BSDS400", "Set5/")
TO_BE_WRITTEN = {"docs/extending.md"}
SMALL = ["--dry-run", "--crop", "64", "--batch-size", "2"]  # an option that is repeated counts as it was last given


def commands(document) -> list[list[str]]:
    """The words of every command in a document's bash blocks."""
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", document.read_text(), re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def parse(words: list[str]) -> tuple[str, argparse.Namespace]:
    """The name of a Python command's script, and its options."""
    place = next(index for index, word in enumerate(words) if word.endswith(".py"))
    script = words[place].removesuffix(".py")
    return script, importlib.import_module(script).get_args_parser().parse_args(words[place + 1 :])


def kind(words: list[str]) -> tuple:
    """What sets a command apart from others that need not be run as well."""
    script, args = parse(words)
    if script != "train" or "results/short" in words:  # others use the short run's files
        return tuple(words)
    return words[0], args.generator, args.discriminator, args.epochs > 0, args.pretrain_epochs > 0


def to_run() -> dict[str, list[list[str]]]:
    """The commands that are run, by document."""
    chosen, seen = {}, set()
    for document in DOCUMENTS:
        for words in commands(document):
            if words[0] in NOT_PYTHON or any(name in word for name in DATA_SETS for word in words):
                continue
            script, args = parse(words)
            downloads = script == "train" and options.needs_vgg(args) and args.vgg_weights == "imagenet"
            if not downloads and kind(words) not in seen:
                seen.add(kind(words))
                chosen.setdefault(document.name, []).append(words)
    return chosen


TO_RUN = to_run()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_understood(document, capsys):
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(document):
        if words[0] in ("python", "torchrun"):
            script, args = parse(words)
            if script == "train":
                options.resolve(args)
        else:
            assert words[0] in NOT_PYTHON, words
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words


@pytest.mark.parametrize("document", TO_RUN)
def test_the_commands_run(document, tmp_path, astronaut):
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    for folder in ("my_photos/train", "my_photos/valid", "old_photos"):
        (tmp_path / folder).mkdir(parents=True)
    for index in range(2):
        for part in ("train", "valid"):
            Image.fromarray(astronaut[index * 100 : index * 100 + 96, :96]).save(tmp_path / f"my_photos/{part}/{index}.png")
    for name in ("photo.jpg", "old_photos/1.png", "old_photos/2.jpg"):
        Image.fromarray(astronaut[:24, :32]).save(tmp_path / name)
    for words in TO_RUN[document]:
        if "train.py" in words and "results/short" not in words:
            words = words + SMALL
        if words[0] == "python":
            run(*words[1:], cwd=tmp_path)
        else:
            words = [str(ROOT / word) if word == "train.py" else word for word in words]
            path = f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}"
            done = subprocess.run(
                words, cwd=tmp_path, capture_output=True, text=True, timeout=240, env={**os.environ, "PATH": path}
            )
            assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"


def test_commands_of_every_kind_are_run():
    scripts = [words[0] if words[0] == "torchrun" else words[1] for found in TO_RUN.values() for words in found]
    assert {"torchrun", *(f"{name}.py" for name in ("train", "test_image", "test_benchmark", "plot_statistics"))} <= set(scripts)
    assert scripts.count("train.py") >= 4


@pytest.mark.parametrize(
    ("parser", "documents"),
    [(train.get_args_parser(), ["README.md", "docs/training.md"]), (test_image.get_args_parser(), ["README.md"])],
    ids=lambda value: getattr(value, "prog", None),
)
def test_every_option_is_documented(parser, documents):
    text = "".join((ROOT / name).read_text() for name in documents)
    for action in parser._actions:
        if action.option_strings and "--help" not in action.option_strings:
            assert any(f"`{option}" in text for option in action.option_strings), action.option_strings


def anchors(document) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "weights/README.md"], ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        name, _, anchor = link.partition("#")
        if name.startswith(("http://", "https://")) or name in TO_BE_WRITTEN:
            continue
        target = document.parent / name if name else document
        assert target.exists() and (not anchor or anchor in anchors(target)), link


def test_the_layout_names_every_module_and_no_other():
    layout = README.read_text().partition("\n## Layout\n")[2].partition("\n## ")[0]
    named = sorted(re.findall(r"`(\w+\.py)`", layout))
    modules = [*ROOT.glob("*.py"), *ROOT.glob("utils/*.py")]
    assert named == sorted(path.name for path in modules if path.name != "__init__.py")
