"""The console scripts: `trisparse COMMAND`, which imports what it runs alone, and three commands by other names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from trisparse import __version__
from trisparse.prune.errors import PruningError, nearest
from trisparse.prune.parser import unknown_argument

# where each is, and what it does
COMMANDS = {
    "train": ("trisparse.prune.commands.train", "fine-tune, prune and distil on a GLUE task or on files of your own"),
    "prune": ("trisparse.prune.commands.prune", "prune a model at once, by a few texts or by magnitude"),
    "compress": ("trisparse.prune.commands.compress", "choose a format for every layer of a pruned model"),
    "inspect": ("trisparse.prune.commands.inspect", "what a checkpoint holds, and whether its files are whole"),
    "export": ("trisparse.prune.commands.export", "write a compressed model for programs without trisparse"),
    "sweep": ("trisparse.prune.commands.sweep", "accuracy against measured speed: train for several budgets"),
    "report": ("trisparse.prune.commands.report", "one HTML page of runs of train, to attach or to send"),
    "bench": ("trisparse.suite", "time a model dense and compressed, or every operator"),
    "demo": ("trisparse.prune.commands.demo", "train and prune a tiny BERT on made-up tasks, without a network"),
}
_EXTRAS = {
    **dict.fromkeys(("transformers", "datasets", "evaluate", "accelerate", "sklearn", "scipy", "tqdm"), "glue"),
    **dict.fromkeys(("psutil", "safetensors", "rich", "huggingface_hub", "pyarrow"), "glue"),
    **dict.fromkeys(("jinja2", "matplotlib"), "plot"),
    **dict.fromkeys(("onnx", "onnxscript"), "onnx"),
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """`trisparse`; the exit status is 2, with one line on standard error, for what the user can mend."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = words[0] if words else ""
    if first in COMMANDS:
        return _run(first, words[1:], f"trisparse {first}")
    if first in ("-h", "--help"):
        sys.stdout.write(_help())
        return 0
    if first == "--version":
        sys.stdout.write(f"trisparse {__version__}\n")
        return 0
    if not words:
        said = f"a command is missing; want one of {', '.join(COMMANDS)}, or --help"
    elif first.startswith("-"):
        said = unknown_argument(first, ["--help", "--version"])
    else:
        said = f"{first}: unknown command" + (nearest(first, COMMANDS) or f"; want one of {', '.join(COMMANDS)}")
    sys.stderr.write(f"trisparse: error: {said}\n")
    return 2


def glue() -> int:
    """`trisparse-glue`, which is `trisparse train`."""
    return _run("train", sys.argv[1:], "trisparse-glue")


def demo() -> int:
    """`trisparse-demo`, which is `trisparse demo`."""
    return _run("demo", sys.argv[1:], "trisparse-demo")


def bench() -> int:
    """`trisparse-bench`, which is `trisparse bench`."""
    return _run("bench", sys.argv[1:], "trisparse-bench")


def _help() -> str:
    rows = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: trisparse COMMAND ...", "", "Kernel-accelerated sparsity for PyTorch.", "", "commands:", *rows, "",
            "trisparse COMMAND --help lists what a command takes; trisparse --version says which this is.", "",
        ]
    )  # fmt: skip


def _run(command: str, argv: Sequence[str], prog: str) -> int:
    """The exit status of a command; `prog` is what was typed."""
    try:
        status = importlib.import_module(COMMANDS[command][0]).main(argv, prog)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except PruningError as error:
        said = f"error: {error}"
    except OSError as error:
        said = f"error: {error.filename}: {error.strerror}" if error.filename and error.strerror else f"error: {error}"
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "trisparse"):
            raise
        wanted = f"'trisparse[{_EXTRAS[package]}]'" if package in _EXTRAS else package
        said = f"error: {package} is not installed; pip install {wanted}"
    except KeyboardInterrupt as stop:
        said = f"interrupted{stop}"
    rank = os.environ.get("RANK", "0")
    who = "" if rank == "0" else f"process {rank}: "  # which may be the only one to see the mistake
    sys.stderr.write(f"{prog}: {who}{' '.join(said.splitlines())}\n")
    return 2
