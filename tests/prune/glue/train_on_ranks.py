"""Run `trisparse train` as one of several processes: `train_on_ranks.py MODE RANK WORLD FOLDER FLAG …`, run by the tests.

With MODE `dies`, the process of rank 1 ends in the middle of the seventh pruning event.
"""

import os
import sys

import torch


def main():
    mode, rank, world, folder, *flags = sys.argv[1:]
    torch.set_num_threads(1)
    if world != "1":
        os.environ |= {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
        # a file in the folder in place of a port, which could be taken
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=int(rank), world_size=int(world)
        )
    from trisparse.cli import main as trisparse
    from trisparse.prune.choosing import selection

    if mode == "dies" and rank == "1":
        run, events = selection.Selection.run, []

        def die(self, *args):
            events.append(0)
            if len(events) == 7:
                os._exit(9)
            run(self, *args)

        selection.Selection.run = die
    return trisparse(["train", *flags])


sys.exit(main())
