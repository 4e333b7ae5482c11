"""Compiled functions: the same values and names, one warning where there is no compiler, errors as they are."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch._inductor import config as inductor

from pipeline.system import compiling
from pipeline.system.compiling import compiled


@pytest.fixture(autouse=True)
def first_attempt(monkeypatch):
    monkeypatch.setattr(compiling, "_failed", set())
    torch.compiler.reset()


def warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "glip_self_train"]


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))


def gradients(network: nn.Module, call, rows: torch.Tensor) -> list[torch.Tensor]:
    network.zero_grad()
    call(rows).square().sum().backward()
    return [p.grad.clone() for p in network.parameters()]


def test_off_is_the_function_itself():
    network = perceptron()
    assert compiled(network, "off", "x") is network


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["auto", "max"])
def test_compiled_values_and_gradients(mode, caplog):
    if shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    network = perceptron()
    names = list(network.state_dict())
    call = compiled(network, mode, "x", dynamic=True)
    for rows in (torch.randn(3, 4), torch.randn(7, 4)):
        torch.testing.assert_close(gradients(network, call, rows), gradients(network, network, rows))
    assert list(network.state_dict()) == names
    assert not warnings(caplog)


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_without_a_compiler(dynamic, caplog):
    """The eager values and gradients, and one warning for several functions of a name."""
    networks = perceptron(), perceptron()
    calls = [compiled(network, "auto", "the heads", dynamic=dynamic) for network in networks]
    without = inductor.patch({"cpp.cxx": (None, "/nonexistent/g++")})
    with torch.compiler.config.patch(force_disable_caches=True), without:
        for rows in (torch.randn(3, 4), torch.randn(7, 4)):
            for network, call in zip(networks, calls, strict=True):
                torch.testing.assert_close(gradients(network, call, rows), gradients(network, network, rows))
    (warning,) = warnings(caplog)
    assert warning.startswith("the heads: not compiled, computed eagerly: InvalidCxxCompiler: No working")


def test_errors_of_the_function_are_its_own(caplog):
    def fails(x):
        raise ValueError("found a wrong size")

    with pytest.raises(ValueError, match="found a wrong size"):
        compiled(fails, "auto", "x")(torch.ones(1))
    assert not warnings(caplog)


@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_is_no_failed_compilation(error, monkeypatch, caplog):
    """The error goes to whoever halves the batch, and what was compiled stays."""
    calls = []

    def compile_to_little_memory(function, **settings):
        def fast(x):
            calls.append(x)
            raise error

        return fast

    monkeypatch.setattr(torch, "compile", compile_to_little_memory)
    call = compiled(lambda x: x, "auto", "x")
    for _ in range(2):
        with pytest.raises(type(error)):
            call(torch.ones(1))
    assert len(calls) == 2 and not warnings(caplog)
