"""A run that was stopped under an earlier layout of the package is gone on with."""

import shutil
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "written_before"
FLAGS = (
    "--model_name_or_path init --teacher_model_name_or_path init --task_name mrpc --dataset_dir data --output_dir run "
    "--per_device_train_batch_size 8 --num_train_epochs 2 --do_prune --pruning_pattern 4x1 --pruning_frequency 1 "
    "--cooldown_epochs 0.5 --distill_loss_weight 1 --resume_from_checkpoint run"
)


def test_a_run_is_gone_on_with(tmp_path, monkeypatch, forget_precision):
    transformers = pytest.importorskip("transformers")
    from trisparse.prune.glue.demo import make_model
    from trisparse.prune.glue.demo_data import vocabulary
    from trisparse.prune.glue.parse import parse_arguments
    from trisparse.prune.glue.train import run

    monkeypatch.chdir(tmp_path)
    make_model(Path("init"))
    config = transformers.BertConfig(
        vocab_size=len(vocabulary()), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained("init")
    shutil.copytree(FOLDER / "data", "data")
    Path("run").mkdir()
    shutil.copy(FOLDER / "checkpoint.pt", "run")
    forget_precision()
    results = run(parse_arguments(FLAGS.split()))
    assert results["steps"]["total_steps"] == 6
    assert (results["complete"], results["pattern_verified"]) == (True, True)
    assert results["sparsity"]["pruned_layers"] == pytest.approx(0.9, abs=0.005)
