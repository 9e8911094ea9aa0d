"""A whole training step of BERT with and without pruning: what ordinary steps and events add, in percent.

Random weights, ids and labels; AdamW; on a GPU fused, under bf16 autocast. Steps are timed in turns.
"""

import statistics
import time

import pytest
import torch

from trisparse import Pruner, PruningConfig

MODELS = {"bert-mini": (4, 256, 4), "bert-base": (12, 768, 12)}
BATCH, LENGTH, FREQUENCY = 32, 128, 10


def build(name, device):
    transformers = pytest.importorskip("transformers")
    layers, hidden, heads = MODELS[name]
    config = transformers.BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")
    return model, optimizer


@pytest.mark.parametrize("pattern", ["4x1", "2:4", "1xchannel"])
@pytest.mark.parametrize("name", MODELS)
def test_prune_step(benchmark, rows, device, name, pattern):
    if device.type == "cpu" and name != "bert-mini":
        pytest.skip("too large for a CPU")
    batch, steps = (BATCH, 60) if device.type == "cuda" else (8, 24)
    ids = torch.randint(1000, 20_000, (batch, LENGTH), device=device)
    labels = torch.randint(0, 2, (batch,), device=device)

    def one(model, optimizer):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    dense, pruned = build(name, device), build(name, device)
    target = 0.5 if pattern == "2:4" else 0.9
    config = PruningConfig(
        pattern=pattern, target_sparsity=target, op_names=["encoder"], start_step=1,
        end_step=1 + FREQUENCY * steps, pruning_frequency=FREQUENCY,
    )  # fmt: skip
    times = {"dense": [], "ordinary": [], "event": []}
    with Pruner(pruned[0], config).attach(pruned[1]):
        for step in range(1, steps + 1):
            seconds = one(*pruned), one(*dense)
            if step > FREQUENCY + 2:
                times["event" if (step - 1) % FREQUENCY == 0 else "ordinary"].append(seconds[0])
                times["dense"].append(seconds[1])
    row = {f"{what}_ms": statistics.median(values) * 1e3 for what, values in times.items()}
    row["overhead"] = row["ordinary_ms"] / row["dense_ms"] - 1
    events = (row["event_ms"] - row["ordinary_ms"]) / FREQUENCY / row["dense_ms"]
    row["overhead_with_events"] = row["overhead"] + events
    rows(
        {"op": "prune_step", "model": f"{name} {pattern}", "batch": batch, "length": LENGTH, "frequency": FREQUENCY}
        | row
    )
    benchmark.extra_info |= row
    benchmark.pedantic(lambda: one(*pruned), rounds=3)
