"""How LR is made of HR: with bicubic, as in the papers, or with the flaws of everyday photographs.

`DEGRADATIONS` names every degradation. A new one is a new entry beside the others. An entry that a
weight file was trained with is never changed: the file records its version.
"""

import math
import unicodedata
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, ClassVar

import cv2
import numpy as np
from scipy.special import j1

from utils import cli, images

cv2.setNumThreads(1)  # its threads would compete with PyTorch's

Operation = Callable[[np.ndarray], np.ndarray]  # of levels in [0, 255], floating-point (H, W, 3)
MARGIN = 14  # LR pixels around a crop that are degraded with it and then cut off, on average
FILE_BYTES_PER_PIXEL = 200  # peak memory of `degrade_image` per HR pixel; it computes in float64
_BLOCK = 16  # side of a JPEG block with one colour per 2x2 pixels


# --- the contract -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Degradation(ABC):
    """A way to make LR images of HR images.

    Subclasses are frozen dataclasses that implement `degrade`, and `scene` if HR is to change too.
    Their fields are plain data, since config.json and checkpoints record them.

    Attributes:
        version: the name and a number, such as "photo-1". A run is resumed only with the version
            it was started with, and generator files record it. A folder's cache keeps one version
            of each name.
        random_per_crop: whether LR is drawn anew for every training crop. If not, each image has
            one LR image, which is cached, and LR crops are cut from it.
    """

    version: str
    random_per_crop: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The version without its number."""
        return self.version.rsplit("-", 1)[0]

    @abstractmethod
    def degrade(
        self,
        hr: np.ndarray,
        upscale: int,
        rng: np.random.Generator,
        precision: type[np.floating] = np.float32,
    ) -> np.ndarray:
        """Return the LR image of an HR image.

        Args:
            hr: (H, W, 3) uint8, with sides that are multiples of `upscale`.
            upscale: the scale.
            rng: the only source of randomness.
            precision: of floating-point computations.

        Returns:
            (H / upscale, W / upscale, 3) uint8.
        """

    def scene(self, hr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return what a training crop is made of: HR itself, or HR with flaws that SR should keep.

        Args:
            hr: a crop with its margin, (H, W, 3) uint8.
            rng: the only source of randomness.

        Returns:
            (H, W, 3) uint8, from which both LR and HR are made.
        """
        return hr

    def degrade_image(self, hr: np.ndarray, upscale: int, name: str, seed: int = 0) -> np.ndarray:
        """Return the LR image of a whole HR image, the same at every call and on every machine.

        It depends only on the pixels, the seed and the image's name without its suffix. Rounding
        from float64 to 8 bits hides differences in the order in which machines add.
        """
        stem = PurePosixPath(name).with_suffix("").as_posix()
        stem = unicodedata.normalize("NFC", stem)  # macOS decomposes characters in names
        checksum = zlib.crc32(stem.encode("utf-8", "surrogateescape"))
        return self.degrade(hr, upscale, np.random.default_rng([seed, checksum]), np.float64)

    def crops(
        self,
        hr: np.ndarray,
        top: int,
        left: int,
        side: int,
        upscale: int,
        rng: np.random.Generator,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the LR crop (side, side, 3) at a place of an HR image, and its HR crop.

        The crop is degraded together with a margin, which is then cut off, so that a network can
        learn neither the ends of filters nor a fixed position in the grid of JPEG blocks. Beyond
        the borders, the image is mirrored.

        Args:
            hr: the whole image (H, W, 3) uint8.
            top, left, side: position and side of the crop, in LR pixels.
            upscale: the scale.
            rng: the only source of randomness.
        """
        # At x1, the filters of HR reach as far in LR
        margin = MARGIN if upscale > 1 else 2 * MARGIN
        # Shift by up to half a block: 6 to 22 pixels of margin remain on each side, 20 to 36 at x1
        down, across = rng.integers(-_BLOCK // 2, _BLOCK // 2, 2).tolist()
        length = (side + 2 * margin) * upscale
        rows = _mirrored((top - margin + down) * upscale, length, hr.shape[0])
        columns = _mirrored((left - margin + across) * upscale, length, hr.shape[1])
        scene = self.scene(hr[rows][:, columns], rng)
        lr = self.degrade(scene, upscale, rng)
        first_row = margin - down
        first_column = margin - across
        lr_crop = lr[first_row : first_row + side, first_column : first_column + side]
        hr_rows = slice(first_row * upscale, (first_row + side) * upscale)
        hr_columns = slice(first_column * upscale, (first_column + side) * upscale)
        return lr_crop, scene[hr_rows, hr_columns]

    def examples(self, hr: np.ndarray, upscale: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return six LR images of one HR image, for `prepare_data.py degraded --sheet`."""
        return [self.degrade(hr, upscale, rng) for _ in range(6)]

    def record(self) -> dict[str, Any]:
        """Return the version and all ranges as plain data, for config.json and checkpoints."""
        return asdict(self)


def _mirrored(start: int, length: int, limit: int) -> np.ndarray | slice:
    """Return the indices start, start + 1, ..., mirrored at 0 and limit - 1 without repeating."""
    if start >= 0 and start + length <= limit:
        return slice(start, start + length)
    period = max(1, 2 * (limit - 1))
    indices = np.arange(start, start + length) % period
    return np.minimum(indices, period - indices)


# --- bicubic ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bicubic(Degradation):
    """Bicubic downscaling with a low-pass filter, and nothing else."""

    random_per_crop: ClassVar[bool] = False

    def degrade(
        self,
        hr: np.ndarray,
        upscale: int,
        rng: np.random.Generator,
        precision: type[np.floating] = np.float32,
    ) -> np.ndarray:
        """Return the LR image of an HR image; nothing is random."""
        return images.downscale(hr, upscale)


# --- photographs --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """The ranges of one pass of blur, resizing, noise and JPEG; values are drawn uniformly."""

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


@dataclass(frozen=True)
class Photo(Degradation):
    """The second-order model of Real-ESRGAN (Wang et al. 2021, section 3).

    A sample gets two passes of blur, resizing, noise and JPEG, and sinc filters for ringing. As in
    BSRGAN (Zhang et al. 2021), a share of the samples stays clean or almost clean, so that a
    network learns to leave a good picture alone. HR is not sharpened, as Real-ESRGAN does.

    The operations of a sample are drawn first, with their parameters, and then applied.
    """

    shares: dict[str, float]  # of clean samples (bicubic), light ones (one pass) and full ones
    passes: dict[str, list[Pass]]  # of light and full samples
    blurs: dict[str, float]  # probability of each family of blur kernels
    anisotropic: dict[str, float]  # probability of unequal axes, turned at random, by family
    beta: dict[str, tuple[float, float]]  # of the families; half of them below 1, half above
    sinc: float  # probability of a sinc filter in place of a pass's blur
    final_sinc: float  # probability of a sinc filter at the end of a full sample
    cutoff: tuple[float, float]  # of sinc filters, in radians per pixel
    gray_noise: float  # probability that noise is the same in all three channels
    full_chroma: float  # probability of JPEG with a colour per pixel instead of per 2x2 pixels
    radius: tuple[int, int]  # of filters, in pixels; of Gaussians, at most 3 sigma
    final_radius: tuple[int, int]  # of the sinc filter at the end, in LR pixels

    def degrade(
        self,
        hr: np.ndarray,
        upscale: int,
        rng: np.random.Generator,
        precision: type[np.floating] = np.float32,
        kind: str | None = None,
    ) -> np.ndarray:
        """Return the LR image of an HR image as a degraded photograph.

        Args:
            hr, upscale, rng, precision: see `Degradation.degrade`.
            kind: "clean", "light" or "full"; None to draw it.

        Raises:
            UserError: the image is too large for JPEG.
        """
        # For this thread: Intel's routines resize less precisely than OpenCV's own
        cv2.ipp.setUseIPP(False)
        lr_shape = (hr.shape[0] // upscale, hr.shape[1] // upscale)
        operations = self.draw(rng, lr_shape, kind)
        if not operations:
            return images.downscale(np.ascontiguousarray(hr), upscale)
        image: np.ndarray = hr.astype(precision)
        for operation in operations:
            image = operation(image)
        return to_levels(image)

    def examples(self, hr: np.ndarray, upscale: int, rng: np.random.Generator) -> list[np.ndarray]:
        """Return three light and three full samples of one HR image."""
        kinds = [*3 * ["light"], *3 * ["full"]]
        return [self.degrade(hr, upscale, rng, kind=kind) for kind in kinds]

    def record(self) -> dict[str, Any]:
        """Return the version, all ranges, and the version of OpenCV, as plain data."""
        return {**super().record(), "opencv": cv2.__version__}

    def draw(
        self, rng: np.random.Generator, lr_shape: tuple[int, int], kind: str | None = None
    ) -> list[Operation]:
        """Draw the operations of a sample, which end at the size `lr_shape` (H, W).

        Each is a `functools.partial`, which shows its function and its parameters. A clean sample
        has none.

        Args:
            rng: the only source of randomness.
            lr_shape: height and width of the LR image.
            kind: "clean", "light" or "full"; None to draw it.
        """
        if kind is None:
            kind = choose(rng, self.shares)
        if kind == "clean":
            return []
        passes = [self._draw_pass(rng, ranges, lr_shape) for ranges in self.passes[kind]]
        if kind == "light":
            return passes[0]
        first, second = passes
        compress = second.pop()
        method = one_of(rng, self.passes["full"][1].methods)
        finish: list[Operation] = [partial(resize, size=lr_shape, method=method)]
        if rng.random() < self.final_sinc:
            finish.append(partial(filtered, kernel=self.draw_sinc(rng, self.final_radius)))
        if rng.random() < 0.5:
            return [*first, *second, compress, *finish]
        return [*first, *second, *finish, compress]

    def _draw_pass(
        self, rng: np.random.Generator, ranges: Pass, lr_shape: tuple[int, int]
    ) -> list[Operation]:
        """Draw the operations of one pass; the last is JPEG."""
        operations: list[Operation] = []

        # Blur
        if rng.random() < ranges.blur:
            operations.append(partial(filtered, kernel=self.draw_blur(rng, ranges.sigma)))

        # Resizing
        low, high = ranges.scale
        limits = {"enlarge": (1, high), "shrink": (low, 1), "keep": (1, 1)}
        directions = {"enlarge": ranges.enlarge, "shrink": ranges.shrink, "keep": 1}
        direction = choose(rng, directions)
        scale = rng.uniform(*limits[direction])
        method = one_of(rng, ranges.methods)
        if ranges.relative_to == "LR":
            height, width = (max(1, round(side * scale)) for side in lr_shape)
            operations.append(partial(resize, size=(height, width), method=method))
        elif direction != "keep":
            operations.append(partial(resize, scale=scale, method=method))

        # Noise
        if rng.random() < ranges.noise:
            operations.append(self.draw_noise(rng, ranges))

        # JPEG
        operations.append(self.draw_compression(rng, ranges.quality))
        return operations

    def draw_noise(self, rng: np.random.Generator, ranges: Pass) -> Operation:
        """Draw the noise of a pass: Gaussian or Poisson, in colour or gray."""
        gaussian = rng.random() < 0.5
        gray = bool(rng.random() < self.gray_noise)
        if gaussian:
            strength = rng.uniform(*ranges.gaussian)
            return partial(add_gaussian, rng=rng, strength=strength, gray=gray)
        strength = rng.uniform(*ranges.poisson)
        return partial(add_poisson, rng=rng, strength=strength, gray=gray)

    def draw_compression(self, rng: np.random.Generator, quality: tuple[int, int]) -> Operation:
        """Draw the JPEG of a pass, with a quality in the range `quality`."""
        drawn = integer_between(rng, quality)
        full_chroma = bool(rng.random() < self.full_chroma)
        return partial(jpeg, quality=drawn, full_chroma=full_chroma)

    def draw_blur(self, rng: np.random.Generator, sigma: tuple[float, float]) -> np.ndarray:
        """Draw a kernel for `filtered`: a sinc filter, or a blur with axes in the range `sigma`."""
        if rng.random() < self.sinc:
            return self.draw_sinc(rng, self.radius)
        family = choose(rng, self.blurs)
        radius = integer_between(rng, self.radius)
        along = across = rng.uniform(*sigma)
        angle = 0.0
        if rng.random() < self.anisotropic[family]:
            across = rng.uniform(*sigma)
            angle = rng.uniform(-math.pi, math.pi)
        if family == "gaussian":
            radius = min(radius, math.ceil(3 * max(along, across)))
            kernel = blur_kernel(family, radius, along, across, angle)
            # A round one is separable: the product of its sums along both axes
            return kernel if angle else kernel.sum(0)
        low, high = self.beta[family]
        beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)
        return blur_kernel(family, radius, along, across, angle, beta)

    def draw_sinc(self, rng: np.random.Generator, radius: tuple[int, int]) -> np.ndarray:
        """Draw a sinc filter with a radius in the range `radius`."""
        return sinc_kernel(integer_between(rng, radius), rng.uniform(*self.cutoff))


@dataclass(frozen=True)
class CameraPhoto(Photo):
    """`Photo` with four more flaws of everyday photographs.

    Noise may be that of a sensor behind its colour filter, JPEG may be WebP, and a light sample may
    be compressed again, as messengers do. A training crop may be out of focus, wholly or in part.
    That is no flaw to undo, but how most backgrounds look, so HR is out of focus too: a network
    that never sees it invents texture there.
    """

    sensor: float  # probability that noise is a sensor's
    read_noise: tuple[float, float]  # of a sensor without light, in levels
    webp: float  # probability of WebP in place of a pass's JPEG
    again: float  # probability that a light sample is compressed again as JPEG
    again_quality: tuple[int, int]
    defocus: float  # probability that a crop is out of focus
    in_part: float  # probability that part of such a crop is in focus
    defocus_radius: tuple[float, float]  # of the disc that a point becomes, in HR pixels
    transition: tuple[float, float]  # width of the zone between in and out of focus, in HR pixels

    @property
    def name(self) -> str:
        """Another one than `Photo`'s, with which a folder's cache is kept side by side."""
        return f"camera-{super().name}"

    def scene(self, hr: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return HR, or HR out of focus; see `Degradation.scene`."""
        if rng.random() >= self.defocus:
            return hr
        sharp = hr.astype(np.float32)
        blurred = filtered(sharp, disc_kernel(rng.uniform(*self.defocus_radius)))
        if rng.random() >= self.in_part:
            return to_levels(blurred)
        # A straight zone at any angle, with its middle anywhere in the crop
        height, width = hr.shape[:2]
        y, x = np.ogrid[:height, :width]
        angle = rng.uniform(-math.pi, math.pi)
        row, column = rng.uniform(0, (height, width))
        distance = (y - row) * math.sin(angle) + (x - column) * math.cos(angle)
        in_focus = np.clip(0.5 + distance / rng.uniform(*self.transition), 0, 1)
        return to_levels(blurred + (sharp - blurred) * in_focus[..., None].astype(np.float32))

    def draw(
        self, rng: np.random.Generator, lr_shape: tuple[int, int], kind: str | None = None
    ) -> list[Operation]:
        """Draw the operations of a sample, as `Photo.draw` does."""
        if kind is None:
            kind = choose(rng, self.shares)
        operations = super().draw(rng, lr_shape, kind)
        if kind == "light" and rng.random() < self.again:
            operations.append(super().draw_compression(rng, self.again_quality))
        return operations

    def draw_noise(self, rng: np.random.Generator, ranges: Pass) -> Operation:
        """Draw the noise of a pass: a sensor's, or as `Photo.draw_noise` does."""
        if rng.random() < self.sensor:
            strength = rng.uniform(*ranges.poisson)
            read_noise = rng.uniform(*self.read_noise)
            return partial(add_sensor_noise, rng=rng, strength=strength, read_noise=read_noise)
        return super().draw_noise(rng, ranges)

    def draw_compression(self, rng: np.random.Generator, quality: tuple[int, int]) -> Operation:
        """Draw the WebP or JPEG of a pass, with a quality in the range `quality`."""
        if rng.random() < self.webp:
            return partial(webp, quality=integer_between(rng, quality))
        return super().draw_compression(rng, quality)


# --- the values ---------------------------------------------------------------------------------

BICUBIC = Bicubic("bicubic-1")

# Real-ESRGAN's values (its x4 configuration) beside those of photo-1. Ours are milder: the pictures
# that people keep are better than the worst that the paper trains for, and a network that has seen
# only those smooths good ones.
#
#                first pass                  second pass
#                photo-1      Real-ESRGAN    photo-1      Real-ESRGAN
#   blur         0.8          1              0.5          0.8
#   sigma        0.2 to 2.4   0.2 to 3       0.2 to 1.2   0.2 to 1.5
#   enlarge      0.2          0.2            0.3          0.3
#   shrink       0.7          0.7            0.4          0.4
#   scale        0.3 to 1.5   0.15 to 1.5    0.6 to 1.5   0.3 to 1.2
#   noise        0.8          1              0.6          1
#   gaussian     1 to 20      1 to 30        1 to 10      1 to 25
#   poisson      0.05 to 2    0.05 to 3      0.05 to 0.7  0.05 to 2.5
#   quality      40 to 95     30 to 95       30 to 95     30 to 95
#
#                photo-1                               Real-ESRGAN
#   shares       clean 0.1, light 0.4, full 0.5        full 1
#   methods      area, bilinear, bicubic, antialiased  area, bilinear, bicubic
#   final_sinc   0.5                                   0.8
#   final_radius 3 to 6                                3 to 10
#   full_chroma  0.3                                   0
#   cutoff       pi/3 to pi                            pi/3 to pi; in a pass, from a radius of 6
#                                                      on, pi/5 to pi
#
# The other values are the same.
PHOTO_1 = Photo(
    version="photo-1",
    shares={"clean": 0.1, "light": 0.4, "full": 0.5},
    passes={
        # A good photograph that was made smaller and saved
        "light": [
            Pass(
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
        ],
        "full": [
            Pass(
                blur=0.8,
                sigma=(0.2, 2.4),
                relative_to="HR",
                enlarge=0.2,
                shrink=0.7,
                scale=(0.3, 1.5),
                methods=("area", "bilinear", "bicubic", "antialiased"),
                noise=0.8,
                gaussian=(1, 20),
                poisson=(0.05, 2),
                quality=(40, 95),
            ),
            Pass(
                blur=0.5,
                sigma=(0.2, 1.2),
                relative_to="LR",
                enlarge=0.3,
                shrink=0.4,
                scale=(0.6, 1.5),
                methods=("area", "bilinear", "bicubic", "antialiased"),
                noise=0.6,
                gaussian=(1, 10),
                poisson=(0.05, 0.7),
                quality=(30, 95),
            ),
        ],
    },
    blurs={"gaussian": 0.7, "generalised": 0.15, "plateau": 0.15},
    anisotropic={"gaussian": 0.36, "generalised": 0.2, "plateau": 0.2},
    beta={"generalised": (0.5, 4), "plateau": (1, 2)},
    sinc=0.1,
    final_sinc=0.5,
    cutoff=(math.pi / 3, math.pi),
    gray_noise=0.4,
    full_chroma=0.3,
    radius=(3, 10),
    final_radius=(3, 6),
)

# Against photo-1: the flaws that it lacks, more blur (networks trained with photo-1 hardly undo
# any), and more clean and light samples (most pictures that people enlarge are such).
PHOTO_2 = CameraPhoto(
    **vars(PHOTO_1)
    | {
        "version": "photo-2",
        "shares": {"clean": 0.15, "light": 0.45, "full": 0.4},
        "passes": {
            "light": [
                replace(
                    PHOTO_1.passes["light"][0],
                    blur=0.6,
                    sigma=(0.2, 2.6),
                    gaussian=(0.5, 5),
                    poisson=(0.05, 0.35),
                    quality=(45, 98),
                )
            ],
            "full": [
                replace(PHOTO_1.passes["full"][0], sigma=(0.2, 3)),
                replace(PHOTO_1.passes["full"][1], sigma=(0.2, 1.5), scale=(0.5, 1.5)),
            ],
        },
    },
    sensor=0.3,
    read_noise=(0, 3),
    webp=0.15,
    again=0.35,
    again_quality=(60, 90),
    defocus=0.25,
    in_part=0.5,
    defocus_radius=(4, 14),
    transition=(2, 60),
)

DEGRADATIONS: dict[str, Degradation] = {
    "bicubic": BICUBIC,
    "photo": PHOTO_1,
    "photo-2": PHOTO_2,
}


# --- drawing ------------------------------------------------------------------------------------


def one_of(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    """Draw one of several names, all equally likely."""
    return names[rng.integers(len(names))]


def integer_between(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    """Draw a whole number between two limits, which are included."""
    return int(rng.integers(limits[0], limits[1] + 1))


def choose(rng: np.random.Generator, probabilities: dict[str, float]) -> str:
    """Draw one of the keys, each with its probability; the last takes what is left to 1."""
    number = rng.random()
    for key, probability in probabilities.items():
        number -= probability
        if number < 0:
            return key
    return key


# --- filters ------------------------------------------------------------------------------------


def blur_kernel(
    family: str, radius: int, along: float, across: float, angle: float, beta: float = 1
) -> np.ndarray:
    """Return a blur kernel with a sum of 1 and a side of 2 radius + 1 (Real-ESRGAN, section 3.1).

    Let C be the covariance of standard deviations `along` and `across` (pixels), turned by `angle`
    (radians), and q = x' C^-1 x at the position x. The kernel is exp(-q / 2) for "gaussian",
    exp(-q^beta / 2) for "generalised" and 1 / (1 + q^beta) for "plateau".
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    cosine = math.cos(angle)
    sine = math.sin(angle)
    q = ((cosine * x + sine * y) / along) ** 2 + ((cosine * y - sine * x) / across) ** 2
    power = q if family == "gaussian" else q**beta
    kernel = 1 / (1 + power) if family == "plateau" else np.exp(-0.5 * power)
    return kernel / kernel.sum()


def sinc_kernel(radius: int, cutoff: float) -> np.ndarray:
    """Return a circular low-pass filter with a sum of 1 (Real-ESRGAN, section 3.3).

    It rings, like pictures that were sharpened too much or compressed. `cutoff` is in radians per
    pixel, and the filter is cut off at `radius`.
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    distance = np.hypot(x, y)
    distance[radius, radius] = 1e-6
    kernel = cutoff * j1(cutoff * distance) / (2 * math.pi * distance)
    return kernel / kernel.sum()


def disc_kernel(radius: float) -> np.ndarray:
    """Return what a lens out of focus makes of a point: an even disc with a sum of 1.

    A pixel on the rim counts by the share of its width inside `radius` (pixels).
    """
    reach = math.ceil(radius)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(x, y), 0, 1)
    return kernel / kernel.sum()


# --- operations ---------------------------------------------------------------------------------

METHODS = {"area": cv2.INTER_AREA, "bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
_LUMA = np.array([[0.299], [0.587], [0.114]])


def filtered(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Return the correlation of an image with a kernel, 2-D or 1-D along both axes.

    Beyond the border, the image is mirrored.
    """
    if kernel.ndim == 1:
        return cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101)
    return cv2.filter2D(image, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def resize(
    image: np.ndarray, method: str, scale: float = 1, size: tuple[int, int] | None = None
) -> np.ndarray:
    """Return an image at `size` (H, W), or at a relative size.

    As in Real-ESRGAN, "bilinear" and "bicubic" skip pixels when they shrink an image;
    "antialiased" is a bicubic that does not.
    """
    height, width = size or (max(1, round(side * scale)) for side in image.shape[:2])
    if method == "antialiased":
        return images.resize_bicubic(to_levels(image), width, height).astype(image.dtype)
    return cv2.resize(image, (width, height), interpolation=METHODS[method])


def add_gaussian(
    image: np.ndarray, rng: np.random.Generator, strength: float, gray: bool
) -> np.ndarray:
    """Add Gaussian noise with a standard deviation of `strength` levels.

    If `gray`, it is the same in all channels.
    """
    return clipped(image + strength * _normal(image, rng, gray))


def add_poisson(
    image: np.ndarray, rng: np.random.Generator, strength: float, gray: bool
) -> np.ndarray:
    """Add `strength` times the noise of counting photons, where white is 255 photons.

    If `gray`, it is the noise of the luma, the same in all channels. A normal distribution of the
    same variance stands for the count, since drawing from it takes a quarter of the time.
    """
    photons = clipped(image @ _LUMA.astype(image.dtype) if gray else image.copy())
    return clipped(image + strength * np.sqrt(photons, out=photons) * _normal(image, rng, gray))


def add_sensor_noise(
    image: np.ndarray, rng: np.random.Generator, strength: float, read_noise: float
) -> np.ndarray:
    """Add the noise of a sensor with one colour per pixel (RGGB).

    The two other colours of a pixel are interpolated bilinearly, which makes spots of the noise.
    Only noise takes this way, so the image stays as sharp as it is.

    Args:
        image: levels (H, W, 3).
        rng: the only source of randomness.
        strength: of the noise of counting photons, as for `add_poisson`.
        read_noise: standard deviation of what is added without light, in levels.
    """
    photons = clipped(image.copy())
    spread = np.sqrt(strength**2 * photons + read_noise**2)
    noise = spread * _normal(image, rng, gray=True)
    red_and_blue = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 4
    green = np.array([[0, 1, 0], [1, 4, 1], [0, 1, 0]]) / 4
    places = {
        (0, 0): 0,
        (0, 1): 1,
        (1, 0): 1,
        (1, 1): 2,
    }
    seen = np.zeros_like(noise)  # what the pixels of each colour measure
    for (row, column), channel in places.items():
        seen[row::2, column::2, channel] = noise[row::2, column::2, channel]
    for channel, kernel in enumerate((red_and_blue, green, red_and_blue)):
        seen[..., channel] = filtered(seen[..., channel], kernel)
    return clipped(image + seen)


def _normal(image: np.ndarray, rng: np.random.Generator, gray: bool) -> np.ndarray:
    return rng.standard_normal((*image.shape[:2], 1 if gray else 3), image.dtype.type)


def webp(image: np.ndarray, quality: int) -> np.ndarray:
    """Return an image saved as lossy WebP and read again.

    Raises:
        UserError: the image is too large for WebP.
    """
    _check_sides(image, "WEBP")
    return _saved(image, ".webp", [cv2.IMWRITE_WEBP_QUALITY, quality])


def jpeg(image: np.ndarray, quality: int, full_chroma: bool) -> np.ndarray:
    """Return an image saved as JPEG and read again.

    Without `full_chroma`, the file has one colour per 2x2 pixels.

    Raises:
        UserError: the image is too large for JPEG.
    """
    _check_sides(image, "JPEG")
    if full_chroma:
        sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    else:
        sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return _saved(image, ".jpg", options)


def _check_sides(image: np.ndarray, file_format: str) -> None:
    height, width = image.shape[:2]
    if max(height, width) > images.LARGEST_SIDE[file_format]:
        raise cli.UserError(
            f"{width}x{height} pixels are too large for {file_format}; make the image smaller first"
        )


def _saved(image: np.ndarray, suffix: str, options: list[int]) -> np.ndarray:
    _, data = cv2.imencode(suffix, cv2.cvtColor(to_levels(image), cv2.COLOR_RGB2BGR), options)
    decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert decoded is not None  # it was encoded just now
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB).astype(image.dtype)


def clipped(image: np.ndarray) -> np.ndarray:
    """Clip an image to [0, 255], in place, and return it."""
    return np.clip(image, 0, 255, out=image)


def to_levels(image: np.ndarray) -> np.ndarray:
    """Round levels to uint8; those beyond [0, 255] are clipped."""
    if image.dtype == np.float64:
        # Or the last bit, which differs between machines, would decide where levels end in .5
        image = image.round(6)
    return clipped(np.rint(image)).astype(np.uint8)
