"""A generator on OpenVINO, Intel's inference engine: the fastest on a CPU, and without PyTorch.

A converted generator is kept in the user's cache folder, so that the next start needs neither
PyTorch nor the conversion.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import os
import shutil
import sys
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from utils import cli, files, images, int8, machine

if TYPE_CHECKING:
    from networks import GeneratorNetwork

_FACTS = "srgan"  # where a model holds what `OpenVinoEngine` needs to know of the generator
_FACT_NAMES = ("upscale", "halo", "avoid_bf16")
_SCARCE = 8 * 2**30  # bytes; with less, memory that is kept for the next tile is given back first
_LARGEST_CACHE = 2**30  # bytes of kept models; those that were used longest ago go first
_HINTS = {"fp32": "f32", "bf16": "bf16"}


class UnusableError(cli.UserError):
    """OpenVINO cannot be imported, or cannot run a generator; the message says why."""


def is_wanted(backend: str, device: str) -> bool:
    """Tell whether to enlarge on OpenVINO.

    Args:
        backend: auto, torch or openvino.
        device: auto, cpu, cuda or mps.

    Raises:
        UserError: OpenVINO was asked for, but it is not installed or cannot use the device.
    """
    if backend == "torch":
        return False
    if backend == "auto":
        return device == "cpu" and find_spec("openvino") is not None
    if find_spec("openvino") is None:
        raise cli.UserError("--backend openvino: the package is missing; pip install openvino")
    if device not in ("auto", "cpu"):
        raise cli.UserError(
            f"--backend openvino runs on the CPU, not on --device {device}; leave out one of them"
        )
    return True


@functools.cache
def _package() -> Any:
    """Import the package `openvino`; keep it from importing the one that reports to Intel.

    Raises:
        UnusableError: it cannot be imported.
    """
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    except (ImportError, OSError) as error:  # a broken installation
        raise UnusableError(f"OpenVINO cannot be imported ({_first_line(error)})") from error


@functools.cache
def _core() -> Any:
    """Return the one `Core` of this process.

    When the last `Core` goes, OpenVINO gives back the stack on which the main thread handles
    signals (for processors with AMX, it makes one); in another thread, the main thread would keep
    its address and crash at the next signal. It does so only under Python's `faulthandler`.
    """
    return _package().Core()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


# --- models -------------------------------------------------------------------------------------


def convert(generator: GeneratorNetwork) -> Any:
    """Convert a generator of `inference.open_generator` on the CPU; sides of images are dynamic.

    Raises:
        UnusableError: this version of OpenVINO cannot convert it, or it is another project's.
    """
    import torch

    from utils.foreign import ForeignGenerator

    if isinstance(generator, ForeignGenerator):
        # It may compute with the sides of the image, which tracing would fix
        raise UnusableError(f"{generator.name} does not run on OpenVINO")
    package = _package()
    try:
        with torch.inference_mode():
            model = package.convert_model(
                generator, example_input=torch.zeros(1, 3, 32, 32), input=[1, 3, -1, -1]
            )
    except Exception as error:  # of many kinds, depending on the version
        raise UnusableError(
            f"OpenVINO {package.get_version()} cannot convert this generator ({_first_line(error)})"
        ) from error
    facts = (generator.upscale, generator.halo, int(getattr(generator, "avoid_bf16", False)))
    for name, value in zip(_FACT_NAMES, facts, strict=True):
        model.set_rt_info(str(value), [_FACTS, name])
    return model


def kept_model(path: str | Path) -> Any | None:
    """Return the model that an earlier start made of a generator file; None if there is none."""
    try:
        folder = _folder_of(path)
        if not folder.exists():
            return None
    except (OSError, RuntimeError):  # a home folder that is unknown or closed
        return None
    try:
        if files.sha256(folder / "model.bin") != (folder / "checksum").read_text():
            raise RuntimeError("damaged")
        model = _core().read_model(folder / "model.xml")
        _facts_of(model)
        with contextlib.suppress(OSError):  # a cache that may only be read
            os.utime(folder)
        return model
    except (OSError, RuntimeError, ValueError):  # damaged: make it again
        shutil.rmtree(folder, ignore_errors=True)
        return None


def keep_model(model: Any, path: str | Path) -> None:
    """Keep a model for the next start, if the cache folder can be written."""
    try:
        folder = _folder_of(path)
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    except (OSError, RuntimeError):  # nothing is lost
        return
    try:
        _package().save_model(model, unfinished / "model.xml", compress_to_fp16=False)
        (unfinished / "checksum").write_text(files.sha256(unfinished / "model.bin"))
        for file in unfinished.iterdir():
            with open(file, "rb+") as written:
                os.fsync(written.fileno())
        unfinished.rename(folder)
        _forget_oldest(folder.parent)
    except (OSError, RuntimeError):  # another process was first, or the disk is full
        shutil.rmtree(unfinished, ignore_errors=True)


def _forget_oldest(cache: Path) -> None:
    """Remove the models that were used longest ago, until the others fit into `_LARGEST_CACHE`."""
    total = 0
    for folder in sorted(cache.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True):
        total += sum(file.stat().st_size for file in folder.iterdir())
        if total > _LARGEST_CACHE:
            shutil.rmtree(folder, ignore_errors=True)


def _folder_of(path: str | Path) -> Path:
    """Return where the model of a generator file is kept.

    The name depends on the file, on the code of the networks and on the version of OpenVINO.
    """
    digest = hashlib.sha256(files.sha256(path).encode())
    root = Path(__file__).parent.parent
    for module in ("model.py", "esrgan.py", "networks.py", "utils/openvino.py"):
        digest.update((root / module).read_bytes())
    digest.update(_package().get_version().encode())
    return cache_folder() / "openvino" / digest.hexdigest()


def _facts_of(model: Any) -> list[int]:
    """Return the scale, the halo and whether to avoid bf16, which `convert` left in a model."""
    return [int(model.get_rt_info([_FACTS, name]).value) for name in _FACT_NAMES]


def cache_folder() -> Path:
    """Return the user's folder for what can be made again."""
    if sys.platform == "win32":
        home = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "srgan")


# --- enlarging ----------------------------------------------------------------------------------


class OpenVinoEngine:
    """A generator on OpenVINO; see `inference.Engine`.

    Args:
        model: of `convert` or `kept_model`.
        path: its generator file, beside which int8 has its ranges; None: a blend, without int8.
    """

    place = "openvino"
    package = "openvino"
    tile_multiple = 1

    def __init__(self, model: Any, path: str | Path | None = None):
        self.path = path
        self.upscale, self.halo, avoid_bf16 = _facts_of(model)
        self.avoid_bf16 = bool(avoid_bf16)
        self.model = model
        self._read_ranges: int8.Ranges | None = None
        self._requests: dict[str, Any] = {}  # by precision
        self._lock = threading.Lock()  # a request serves one thread at a time

    def precision_of(self, name: str) -> str:
        """Return fp32, bf16 or int8; `auto` means bf16 where the processor is faster in it.

        Raises:
            UserError: fp16, or int8 without ranges (`int8.read`).
        """
        machine.check_cpu_precision(name)
        if name == "int8":
            self._ranges()
        if name != "auto":
            return name
        has_bf16 = "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        is_faster = machine.is_cpu_faster_in_bf16(has_bf16, machine.has_amx())
        return "bf16" if is_faster and not self.avoid_bf16 else "fp32"

    def _ranges(self) -> int8.Ranges:
        """Return the ranges for int8, which are read once."""
        if self.path is None:
            raise cli.UserError(
                "--precision int8 is for one generator file, not for a blend; leave out --texture"
            )
        if self._read_ranges is None:
            self._read_ranges = int8.read(self.path)
        return self._read_ranges

    def free_memory(self) -> int | None:
        """Return how many bytes can still be allocated; None if the system does not say."""
        free = machine.free_system_memory()
        if free is not None and free < _SCARCE:
            self.release_memory()
            free = machine.free_system_memory()
        return free

    def release_memory(self) -> None:
        """Forget what is compiled, and with it the memory that it holds."""
        with self._lock:
            self._requests.clear()

    def enlarge(
        self, patch: np.ndarray, rows: slice, columns: slice, precision: str
    ) -> np.ndarray | None:
        """Return rows and columns of the enlarged image, as deep as LR; None if it is not finite.

        Levels of LR are mapped to [-1, 1], and SR is clamped to it and rounded to levels.

        Raises:
            MemoryError: OpenVINO has not enough memory.
            UnusableError: it cannot run on this machine.
        """
        lr = images.array_to_signed(patch)
        height, width = (side * self.upscale for side in patch.shape[:2])
        with self._lock:
            request = self._request(precision)
            # `infer` would not report a failure, and the last result would pass for this one
            request.start_async([lr], share_inputs=True)
            request.wait()
            sr = request.get_output_tensor().data
            if sr.shape != (1, 3, height, width):
                raise MemoryError(f"OpenVINO gave no result for {patch.shape[1]}x{patch.shape[0]}")
            # In one pass: a NaN or an infinity anywhere spoils the sum
            if not np.isfinite(sr.sum()):
                return None
            return images.signed_to_array(sr[:, :, rows, columns], patch.dtype)

    def _request(self, precision: str) -> Any:
        """Return what infers at a precision; it is compiled once."""
        if precision not in self._requests:
            model = self.model
            rest = precision
            if precision == "int8":
                model = int8.quantised(model, self._ranges())
                rest = self.precision_of("auto")  # of all but the convolutions
            options = {"INFERENCE_PRECISION_HINT": _HINTS[rest], "PERFORMANCE_HINT": "LATENCY"}
            if threads := os.environ.get("OMP_NUM_THREADS"):  # as PyTorch does
                options["INFERENCE_NUM_THREADS"] = threads
            try:
                compiled = _core().compile_model(model, "CPU", options)
                self._requests[precision] = compiled.create_infer_request()
            except RuntimeError as error:
                if cli.is_out_of_memory(error) or "temporarily unavailable" in str(error):
                    raise MemoryError(f"OpenVINO: {_first_line(error)}") from error
                raise UnusableError(
                    f"OpenVINO cannot run on this machine ({_first_line(error)}); use "
                    "--backend torch"
                ) from error
        return self._requests[precision]
