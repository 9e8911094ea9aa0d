"""The distillation losses, worked out by hand, and the teacher's cache."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from trisparse import PruningError
from trisparse.prune.glue.distill import Teacher, distillation_loss, hidden_loss, last_hidden, logits_loss
from trisparse.prune.glue.teacher_cache import TeacherCache, free_bytes


def test_padding_is_left_out_of_the_hidden_loss():
    student = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]]])
    teacher = torch.tensor([[[0.0, 2.0], [3.0, 1.0], [0.0, 0.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert hidden_loss(student, teacher, mask).item() == (1 + 0 + 0 + 9) / 4


def test_logits_loss_is_a_batch_mean_times_the_squared_temperature():
    student, teacher = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    p = 1 / (1 + math.exp(-1.0))  # softmax of [2, 0] / 2
    divergence = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    assert logits_loss(student, teacher).item() == pytest.approx(4 * divergence / 2, rel=1e-6)


def test_modes():
    torch.manual_seed(0)
    student = SimpleNamespace(hidden_states=[torch.randn(2, 3, 4)], logits=torch.randn(2, 2))
    teacher = torch.randn(2, 3, 4), torch.randn(2, 2)
    mask = torch.ones(2, 3)
    hidden, logits, both = (distillation_loss(student, teacher, mask, mode) for mode in ("hidden", "logits", "both"))
    assert both == hidden + logits
    assert hidden > 0
    assert logits > 0


def test_hidden_states_are_those_of_the_last_layer_the_decoders_if_there_is_one():
    first, last, mask = torch.randn(2, 3, 4), torch.randn(2, 3, 4), torch.ones(2, 3)
    assert last_hidden(SimpleNamespace(hidden_states=[first, last]), mask) is last
    assert last_hidden(SimpleNamespace(decoder_hidden_states=[first, last]), mask) is last
    for outputs in (SimpleNamespace(hidden_states=[first, last[:, :2]]), SimpleNamespace(hidden_states=None)):
        with pytest.raises(PruningError, match="--distill_mode: the model has no last hidden state.*use logits"):
            last_hidden(outputs, mask)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.calls = 0

    def forward(self, input_ids, attention_mask, output_hidden_states):
        self.calls += 1
        hidden = self.embedding(input_ids)
        logits = (hidden * attention_mask[..., None]).sum(1)[:, :2]
        return SimpleNamespace(hidden_states=[hidden] if output_hidden_states else None, logits=logits)


def batch(rows, index, side="right"):
    width = max(map(len, rows))
    pad = [[0] * (width - len(r)) for r in rows]
    ids = [r + p if side == "right" else p + r for r, p in zip(rows, pad, strict=True)]
    mask = [[1] * len(r) + p if side == "right" else p + [1] * len(r) for r, p in zip(rows, pad, strict=True)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}, torch.tensor(index)


@pytest.mark.parametrize("limit", [None, 0], ids=["memory", "disk"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_the_cache_serves_any_batch_by_example_index(side, limit, tmp_path):
    teacher = Teacher(Model(), "both")
    examples = {2: [1, 2, 3], 0: [4], 1: [5, 6]}
    cache = TeacherCache([1, 2, 3], torch.device("cpu"), tmp_path, limit)
    inputs, index = batch(list(examples.values()), list(examples), side)
    teacher.fill(cache, [{**inputs, "index": index, "labels": torch.zeros(3)}])
    assert teacher.model.calls == 1
    assert cache.is_on_disk == (limit == 0)
    assert not list(tmp_path.iterdir()), "nothing is left behind, whatever happens"
    inputs, index = batch([examples[1], examples[2]], [1, 2], side)
    hidden, logits = teacher(inputs, index)
    assert teacher.model.calls == 1
    want_hidden, want_logits = Teacher(teacher.model, "both")(inputs, index)
    mask = inputs["attention_mask"].bool()
    assert torch.equal(hidden[mask], want_hidden[mask])
    assert not hidden[~mask].any()
    assert torch.equal(logits, want_logits)


def test_without_hidden_states_the_cache_keeps_logits():
    teacher = Teacher(Model(), "logits")
    inputs, index = batch([[1, 2], [3]], [1, 0])
    none, want = teacher(inputs, index)
    cache = TeacherCache([1, 2], torch.device("cpu"))
    teacher.fill(cache, [{**inputs, "index": index}])
    assert none is teacher(inputs, index)[0] is cache.hidden is None
    assert torch.equal(teacher(inputs, index)[1], want)
    assert torch.equal(cache.logits[index], want)
    assert not cache.is_on_disk


def test_processes_on_a_cpu_share_what_is_free(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1200))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert free_bytes(torch.device("cpu")) == 1200
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert free_bytes(torch.device("cpu")) == 400


def test_the_teacher_is_frozen():
    teacher = Teacher(Model().train(), "hidden")
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
