"""Distillation from the dense teacher.

Matching the last hidden states and reusing the teacher's classifier: arXiv 2203.14001. Matching
softened logits: arXiv 1503.02531.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- its usual name

from trisparse.prune.errors import PruningError
from trisparse.prune.glue.teacher_cache import TeacherCache

TEMPERATURE = 2.0


def hidden_loss(student: Tensor, teacher: Tensor, attention_mask: Tensor) -> Tensor:
    """Mean squared difference of hidden states `[batch, tokens, hidden]` over the tokens that are not padding."""
    mask = attention_mask.unsqueeze(2).to(torch.float32)
    difference = (student.float() - teacher.float()) * mask
    return difference.square().sum() / (mask.sum() * student.shape[2])


def logits_loss(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """T^2 * KL(teacher || student) of softened classes `[batch, classes]`, mean over the batch."""
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def last_hidden(outputs: Any, attention_mask: Tensor) -> Tensor:
    """Last hidden states `[batch, tokens, hidden]` of a transformers output, the decoder's if it has one.

    Raises:
        PruningError: there is none for each token, such as in a model that pools tokens on the way.
    """
    states = getattr(outputs, "hidden_states", None) or getattr(outputs, "decoder_hidden_states", None)
    if not states or states[-1].shape[:2] != attention_mask.shape:
        raise PruningError("--distill_mode: the model has no last hidden state of each token to match; use logits")
    return states[-1]


def distillation_loss(student: Any, teacher: tuple[Tensor | None, Tensor], attention_mask: Tensor, mode: str) -> Tensor:
    """Unweighted loss of mode `hidden`, `logits` or `both`.

    Args:
        student: a transformers output with `logits` and, but for mode `logits`, hidden states.
        teacher: hidden states and logits, as a `Teacher` of this mode returns them.
    """
    hidden, logits = teacher
    losses = []
    if mode in ("hidden", "both"):
        assert hidden is not None
        losses.append(hidden_loss(last_hidden(student, attention_mask), hidden, attention_mask))
    if mode in ("logits", "both"):
        losses.append(logits_loss(student.logits, logits))
    return torch.stack(losses).sum()


class Teacher:
    """The frozen dense model: run on every batch, or only once on every example if there is a cache.

    Args:
        model: a transformers classifier.
        mode: of `distillation_loss`; with `logits` nothing is asked of hidden states.
    """

    def __init__(self, model: nn.Module, mode: str) -> None:
        self.model = model.eval().requires_grad_(False)
        self._wants_hidden = mode != "logits"
        self._cache: TeacherCache | None = None

    @torch.no_grad()
    def fill(self, cache: TeacherCache, batches: Iterable[dict[str, Tensor]]) -> None:
        """Run on every example, and answer from what was kept from now on.

        Padding changes the last bits of an output, so the same batches give the same cache.
        """
        for batch in batches:
            inputs = {k: v for k, v in batch.items() if k not in ("index", "labels")}
            cache.put(batch["index"], inputs["attention_mask"].bool(), *self._run(inputs))
        self._cache = cache

    @torch.no_grad()
    def __call__(self, inputs: Mapping[str, Tensor], index: Tensor) -> tuple[Tensor | None, Tensor]:
        """Last hidden states `[batch, tokens, hidden]` if wanted, and logits; `index` names the batch's examples."""
        if self._cache is None:
            return self._run(inputs)
        return self._cache.get(index, inputs["attention_mask"].bool())

    def _run(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        outputs = self.model(**inputs, output_hidden_states=self._wants_hidden)
        return last_hidden(outputs, inputs["attention_mask"]) if self._wants_hidden else None, outputs.logits
