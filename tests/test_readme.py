"""The documentation: its commands work, its links lead somewhere, and it names every option and every module.

Every command is parsed. Those that need neither a download nor a data set are run, in order and document by document, in a folder
with small stand-ins for the user's files. Of trainings that differ only in numbers, the first one is run, with `--dry-run`;
test_distributed.py runs torchrun.
"""

import argparse
import functools
import importlib
import re
import shlex

import pytest
from conftest import ROOT, run
from PIL import Image
from torch.distributed.run import get_args_parser as torchrun_parser

import app
import options
import test_image
import test_video
import train

README = ROOT / "README.md"
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
SHELL = {"make", "pip", "python3", "source"}
DATA_SETS = ("div2k", "DIV2K", "BSDS400", "Set5/")
NOT_RUN = (
    *DATA_SETS,
    "app.py",
    "export_model.py",
    "test_video.py",
)  # a page served until it is stopped; long commands with their own tests
SMALL = [
    "--dry-run",
    "--crop",
    "72",
    "--batch-size",
    "2",
]  # the last value of a repeated option counts


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
    """What distinguishes a command from others; of equal ones, only the first is run."""
    script, args = parse(words)
    if script != "train" or "results/short" in words:  # others use the short run's files
        return tuple(words)
    return args.generator, args.discriminator, args.epochs > 0, args.pretrain_epochs > 0


@functools.cache
def to_run() -> dict[str, list[list[str]]]:
    """The commands that are run, by document."""
    chosen, seen = {}, set()
    for document in DOCUMENTS:
        for words in commands(document):
            if words[0] != "python" or any(name in word for name in NOT_RUN for word in words):
                continue
            on_div2k = words[1] == "train.py" and "--train-dir" not in words
            downloads = words[1:3] == [
                "prepare_data.py",
                "perceptual",
            ]  # train.py is tried with --dry-run, which does not
            if not on_div2k and not downloads and kind(words) not in seen:
                seen.add(kind(words))
                chosen.setdefault(document.name, []).append(words)
    return chosen


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_is_understood(document, capsys):
    makefile = (ROOT / "Makefile").read_text()
    for words in commands(document):
        if words[0] in ("python", "torchrun"):
            script, args = parse(words)
            if script == "train":
                options.resolve(args)
        else:
            assert words[0] in SHELL, words
        if words[0] == "torchrun":
            assert torchrun_parser().parse_args(words[1:]).training_script == "train.py"
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.M), words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_run(document, tmp_path, astronaut):
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    for folder in ("my_photos/train", "my_photos/valid", "old_photos"):
        (tmp_path / folder).mkdir(parents=True)
    for index in range(2):
        for part in ("train", "valid"):
            Image.fromarray(astronaut[index * 100 : index * 100 + 96, :96]).save(
                tmp_path / f"my_photos/{part}/{index}.png"
            )
    for name in ("photo.jpg", "render.png", "old_photos/1.png", "old_photos/2.jpg"):
        Image.fromarray(astronaut[:24, :32]).save(tmp_path / name)
    for words in to_run().get(document.name, []):
        dry = "train.py" in words and "results/short" not in words
        run(*words[1:], *(SMALL if dry else []), cwd=tmp_path)


def test_commands_of_every_kind_are_run():
    scripts = [words[1] for found in to_run().values() for words in found]
    assert {
        f"{name}.py" for name in ("test_image", "test_benchmark", "plot_statistics", "prepare_data")
    } <= set(scripts)
    assert (
        scripts.count("train.py") >= 5
    )  # short, pixel-only, adversarial, multi-scale, ESRGAN's generator


@pytest.mark.parametrize(
    ("parser", "documents"),
    [
        (train.get_args_parser(), ["README.md", "docs/training.md"]),
        (test_image.get_args_parser(), ["docs/enlarging.md"]),
        (test_video.get_args_parser(), ["docs/video.md"]),
        (app.get_args_parser(), ["docs/page.md"]),
    ],
    ids=lambda value: getattr(value, "prog", None),
)
def test_every_option_is_documented(parser, documents):
    text = "".join((ROOT / name).read_text() for name in documents)
    for action in parser._actions:
        if action.option_strings and "--help" not in action.option_strings:
            assert any(f"`{option}" in text for option in action.option_strings), (
                action.option_strings
            )


def anchors(document) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "document", [*DOCUMENTS, ROOT / "weights/README.md"], ids=lambda path: path.name
)
def test_links_lead_to_files_and_headings(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        name, _, anchor = link.partition("#")
        if name.startswith(("http://", "https://")):
            continue
        target = document.parent / name if name else document
        assert target.exists() and (not anchor or anchor in anchors(target)), link


def test_the_layout_names_every_module_and_no_other():
    layout = README.read_text().partition("\n## Layout\n")[2].partition("\n## ")[0]
    named = sorted(re.findall(r"`(\w+\.py)`", layout))
    modules = [*ROOT.glob("*.py"), *ROOT.glob("utils/*.py")]
    assert named == sorted(path.name for path in modules if path.name != "__init__.py")
