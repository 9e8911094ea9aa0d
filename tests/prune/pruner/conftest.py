"""What tests of a Pruner share."""

import pytest


@pytest.fixture
def pruned():
    """How many weights that the masks prune are not zero."""
    return lambda pruner, model: sum(
        int((model.get_submodule(name).weight[~mask] != 0).sum()) for name, mask in pruner.masks().items()
    )
