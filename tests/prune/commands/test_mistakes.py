"""What a newcomer types wrong: one exact line on standard error, exit status 2, nothing written."""

import pytest

from trisparse.cli import COMMANDS, main

pytest.importorskip("transformers")
TASKS = "cola, mnli, mrpc, qnli, qqp, rte, sst2, stsb, wnli"
TRAIN = ["train", "--model_name_or_path", "m", "--task_name", "mrpc"]
PRUNE = ["prune", "m", "out", "--pattern", "2:4"]
SWEEP = ["sweep", "--speedups", "2", "--output_dir", "out", *TRAIN[1:]]
MISTAKES = [
    ([], f": a command is missing; want one of {', '.join(COMMANDS)}, or --help"),
    (["compres"], ": compres: unknown command; did you mean 'compress'?"),
    (["zip"], f": zip: unknown command; want one of {', '.join(COMMANDS)}"),
    (["--versio"], ": --versio: unknown argument; did you mean --version?"),
    (["train"], "--model_name_or_path: missing"),
    (
        ["train", "--model_name_or_path", "m"],
        f"--task_name: missing; want one of {TASKS}, or --train_file and --validation_file of your own",
    ),
    ([*TRAIN[:3], "--task_name", "mrcp"], f"--task_name: 'mrcp' is not one of {TASKS}; did you mean 'mrpc'?"),
    ([*TRAIN, "--do-prune", "maybe"], "--do_prune: want true or false, got 'maybe'"),
    ([*TRAIN, "--pruning_patern", "2:4"], "--pruning_patern: unknown argument; did you mean --pruning_pattern?"),
    ([*TRAIN, "--learning-rat-e", "1"], "--learning-rat-e: unknown argument; did you mean --learning_rate?"),
    ([*TRAIN, "2:4"], "2:4: unknown argument"),
    ([*TRAIN, "--learning_rate", "fast"], "--learning_rate: want a number, got 'fast'"),
    ([*TRAIN, "--seed", "1.5"], "--seed: want a whole number, got '1.5'"),
    ([*TRAIN, "--max_length"], "--max_length: its value is missing"),
    ([*TRAIN, "--max", "3"], "ambiguous option: --max could match --max_length, --max_train_steps, --max_sparsity_ratio_per_op"),
    (
        [*TRAIN, "--lr_scheduler_type", "const"],
        "--lr_scheduler_type: 'const' is not one of linear, cosine, cosine_with_restarts, polynomial, constant, "
        "constant_with_warmup; did you mean 'constant'?",
    ),
    (
        [*TRAIN, "--pruning_pattern", "2:4"],
        "--pruning_pattern: has no effect without --do_prune; add it, or --do_prune False to train dense",
    ),
    (
        [*TRAIN, "--do_prune", "--pruning_config", "mixd"],
        "mixd: no such file, and no recipe of that name (mixed); did you mean 'mixed'?",
    ),
    ([*TRAIN, "--train_file", "own.csv"], "--train_file: needs --validation_file or --dataset_dir beside it"),
    ([*TRAIN, "--dataset_dir", "nowhere"], "--dataset_dir: nowhere is no folder"),
    ([*TRAIN, "--resume_from_checkpoint", "none"], "--resume_from_checkpoint: none is no checkpoint and holds no checkpoint.pt"),
    (["prune"], "MODEL, OUT, --pattern: missing"),
    ([*PRUNE, "--method", "wanda"], "--data: missing; wanda prunes by what it sees of texts"),
    ([*PRUNE, "--method", "wand"], "--method: 'wand' is not one of magnitude, wanda, sparsegpt, dsnot; did you mean 'wanda'?"),
    ([*PRUNE, "--samples", "two"], "--samples: want a whole number, got 'two'"),
    (["prune", "m", "m", *PRUNE[3:]], "OUT: want another folder than MODEL, got m"),
    (["prune", "m", "own.csv", *PRUNE[3:]], "OUT: want a folder, but own.csv is a file"),
    (["compress", "m"], "OUT: missing"),
    (["compress", "m", "out", "--prefer", "sped"], "--prefer: 'sped' is not one of speed, memory; did you mean 'speed'?"),
    (["compress", "m", "out", "--device", "meta"], "--device: want one that computes, got 'meta'"),
    (["compress", "m", "out", "--max_shard_size", "5 elephants"], "max_shard_size: want bytes or a text like '5GB', got '5 elephants'"),
    (["compress", "m", "out", "--output_dir", "x"], "--output_dir: unknown argument"),
    (["export", "m", "out"], "--format: missing"),
    (["export", "m", "out", "--format", "denze"], "format: want dense or onnx, got 'denze'"),
    (["inspect"], "MODEL: missing"),
    (["inspect", "m", "n"], "n: unknown argument"),
    (["inspect", "nowhere"], "nowhere: want a folder with config.json, found none"),
    (["report"], "DIR: missing"),
    (["report", "m", "n"], "--output: missing; with several folders, name the file to write"),
    (["report", "nowhere"], "nowhere: holds no all_results.json; want the output_dir of a trisparse train run that has ended"),
    (["sweep", "--output_dir", "out"], "--speedups: missing"),
    (["sweep", "--speedups", "fast", "--output_dir", "out"], "--speedups: want a number, got 'fast'"),
    ([*SWEEP, "--sed", "3"], "--sed: unknown argument; did you mean --seed?"),
    ([*SWEEP, "--target_sparsity", "0.5"], "target_sparsity: target_speedup says how far to prune; leave one of them out"),
    (["bench", "--output_dir", "out"], "--model or --suite: missing"),
    (["bench", "--model", "m"], "--output_dir: missing"),
    (
        ["bench", "--model", "m", "--suite", "cpu", "--output_dir", "out"],
        "--suite: does not go together with --model; leave one of them out",
    ),
    (["bench", "--suite", "tpu", "--output_dir", "out"], "--suite: 'tpu' is not one of gpu, cpu; did you mean 'gpu'?"),
    (["bench", "--suite", "cpu", "--output_dir", "out"], "--suite: no pyproject.toml, tests, benchmarks in {here}; run it in a checkout of trisparse"),
    (["demo", "--outdir", "x"], "--outdir: unknown argument; did you mean --output_dir?"),
    (["demo", "--output_dir", "own.csv"], "--output_dir: own.csv is a file"),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "said"), MISTAKES, ids=lambda x: " ".join(x)[:60] if isinstance(x, list) else "")
def test_a_mistake_is_one_line(argv, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.csv").write_text("text,label\na,1\n")
    assert main(argv) == 2
    prog = "trisparse: error" if said.startswith(": ") else f"trisparse {argv[0]}: error: "
    captured = capsys.readouterr()
    assert captured.err == f"{prog}{said.format(here=tmp_path)}\n"
    assert captured.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["own.csv"]
