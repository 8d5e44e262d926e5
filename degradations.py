"""How LR is made of HR: by bicubic, as in the papers, or as ordinary photographs come about.

`photo` is the second-order model of Real-ESRGAN (Wang et al. 2021, section 3): blur, resizing, noise and JPEG, all of it
twice, with sinc filters for ringing. As in BSRGAN (Zhang et al. 2021), a share of the samples stays clean or almost clean, so
that a network learns to leave a good picture alone. HR is left as it is (Real-ESRGAN sharpens it).

A degradation is drawn first, as a list of operations with their parameters, and then applied. Every operation takes and
returns levels in [0, 255], as floating-point (H, W, 3).
"""

import math
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import cv2
import numpy as np
from scipy.special import j1

from utils import cli, images

cv2.setNumThreads(1)  # its threads would compete with PyTorch's

Operation = Callable[[np.ndarray], np.ndarray]


# --- the recipe ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """The ranges of one pass of blur, resizing, noise and JPEG. Values are drawn uniformly."""

    blur: float  # probability
    sigma: tuple[float, float]  # standard deviation of the blur along each axis, in pixels
    relative_to: str  # what `scale` is relative to: "HR" or "LR"
    enlarge: float  # probability of a scale from 1 to the upper end
    shrink: float  # probability of a scale from the lower end to 1; otherwise it is 1
    scale: tuple[float, float]
    methods: tuple[str, ...]  # of resizing, all equally likely
    noise: float  # probability
    gaussian: tuple[float, float]  # standard deviation of Gaussian noise, in levels
    poisson: tuple[float, float]  # strength of Poisson noise; at 1, white is 255 photons
    quality: tuple[int, int]  # of JPEG


# Where Real-ESRGAN's x4 configuration has another value, it follows as a comment. Ours are milder: pictures that people keep
# are better than the worst that the paper trains for, and a network that has seen only those smooths the good ones.
FIRST = Pass(
    blur=0.8,  # 1
    sigma=(0.2, 2.4),  # 0.2 to 3
    relative_to="HR",
    enlarge=0.2,
    shrink=0.7,
    scale=(0.3, 1.5),  # 0.15 to 1.5
    methods=("area", "bilinear", "bicubic", "antialiased"),  # no "antialiased"
    noise=0.8,  # 1
    gaussian=(1, 20),  # 1 to 30
    poisson=(0.05, 2),  # 0.05 to 3
    quality=(40, 95),  # 30 to 95
)
SECOND = Pass(
    blur=0.5,  # 0.8
    sigma=(0.2, 1.2),  # 0.2 to 1.5
    relative_to="LR",
    enlarge=0.3,
    shrink=0.4,
    scale=(0.6, 1.5),  # 0.3 to 1.2
    methods=("area", "bilinear", "bicubic", "antialiased"),  # no "antialiased"
    noise=0.6,  # 1
    gaussian=(1, 10),  # 1 to 25
    poisson=(0.05, 0.7),  # 0.05 to 2.5
    quality=(30, 95),
)
# A good photograph that was made smaller and saved; Real-ESRGAN has no such samples.
LIGHT = Pass(
    blur=0.5,
    sigma=(0.2, 1.6),
    relative_to="LR",
    enlarge=0,
    shrink=0,
    scale=(1, 1),
    methods=("area", "antialiased"),
    noise=0.5,
    gaussian=(0.5, 4),
    poisson=(0.05, 0.3),
    quality=(50, 98),
)
PHOTO: dict[str, Any] = {
    "version": "photo-1",  # raise the number when anything that follows changes
    "shares": {"clean": 0.1, "light": 0.4, "full": 0.5},  # full: 1
    "passes": {"light": [LIGHT], "full": [FIRST, SECOND]},
    "blurs": {"gaussian": 0.7, "generalised": 0.15, "plateau": 0.15},
    "anisotropic": {
        "gaussian": 0.36,
        "generalised": 0.2,
        "plateau": 0.2,
    },  # probability of unequal axes, turned at random
    "beta": {"generalised": (0.5, 4), "plateau": (1, 2)},  # half of them below 1, half above
    "sinc": 0.1,  # probability of a sinc filter in the place of a pass's blur
    "final_sinc": 0.5,  # 0.8
    "cutoff": (
        math.pi / 3,
        math.pi,
    ),  # of sinc filters, in radians per pixel; from pi / 5 for large ones
    "gray_noise": 0.4,  # probability that noise is the same in all three channels
    "full_chroma": 0.3,  # probability of JPEG with a colour per pixel; 0: always one per 2x2 pixels
    "radius": (3, 10),  # of filters, in pixels; of Gaussians, at most 3 sigma
    "final_radius": (3, 6),  # of the last sinc filter, in LR pixels; 3 to 10
}
RECIPES = {"bicubic": "bicubic-1", "photo": PHOTO["version"], "files": "files"}
MARGIN = 14  # LR pixels around a crop that are degraded with it and then cut off, on average
FILE_BYTES_PER_PIXEL = (
    200  # memory that `degrade_file` takes per HR pixel, at most; it computes in float64
)
_BLOCK = 16  # side of a JPEG block with one colour per 2x2 pixels: how many positions a crop can have in that grid


# --- one degradation ----------------------------------------------------------------------------------------------


def degrade(
    hr: np.ndarray,
    upscale: int,
    rng: np.random.Generator,
    precision: type = np.float32,
    kind: str | None = None,
) -> np.ndarray:
    """Return the LR image of an HR image as a degraded photograph.

    Args:
        hr: (H, W, 3) uint8, with sides that are multiples of `upscale`.
        upscale: the scale.
        rng: where everything random comes from.
        precision: of the computation. With float64, rounding to 8 bits hides in what order a machine adds.
        kind: "clean", "light" or "full"; None to draw it.

    Returns:
        (H / upscale, W / upscale, 3) uint8.

    Raises:
        UserError: the image is too large for JPEG.
    """
    cv2.ipp.setUseIPP(
        False
    )  # for this thread: Intel's routines resize less precisely than OpenCV's own
    operations = draw(rng, (hr.shape[0] // upscale, hr.shape[1] // upscale), kind)
    if not operations:
        return images.downscale(np.ascontiguousarray(hr), upscale)
    image = hr.astype(precision)
    for operation in operations:
        image = operation(image)
    return to_levels(image)


def degrade_crop(
    hr: np.ndarray, top: int, left: int, side: int, upscale: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the LR image (side, side, 3) of the crop at (top, left) of an HR image, all three in LR pixels.

    The crop is degraded together with a margin, which is then cut off, so that neither the ends of the filters nor a fixed
    position in the grid of JPEG blocks can be learnt. Beyond the image, its mirror image is taken.
    """
    down, across = rng.integers(
        -_BLOCK // 2, _BLOCK // 2, 2
    ).tolist()  # 6 to 22 pixels remain on each side
    rows = _mirrored((top - MARGIN + down) * upscale, (side + 2 * MARGIN) * upscale, hr.shape[0])
    columns = _mirrored(
        (left - MARGIN + across) * upscale, (side + 2 * MARGIN) * upscale, hr.shape[1]
    )
    lr = degrade(hr[rows][:, columns], upscale, rng)
    return lr[MARGIN - down :, MARGIN - across :][:side, :side]


def _mirrored(start: int, length: int, limit: int) -> np.ndarray | slice:
    """Return the indices start, start + 1, ... mirrored into [0, limit) at the first and the last, which are not repeated."""
    if start >= 0 and start + length <= limit:
        return slice(start, start + length)
    period = max(1, 2 * (limit - 1))
    indices = np.arange(start, start + length) % period
    return np.minimum(indices, period - indices)


def degrade_file(hr: np.ndarray, upscale: int, name: str, seed: int = 0) -> np.ndarray:
    """Return the LR image of a whole HR image; it depends on the pixels, the seed and the name without suffix alone."""
    plain = unicodedata.normalize(
        "NFC", PurePosixPath(name).with_suffix("").as_posix()
    )  # macOS has names in NFD
    stem = zlib.crc32(plain.encode("utf-8", "surrogateescape"))
    return degrade(hr, upscale, np.random.default_rng([seed, stem]), np.float64)


# --- drawing ------------------------------------------------------------------------------------------------------


def draw(
    rng: np.random.Generator, lr_shape: tuple[int, int], kind: str | None = None
) -> list[Operation]:
    """Draw a degradation, of a given kind or any, that ends at `lr_shape` (H, W): a list of operations; empty if it is clean.

    Each is a `functools.partial`, which shows its function and its parameters.
    """
    kind = kind or choose(rng, PHOTO["shares"])
    if kind == "clean":
        return []
    passes = [_draw_pass(rng, ranges, lr_shape) for ranges in PHOTO["passes"][kind]]
    if kind == "light":
        return passes[0]
    first, (*second, compress) = passes
    shrink: list[Operation] = [partial(resize, size=lr_shape, method=one_of(rng, SECOND.methods))]
    if rng.random() < PHOTO["final_sinc"]:
        shrink.append(partial(filtered, kernel=draw_sinc(rng, PHOTO["final_radius"])))
    last = [compress, *shrink] if rng.random() < 0.5 else [*shrink, compress]
    return [*first, *second, *last]


def _draw_pass(
    rng: np.random.Generator, ranges: Pass, lr_shape: tuple[int, int]
) -> list[Operation]:
    """Draw the operations of one pass; the last is JPEG."""
    operations: list[Operation] = []
    if rng.random() < ranges.blur:
        operations.append(partial(filtered, kernel=draw_blur(rng, ranges.sigma)))
    direction = choose(rng, {"enlarge": ranges.enlarge, "shrink": ranges.shrink, "keep": 1})
    limits = {"enlarge": (1, ranges.scale[1]), "shrink": (ranges.scale[0], 1), "keep": (1, 1)}
    scale, method = rng.uniform(*limits[direction]), one_of(rng, ranges.methods)
    if ranges.relative_to == "LR":
        operations.append(
            partial(
                resize, size=tuple(max(1, round(side * scale)) for side in lr_shape), method=method
            )
        )
    elif direction != "keep":
        operations.append(partial(resize, scale=scale, method=method))
    if rng.random() < ranges.noise:
        function, strengths = (
            (add_gaussian, ranges.gaussian) if rng.random() < 0.5 else (add_poisson, ranges.poisson)
        )
        gray = bool(rng.random() < PHOTO["gray_noise"])
        operations.append(partial(function, rng=rng, strength=rng.uniform(*strengths), gray=gray))
    quality = int(rng.integers(ranges.quality[0], ranges.quality[1] + 1))
    return [
        *operations,
        partial(jpeg, quality=quality, full_chroma=bool(rng.random() < PHOTO["full_chroma"])),
    ]


def draw_blur(rng: np.random.Generator, sigma: tuple[float, float]) -> np.ndarray:
    """Draw a blur kernel whose standard deviations lie in the range `sigma`, or a sinc filter, as `filtered` takes them."""
    if rng.random() < PHOTO["sinc"]:
        return draw_sinc(rng, PHOTO["radius"])
    family, radius = choose(rng, PHOTO["blurs"]), _draw_radius(rng, PHOTO["radius"])
    along = across = rng.uniform(*sigma)
    angle = 0.0
    if rng.random() < PHOTO["anisotropic"][family]:
        across, angle = rng.uniform(*sigma), rng.uniform(-math.pi, math.pi)
    if family == "gaussian":
        radius = min(radius, math.ceil(3 * max(along, across)))
        kernel = blur_kernel(family, radius, along, across, angle)
        return kernel if angle else kernel.sum(0)  # a round one is the product of its sums
    low, high = PHOTO["beta"][family]
    beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
    return blur_kernel(family, radius, along, across, angle, beta)


def draw_sinc(rng: np.random.Generator, radius: tuple[int, int]) -> np.ndarray:
    """Draw a sinc filter whose radius lies in the range `radius`."""
    return sinc_kernel(_draw_radius(rng, radius), rng.uniform(*PHOTO["cutoff"]))


def _draw_radius(rng: np.random.Generator, radius: tuple[int, int]) -> int:
    return int(rng.integers(radius[0], radius[1] + 1))


def one_of(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    """Draw one of several names, all equally likely."""
    return names[rng.integers(len(names))]


def choose(rng: np.random.Generator, probabilities: dict[str, float]) -> str:
    """Draw one of the keys, each with its probability; the last takes what is left to 1."""
    number = rng.random()
    for key in probabilities:
        number -= probabilities[key]
        if number < 0:
            break
    return key


# --- filters ------------------------------------------------------------------------------------------------------


def blur_kernel(
    family: str, radius: int, along: float, across: float, angle: float, beta: float = 1
) -> np.ndarray:
    """Return a blur kernel with a sum of 1 and a side of 2 radius + 1 (Real-ESRGAN, section 3.1).

    Let C be the covariance of standard deviations `along` and `across` (pixels), turned by `angle` (radians), and
    q = x' C^-1 x at the position x: exp(-q / 2) for "gaussian", exp(-q^beta / 2) for "generalised", 1 / (1 + q^beta) for
    "plateau".
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    cosine, sine = math.cos(angle), math.sin(angle)
    q = ((cosine * x + sine * y) / along) ** 2 + ((cosine * y - sine * x) / across) ** 2
    power = q if family == "gaussian" else q**beta
    kernel = 1 / (1 + power) if family == "plateau" else np.exp(-0.5 * power)
    return kernel / kernel.sum()


def sinc_kernel(radius: int, cutoff: float) -> np.ndarray:
    """Return the circular low-pass filter with a cutoff in radians per pixel, cut off at `radius`, with a sum of 1.

    It rings as pictures do that were sharpened too much or compressed (Real-ESRGAN, section 3.3).
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    distance = np.hypot(x, y)
    distance[radius, radius] = 1e-6
    kernel = cutoff * j1(cutoff * distance) / (2 * math.pi * distance)
    return kernel / kernel.sum()


# --- operations ---------------------------------------------------------------------------------------------------

METHODS = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


def filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the correlation of an image with a kernel (2-D, or 1-D along both axes); beyond the border, it is mirrored."""
    if kernel.ndim == 1:
        return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def resize(
    image: np.ndarray, method: str, scale: float = 1, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Return an image at `size` (H, W), or at a relative size.

    "bilinear" and "bicubic" leave out pixels where they shrink, as in Real-ESRGAN; "antialiased" is a bicubic that does not.
    """
    height, width = size or (max(1, round(side * scale)) for side in image.shape[:2])
    if method == "antialiased":
        return images.resize_bicubic(to_levels(image), height, width).astype(image.dtype)
    return cv2.resize(image, (width, height), interpolation=METHODS[method])


def add_gaussian(
    image: np.ndarray, rng: np.random.Generator, strength: float, gray: bool
) -> np.ndarray:
    """Add Gaussian noise with a standard deviation of `strength` levels; `gray`: the same in all channels."""
    return clipped(image + strength * _normal(image, rng, gray))


def add_poisson(
    image: np.ndarray, rng: np.random.Generator, strength: float, gray: bool
) -> np.ndarray:
    """Add `strength` times the noise of counting photons, 255 for white; `gray`: that of the luma, the same in all channels.

    Photons are counted with a normal distribution of the same variance, which takes a quarter of the time to draw.
    """
    photons = clipped(image @ _LUMA.astype(image.dtype) if gray else image.copy())
    return clipped(image + strength * np.sqrt(photons, out=photons) * _normal(image, rng, gray))


_LUMA = np.array([[0.299], [0.587], [0.114]])


def _normal(image: np.ndarray, rng: np.random.Generator, gray: bool) -> np.ndarray:
    return rng.standard_normal((*image.shape[:2], 1 if gray else 3), image.dtype.type)


def jpeg(image: np.ndarray, quality: int, full_chroma: bool) -> np.ndarray:
    """Return an image saved as JPEG and read again; without `full_chroma`, with one colour per 2x2 pixels."""
    if max(image.shape) > images.LARGEST_SIDE["JPEG"]:
        raise cli.UserError(
            f"{image.shape[1]}x{image.shape[0]} pixels are too large for JPEG; make the image smaller first"
        )
    sampling = (
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        if full_chroma
        else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    )
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(to_levels(image), cv2.COLOR_RGB2BGR), options)
    return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB).astype(image.dtype)


def clipped(image: np.ndarray) -> np.ndarray:
    """Clip an image to [0, 255], in place, and return it."""
    return np.clip(image, 0, 255, out=image)


def to_levels(image: np.ndarray) -> np.ndarray:
    """Round levels to uint8; those beyond [0, 255] are clipped."""
    if image.dtype == np.float64:
        image = image.round(
            6
        )  # or the last bit, which machines compute differently, would decide where levels end in .5
    return clipped(np.rint(image)).astype(np.uint8)


# --- records ------------------------------------------------------------------------------------------------------


def describe(name: str) -> dict[str, Any]:
    """Return a degradation's version and all its ranges as plain data, for config.json and checkpoints.

    Raises:
        UserError: there is no degradation of this name.
    """
    if name not in RECIPES:
        raise cli.UserError(f"unknown degradation {name!r}; choose from {', '.join(RECIPES)}")
    if name != "photo":
        return {"version": RECIPES[name]}
    passes = {
        kind: [asdict(ranges) for ranges in passes] for kind, passes in PHOTO["passes"].items()
    }
    return {**PHOTO, "passes": passes, "opencv": cv2.__version__}
