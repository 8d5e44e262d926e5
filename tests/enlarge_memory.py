"""Print the peak memory of enlarging argv[1] million pixels, in bytes beyond that at the start."""

import resource
import sys

import numpy as np
import torch

import inference


class Nearest(torch.nn.Module):
    """A generator without activations, which leaves the memory of the tiling itself."""

    upscale, halo = 4, 0

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, lr):
        return torch.nn.functional.interpolate(lr, scale_factor=4)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


lr = np.zeros((1000 * int(sys.argv[1]), 1000, 3), np.uint8)
inference.upscale(Nearest(), lr[:500], tile=250)
before = peak()
sr = inference.upscale(Nearest(), lr, tile=250)
assert sr.shape == (4 * lr.shape[0], 4000, 3)
print(peak() - before)
