"""Teaches transformers' `from_pretrained` to load compressed models. Importing this file registers it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from trisparse.prune.channels.obstacles import check_numbers
from trisparse.prune.costs.fold_activations import fold_activations
from trisparse.prune.deploy.checkpoint_files import check_digests, check_layers, read_headers
from trisparse.prune.deploy.layer_spec import (
    METHOD,
    PackedTensors,
    activations_of,
    describe,
    is_packed,
    note_in_config,
    shrunken,
)
from trisparse.prune.deploy.saved_names import headers_in_model, layers_in_model
from trisparse.prune.deploy.spec_check import check_entry
from trisparse.prune.errors import PruningError
from trisparse.prune.layers.modules import replace_module


@register_quantization_config(METHOD)
class TrisparseConfig(QuantizationConfigMixin):
    """The entry `quantization_config` of a compressed model's config."""

    def __init__(self, **entry: Any) -> None:
        self.quant_method: Any = METHOD
        self.entry = {**entry, "quant_method": METHOD}

    def to_dict(self) -> dict[str, Any]:
        """Without digests, which hold for the files they were read with."""
        return {key: copy.deepcopy(value) for key, value in self.entry.items() if key != "files"}


@register_quantizer(METHOD)
class TrisparseQuantizer(HfQuantizer):
    """Puts layers that a file can be read into in the place of those that the model makes, then packed ones."""

    is_trainable = False
    is_compileable = True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise PruningError("quantization_config: trisparse compresses pruned models, use trisparse.compress")

    def is_serializable(self) -> bool:
        return True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        config: Any = self.quantization_config
        files = [Path(file) for file in kwargs["checkpoint_files"] or []]
        where = str(files[0].parent / "config.json") if files else "config.json"
        digests = config.entry.get("files")
        layers = layers_in_model(model, check_entry(config.entry, where), digests is not None, where)
        if files:
            headers = read_headers(files)
            if digests is not None:
                check_digests(files, digests)
            layers = check_layers(headers_in_model(model, headers, layers), layers, digests is not None)
        for name, spec in layers.items():
            layer: Any = model.get_submodule(name)
            packed = is_packed(spec)
            replace_module(model, name, PackedTensors(spec, layer) if packed else shrunken(layer, spec))
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        read = [(name, module) for name, module in model.named_modules() if isinstance(module, PackedTensors)]
        for name, tensors in read:
            check_numbers(tensors, f"{name}.")
            for key, tensor in (*tensors.named_parameters(), *tensors.named_buffers()):
                if not getattr(tensor, "_is_hf_initialized", False):  # transformers' mark of what it has read
                    raise PruningError(
                        f"{name}.{key}: was not loaded; want the weights that were saved with this config"
                    )
            try:
                replace_module(model, name, tensors.layer())
            except RuntimeError as error:
                lines = [line.strip() for line in str(error).splitlines()]
                raise PruningError(f"{name}: its tensors are damaged: {lines[-1]}") from None
        config: Any = self.quantization_config
        fold_activations(model, activations_of({name: tensors.spec for name, tensors in read}))
        note_in_config(model)  # in parts that have a config of their own
        config.entry = describe(model)  # by the names that its layers have in this class
        model.config.quantization_config = config
        if not config.entry["layers"]:
            self.remove_quantization_config(model)  # all was dense: a model that shared its config object
        return model
