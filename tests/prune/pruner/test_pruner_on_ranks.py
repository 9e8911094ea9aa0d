"""Pruning on several processes chooses what one process chooses, bit for bit, and goes on from its checkpoints."""

import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("prune_on_ranks.py")
CASES = ("4x1", "2:4", "rows", "local", "bounds", "parts", "magnitude", "unused", "lamp", "random", "own")
SPREAD = (("ddp", 2), ("fsdp", 2), ("fsdp", 3))


def results(folder, rank=0):
    return json.loads((folder / f"{rank}.json").read_text())


@pytest.fixture(scope="module")
def runs(on_ranks):
    """Results by mode and world; three processes go on, too, from what two have saved, and one from what three have."""
    folders = {("fsdp", 2): on_ranks(SCRIPT, "fsdp", 2)[0]}
    folders["ddp", 2] = on_ranks(SCRIPT, "ddp", 2)[0]
    folders["fsdp", 3] = on_ranks(SCRIPT, "fsdp", 3, *sorted(folders["fsdp", 2].glob("*.pt")))[0]
    saved = [*sorted(folders["fsdp", 3].glob("*.pt")), folders["ddp", 2] / "budget.pt"]
    folders["plain", 1] = on_ranks(SCRIPT, "plain", 1, *saved)[0]
    return {key: [results(folder, rank) for rank in range(key[1])] for key, folder in folders.items()}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("mode", "world"), SPREAD)
def test_masks_are_those_of_one_process(runs, case, mode, world):
    (alone,) = runs["plain", 1]
    assert len(set(alone[case]["hashes"])) > 1, "the masks changed on the way"
    for rank in runs[mode, world]:
        assert rank[case] == alone[case]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("mode", "world"), [("fsdp", 3), ("plain", 1)])
def test_a_checkpoint_goes_on_with_another_number_of_processes(runs, case, mode, world):
    for rank in runs[mode, world]:
        went_on, whole = rank[f"resumed {case}"], rank[case]
        assert went_on["hashes"] == whole["hashes"][4:]
        assert went_on["report"] == whole["report"]


def test_a_budget_is_met_by_copies_as_by_one_process(runs):
    (alone,) = runs["plain", 1]
    assert len(set(alone["budget"]["hashes"])) > 1
    assert alone["budget"]["sparsity"] == pytest.approx(0.6, abs=1e-3)
    assert all(rank["budget"] == alone["budget"] for rank in runs["ddp", 2])
    assert alone["resumed budget"]["hashes"] == alone["budget"]["hashes"][4:]


def test_a_layer_without_use_is_left_out_everywhere(runs):
    for ranks in runs.values():
        for rank in ranks:
            assert "left out, since no gradient reached them: 5" in rank["unused"]["report"]["notes"]
            assert [row["name"] for row in rank["unused"]["report"]["layers"]] == ["0", "2"]


def test_what_cannot_be_pruned_in_shards_says_so(runs):
    for rank in runs["fsdp", 2]:
        assert "0 (12 output rows on a process are no multiple of 8)" in rank["refusals"]["cut"]
        assert "shard_placement_fn that returns Shard(1)" in rank["refusals"]["columns"]
        assert "target_flops: is for weights that are whole" in rank["refusals"]["budget"]
        assert rank["refusals"]["flat"].startswith("0: is wrapped in FullyShardedDataParallel, which flattens weights")


def test_copies_that_went_apart_stop_the_run(runs):
    for rank in runs["ddp", 2]:
        assert rank["apart"].startswith("masks: the processes chose different ones at step 3")
