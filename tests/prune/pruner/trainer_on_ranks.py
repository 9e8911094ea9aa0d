"""Prune in a Trainer as one of several processes: `trainer_on_ranks.py MODE RANK WORLD FOLDER`, run by the tests.

MODE is trainer or fsdp; on a CPU, accelerate makes copies for both.
"""

import os
import sys

import torch

_, mode, rank, world, folder = sys.argv
torch.set_num_threads(1)
if world != "1":
    os.environ |= {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=int(rank), world_size=int(world)
    )

import transformers  # noqa: E402 (it looks for the processes when it is imported)

from trisparse import PruningCallback, PruningConfig  # noqa: E402

torch.manual_seed(0)
config = transformers.BertConfig(
    vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    hidden_dropout_prob=0, attention_probs_dropout_prob=0,
)  # fmt: skip
model = transformers.BertForSequenceClassification(config)
data = [{"input_ids": torch.randint(50, (12,)), "labels": i % 2} for i in range(64)]
callback = PruningCallback(
    PruningConfig(
        pattern="4x1", target_sparsity=0.75, start_step=2, end_step=8, pruning_frequency=2, op_names=["encoder"]
    )
)
args = transformers.TrainingArguments(
    output_dir=f"{folder}/out", per_device_train_batch_size=8 // int(world), max_steps=10, save_steps=5, use_cpu=True,
    report_to=[], disable_tqdm=True, ddp_backend=None if world == "1" else "gloo", fsdp=mode == "fsdp",
)  # fmt: skip
transformers.Trainer(model, args, train_dataset=data, callbacks=[callback]).train()
result = {"masks": callback.pruner.masks(), "pruned": callback.report.pruned_layers}
torch.save(result | {"compared": callback.pruner._replicas.group is not None}, f"{folder}/{rank}.pt")
