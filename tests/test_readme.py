"""The documents: commands work, links lead somewhere, and options and modules are all named.

Every command is parsed. Those that need neither a download nor a data set are run, in order and
document by document, in a folder with small stand-ins for the user's files. Of trainings that
differ only in numbers, the first one is run, with `--dry-run`; test_distributed.py runs torchrun.
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
from utils import cli

README = ROOT / "README.md"
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
DOCUMENTS = [README, CONTRIBUTING, *sorted((ROOT / "docs").glob("*.md"))]
SHELL = {"make", "pip", "python3", "source"}
DATA_SETS = ("div2k", "DIV2K", "BSDS400", "ImageNet", "Set5/")
# A page is served until it is stopped; the other two take long and have tests of their own
NOT_RUN = (*DATA_SETS, "app.py", "export_model.py", "test_video.py")
# Appended to a training, because the last value of a repeated option counts
SMALL = ["--dry-run", "--crop", "72", "--batch-size", "2"]


# --- commands -----------------------------------------------------------------------------------


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


def is_short_run(words: list[str]) -> bool:
    """Whether a command is README's first training, whose files the next commands use."""
    return "results/short" in words


def kind(words: list[str]) -> tuple:
    """What distinguishes a command from others; of equal ones, only the first is run."""
    script, args = parse(words)
    if script != "train" or is_short_run(words):
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
            # train.py does not download when it is tried with --dry-run
            downloads = words[1:3] == ["prepare_data.py", "perceptual"]
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


def test_training_commands_in_the_text_are_understood(capsys):
    found = re.findall(r"`python (train\.py [^`]+)`", README.read_text())
    assert "train.py --upscale 4 --crop 88" in found
    for command in found:
        options.resolve(parse(command.split())[1])


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
        dry = "train.py" in words and not is_short_run(words)
        run(*words[1:], *(SMALL if dry else []), cwd=tmp_path)
        if words[1:3] == ["prepare_data.py", "demo"]:
            # The next commands validate on these and enlarge one: small ones save time
            for path in (tmp_path / "data/demo/valid").iterdir():
                Image.open(path).crop((0, 0, 96, 96)).save(path)


def test_commands_of_every_kind_are_run():
    scripts = [words[1] for found in to_run().values() for words in found]
    assert {
        f"{name}.py" for name in ("test_image", "test_benchmark", "plot_statistics", "prepare_data")
    } <= set(scripts)
    # Short, adversarial, pixel-only, multi-scale, ESRGAN's generator
    assert scripts.count("train.py") >= 5


def test_readme_installs_the_pinned_pytorch():
    pinned = dict(re.findall(r"^(torch\w*)==(\S+)", (ROOT / "requirements.txt").read_text(), re.M))
    builds = [words for words in commands(README) if words[:2] == ["pip", "install"]]
    builds = [words for words in builds if "--index-url" in words]
    assert [words[-1].rpartition("/")[2] for words in builds] == ["cpu", "cu130"]
    for words in builds:
        assert dict(word.split("==") for word in words if "==" in word) == pinned


def test_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 250
    assert max(map(len, lines)) <= 100


# --- what is named ------------------------------------------------------------------------------


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


def section(document, heading: str) -> str:
    """The text below a heading of the second level."""
    return document.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_readme_maps_eight_files_that_exist():
    named = re.findall(r"^\| `([\w/]+\.py)` \|", section(README, "Change the code"), re.M)
    assert len(set(named)) == 8
    assert all((ROOT / name).is_file() for name in named), named


def test_contributing_names_every_module_and_no_other():
    named = set()
    for row in re.findall(r"^\| (`.+) \|$", section(CONTRIBUTING, "Where things go"), re.M):
        rooms, _, contents = row.partition(" | ")
        for room in re.findall(r"`([\w./]+)`", rooms):
            assert (ROOT / room).exists(), room
            inside = re.findall(r"`(\w+\.py)`", contents) if room.endswith("/") else []
            named |= {room + name for name in inside} if inside else {room}
    modules = [*ROOT.glob("*.py")]
    for folder in ("video", "page", "utils"):
        modules += (ROOT / folder).glob("*.py")
    expected = {path.relative_to(ROOT).as_posix() for path in modules if path.stem != "__init__"}
    assert named == expected | {"weights/", "docs/", "benchmarks/", "tests/"}


# --- links --------------------------------------------------------------------------------------


def anchors(document) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.M)
    return {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, ROOT / "CHANGELOG.md", ROOT / "weights/README.md"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_links_lead_to_files_and_headings(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        name, _, anchor = link.partition("#")
        if name.startswith(("http://", "https://")):
            continue
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_document_is_linked_from_the_readme():
    linked = set(re.findall(r"\]\((docs/\w+\.md)", README.read_text()))
    assert linked == {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}


# --- files for tools ----------------------------------------------------------------------------


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    released = re.search(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    version = re.search(r"^version: (\S+)$", citation, re.M)
    date = re.search(r"^date-released: (\S+)$", citation, re.M)
    assert released.group(1) == version.group(1) == cli.VERSION
    assert released.group(2) == date.group(1)


def test_workflow_runs_the_tests_and_every_script():
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    jobs = workflow["jobs"]
    assert ["make", "test"] in commands(README)
    assert "make test" in [step.get("run") for step in jobs["test"]["steps"]]
    assert "3.11" in jobs["test"]["strategy"]["matrix"]["python"]
    assert jobs["smoke"]["strategy"]["matrix"]["os"] == ["macos-latest", "windows-latest"]
    smoke = "\n".join(step.get("run", "") for step in jobs["smoke"]["steps"])
    assert "pip install -r requirements.txt" in smoke and "--version" in smoke
    for path in ROOT.glob("*.py"):
        if "cli.run_script(" in path.read_text():
            assert re.search(rf"\b{path.stem}\b", smoke), path


def test_pre_commit_uses_the_pinned_tools():
    yaml = pytest.importorskip("yaml")
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    pins = dict(re.findall(r"^(\w+)==(\S+)", (ROOT / "requirements-dev.txt").read_text(), re.M))
    ruff = next(entry for entry in repositories if entry["repo"].endswith("/ruff-pre-commit"))
    assert ruff["rev"] == f"v{pins['ruff']}"
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]
    local = next(entry for entry in repositories if entry["repo"] == "local")
    assert [hook["entry"] for hook in local["hooks"]] == [".venv/bin/mypy"] and "mypy" in pins


def test_citation_names_the_paper():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")
    (paper,) = citation["references"]
    assert paper["authors"][0]["family-names"] == "Ledig" and paper["year"] == 2017
