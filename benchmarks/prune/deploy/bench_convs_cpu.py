r"""How much faster a ResNet-50 with pruned convolutions is on a CPU once they are packed.

    OMP_NUM_THREADS=1 python benchmarks/prune/deploy/bench_convs_cpu.py --out benchmarks/results/convs_cpu.json

Random weights, since the time does not depend on them, of which each convolution but the first loses 4x1 vectors by
magnitude. Pictures of 224x224, in both layouts that torch has for them, and as they mostly come, with channels first,
for a model whose weights are laid out with channels last before it is compressed; formats are chosen by one picture.
`times_faster` is the median over rounds in which the pruned model runs dense and compressed in turns, `dense_again`
that of a copy against it, which shows how far such a ratio can be trusted. Logits are compared first.
"""

import argparse
import copy
import json
import os
from collections import Counter
from pathlib import Path

import torch
import transformers

from trisparse import compress, prune_once
from trisparse.prune.files import atomic_write
from trisparse.prune.speed import times_faster
from trisparse.prune.timing import machine

SPARSITY, FIRST, LAST = 0.9, torch.contiguous_format, torch.channels_last
# of pictures and of the dense model that is compared with, and of the model that is compressed
LAYOUTS = {"channels first": (FIRST, FIRST), "weights last": (FIRST, LAST), "channels last": (LAST, LAST)}
SIZE, ROUNDS = 224, {1: 11, 8: 3}  # of each number of pictures


def build() -> torch.nn.Module:
    """ResNet-50, pruned."""
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(transformers.ResNetConfig()).eval()
    first = next(name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Conv2d))
    prune_once(
        model, pattern="4x1", target_sparsity=SPARSITY, pruning_scope="local", pruning_op_types=["Conv"],
        excluded_op_names=[first],
    )  # fmt: skip
    return model


def rows():
    """A row for each layout and number of pictures."""
    for layout, (memory_format, of_weights) in LAYOUTS.items():
        dense = build().to(memory_format=memory_format)
        picture = torch.randn(1, 3, SIZE, SIZE).contiguous(memory_format=memory_format)
        pruned = copy.deepcopy(dense).to(memory_format=of_weights)
        small, report = compress(pruned, remove_channels=False, example=(picture,))
        twin, formats = copy.deepcopy(dense), dict(Counter(layer.format for layer in report.layers))
        for pictures, rounds in ROUNDS.items():
            x = torch.randn(pictures, 3, SIZE, SIZE).contiguous(memory_format=memory_format)
            example = {"pixel_values": x}
            with torch.inference_mode():
                torch.testing.assert_close(small(x).logits, dense(x).logits, atol=1e-3, rtol=1e-3)
            row = {"sparsity": SPARSITY, "layout": layout, "pictures": pictures, "formats": formats}
            row |= {"bytes": [report.bytes_before, report.bytes_after]}
            row["times_faster"] = times_faster(dense, small, example, rounds)
            row["dense_again"] = times_faster(dense, twin, example, rounds)
            yield row
            gains = f"{row['times_faster']:.2f}x (dense again {row['dense_again']:.2f}x)"
            mebibytes = f"{report.bytes_before >> 20} -> {report.bytes_after >> 20} MiB"
            print(f"{layout}, {pictures}: {gains}, {mebibytes}, {formats}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    where = {"machine": machine(torch.device("cpu")), "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    atomic_write(out, json.dumps({**where, **versions, "rows": list(rows())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
