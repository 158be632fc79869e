"""What holds for all tests."""

import pytest
import torch
from hypothesis import HealthCheck, settings

# Machines are busy at times: no example, and no drawing of one, is too slow. Every run draws the same examples;
# `pytest --hypothesis-profile=default` draws new ones.
settings.register_profile("patient", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture
def compiler():
    """PyTorch's compiler without the sizes that other tests showed it, and they without those shown here."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()
