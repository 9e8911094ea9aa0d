"""What a one-shot method does with one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from trisparse.prune.layers.layer import Layer


class Method:
    """Sees the inputs of layers, then prunes each; what it saw of a layer goes with that."""

    def see(self, layer: Layer, x: Tensor) -> None:
        """Take in inputs `[tokens, in]` of a layer, on the layer's device."""
        raise NotImplementedError

    def unseen(self, layer: Layer) -> None:
        """Take in that no token comes to this expert: as if each input came alone, so that sizes decide."""
        self.see(layer, torch.eye(layer.view.shape[1], dtype=torch.float32, device=layer.weight.device))

    def prune(self, layer: Layer) -> None:
        """Zero weights of a layer in place."""
        raise NotImplementedError
