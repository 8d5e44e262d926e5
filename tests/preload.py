"""What the server of `conftest.run` imports before it forks."""

import matplotlib  # noqa: F401

import compat
import train  # noqa: F401

compat.import_torchvision()
