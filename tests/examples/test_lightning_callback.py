"""The Lightning callback: what a plain loop gives, under accumulation, clipping, 16 bits and resuming."""

import inspect
import re

import pytest
import torch
from torch.nn import functional

from trisparse import Pruner, PruningError

pl = pytest.importorskip("pytorch_lightning")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory"),
]


class BreakAt(pl.Callback):
    """An interruption at the start of an epoch."""

    def __init__(self, epoch):
        self.epoch = epoch

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("cut off")


@pytest.fixture(scope="module")
def lightning(example):
    return example("lightning_callback")


@pytest.fixture
def train(lightning, tmp_path):
    """Train into a folder of the name; model and callback."""
    return lambda name, *args, **settings: lightning.train(
        str(tmp_path / name), *args, accelerator="cpu", devices=1, **settings
    )


@pytest.fixture
def scaled():
    """Settings of fp16 on a CPU; a scale this large overflows in the first steps, which are skipped."""

    def settings():
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**34)
        return {"plugins": [pl.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)]}

    return settings


def same(one, two):
    for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_callback_is_short(lightning):
    assert len(inspect.getsource(lightning.LightningPruning).splitlines()) < 60


def test_it_is_what_a_plain_loop_gives(lightning, train):
    model, pruning = train("out", accumulate_grad_batches=2, gradient_clip_val=0.05)
    pl.seed_everything(0, verbose=False)
    plain = lightning.Net()
    optimizer = plain.configure_optimizers()
    pruner = Pruner(plain, pruning.config)
    with pruner.attach(optimizer):
        for _ in range(4):
            for index, (x, y) in enumerate(lightning.make_loader()):
                (functional.cross_entropy(plain.net(x), y) / 2).backward()
                if index % 2:
                    torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
                    optimizer.step()
                    optimizer.zero_grad()
    same(model, plain)
    assert pruning.pruner.step_count == pruner.step_count == 64
    assert pruning.report == pruner.report()
    assert pruning.report.complete
    assert pruning.report.pruned_layers == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("kind", ["plain", "accumulated bf16", "fp16"])
def test_resumed_equals_uninterrupted(train, scaled, tmp_path, kind):
    def settings():
        if kind == "fp16":
            return scaled()
        return {"precision": "bf16-mixed", "accumulate_grad_batches": 2} if kind != "plain" else {}

    model, pruning = train("whole", **settings())
    with pytest.raises(RuntimeError, match="cut off"):
        train("parts", callbacks=[BreakAt(1)], **settings())
    resumed, again = train("parts", str(tmp_path / "parts" / "last.ckpt"), **settings())
    same(model, resumed)
    assert again.pruner.step_count == pruning.pruner.step_count
    assert again.report == pruning.report
    assert pruning.report.complete
    assert all(
        torch.equal(a, b) for a, b in zip(pruning.pruner.masks().values(), again.pruner.masks().values(), strict=True)
    )


def test_skipped_steps_do_not_count(train, scaled):
    class Count(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            state = trainer.optimizers[0].state
            self.steps = {int(entry["step"]) for entry in state.values()}
            self.hooks = [
                trainer.optimizers[0]._optimizer_step_pre_hooks,
                trainer.optimizers[0]._optimizer_step_post_hooks,
            ]

    count = Count()
    _, pruning = train("out", callbacks=[count], **scaled())
    assert count.steps == {pruning.pruner.step_count}
    assert 64 < pruning.pruner.step_count < 128
    assert pruning.report.pattern_verified
    assert not any(count.hooks)


def test_no_hooks_stay(train):
    class Look(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            self.hooks = [
                trainer.optimizers[0]._optimizer_step_pre_hooks,
                trainer.optimizers[0]._optimizer_step_post_hooks,
            ]

    look = Look()
    train("out", callbacks=[look], limit_train_batches=16)
    assert not any(look.hooks)


def test_a_checkpoint_without_the_pruner_is_refused(lightning, train, tmp_path):
    train("out")
    path = tmp_path / "out" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    del state["callbacks"]["LightningPruning"]
    state["loops"]["fit_loop"]["epoch_progress"]["current"] = dict.fromkeys(
        ("ready", "started", "processed", "completed"), 1
    )
    torch.save(state, path)
    with pytest.raises(PruningError, match="checkpoint: has no Pruner's state, to go on from step 128"):
        train("out", str(path))


def test_the_command_line(lightning, tmp_path, capsys):
    lightning.main(["--out", str(tmp_path), "--precision", "bf16-mixed", "--accumulate", "2"])
    assert re.search(r"zeros of the pruned layers +0.7500\n", capsys.readouterr().out)
    last = tmp_path / "last.ckpt"
    assert last.is_file()
    lightning.main(["--out", str(tmp_path), "--resume", str(last)])
    assert f"{last} is of a training that has ended" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        lightning.main(["--out", str(tmp_path), "--resume", str(tmp_path / "no.ckpt")])
    assert "no.ckpt is no checkpoint" in capsys.readouterr().err
