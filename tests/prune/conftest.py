"""Small models and a training loop for the tests of the pruning layer."""

import itertools
import json

import pytest
import torch
from torch import nn


@pytest.fixture
def make_mlp():
    """Three linear layers; the last is the head. `seed` makes two equal ones."""

    def make(seed=0, dims=(16, 32, 32, 2)):
        torch.manual_seed(seed)
        layers = []
        for i, (a, b) in enumerate(itertools.pairwise(dims)):
            layers += [nn.Linear(a, b)] + ([nn.ReLU()] if i < len(dims) - 2 else [])
        return nn.Sequential(*layers)

    return make


@pytest.fixture
def train():
    """Run `steps` optimizer steps on inputs that depend on the step number only."""

    def run(model, optimizer, steps, first=0, after=None):
        width = next(p for p in model.parameters() if p.dim() == 2).shape[1]
        for step in range(first, first + steps):
            x = torch.randn(8, width, generator=torch.Generator().manual_seed(step))
            (model(x) - 1).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            if after:
                after(step + 1)

    return run


@pytest.fixture
def sgd():
    return lambda model, **kw: torch.optim.SGD(model.parameters(), lr=0.05, **kw)


@pytest.fixture(scope="session")
def argv():
    """Flags of a GLUE run in a world's folders."""

    def flags(root, model, out, *more):
        return [
            "--model_name_or_path", str(root / model), "--task_name", "mrpc", "--dataset_dir", str(root / "data"),
            "--output_dir", str(root / out), "--per_device_train_batch_size", "8", "--learning_rate", "1e-3", *more,
        ]  # fmt: skip

    return flags


@pytest.fixture(scope="session")
def glue(argv, forget_precision):
    """Make such a run; its results."""
    from trisparse.prune.glue.parse import parse_arguments
    from trisparse.prune.glue.train import run

    def make(root, model, out, *flags):
        forget_precision()  # of a run in the same test, or in the set-up of one
        return run(parse_arguments(argv(root, model, out, *flags)))

    return make


@pytest.fixture(scope="session")
def weights():
    """The weights that a folder holds."""
    from transformers import AutoModelForSequenceClassification

    return lambda folder: AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


@pytest.fixture(scope="session")
def world(tmp_path_factory, glue):
    """Folder with data/, init/ (no head), dense/ and other/ (both fine-tuned)."""
    from trisparse.prune.glue.demo import make_model
    from trisparse.prune.glue.demo_data import write_task

    root = tmp_path_factory.mktemp("glue")
    write_task(root / "data", "mrpc", train=96, validation=40)
    make_model(root / "init")
    config = json.loads((root / "init" / "config.json").read_text())
    dropout = config | {"hidden_dropout_prob": 0.1}  # draws random numbers
    (root / "init" / "config.json").write_text(json.dumps(dropout))
    glue(root, "init", "dense", "--num_train_epochs", "1")
    glue(root, "init", "other", "--num_train_epochs", "1", "--seed", "7")
    return root


@pytest.fixture
def make_bert():
    """A tiny BERT for classification, its encoder pruned 4x1, in evaluation mode; `seed` makes two equal ones."""
    transformers = pytest.importorskip("transformers")

    def make(seed=0, config=None):
        torch.manual_seed(seed)
        config = config or transformers.BertConfig(
            vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
        model = transformers.BertForSequenceClassification(config).eval()
        for layer in model.bert.encoder.modules():
            if isinstance(layer, nn.Linear):
                kept = torch.rand(len(layer.weight) // 4, layer.weight.shape[1]) < 0.2
                layer.weight.data *= kept.repeat_interleave(4, 0)
        return model

    return make
