"""The command line: every mistake one line, before anything heavy is imported."""

import os
import shlex
import subprocess
import sys

import pytest

from trisparse import PruningError
from trisparse.prune.glue.parse import parse_arguments
from trisparse.prune.glue.plan import make_plan
from trisparse.prune.glue.recipe import RECIPES as RECIPE_FOLDER

BASE = ["--model_name_or_path", "m", "--task_name", "mrpc", "--output_dir", "o"]
PRUNE = [*BASE, "--do_prune"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task_name", "mrpc", "--output_dir", "o"], "--model_name_or_path: missing"),
        (["--model_name_or_path", "m", "--output_dir", "o"], "--task_name: missing; want one of cola"),
        ([*BASE, "--task_name", "mrcp"], "--task_name: 'mrcp' is not one of .*did you mean 'mrpc'"),
        ([*BASE, "--learning_rat_e", "3"], r"--learning_rat_e: unknown argument; did you mean --learning_rate\?"),
        ([*BASE, "--learning_rate", "fast"], "--learning_rate: want a number, got 'fast'"),
        ([*BASE, "--learning_rate", "0"], "--learning_rate: want a number above 0 and below 1e"),
        ([*BASE, "--max_train_steps", "0"], "--max_train_steps: want at least 1 and below 1e"),
        ([*BASE, "--distill_mode", "logit"], "--distill_mode: 'logit' is not one of hidden, logits, both; did you mean 'logits'"),
        ([*BASE, "--lr_scheduler_type", "const"], "--lr_scheduler_type: 'const' is not one of"),
        ([*BASE, "--optimizer", "adam"], "--optimizer: 'adam' is not one of adamw, masked_adamw"),
        ([*BASE, "--optimizer", "masked_adamw"], "--optimizer: masked_adamw has no effect without --do_prune"),
        ([*BASE, "--mixed_precision", "fp8"], "--mixed_precision: 'fp8' is not one of no, bf16, fp16"),
        ([*BASE, "--report_to", "mlflow"], "--report_to: 'mlflow' is not one of"),
        ([*BASE, "--push_to_hub"], "--push_to_hub: needs --hub_model_id"),
        ([*BASE, "--dataset_dir", "/nowhere"], "--dataset_dir: /nowhere is no folder"),
        ([*BASE, "--train_file", "t.jsonl"], "--train_file: needs --validation_file or --dataset_dir"),
        ([*BASE, "--train_file", "t.txt", "--validation_file", "v.txt"], "--train_file: t.txt is no file"),
        ([*PRUNE, "--pruning_pattern", "2;4"], "pattern: '2;4' is not known .*|pattern: '2;4' is not known"),
        ([*PRUNE, "--pruning_pattern", "2:4", "--target_sparsity", "0.9"], "target_sparsity: 0.9 is out of reach for 2:4"),
        ([*PRUNE, "--pruning_scope", "all"], "--pruning_scope: 'all' is not one of global, local"),
        ([*PRUNE, "--max_sparsity_ratio_per_op", "0.5"], "target_sparsity: 0.9 is out of reach with max_sparsity_ratio_per_op 0.5"),
        ([*PRUNE, "--pruning_type", "snp"], "pruning_type: 'snp' is not one of .*did you mean 'snip'"),
        ([*PRUNE, "--pruning_frequency", "0"], "--pruning_frequency: want at least 1, or -1"),
        ([*PRUNE, "--cooldown_epochs", "-1"], "--cooldown_epochs: want at least 0"),
        ([*PRUNE, "--pruning_config", "mixd"], "mixd: no such file, and no recipe of that name .*did you mean 'mixed'"),
        ([*PRUNE, "--pruning_config", "mixed", "--pruning_pattern", "2:4"], "pattern: '2:4' has no effect: every group of"),
        ([*BASE, "--pruning_pattern", "2:4"], "--pruning_pattern: has no effect without --do_prune; add it, or --do_prune False"),
        ([*BASE, "--teacher_model_name_or_path", "t"], "--teacher_model_name_or_path: has no effect without --distill_loss_weight"),
        ([*BASE, "--validation_file", __file__, "--holdout_fraction", "0.1"], "--validation_file: has no effect with --hold"),
        ([*BASE, "--cache_teacher"], "--cache_teacher: has no effect without --distill_loss_weight; leave it out"),
        ([*BASE, "--resume_from_checkpoint", ""], "--resume_from_checkpoint: is empty; give a value, or leave it out"),
        ([*PRUNE, "--target_bytes", "inf"], "target_bytes: want a share between 0 and 1, or a whole number of bytes, got inf"),
        ([*BASE, "--dropout", "1"], "--dropout: want at least 0 and below 1, got 1.0"),
        ([*BASE, "--label_loss_weight", "1"], "--label_loss_weight: has no effect without --distill_loss_weight, for labels"),
        ([*BASE, "--label_loss_weight", "-1", "--distill_loss_weight", "1"], "--label_loss_weight: want at least 0"),
        ([*PRUNE, "--sparse_training", "yes"], "--sparse_training: 'yes' is not one of auto, on, off"),
        (
            [*PRUNE, "--pruning_pattern", "2:4", "--sparse_cooldown", "--sparse_training", "on"],
            "--sparse_cooldown: its layers train packed, not with --sparse_training on",
        ),
        ([*BASE, "--compile", "--fsdp"], "--compile: does not work together with --fsdp yet; leave one out"),
        ([*PRUNE, "--fsdp", "--optimizer", "masked_adamw"], "--fsdp: does not work with this --optimizer; use adamw"),
        ([*BASE, "--fsdp", "--mixed_precision", "fp16"], "--fsdp: does not work with this --mixed_precision; use bf16"),
        ([*BASE, "--holdout_fraction", "0.6"], "--holdout_fraction: want 0 to 0.5, got 0.6"),
        ([*BASE, "--seed", "4294967296"], "--seed: want a whole number from 0"),
        ([*PRUNE, "--sparsity_warm_epochs", "1e308"], "--sparsity_warm_epochs: want at least 0 and below 1e"),
        ([*PRUNE, "--pruning_type", "pattern_lock", "--cooldown_epochs", "1"], "--cooldown_epochs: pattern_lock holds from the first step"),
        ([*BASE, "--task_name", "STSB", "--distill_loss_weight", "1", "--distill_mode", "logits"], "--distill_mode: 'logits' needs classes"),
    ],
)  # fmt: skip
def test_mistakes(argv, message):
    with pytest.raises(PruningError, match=message) as caught:
        parse_arguments(argv)
    assert "\n" not in str(caught.value)


def test_a_typo_answers_in_one_line_within_three_seconds(script):
    began = os.times()
    result = subprocess.run(
        [script("trisparse-glue"), *BASE, "--pruning_patern", "2:4"], capture_output=True, text=True
    )
    ended = os.times()  # of work, however busy the machine is
    assert ended.children_user + ended.children_system - began.children_user - began.children_system < 3
    assert result.returncode == 2
    assert (
        result.stderr == "trisparse-glue: error: --pruning_patern: unknown argument; did you mean --pruning_pattern?\n"
    )
    assert result.stdout == ""


def test_checking_arguments_imports_no_torch():
    code = f"import sys; from trisparse.prune.glue.parse import parse_arguments; parse_arguments({PRUNE}); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/").stdout == "False\n"


def test_booleans_and_abbreviations():
    assert parse_arguments(PRUNE).pruning.do_prune is True
    assert parse_arguments([*BASE, "--do_prune", "False"]).pruning.do_prune is False
    assert parse_arguments([*BASE, "--max_len", "64", "--pad"]).data.max_length == 64
    assert (
        parse_arguments(["--model", "m", "--task", "MRPC", "--output", "o", "--weight", "0.1"]).data.task_name == "mrpc"
    )
    assert parse_arguments([*BASE, "--overwrite_output_dir"]).training.overwrite_output_dir is True


RECIPES = {
    "dense": "--max_length 128 --per_device_train_batch_size 16 --learning_rate 5e-5 --num_train_epochs 5 --weight_decay 5e-5",
    "2:4": "--max_length 128 --per_device_train_batch_size 16 --learning_rate 1e-3 --num_train_epochs 15 --weight_decay 1e-3 "
    "--cooldown_epochs 5 --sparsity_warm_epochs 1 --lr_scheduler_type constant --distill_loss_weight 5 --do_prune "
    "--target_sparsity 0.5 --pruning_pattern 2:4 --pruning_frequency 50",
    "4x1": "--max_length 128 --per_device_train_batch_size 16 --learning_rate 1e-3 --num_train_epochs 15 --weight_decay 1e-3 "
    "--cooldown_epochs 5 --sparsity_warm_epochs 1 --lr_scheduler_type constant --distill_loss_weight 5 --do_prune "
    "--target_sparsity 0.9 --pruning_pattern 4x1 --pruning_frequency 50",
    "1xchannel": "--max_length 128 --per_device_train_batch_size 16 --learning_rate 1e-3 --num_train_epochs 15 --weight_decay 1e-3 "
    "--cooldown_epochs 5 --sparsity_warm_epochs 1 --lr_scheduler_type constant --distill_loss_weight 5 --do_prune "
    "--target_sparsity 0.9 --pruning_pattern 1xchannel --pruning_frequency 50 --pruning_type snip_momentum_progressive",
    "distilbert": "--max_length 256 --pad_to_max_length --per_device_train_batch_size 16 --learning_rate 1e-4 --num_train_epochs 120 "
    "--weight_decay 0 --cooldown_epochs 40 --sparsity_warm_epochs 1 --lr_scheduler_type constant --distill_loss_weight 2 "
    "--do_prune --target_sparsity 0.9 --pruning_pattern 4x1 --pruning_frequency 50",
    "mixed": "--max_length 128 --per_device_train_batch_size 16 --learning_rate 1e-3 --num_train_epochs 15 --weight_decay 1e-3 "
    "--cooldown_epochs 5 --sparsity_warm_epochs 1 --lr_scheduler_type constant --distill_loss_weight 5 --do_prune "
    "--target_sparsity 0.9 --pruning_config mixed",
}
MRPC_BATCHES = 230
# bertmini_mrpc_mixed.sh of neural-compressor's example, the program's name and the model's folder changed
MIXED_SCRIPT = """
    trisparse-glue --pruning_config mixed \\
        --model_name_or_path "runs/mrpc-dense" \\
        --task_name "mrpc" \\
        --max_length 128 \\
        --per_device_train_batch_size 16 \\
        --learning_rate 1e-3 \\
        --num_train_epochs 15 \\
        --weight_decay 1e-3  \\
        --do_prune \\
        --output_dir "./sparse_mrpc_bertmini" \\
        --cooldown_epochs 5 \\
        --sparsity_warm_epochs 1 \\
        --target_sparsity 0.9 \\
        --lr_scheduler_type "constant" \\
        --distill_loss_weight 5"""


@pytest.mark.parametrize("pruning_type", ["taylor", "lamp", "random_progressive"])
def test_a_criterion_is_given_by_name(pruning_type):
    args = parse_arguments([*BASE, *RECIPES["4x1"].split(), "--pruning_type", pruning_type])
    (group,) = args.pruning_config({"start_step": 1, "end_step": 9}).groups
    assert group.pruning_type == pruning_type


def test_bounds_of_a_layer_are_flags():
    window = {"start_step": 1, "end_step": 9}
    flags = ["--pruning_scope", "local", "--min_sparsity_ratio_per_op", "0.2", "--max_sparsity_ratio_per_op", "0.95"]
    (group,) = parse_arguments([*BASE, *RECIPES["4x1"].split(), *flags]).pruning_config(window).groups
    assert group.pruning_scope == "local"
    assert (group.min_sparsity_ratio_per_op, group.max_sparsity_ratio_per_op) == (0.2, 0.95)
    single, blocks = parse_arguments([*BASE, *RECIPES["mixed"].split(), *flags[2:]]).pruning_config(window).groups
    assert (single.max_sparsity_ratio_per_op, blocks.max_sparsity_ratio_per_op) == (0.95, 0.98), "a file's own go first"


@pytest.mark.parametrize(
    ("name", "window", "total"),
    [
        ("dense", None, 1150),
        ("2:4", (230, 2300, 50), 3450),
        ("4x1", (230, 2300, 50), 3450),
        ("1xchannel", (230, 2300, 50), 3450),
        ("distilbert", (230, 18400, 50), 27600),
        ("mixed", (230, 2300, 51), 3450),
    ],
)
def test_recipes_resolve(name, window, total):
    args = parse_arguments([*BASE, *RECIPES[name].split()])
    plan = make_plan(args, MRPC_BATCHES)
    assert plan.total_steps == total
    assert (tuple(plan.window.values()) if plan.window else None) == window
    if window:
        groups = args.pruning_config(plan.window).groups
        assert all(group.window == window for group in groups)
        assert [group.is_progressive for group in groups] == [name == "1xchannel"] * len(groups)
    if name == "mixed":
        assert [(str(g.pattern), g.pruning_scope, g.min_sparsity_ratio_per_op) for g in groups] == [
            ("1x1", "local", 0),
            ("4x1", "global", 0.5),
        ]


def test_the_mixed_script_is_the_mixed_recipe():
    program, *argv = shlex.split(MIXED_SCRIPT.replace("\\\n", " "))  # as a shell joins lines
    assert program == "trisparse-glue"
    args = parse_arguments(argv)
    folders = ["--model_name_or_path", "runs/mrpc-dense", "--output_dir", "./sparse_mrpc_bertmini"]
    recipe = parse_arguments(["--recipe", "bert-mini-mrpc-mixed", *folders])
    assert args.to_dict() == {**recipe.to_dict(), "recipe": None}
    plan = make_plan(args, MRPC_BATCHES)
    assert tuple(plan.window.values()) == (230, 2300, 51)
    single, blocks = args.pruning_config(plan.window).groups
    assert single.op_names == (".*output", ".*intermediate")
    assert (str(single.pattern), single.pruning_scope, single.target_sparsity) == ("1x1", "local", 0.9)
    assert blocks.op_names == (".*query", ".*key", ".*value")
    assert (str(blocks.pattern), blocks.pruning_scope, blocks.target_sparsity) == ("4x1", "global", 0.9)
    assert (blocks.min_sparsity_ratio_per_op, blocks.max_sparsity_ratio_per_op) == (0.5, 0.98)
    assert {(g.pruning_type, g.sparsity_decay_type) for g in (single, blocks)} == {("snip_momentum", "exp")}


def test_the_window():
    def plan(extra, batches=100):
        return make_plan(parse_arguments([*PRUNE, *extra.split()]), batches)

    assert plan("--num_train_epochs 2").window == {"start_step": 1, "end_step": 200, "pruning_frequency": 5}
    assert plan("--num_train_epochs 2 --gradient_accumulation_steps 3").steps_per_epoch == 34
    assert plan("--num_train_epochs 2 --sparsity_warm_epochs 0.5 --cooldown_epochs 0.25").window["end_step"] == 175
    assert plan("--max_train_steps 30").window == {"start_step": 1, "end_step": 30, "pruning_frequency": 1}
    assert plan("--max_train_steps 30 --num_train_epochs 5").total_steps == 30
    with pytest.raises(
        PruningError, match=r"--sparsity_warm_epochs 2, --cooldown_epochs 2: .* --num_train_epochs must be at least 4"
    ):
        plan("--num_train_epochs 3 --sparsity_warm_epochs 2 --cooldown_epochs 2")


def test_what_wins_over_what(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "start_step: 7\nend_step: 77\npattern: 8x1\npruning_configs:\n- {op_names: [a]}\n- {op_names: [b], pattern: 1x1}\n"
    )
    window = {"start_step": 1, "end_step": 200, "pruning_frequency": 5}
    groups = parse_arguments([*PRUNE, "--pruning_config", str(path)]).pruning_config(window).groups
    assert [g.window for g in groups] == [(7, 77, 5)] * 2, "the file's own window stands where no flag speaks"
    args = parse_arguments(
        [*PRUNE, "--pruning_config", str(path), "--cooldown_epochs", "1", "--pruning_pattern", "2x1"]
    )
    groups = args.pruning_config(window).groups
    assert [g.end_step for g in groups] == [200, 200]
    assert [str(g.pattern) for g in groups] == ["2x1", "1x1"]
    assert [g.pruning_op_types for g in groups] == [("Linear",)] * 2


@pytest.mark.parametrize("path", sorted(RECIPE_FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_published_row_has_a_recipe(path):
    args = parse_arguments(["--recipe", path.stem, "--model_name_or_path", "m", "--output_dir", "o"])
    model, task, pattern = path.stem.replace("bert-mini", "mini").split("-", 2)
    batch = args.data.per_device_train_batch_size
    batches = -(-{"mrpc": 3668, "sst2": 67349}[task] // batch)
    epochs = {"mini": 15, "minilm": 15, "distilbert": 120}[model]
    plan = make_plan(args, batches)
    assert args.data.task_name == task
    if pattern == "dense":
        assert plan.window is None
        assert not args.model.distill_loss_weight
        return
    assert plan.epochs == epochs
    target = {"2-4": 0.5, "1xchannel": 0.674 if task == "mrpc" else 0.541}.get(pattern, 0.9)
    groups = args.pruning_config(plan.window).groups
    assert [group.target_sparsity for group in groups] == [target] * len(groups)
    assert {str(group.pattern) for group in groups} == {
        "2-4": {"2:4"}, "mixed": {"1x1", "4x1"}, "4x1": {"4x1"},
    }.get(pattern, {"1xchannel"})  # fmt: skip


def test_a_given_flag_wins_over_the_recipe(tmp_path):
    base = ["--recipe", "bert-mini-mrpc-2-4", "--model_name_or_path", "m", "--output_dir", "o"]
    assert parse_arguments(base).training.learning_rate == 1e-3
    assert parse_arguments([*base, "--learning_rate", "3e-4"]).training.learning_rate == 3e-4
    dense = parse_arguments([*base, "--do_prune", "False"])
    assert not dense.pruning.do_prune
    own = tmp_path / "own.yaml"
    own.write_text("task_name: rte\nmodel_name_or_path: m\noutput_dir: o\ndo_prune: true\npruning_pattern: 2:4\n")
    args = parse_arguments([f"--recipe={own}"])
    assert (args.data.task_name, args.pruning.pruning_pattern) == ("rte", "2:4")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "own.yaml: 'learning_rat': unknown flag; did you mean 'learning_rate'"),
        ("recipe: mixed", "own.yaml: 'recipe': unknown flag"),
        ("- 1", "own.yaml: want a mapping of flags, got list"),
        ("task_name: [mrpc]", r"own.yaml: task_name: want text, a number, true or false, got \['mrpc'\]"),
        ("task_name:", "own.yaml: task_name: want text, a number, true or false, got None"),
        ("a: {", "own.yaml: "),
    ],
)
def test_broken_recipes(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(PruningError, match=message):
        parse_arguments(["--recipe", str(tmp_path / "own.yaml")])


def test_an_unknown_recipe_names_the_known():
    with pytest.raises(
        PruningError, match="--recipe: bert-mini-mrpc-4x2: no such file.*did you mean 'bert-mini-mrpc-4x1'"
    ):
        parse_arguments([*BASE, "--recipe", "bert-mini-mrpc-4x2"])


def test_fractions_in_a_config_are_those_of_the_runs_steps(tmp_path):
    from transformers import BertConfig, BertForSequenceClassification

    from trisparse.prune.glue.plan import make_plan
    from trisparse.prune.glue.setup import make_pruner

    path = tmp_path / "c.yaml"
    path.write_text("pattern: 4x1\nstart_step: 0.25\nend_step: 0.75\n")
    sizes = {"vocab_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=8))
    args = parse_arguments([*PRUNE, "--pruning_config", str(path), "--max_train_steps", "40"])
    assert make_pruner(args, model, model, make_plan(args, 40)).config.groups[0].window[:2] == (10, 30)
    path.write_text("pattern: 4x1\nstart_step: 0.25\nend_step: 0.75\ntotal_steps: 8\n")
    args = parse_arguments([*PRUNE, "--pruning_config", str(path), "--max_train_steps", "40"])
    assert make_pruner(args, model, model, make_plan(args, 40)).config.groups[0].window[:2] == (2, 6)
