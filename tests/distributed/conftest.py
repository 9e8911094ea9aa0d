"""Run a script as several processes that find each other."""

import subprocess
import sys

import pytest


@pytest.fixture(scope="session")
def on_ranks(tmp_path_factory):
    """Run `script MODE RANK WORLD FOLDER …` for every rank at once; the folder that they wrote to."""

    def run(script, mode, world, *more):
        folder = tmp_path_factory.mktemp(f"{mode}{world}")
        processes = [
            subprocess.Popen(
                [sys.executable, str(script), mode, str(rank), str(world), str(folder), *map(str, more)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(world)
        ]
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert all(process.returncode == 0 for process in processes), "\n".join(outputs)
        return folder

    return run
