"""Triton kernels of nanonet, imported as nanonet.kernels.

Where the working directory is the root of the repository, `import kernels` finds this folder instead of the PyPI
package of that name, which transformers looks for. Then it has to look like a folder without a package (no __file__):
transformers goes on without, and whoever does need the package is told what is in its place.
"""

if __name__ != "nanonet.kernels":
    del __file__

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"kernels.{name}: this folder is nanonet.kernels; start Python in another directory")
