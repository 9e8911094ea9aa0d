"""The command lines of neural-compressor's text classification examples, the program's name changed: what they ask for."""

import shlex

import pytest

from trisparse import PruningError
from trisparse.prune.glue.parse import parse_arguments

pytest.importorskip("transformers")
MRPC = (
    '--model_name_or_path "m" --task_name "mrpc" --max_length 128 --per_device_train_batch_size 16 --learning_rate 1e-3 '
    "--num_train_epochs 15 --weight_decay 1e-3 --do_prune "
)
MRPC_END = '--lr_scheduler_type "constant" --distill_loss_weight 5'
SST2 = (
    '--model_name_or_path "m" --task_name "sst2" --max_length 128 --per_device_train_batch_size 16 --learning_rate 5e-5 '
    "--distill_loss_weight 2.0 --num_train_epochs 15 --weight_decay 5e-5 --cooldown_epochs 5 --sparsity_warm_epochs 1 "
    '--lr_scheduler_type "constant" --do_prune '
)
DISTILBERT = (
    '--model_name_or_path "m" --task_name "mrpc" --max_length 256 --per_device_train_batch_size 16 --learning_rate 1e-4 '
    "--num_train_epochs 120 --weight_decay 0 --cooldown_epochs 40 --sparsity_warm_epochs 1 --lr_scheduler_type "
    '"constant" --distill_loss_weight 2 --do_prune --output_dir "./sparse_mrpc_distilbert" '
)
README = '--model_name_or_path "m" --pruning_config "./{}.yaml" --task_name "{}" --max_length "128" '
# name -> words, patterns and targets of the groups, output_dir
SCRIPTS = {
    "bertmini_mrpc_dense_finetune.sh": (
        '--model_name_or_path "m" --task_name "mrpc" --max_length 128 --per_device_train_batch_size 16 --learning_rate 5e-5 '
        '--num_train_epoch 5 --weight_decay 5e-5 --output_dir "./dense_mrpc_bertmini"',
        [], "./dense_mrpc_bertmini",
    ),
    "bertmini_mrpc_4x1.sh": (
        MRPC + '--output_dir "./sparse_mrpc_bertmini_4x1" --cooldown_epochs 5 --sparsity_warm_epochs 1 --target_sparsity 0.9 '
        '--pruning_pattern "4x1" --pruning_frequency 50 ' + MRPC_END,
        [("4x1", 0.9)], "./sparse_mrpc_bertmini_4x1",
    ),
    "bertmini_mrpc_2in4.sh": (
        MRPC + '--output_dir "./sparse_mrpc_bertmini_2in4" --cooldown_epochs 5 --sparsity_warm_epochs 1 --target_sparsity 0.5 '
        '--pruning_pattern "2:4" --pruning_frequency 50 ' + MRPC_END,
        [("2:4", 0.5)], "./sparse_mrpc_bertmini_2in4",
    ),
    "bertmini_mrpc_perchannel.sh": (
        MRPC + '--pruning_type "snip_momentum_progressive" --output_dir "./sparse_mrpc_bertmini" --cooldown_epochs 5 '
        '--sparsity_warm_epochs 1 --target_sparsity 0.6 --pruning_pattern "1xchannel" --pruning_frequency 50 ' + MRPC_END,
        [("1xchannel", 0.6)], "./sparse_mrpc_bertmini",
    ),
    "bertmini_sst2_dense_fintune.sh": (
        '--model_name_or_path "m" --task_name "sst2" --max_length 128 --per_device_train_batch_size 32 --learning_rate 5e-5 '
        '--num_train_epochs 10 --output_dir "./dense_sst2_bertmini"',
        [], "./dense_sst2_bertmini",
    ),
    "bertmini_sst2_4x1.sh": (
        SST2 + '--output_dir "./sparse_sst2_bertmini" --target_sparsity 0.9 --pruning_pattern "4x1" --pruning_frequency 500',
        [("4x1", 0.9)], "./sparse_sst2_bertmini",
    ),
    "bertmini_sst2_2in4.sh": (
        SST2 + '--output_dir "./sparse_sst2_bertmini" --target_sparsity 0.5 --pruning_pattern "2:4" --pruning_frequency 500',
        [("2:4", 0.5)], "./sparse_sst2_bertmini",
    ),
    "bertmini_sst2_perchannel.sh": (
        SST2 + '--pruning_type "snip_momentum_progressive" --output_dir "./sparse_sst2_bertmini" --target_sparsity 0.6 '
        '--pruning_pattern "1xchannel" --pruning_frequency 500',
        [("1xchannel", 0.6)], "./sparse_sst2_bertmini",
    ),
    "distilbert_mrpc_4x1.sh": (
        DISTILBERT + '--target_sparsity 0.9 --pruning_pattern "4x1" --pruning_frequency 50',
        [("4x1", 0.9)], "./sparse_mrpc_distilbert",
    ),
    "distilbert_mrpc_2in4.sh": (
        DISTILBERT + '--target_sparsity 0.5 --pruning_pattern "2:4" --pruning_frequency 50',
        [("2:4", 0.5)], "./sparse_mrpc_distilbert",
    ),
    "hpo/README.md": (
        "--model_name_or_path m --task_name mrpc --per_device_eval_batch_size 18 --per_device_train_batch_size 18 --do_prune",
        [("4x1", 0.9)], "runs/mrpc-4x1",
    ),
    "pytorch_pruner/README.md, 2in4 on MRPC": (
        README.format("bert_mini_mrpc_2in4", "mrpc") + '--per_device_train_batch_size "16" --learning_rate "5e-5" '
        '--num_train_epochs "10" --weight_decay "5e-5" --lr_scheduler_type "constant" --seed "9" --sparsity_warm_epochs "1" '
        '--cooldown_epochs "0" --do_prune',
        [("2:4", 0.5)], "runs/mrpc-bert_mini_mrpc_2in4",
    ),
    "pytorch_pruner/README.md, 4x1 on MRPC": (
        README.format("bert_mini_mrpc_4x1", "mrpc") + '--per_device_train_batch_size "16" --learning_rate "1e-3" '
        '--num_train_epochs "15" --weight_decay "1e-3" --cooldown_epochs "5" --sparsity_warm_epochs "1" --lr_scheduler_type '
        '"constant" --distill_loss_weight "5" --do_prune',
        [("4x1", 0.9)], "runs/mrpc-bert_mini_mrpc_4x1",
    ),
    "pytorch_pruner/README.md, 4x1 on SST-2": (
        README.format("bert_mini_sst2_4x1", "sst2") + '--per_device_train_batch_size "16" --learning_rate "5e-5" '
        '--distill_loss_weight "2.0" --num_train_epochs "15" --weight_decay "5e-5" --cooldown_epochs "5" '
        '--sparsity_warm_epochs "0" --lr_scheduler_type "constant" --do_prune',
        [("4x1", 0.9)], "runs/sst2-bert_mini_sst2_4x1",
    ),
    "pytorch_pruner/README.md, dense SST-2": (
        '--model_name_or_path "./bert-mini" --task_name "sst2" --max_length "128" --per_device_train_batch_size "32" '
        '--learning_rate "5e-5" --num_train_epochs "10" --output_dir "result/"',
        [], "result/",
    ),
    "pytorch_pruner/README.md, dense MRPC": (
        '--model_name_or_path "./bert-mini" --task_name "mrpc" --max_length "128" --per_device_train_batch_size "16" '
        '--learning_rate "5e-5" --num_train_epoch "5" --weight_decay "5e-5" --output_dir "result/"',
        [], "result/",
    ),
}  # fmt: skip
NO_PRUNING = (
    README.format("bert_mini_sst2_2in4", "sst2") + '--per_device_train_batch_size "16" --learning_rate "5e-5" '
    '--weight_decay "1e-4" --num_train_epochs "6" --sparsity_warm_epochs "0" --seed "12"'
)
CONFIG = """
model: {{name: "bert-mini", framework: "pytorch"}}
pruning:
  approach:
    weight_compression_pytorch:
      start_step: 0
      end_step: 0
      excluded_names: ["classifier", "pooler", ".*embeddings*"]
      prune_layer_type: ["Linear"]
      target_sparsity: {target}
      max_sparsity_ratio_per_layer: 0.98
      pruners:
        - !Pruner
            pattern: "{pattern}"
            update_frequency_on_step: {frequency}
            prune_domain: "global"
            prune_type: "snip_momentum"
            sparsity_decay_type: "exp"
"""


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """The files beside pytorch_pruner's README, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name, target, pattern, frequency in (
        ("bert_mini_mrpc_2in4", 0.5, "2:4", 100), ("bert_mini_mrpc_4x1", 0.9, "4x1", 50),
        ("bert_mini_sst2_2in4", 0.5, "2:4", 500), ("bert_mini_sst2_4x1", 0.9, "ic_pattern_4x1", 500),
    ):  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(CONFIG.format(target=target, pattern=pattern, frequency=frequency))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_command_line_asks_for_the_same(configs, name):
    words, groups, folder = SCRIPTS[name]
    args = parse_arguments(shlex.split(words))
    assert args.training.output_dir == folder
    assert args.pruning.do_prune == bool(groups)
    if groups:
        found = args.pruning_config({"start_step": 1, "end_step": 100, "pruning_frequency": 7}).groups
        assert [(str(group.pattern), group.target_sparsity) for group in found] == groups
        assert found[0].is_progressive == ("perchannel" in name)
        assert found[0].window[:2] == (1, 100)


def test_the_one_that_forgets_to_prune_is_told_so(configs):
    with pytest.raises(
        PruningError, match="--pruning_config: has no effect without --do_prune; add it, or --do_prune False"
    ):
        parse_arguments(shlex.split(NO_PRUNING))
    assert not parse_arguments([*shlex.split(NO_PRUNING), "--do_prune", "False"]).pruning.do_prune
