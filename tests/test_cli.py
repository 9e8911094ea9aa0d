"""The front door: light until a command is called, help that reads like help, one line for everything that stops it."""

import re
import subprocess
import sys

import pytest

import trisparse
from trisparse import PruningError, cli
from trisparse.cli import COMMANDS, main

LISTED = ", ".join(COMMANDS)


def test_help_version_and_a_typo_import_nothing_heavy():
    code = (
        "import sys; from trisparse.cli import main\n"
        "for words in (['--help'], ['--version'], ['compres'], ['demo', '--qqq']): main(words)\n"
        "print([name for name in ('torch', 'transformers', 'yaml', 'trisparse.prune.commands.compress') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/")
    assert done.stdout.endswith(f"trisparse {trisparse.__version__}\n[]\n"), done.stderr
    assert all(re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE) for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command, capsys):
    pytest.importorskip("transformers")
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    said = capsys.readouterr().out
    assert said.startswith(f"usage: trisparse {command}")
    assert "None" not in said
    assert not re.search(r"^ +--\w+-", said, re.MULTILINE), "one spelling of a flag"
    for flag in re.split(r"\n  (?=\S)", said):
        assert flag.split("recipes, files")[0].count("default") <= 1, flag
    assert ("--output_dir" in said) == (command in ("train", "sweep", "bench", "demo"))


def test_help_of_train_has_groups_choices_and_recipes(capsys):
    pytest.importorskip("transformers")
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    said = capsys.readouterr().out
    for line in ("the data:", "the run:", "what is pruned, and when:", "  --mixed_precision {no,bf16,fp16}"):
        assert f"\n{line}\n" in said
    assert "  bert-mini-mrpc-2-4            BERT-mini on MRPC, 2:4.\n" in said
    assert "peak learning rate (default: 5e-05)\n" in said


@pytest.mark.parametrize(
    ("alias", "said"),
    [
        (cli.glue, "trisparse-glue: error: --qqq: unknown argument\n"),
        (cli.demo, "trisparse-demo: error: --qqq: unknown argument\n"),
        (cli.bench, "trisparse-bench: error: --model or --suite: missing\n"),
    ],
)
def test_an_alias_is_called_what_was_typed(alias, said, monkeypatch, capsys):
    pytest.importorskip("transformers")
    monkeypatch.setattr(sys, "argv", ["x", "--qqq", "--output_dir", "out"])
    assert alias() == 2
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (PruningError("two\nlines"), "error: two lines"),
        (PermissionError(13, "Permission denied", "/there"), "error: /there: Permission denied"),
        (ModuleNotFoundError("no", name="rich.table"), "error: rich is not installed; pip install 'trisparse[glue]'"),
        (ModuleNotFoundError("no", name="jinja2"), "error: jinja2 is not installed; pip install 'trisparse[plot]'"),
        (ModuleNotFoundError("no", name="pytest"), "error: pytest is not installed; pip install pytest"),
    ],
)
def test_what_stops_a_command_is_one_line(raised, said, monkeypatch, capsys):
    from trisparse.prune.commands import inspect

    def stop(argv, prog):
        raise raised

    monkeypatch.setattr(inspect, "main", stop)
    assert main(["inspect", "x"]) == 2
    assert capsys.readouterr().err == f"trisparse inspect: {said}\n"
    monkeypatch.setenv("RANK", "1")
    assert main(["inspect", "x"]) == 2
    assert capsys.readouterr().err == f"trisparse inspect: process 1: {said}\n"


def test_a_fault_of_ours_is_shown_whole(monkeypatch):
    from trisparse.prune.commands import inspect

    def stop(argv, prog):
        raise ModuleNotFoundError("no", name="trisparse.nothing")

    monkeypatch.setattr(inspect, "main", stop)
    with pytest.raises(ModuleNotFoundError):
        main(["inspect", "x"])


def test_an_interrupted_run_says_how_to_go_on(monkeypatch, capsys):
    pytest.importorskip("transformers")
    from trisparse.prune.glue import train

    def stop(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", stop)
    assert main(["train", "--model_name_or_path", "m", "--task_name", "mrpc"]) == 2
    assert capsys.readouterr().err == (
        "trisparse train: interrupted; if an epoch had ended, --resume_from_checkpoint with the output_dir goes on from it\n"
    )
