"""torch.compile with a fallback to eager computation. Imports torch only when something is compiled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Literal

from pipeline.system.devices import is_device_lost

log = logging.getLogger("glip_self_train")

CompileMode = Literal["off", "auto", "max"]
VARIANTS = 64
"""Variants of a function (shapes, types) that are compiled; torch's default, 8, is below the number of padded sizes."""
_failed: set[str] = set()
"""Names whose compilation failed in this process."""
_lock = threading.Lock()


def compiled(
    function: Callable[..., Any], mode: CompileMode, what: str, *, dynamic: bool | None = None
) -> Callable[..., Any]:
    """Return ``function`` compiled by torch.compile when it is first called; with "off", ``function`` itself.

    A module keeps its parameters' names. When compilation fails (no C++ compiler, no Triton), the
    function is computed eagerly: one warning for each name, and no further compilation under it.

    Args:
        function: a function or module without side effects.
        mode: "auto" is torch's default mode, "max" its "max-autotune". With CUDA graphs ("max",
            unless ``dynamic`` is true) the next call overwrites results: copy what is to be kept.
        what: name in the warning; may be shared by several functions.
        dynamic: see torch.compile; true: one variant for all sizes.
    """
    return function if mode == "off" else _Compiled(function, mode, what, dynamic)


class _Compiled:
    """A function, its compiled form, and which of them is called."""

    def __init__(self, function: Callable[..., Any], mode: CompileMode, what: str, dynamic: bool | None) -> None:
        import torch

        graphs = "" if not dynamic else "-no-cudagraphs"
        self._function, self._what = function, what
        self._fast: Callable[..., Any] | None = torch.compile(
            function, dynamic=dynamic, mode="default" if mode == "auto" else f"max-autotune{graphs}"
        )
        self._worked = False  # what has worked goes on: gradient checkpointing has to compute twice alike

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._fast is None or (self._what in _failed and not self._worked):
            return self._function(*args, **kwargs)
        import torch
        from torch._dynamo import config as dynamo
        from torch._functorch import config as autograd

        try:
            # the backward pass runs outside of autocast; compiled later, its failure could not be caught here
            backward = autograd.patch(force_non_lazy_backward_lowering=True, backward_pass_autocast="off")
            with dynamo.patch(recompile_limit=VARIANTS), backward:
                result = self._fast(*args, **kwargs)
            self._worked = True
            return result
        except Exception as error:
            if is_device_lost(error) or isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
                raise
            reason = " ".join(str(error).split("\n\n")[0].split()) or type(error).__name__
        result = self._function(*args, **kwargs)  # raises what is not the compiler's fault
        self._fast = None
        with _lock:
            if self._what not in _failed:
                _failed.add(self._what)
                log.warning("%s: not compiled, computed eagerly: %s", self._what, reason)
        return result
