import gc
import os
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, run, the_error
from PIL import Image
from test_inference import new_generator, trained

import inference
from esrgan import RRDBGenerator
from utils import generator_file, images, machine, openvino, weights

pytest.importorskip("openvino")
CPU = torch.device("cpu")
convert = openvino.convert
converted = {}


def convert_once(generator):
    """What `openvino.convert` gives, which takes a second, kept by the generator's weights."""
    key = tuple(tensor.double().sum().item() for tensor in generator.state_dict().values())
    if key not in converted:
        converted[key] = convert(generator)
    return converted[key]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(openvino, "convert", convert_once)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "cache" / "srgan" / "openvino"


@pytest.fixture
def path(tmp_path) -> Path:
    """A generator file, x2 with two blocks."""
    generator_file.save(tmp_path / "mine.pth", new_generator(2))
    return tmp_path / "mine.pth"


def engine_of(generator) -> openvino.OpenVinoEngine:
    return openvino.OpenVinoEngine(openvino.convert(inference.prepared(generator)))


SIGNAL_AFTER_A_THREAD = """
import faulthandler, gc, os, signal, sys, threading
import numpy as np
import inference
from utils import weights

faulthandler.enable()  # as pytest does; gives signals a stack of their own
signal.signal(signal.SIGTERM, lambda *_: None)
engine = [inference.open_engine(weights.Weights(weights.FAITHFUL), backend="openvino")]
inference.upscale(engine[0], np.zeros((20, 20, 3), np.uint8))

def drop():
    engine.clear()
    gc.collect()

thread = threading.Thread(target=drop)
thread.start()
thread.join()
os.kill(os.getpid(), signal.SIGTERM)
print("alive")
"""


def test_a_signal_is_survived_after_a_generator_was_dropped_in_a_thread():
    """Without one `Core` for the process, a processor with AMX crashes here."""
    words = [sys.executable, "-c", SIGNAL_AFTER_A_THREAD]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


# --- the result ---------------------------------------------------------------------------------


@pytest.mark.parametrize("upscale", [2, 3, 4])
def test_the_result_is_pytorchs_within_one_level(astronaut, upscale):
    generator = new_generator(upscale)
    engine = engine_of(generator)
    assert (engine.upscale, engine.halo) == (upscale, generator.halo)
    for lr in (astronaut[100:130, 100:141], astronaut[:1, :1], astronaut[:57, :33]):
        expected = inference.upscale(generator, lr).astype(int)
        found = inference.upscale(engine, lr)
        assert found.dtype == np.uint8 and found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1
        assert np.mean(found != expected) < 0.001


def test_esrgans_generator_gives_pytorchs_result(astronaut):
    generator = trained(RRDBGenerator(blocks=1, features=16, growth=8), 3)
    engine = engine_of(generator)
    lr = astronaut[100:130, 100:141]
    difference = inference.upscale(engine, lr).astype(int) - inference.upscale(generator, lr)
    assert np.abs(difference).max() <= 1
    assert engine.precision_of("auto") == "fp32"  # it avoids bf16


def test_tiles_give_the_result_of_the_whole_image(astronaut):
    engine = engine_of(new_generator(4))
    lr = astronaut[:70, :90]
    whole = inference.upscale(engine, lr, tile=0).astype(int)
    seen = []
    tiles = inference.upscale(engine, lr, tile=33, on_tile=lambda *counts: seen.append(counts))
    assert np.abs(tiles - whole).max() <= 1
    assert seen == [(number, 9) for number in range(1, 10)]


def test_a_result_that_is_not_finite_is_never_a_picture(astronaut):
    generator = new_generator(2)
    with torch.no_grad():
        generator.tail.bias[0] = float("nan")
    with pytest.raises(ArithmeticError, match="not finite, even in fp32"):
        inference.upscale(engine_of(generator), astronaut[:20, :20])


def test_one_engine_serves_several_threads(astronaut):
    engine = engine_of(new_generator(2))
    pictures = [astronaut[top : top + 40, :50] for top in range(0, 160, 40)]
    expected = [inference.upscale(engine, picture) for picture in pictures]
    found = [None] * len(pictures)

    def enlarge(number):
        found[number] = inference.upscale(engine, pictures[number])

    threads = [threading.Thread(target=enlarge, args=(n,)) for n in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(one, two) for one, two in zip(found, expected))


def test_ranges_are_converted_as_on_tensors():
    levels = np.arange(256, dtype=np.uint8)
    rgb = np.stack([levels, levels[::-1], np.roll(levels, 9)], -1)[None]
    signed = images.uint8_to_signed(images.to_tensor(rgb)).numpy()
    assert np.array_equal(images.array_to_signed(rgb), signed)
    assert np.array_equal(images.signed_to_array(signed), rgb)
    values = np.random.default_rng(0).uniform(-1.3, 1.3, (1, 3, 40, 50)).astype(np.float32)
    expected = images.to_array(images.signed_to_uint8(torch.from_numpy(values)))
    assert np.array_equal(images.signed_to_array(values), expected)


# --- models are kept ----------------------------------------------------------------------------


def test_the_second_start_needs_neither_pytorch_nor_the_package_that_reports(tmp_path, path):
    Image.new("RGB", (20, 16), "teal").save(tmp_path / "a.png")
    program = (
        "import runpy, sys\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    print('torch' in sys.modules, bool(sys.modules.get('openvino_telemetry')))\n"
    )
    seen = []
    for number in range(2):
        words = ["test_image.py", tmp_path / "a.png", "--weights", path, "--backend", "openvino"]
        words += ["--out", tmp_path / f"{number}.png"]
        code = program.replace(
            "import runpy, sys", f"import runpy, sys; sys.argv = {list(map(str, words))}"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        seen.append(done.stdout.splitlines()[-1])
        assert not done.stderr
    assert seen == ["True False", "False False"]
    first, second = ((tmp_path / f"{number}.png").read_bytes() for number in range(2))
    assert first == second


def test_a_model_is_kept_per_file_and_made_again_if_it_is_damaged(path, cache, astronaut):
    chosen = weights.Weights(path)
    lr = astronaut[:20, :30]
    first = inference.upscale(inference.open_engine(chosen, backend="openvino"), lr)
    (kept,) = cache.iterdir()
    assert {file.name for file in kept.iterdir()} == {"model.xml", "model.bin", "checksum"}
    assert not [name for name in cache.iterdir() if name.name.startswith(".")]

    # Damaged: the network, what is known of it, one bit of its weights, a file missing
    network = (kept / "model.xml").read_text()
    content = bytearray((kept / "model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    for name, damaged in [
        ("model.xml", b"<net"),
        ("model.xml", network.replace("<srgan", "<other").replace("</srgan", "</other").encode()),
        ("model.bin", bytes(content)),
        ("checksum", None),
    ]:
        (kept / name).unlink()
        if damaged is not None:
            (kept / name).write_bytes(damaged)
        again = inference.upscale(inference.open_engine(chosen, backend="openvino"), lr)
        assert np.array_equal(first, again)
        assert len((kept / "model.xml").read_text()) == pytest.approx(len(network), rel=0.02)
        assert len(list(kept.iterdir())) == 3

    # Another file under the same name
    torch.manual_seed(8)
    generator_file.save(path, trained(new_generator(2), 5))
    other = inference.upscale(inference.open_engine(chosen, backend="openvino"), lr)
    assert not np.array_equal(first, other) and len(list(cache.iterdir())) == 2


def test_the_models_used_longest_ago_are_forgotten(tmp_path, cache, monkeypatch):
    model = convert_once(inference.prepared(new_generator(2)))
    monkeypatch.setattr(openvino, "convert", lambda _generator: model)  # whatever the file
    for number in range(3):
        generator_file.save(tmp_path / f"{number}.pth", trained(new_generator(2), number))
    a, b, c = (weights.Weights(tmp_path / f"{number}.pth") for number in range(3))
    for age, chosen in ((300, a), (200, b)):
        before = set(cache.iterdir()) if cache.exists() else set()
        inference.open_engine(chosen, backend="openvino")
        (kept,) = set(cache.iterdir()) - before
        then = kept.stat().st_mtime - age
        os.utime(kept, (then, then))
    size = sum(file.stat().st_size for file in kept.iterdir())
    monkeypatch.setattr(openvino, "_LARGEST_CACHE", int(2.5 * size))
    inference.open_engine(a, backend="openvino")  # now b was used longest ago
    inference.open_engine(c, backend="openvino")
    assert [openvino.kept_model(one.path) is not None for one in (a, b, c)] == [True, False, True]
    assert len(list(cache.iterdir())) == 2


def test_a_blend_is_enlarged_but_not_kept(tmp_path, path, cache, astronaut):
    generator_file.save(tmp_path / "other.pth", trained(new_generator(2), 5))
    blend = weights.Weights(path, tmp_path / "other.pth", 0.25)
    engine = inference.open_engine(blend, backend="openvino")
    generator = inference.open_generator(device=CPU, **vars(blend))
    lr = astronaut[:20, :30]
    difference = inference.upscale(engine, lr).astype(int) - inference.upscale(generator, lr)
    assert np.abs(difference).max() <= 1
    assert not cache.exists()


def test_without_a_cache_folder_nothing_is_kept_and_nothing_fails(path, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    engine = inference.open_engine(weights.Weights(path), backend="openvino")
    assert inference.upscale(engine, np.zeros((5, 6, 3), np.uint8)).shape == (10, 12, 3)


@pytest.mark.parametrize("fault", [PermissionError("closed"), RuntimeError("no home")])
def test_a_home_folder_that_is_closed_or_unknown_keeps_nothing(path, monkeypatch, fault):
    def fail():
        raise fault

    monkeypatch.setattr(openvino, "cache_folder", fail)
    engine = inference.open_engine(weights.Weights(path), backend="openvino")
    assert engine.upscale == 2


# --- memory -------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
import numpy as np
import inference
from utils import weights
engine = inference.open_engine(weights.Weights(sys.argv[1]), backend="openvino")
rng = np.random.default_rng(0)
first, second = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
large = rng.integers(0, 256, (400, 400, 3), dtype=np.uint8)
expected = [inference.upscale(engine, lr) for lr in (first, second)]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20, hard))
try:
    result = inference.upscale(engine, large, tile=0)
    print("enlarged", result.shape)
except (RuntimeError, MemoryError) as error:
    print("refused", type(error).__name__)
resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
again = [inference.upscale(engine, lr) for lr in (first, second)]
print(all(np.array_equal(one, two) for one, two in zip(expected, again)))
"""


def test_a_generator_that_cannot_be_converted_is_tried_once(path, monkeypatch, capsys):
    tried = []

    def fail(*_arguments):
        tried.append(1)
        raise openvino.UnusableError("OpenVINO cannot be used (broken)")

    monkeypatch.setattr(openvino, "convert", fail)
    monkeypatch.setattr(machine, "may_have_gpu", lambda: False)
    engine = inference.open_engine(weights.Weights(path))
    assert isinstance(engine, inference.TorchEngine) and tried == [1]


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory as Linux does")
def test_without_memory_no_earlier_result_passes_for_this_one(path):
    inference.open_engine(weights.Weights(path), backend="openvino")  # is kept for the program
    words = [sys.executable, "-c", LIMITED, path]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "continuing with tiles of 200 pixels" in done.stderr, done.stderr
    what, again = done.stdout.splitlines()
    assert what in ("enlarged (800, 800, 3)", "refused RuntimeError", "refused MemoryError")
    assert again == "True"


def test_an_engine_that_is_no_longer_used_gives_its_memory_back(path):
    engine = inference.open_engine(weights.Weights(path), backend="openvino")
    inference.upscale(engine, np.zeros((20, 20, 3), np.uint8))
    seen = weakref.ref(engine)
    del engine
    gc.collect()
    assert seen() is None


def test_where_memory_is_scarce_what_is_kept_is_given_back_first(path, monkeypatch):
    engine = inference.open_engine(weights.Weights(path), backend="openvino")
    inference.upscale(engine, np.zeros((20, 20, 3), np.uint8), tile=0)
    monkeypatch.setattr(machine, "free_system_memory", lambda: 2**36)
    assert engine.free_memory() == 2**36 and engine._requests
    monkeypatch.setattr(machine, "free_system_memory", lambda: 2**31)
    assert engine.free_memory() == 2**31 and not engine._requests


# --- choices ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "device", "installed", "wanted"),
    [
        ("torch", "cpu", True, False),
        ("auto", "cpu", True, True),
        ("auto", "cuda", True, False),
        ("auto", "cpu", False, False),
        ("openvino", "auto", True, True),
        ("openvino", "cpu", True, True),
    ],
)
def test_openvino_is_used_on_the_cpu_where_it_is_installed(
    monkeypatch, backend, device, installed, wanted
):
    monkeypatch.setattr(openvino, "find_spec", lambda _name: installed or None)
    assert openvino.is_wanted(backend, device) == wanted


def test_what_openvino_cannot_do_is_one_line(photos, path, monkeypatch):
    words = ["test_image.py", photos[1] / "image_0.png", "--weights", path, "--backend", "openvino"]
    error = the_error(run(*words, "--device", "cuda", status=2))
    assert "--backend openvino runs on the CPU, not on --device cuda" in error
    error = the_error(run(*words, "--precision", "fp16", status=2))
    assert "precision fp16 is for GPUs" in error
    error = the_error(
        run("test_image.py", photos[1], "--weights", "none.pth", "--backend", "auto", status=2)
    )
    assert "none.pth: no such generator file" in error
    monkeypatch.setattr(openvino, "find_spec", lambda _name: None)
    with pytest.raises(ValueError, match="the package is missing; pip install openvino"):
        openvino.is_wanted("openvino", "cpu")


def test_a_generator_that_cannot_be_converted_is_one_line():
    class Odd(torch.nn.Module):
        upscale = 2
        halo = 1

        def forward(self, lr):
            return torch.linalg.eigh(lr @ lr.mT).eigenvectors

    with pytest.raises(
        openvino.UnusableError, match=r"OpenVINO 20\S+ cannot convert this .+ \(.+\)"
    ):
        openvino.convert(Odd())


@pytest.mark.parametrize("fails", ["convert", "_package"])
def test_where_openvino_cannot_run_pytorch_does_and_a_line_says_so(
    path, monkeypatch, capsys, fails
):
    def fail(*_arguments):
        raise openvino.UnusableError("OpenVINO cannot be used (broken)")

    monkeypatch.setattr(openvino, fails, fail)
    inference._say_once.cache_clear()
    chosen = weights.Weights(path)
    engine = inference.open_engine(chosen, "cpu")
    assert isinstance(engine, inference.TorchEngine)
    assert capsys.readouterr().err == "OpenVINO cannot be used (broken); using PyTorch\n"
    with pytest.raises(ValueError, match="broken"):
        inference.open_engine(chosen, backend="openvino")


def test_a_broken_installation_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    openvino._package.cache_clear()
    with pytest.raises(openvino.UnusableError, match=r"OpenVINO cannot be imported \("):
        openvino._package()


def test_a_driver_without_a_gpu_leaves_the_work_to_openvino(path, monkeypatch):
    if torch.cuda.is_available() or torch.backends.mps.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(machine, "may_have_gpu", lambda: True)
    engine = inference.open_engine(weights.Weights(path))
    assert isinstance(engine, openvino.OpenVinoEngine)


@pytest.mark.parametrize(
    ("capabilities", "amx", "amd", "precision"),
    [
        (["FP32", "BF16"], True, False, "bf16"),
        (["FP32", "BF16"], False, True, "bf16"),
        (["FP32", "BF16"], False, False, "fp32"),  # measured: 1.6 times as long in bf16
        (["FP32"], False, True, "fp32"),
    ],
)
def test_auto_means_bf16_only_where_it_is_faster(monkeypatch, capabilities, amx, amd, precision):
    engine = engine_of(new_generator(2))

    class Core:
        def get_property(self, _device, _name):
            return capabilities

    monkeypatch.setattr(openvino, "_core", Core)
    monkeypatch.setattr(machine, "has_amx", lambda: amx)
    monkeypatch.setattr(machine, "is_made_by_amd", lambda: amd)
    assert engine.precision_of("auto") == precision
    assert engine.precision_of("bf16") == "bf16" and engine.precision_of("fp32") == "fp32"


def test_every_script_that_enlarges_takes_it(photos, path, tmp_path):
    words = ["--weights", path, "--precision", "fp32", "--out"]
    tables = {}
    for backend in ("torch", "openvino"):
        out = tmp_path / backend
        run("test_benchmark.py", "--hr", photos[1], *words, out, "--backend", backend)
        tables[backend] = (out / "benchmark.csv").read_text().splitlines()[-1].split(",")[1:]
    numbers = [[float(value) for value in table if value] for table in tables.values()]
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)
