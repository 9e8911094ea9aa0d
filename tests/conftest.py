"""Fixtures shared by all tests."""

import sysconfig
from pathlib import Path

import pytest
import torch


@pytest.fixture
def script():
    """Path of an installed console script; the environment need not be activated."""
    return lambda name: str(Path(sysconfig.get_path("scripts")) / name)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
