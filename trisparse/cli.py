"""The console scripts."""

import sys


def main() -> None:
    """`trisparse`: compress, inspect and export checkpoints; show runs."""
    from trisparse.prune.command import main

    sys.exit(main(sys.argv[1:]))


def glue() -> None:
    """`trisparse-glue`: fine-tune, prune and distil on a GLUE task."""
    from trisparse.prune.glue.train import main

    sys.exit(main(sys.argv[1:]))


def demo() -> None:
    """`trisparse-demo`: the whole thing on a task of our own making."""
    from trisparse.prune.glue.demo import main

    sys.exit(main(sys.argv[1:]))


def bench() -> None:
    """`trisparse-bench`: the GPU's tests and all benchmarks, from a checkout."""
    from trisparse.suite import main

    sys.exit(main(sys.argv[1:]))
