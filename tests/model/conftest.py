"""Fixtures of the model's tests."""

import pytest
import torch

from tests.model.glip_reference import seeded_model


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The machine's cores are shared, and the reference was computed in one thread order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def glip_t():
    """GLIP-T at full size with the reference's weights, built once; not to be changed."""
    return seeded_model("glip-t", fusion_dropout=0.0)
