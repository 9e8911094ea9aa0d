"""A model that an earlier layout of the package compressed still loads, and computes what it did."""

import json
from pathlib import Path

import pytest
import torch

from trisparse import from_pretrained
from trisparse.sparse_ops import Linear24, LinearBlocks

transformers = pytest.importorskip("transformers")
FOLDER = Path(__file__).parent / "written_before" / "compressed"


@pytest.mark.parametrize("load", [from_pretrained, transformers.AutoModelForSequenceClassification.from_pretrained])
def test_a_compressed_model_loads(load):
    model = load(FOLDER).eval()
    assert {type(layer) for layer in model.modules()} >= {Linear24, LinearBlocks}
    with torch.no_grad():
        logits = model(input_ids=torch.arange(8)[None]).logits
    torch.testing.assert_close(logits, torch.tensor(json.loads((FOLDER / "logits.json").read_text())))
