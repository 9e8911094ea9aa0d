"""A whole training step of BERT with and without pruning: what ordinary steps and events add, in percent.

Random weights, ids and labels; AdamW; on a GPU fused, under bf16 autocast. Rounds of the dense and the pruned model
take turns: an event, then ordinary steps up to the next, waited for at the end of each, as by a loop that reads its
loss now and then; the overhead is the median of the rounds' ratios. `MaskedAdamW` scores and masks in its own step;
beside it stands the same dense AdamW.
"""

import statistics
import time

import pytest
import torch

from trisparse import MaskedAdamW, Pruner, PruningConfig

MODELS = {"bert-mini": (4, 256, 4), "bert-base": (12, 768, 12)}
BATCH, LENGTH, FREQUENCY, ROUNDS = 32, 128, 10, 12
CASES = [("4x1", "AdamW"), ("4x1", "MaskedAdamW"), ("2:4", "AdamW"), ("1xchannel", "AdamW")]


def build(name, device, optimizer):
    transformers = pytest.importorskip("transformers")
    layers, hidden, heads = MODELS[name]
    config = transformers.BertConfig(
        num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads, intermediate_size=4 * hidden
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).to(device)
    if optimizer == "MaskedAdamW":
        return model, MaskedAdamW(model.parameters(), lr=1e-5)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device.type == "cuda")


@pytest.mark.parametrize(("pattern", "optimizer"), CASES)
@pytest.mark.parametrize("name", MODELS)
def test_prune_step(rows, device, is_small, name, pattern, optimizer):
    if is_small and name != "bert-mini":
        pytest.skip("only the smallest")
    batch, rounds, frequency = (2, 2, 3) if is_small else (BATCH, ROUNDS, FREQUENCY)
    ids = torch.randint(1000, 20_000, (batch, LENGTH), device=device)
    labels = torch.randint(0, 2, (batch,), device=device)

    def milliseconds(model, optimizer, steps):
        if device.type == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - begin) * 1e3

    dense, pruned = build(name, device, "AdamW"), build(name, device, optimizer)
    target = 0.5 if pattern == "2:4" else 0.9
    config = PruningConfig(
        pattern=pattern, target_sparsity=target, op_names=["encoder"], start_step=1,
        end_step=1 + frequency * (rounds + 2), pruning_frequency=frequency,
    )  # fmt: skip
    times = {"dense": [], "ordinary": [], "event": []}
    with Pruner(pruned[0], config).attach(pruned[1]):
        for _ in range(rounds + 1):
            times["event"].append(milliseconds(*pruned, 1))
            times["ordinary"].append(milliseconds(*pruned, frequency - 1) / (frequency - 1))
            times["dense"].append(milliseconds(*dense, frequency) / frequency)
    row = {f"{what}_ms": statistics.median(values[1:]) for what, values in times.items()}
    pairs = zip(times["ordinary"][1:], times["dense"][1:], strict=True)
    row["overhead"] = statistics.median(ordinary / dense for ordinary, dense in pairs) - 1
    events = (row["event_ms"] - row["ordinary_ms"]) / frequency / row["dense_ms"]
    row["overhead_with_events"] = row["overhead"] + events
    what = {"op": "prune_step", "model": f"{name} {pattern}", "what": optimizer}
    rows(what | {"batch": batch, "length": LENGTH, "frequency": frequency} | row)
    print(what, {key: round(value, 3) for key, value in row.items()}, flush=True)
