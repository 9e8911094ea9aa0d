"""Find chains: by what the model does with an example, or else by the names of its modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from trisparse.prune.channels.chains import Found
from trisparse.prune.channels.channel_trace import ChannelTrace
from trisparse.prune.channels.named_chains import channels_of, heads_of
from trisparse.prune.channels.same_outputs import own_example, run
from trisparse.prune.channels.traced_chains import traced_chains
from trisparse.prune.errors import one_line


@torch.no_grad()
def find_chains(model: nn.Module, example: Any = None) -> Found:
    """All chains of a model, in its order.

    With an example the model is run on it, in evaluation mode, and what its layers make is followed to all that reads
    it. Without one, or where it can't be run, only modules are found that are named as in BERT, DistilBERT, GPT-2 and
    Llama, and nn.Sequential. Heads of attention are found by names in any case.
    """
    example = own_example(model) if example is None else example
    trace, note = ChannelTrace(model), "no example is given"
    if example is not None:
        try:
            with trace.listening():
                result = run(model, example)
            note = ""
        except Exception as error:  # whatever a forward raises
            note = f"the model does not run on the example ({one_line(error)})"
        else:
            trace.close()  # while the result is there
            del result
    chains, reasons = (channels_of(model), {}) if note else traced_chains(model, trace)
    order = {name: index for index, (name, _) in enumerate(model.named_modules(remove_duplicate=False))}
    chains = sorted([*chains, *heads_of(model)], key=lambda chain: order[chain.sides[0].layer])
    return Found(chains, reasons, note)
