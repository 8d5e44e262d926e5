from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from esrgan import RRDBGenerator
from model import Generator
from utils import device, machine
from utils.device import move_to, resolve_device, resolve_precision

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MEBI = 2**20


@pytest.fixture(autouse=True)
def switches():
    """Set PyTorch's global switches to their defaults before and after a test."""

    def reset():
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.benchmark = False

    reset()
    yield
    reset()


def test_devices_and_precisions():
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("auto", CPU) in ("fp32", "bf16")
    with pytest.raises(ValueError, match="fp16 is for GPUs"):
        resolve_precision("fp16", CPU)
    if not torch.cuda.is_available():
        assert resolve_device("auto").type in ("cpu", "mps")
        with pytest.raises(ValueError, match="'cuda' is not available"):
            resolve_device("cuda")


def use_processor(monkeypatch, avx512_bf16=False, amx=False, maker="AuthenticAMD", says="Linux"):
    """Pretend to have a CPU with these instructions, of this maker."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    cpuinfo = f"vendor_id\t: {maker}\n" if says == "Linux" else ""
    name = f"AMD64 Family 25 Model 97 Stepping 2, {maker}" if says == "Windows" else ""
    monkeypatch.setattr(machine, "_text", lambda _path: cpuinfo)
    monkeypatch.setattr("platform.processor", lambda: name)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_auto_means_bf16_unless_the_generator_avoids_it(monkeypatch, has_bf16):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16)
    use_processor(monkeypatch, amx=has_bf16)
    rrdb = RRDBGenerator(blocks=1)
    for generator in (None, Generator(2, 1)):
        assert resolve_precision("auto", CUDA, generator) == ("bf16" if has_bf16 else "fp16")
        assert resolve_precision("auto", CPU, generator) == ("bf16" if has_bf16 else "fp32")
    assert resolve_precision("auto", CUDA, rrdb) == "fp16"
    assert resolve_precision("auto", CPU, rrdb) == "fp32"
    assert resolve_precision("bf16", CPU, rrdb) == "bf16"  # told so


@pytest.mark.parametrize("says", ["Linux", "Windows"])
@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "maker", "precision"),
    [
        (True, True, "GenuineIntel", "bf16"),
        (True, False, "GenuineIntel", "fp32"),  # measured: half as fast in bf16
        (True, False, "AuthenticAMD", "bf16"),  # measured: 3 to 4 times as fast in bf16
        (False, False, "AuthenticAMD", "fp32"),
        (True, False, "", "fp32"),  # a maker that the system does not name
    ],
)
def test_auto_means_bf16_only_on_processors_that_are_faster_in_it(
    monkeypatch, avx512_bf16, amx, maker, precision, says
):
    use_processor(monkeypatch, avx512_bf16, amx, maker, says)
    assert resolve_precision("auto", CPU) == precision


def test_a_run_computes_fp32_without_tf32_and_times_kernels_only_for_equal_sizes():
    device.set_switches(same_sizes=True)
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.benchmark
    device.set_switches()
    assert not torch.backends.cudnn.benchmark


def test_fp32_is_fp32_inside_autocast_and_with_tf32_on():
    conv = torch.nn.Conv2d(3, 3, 3)
    image = torch.rand(1, 3, 8, 8)
    seen = []
    conv.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    with torch.autocast("cpu", torch.bfloat16):
        with device.autocast(CPU, "fp32"):
            expected = torch.nn.functional.conv2d(image, conv.weight, conv.bias)
            assert torch.equal(conv(image), expected)
            assert conv(image).dtype == torch.float32
        assert conv(image).dtype == torch.bfloat16
    with device.autocast(CPU, "bf16"):
        assert conv(image).dtype == torch.bfloat16
    assert seen == [False, False, True, True]


@pytest.mark.parametrize(("cores", "processes", "share"), [(6, None, 6), (6, "4", 1), (1, "2", 1)])
def test_processes_on_one_machine_share_its_cores(monkeypatch, cores, processes, share):
    monkeypatch.setattr("os.sched_getaffinity", lambda _process: set(range(cores)))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert machine.cores_per_process() == share
    monkeypatch.delattr("os.sched_getaffinity")  # as on Windows and macOS
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert machine.cores_per_process() == share


# --- memory, from copies of what Linux shows ----------------------------------------------------


def system(folder: Path, files: dict[str, str | int]) -> dict[str, Path]:
    """Write files of a system under `proc` and `sys`; return the two folders.

    It has 8000 MB of memory, most of it used by the page cache.
    """
    meminfo = "MemTotal: 8192000 kB\nMemFree: 102400 kB\nMemAvailable: 6144000 kB\n"
    for name, text in {"proc/meminfo": meminfo, **files}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return {"proc": folder / "proc", "cgroups": folder / "sys"}


def group(place: str, limit: str | int, used: int, inactive: int) -> dict[str, str | int]:
    """The files of a version 2 group."""
    stat = f"anon 5\ninactive_file {inactive}\nactive_file 7"
    return {
        f"{place}/memory.max": limit,
        f"{place}/memory.current": used,
        f"{place}/memory.stat": stat,
    }


def test_cached_files_count_as_free(tmp_path):
    assert machine.free_system_memory(**system(tmp_path, {})) == 6000 * MEBI


def test_free_memory_is_within_the_containers_limit(tmp_path):
    files = {"proc/self/cgroup": "0::/", **group("sys", 1000 * MEBI, 800 * MEBI, 300 * MEBI)}
    assert machine.free_system_memory(**system(tmp_path, files)) == 500 * MEBI


@pytest.mark.parametrize("inner", ["max", 900 * MEBI])
def test_limits_of_parent_groups_count_too(tmp_path, inner):
    files = {"proc/self/cgroup": "0::/job.slice/step"}
    files |= group("sys/job.slice/step", inner, 200 * MEBI, 0)
    files |= group("sys/job.slice", 1000 * MEBI, 600 * MEBI, 50 * MEBI)
    assert machine.free_system_memory(**system(tmp_path, files)) == 450 * MEBI


# In the container, the group is at the top
@pytest.mark.parametrize("place", ["sys/memory/docker/abc", "sys/memory"])
def test_free_memory_is_within_the_limits_of_version_1_groups(tmp_path, place):
    files = {
        "proc/self/cgroup": "5:cpuset:/\n4:cpu,memory:/docker/abc\n0::/other",
        f"{place}/memory.limit_in_bytes": 700 * MEBI,
        f"{place}/memory.usage_in_bytes": 650 * MEBI,
        f"{place}/memory.stat": f"inactive_file 9\ntotal_inactive_file {40 * MEBI}",
    }
    assert machine.free_system_memory(**system(tmp_path, files)) == 90 * MEBI


def test_a_group_over_its_limit_leaves_nothing(tmp_path):
    files = {"proc/self/cgroup": "0::/", **group("sys", 100 * MEBI, 101 * MEBI, 0)}
    assert machine.free_system_memory(**system(tmp_path, files)) == 0


def test_a_system_without_proc_does_not_say(tmp_path):
    assert machine.free_system_memory(tmp_path, tmp_path) is None


def test_pytorchs_own_cache_counts_as_free_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100 * MEBI, 8000 * MEBI))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 5000 * MEBI)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 200 * MEBI)
    assert device.free_memory(CUDA) == 4900 * MEBI


@pytest.mark.parametrize("pinned", [True, False])
def test_only_pinned_memory_is_copied_without_waiting(pinned):
    batch = Mock(**{"is_pinned.return_value": pinned})
    move_to(torch.device("mps"), batch)
    batch.to.assert_called_once_with(torch.device("mps"), non_blocking=pinned)
