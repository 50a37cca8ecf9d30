"""Triton's kernels on the CPU, by its interpreter; on the GPU where there is one."""

import os

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed (Linux only)")


def interpret() -> None:
    """Turn the interpreter on in this process.

    Triton asks for the variable when a kernel is defined, and torch._dynamo may have imported triton before: then
    tl.sum and its like are already compiled functions, which the interpreter cannot call. And NumPy 2.4 refuses to
    make an int of the arrays of one element that stand for its scalars.
    """
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.language as tl
    from triton.language import standard
    from triton.runtime import interpreter
    from triton.runtime.jit import JITFunction

    for module in (standard, tl):
        for name, value in list(vars(module).items()):
            if isinstance(value, JITFunction):
                setattr(module, name, interpreter.InterpretedFunction(value.fn))
    patch = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_lang_tensor


if not torch.cuda.is_available():
    interpret()


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
