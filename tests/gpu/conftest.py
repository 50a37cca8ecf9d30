"""These tests judge the kernels themselves: they are used unchecked."""

import os

os.environ["NANONET_GPU_KERNELS"] = "1"
