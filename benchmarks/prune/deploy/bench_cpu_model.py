r"""Four layers of BERT-base, pruned 4x1 at 0.9, on a CPU: as torch runs them, compressed, and in other runtimes.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/prune/deploy/bench_cpu_model.py \
        --out benchmarks/results/cpu_model.json

128 tokens a text, random weights, one text and eight. In turns every model runs twice, and its second run counts, as it
finds the caches as its first left them. Beside torch, with `torch.compile` and without, stand ONNX Runtime and OpenVINO
with the same weights, where they are installed (`pip install '.[peers]'`); both multiply zeros as any other weight.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm
from transformers import BertConfig, BertModel

from trisparse import compress, prune_once
from trisparse.kernels.cache import extensions, processor
from trisparse.prune.deploy.onnx_export import ONNX, write_onnx
from trisparse.prune.files import atomic_write

LAYERS, LENGTH, TEXTS = 4, 128, (1, 8)
GOALS = {1: 5.5, 8: 4.0}  # times as fast as torch's dense model
_SECONDS = 20  # for each number of texts


def runtimes(dense: nn.Module, ids: torch.Tensor, folder: Path) -> dict[str, Callable[[], Any]]:
    """ONNX Runtime and OpenVINO, as far as they are installed."""
    found: dict[str, Callable[[], Any]] = {}
    threads = torch.get_num_threads()
    try:
        import onnxruntime
    except ModuleNotFoundError:
        return found
    write_onnx(dense, folder, {"input_ids": ids})
    path = str(folder / ONNX)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"input_ids": ids.numpy()}
    found["onnxruntime"] = lambda: session.run(None, feed)[0]
    try:
        import openvino
    except ModuleNotFoundError:
        return found
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    model = openvino.Core().compile_model(path, "CPU", settings)
    found["openvino"] = lambda: model([ids.numpy()])[0]
    return found


def measure(calls: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Median milliseconds of the wall and of the CPU, and how many times as fast as the first."""
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    until = time.perf_counter() + _SECONDS
    while len(next(iter(turns.values()))) < 7 or time.perf_counter() < until:
        for name, call in calls.items():
            call()
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            turns[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    first = [wall for wall, _ in next(iter(turns.values()))]
    result = {}
    for name, found in turns.items():
        walls, cpus = zip(*found, strict=True)
        times = statistics.median(a / b for a, b in zip(first, walls, strict=True))
        result[name] = {"ms": statistics.median(walls) * 1e3, "cpu_ms": statistics.median(cpus) * 1e3, "times": times}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=LAYERS, return_dict=False)
    dense = BertModel(config, add_pooling_layer=False).eval()
    prune_once(dense, pattern="4x1", target_sparsity=0.9, pruning_scope="local", exclude_head=False)
    rows = []
    for texts in tqdm(TEXTS, desc="texts"):
        ids = torch.randint(1000, (texts, LENGTH))
        packed, report = compress(copy.deepcopy(dense), tokens=(texts * LENGTH,), example={"input_ids": ids})
        assert report.verified
        compiled = {name: torch.compile(model) for name, model in (("dense", dense), ("packed", packed))}
        with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
            calls: dict[str, Callable[[], Any]] = {"dense": lambda ids=ids: dense(ids)[0]}
            calls["dense, compiled"] = lambda ids=ids, model=compiled["dense"]: model(ids)[0]
            calls["packed"] = lambda ids=ids, model=packed: model(ids)[0]
            calls["packed, compiled"] = lambda ids=ids, model=compiled["packed"]: model(ids)[0]
            calls |= runtimes(dense, ids, Path(folder))
            want = calls["dense"]()
            for name, call in calls.items():
                torch.testing.assert_close(torch.as_tensor(call()), want, rtol=1e-3, atol=1e-3, msg=name)
            rows.append({"texts": texts, "summary": report.summary(), "goal": GOALS[texts], "models": measure(calls)})
    machine: dict[str, Any] = {"cpu": processor(), "instructions": extensions(), "threads": torch.get_num_threads()}
    machine |= {"python": platform.python_version()}
    for package in ("torch", "transformers", "onnxruntime", "openvino"):
        try:
            machine[package] = version(package)
        except PackageNotFoundError:
            machine[package] = None
    atomic_write(args.out, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
    for row in rows:
        print(f"{row['texts']} texts of {LENGTH} tokens; goal {row['goal']} times dense")
        for name, found in row["models"].items():
            print(
                f"  {name:>17}: {found['ms']:7.1f} ms, {found['cpu_ms']:7.1f} of the CPU, {found['times']:.2f}x dense"
            )


if __name__ == "__main__":
    main()
