"""`trisparse train`, and `trisparse-glue`: the GLUE loop, its flags checked before anything heavy is imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from trisparse.prune.errors import PruningError
from trisparse.prune.glue.parse import make_parser as make_parser
from trisparse.prune.glue.parse import parse_arguments

_GO_ON = "if an epoch had ended, --resume_from_checkpoint with the output_dir goes on from it"
# what gloo and NCCL say in the processes that wait for one that is gone
_LOST = "gloo/transport.*(Connection|Broken pipe|Socket closed)|remote process exited"


def _is_own_process(argv: Sequence[str]) -> bool:
    """Whether these are the words that Python was started with, and not those of a program that calls the command."""
    return bool(argv) and list(argv) == sys.argv[-len(argv) :]


def main(argv: Sequence[str], prog: str) -> int:
    """Make one run.

    Raises:
        PruningError: what the user can mend, or another process that has ended.
    """
    args = parse_arguments(argv, prog)
    if _is_own_process(argv):  # whose arithmetic is the run's alone; threads started from here on keep the switch
        import torch

        # moments of weights without gradient fade to numbers over which a CPU takes many times as long
        torch.set_flush_denormal(True)
    try:
        from trisparse.prune.glue.train import run

        run(args)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; {_GO_ON}") from None
    except RuntimeError as error:
        if not re.search(_LOST, str(error)):
            raise
        raise PruningError(f"another process ended, and with it the run; {_GO_ON}") from None
    return 0
