from __future__ import annotations

import dataclasses
import json
import types

import pytest
import torch
import torch.nn.functional as F
from devices import needs_gpu

import hyenarec
from hyenarec.config import DataConfig, LossConfig, ModelConfig, TrainConfig
from hyenarec.config.auto import with_fixed
from hyenarec.data import TrainingBatches, Vocabulary, load_histories, split_histories, synthetic_bounds
from hyenarec.evaluation.recommend import load
from hyenarec.models.hyenarec import HyenaRec
from hyenarec.train import known_bounds, train, trainer
from hyenarec.train.loss import NextItemLoss


def weights_of(folder) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_a_run_learns_and_leaves_everything_in_its_folder(make_config, tmp_path, capsys):
    result = train(make_config(epochs=6))
    popularity = result.reference_baselines["Popularity"]
    assert result.test.figures["NDCG@10"].mean > 2 * popularity.figures["NDCG@10"].mean
    assert result.floors is result.reference_baselines  # the old name
    losses = [record["loss"] for record in result.log]
    assert losses == sorted(losses, reverse=True)
    assert [(record["epoch"], record["step"]) for record in result.log] == [(e, 5 * e) for e in range(1, 7)]
    assert all(record["validation"].keys() == result.test.figures.keys() for record in result.log)
    assert all(record["events_per_second"] > 0 and record["wall_seconds"] > 0 for record in result.log)

    folder = tmp_path / "run"
    report = json.loads((folder / "report.json").read_text())
    assert report["results"].keys() == {"HyenaRec", "Markov", "Popularity", "Personal", "Personal + Markov"}
    assert report["results"]["HyenaRec"]["figures"]["NDCG@10"]["mean"] == result.test.figures["NDCG@10"].mean
    assert (
        report["best_validation"]["NDCG@10"]
        == result.best_score
        == max(record["validation"]["NDCG@10"] for record in result.log)
    )
    assert report["config"]["model"]["num_items"] == len(Vocabulary.load(folder)) == 30
    saved = HyenaRec.from_pretrained(folder)
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), result.model.parameters(), strict=True))
    printed = capsys.readouterr().out
    assert "epoch 6/6" in printed and "Popularity" in printed and "leaks" in printed


def test_the_package_does_not_hide_the_module():
    assert isinstance(hyenarec.train, types.ModuleType) and hyenarec.train.train is train


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_config, tmp_path):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(make_config(folder, epochs=1, seed=seed))
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b") != weights_of(tmp_path / "c")


def test_the_loss_is_the_mean_cross_entropy_of_every_event(make_config):
    config = make_config(learning_rate=1e-12, dropout=0.0, epochs=1)
    result = train(config)
    split = split_histories(load_histories(config.data), config.data)
    batches = TrainingBatches(split.train, config.model.max_len, batch_events=1, seed=0)
    losses = []
    for batch in batches.batches(epoch=0):
        with torch.no_grad():
            hidden = result.model(batch.items[None])[0]
        scores = hidden @ result.model.item_weight.t() + result.model.item_bias
        losses.append(F.cross_entropy(scores, batch.targets - 1, reduction="none"))
    assert result.log[0]["loss"] == pytest.approx(torch.cat(losses).mean().item(), rel=1e-5)


def test_a_step_is_one_of_adamw_on_the_mean_loss(make_config):
    config = make_config(dropout=0.0, epochs=1, batch_events=1000, learning_rate=0.5)
    config = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, gradient_clip=0.01))
    split = split_histories(load_histories(config.data), config.data)
    torch.manual_seed(config.seed)
    model = HyenaRec(dataclasses.replace(config.model, num_items=30))
    (batch,) = TrainingBatches(split.train, 16, batch_events=1000, seed=0).batches(epoch=0)
    (NextItemLoss(model)(batch.items, batch.offsets, batch.targets) / len(batch.targets)).backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    assert norm > 0.01  # else this test would not see the clipping
    rate = 0.5 / 6  # the first of five steps of warm-up
    for parameter in model.parameters():
        # AdamW's first step: both moments, corrected, are the gradient and its square.
        decay = (
            0.01
            if any(parameter is m.weight for m in model.modules() if isinstance(m, torch.nn.Linear))
            else 0
        )
        with torch.no_grad():
            parameter.mul_(1 - rate * decay)
            parameter.sub_(rate * parameter.grad / (parameter.grad.abs() + 1e-8))
    trained = train(config).model
    for (name, expected), got in zip(model.named_parameters(), trained.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.fixture
def scripted_scores(monkeypatch):
    """Validations that find the given NDCG@10, one after the other; says which evaluations were asked for."""
    asked: list[str] = []

    def script(*scores: float) -> list[str]:
        remaining = list(scores)
        evaluate = trainer.evaluate

        def scripted(model, targets, *, split, **settings):
            asked.append(split.split()[-1])
            evaluation = evaluate(model, targets, split=split, **settings)
            if split.endswith("test"):
                return evaluation
            figure = dataclasses.replace(evaluation.figures["NDCG@10"], mean=remaining.pop(0))
            return dataclasses.replace(evaluation, figures={**evaluation.figures, "NDCG@10": figure})

        monkeypatch.setattr(trainer, "evaluate", scripted)
        return asked

    return script


def test_early_stopping_keeps_the_best_weights_and_tests_once(make_config, tmp_path, scripted_scores):
    train(make_config("best", epochs=2, optimizer=constant_rate()))
    asked = scripted_scores(0.1, 0.3, 0.2, 0.3)
    result = train(make_config(epochs=9, patience=2, optimizer=constant_rate()))
    assert asked == ["validation"] * 4 + ["test"]
    assert (result.best_epoch, result.best_score, len(result.log)) == (2, 0.3, 4)
    assert weights_of(tmp_path / "run") == weights_of(tmp_path / "best")


def constant_rate():
    from hyenarec.config import OptimizerConfig

    return OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_steps=0)


def test_validation_every_second_epoch_and_after_the_last(make_config, scripted_scores):
    asked = scripted_scores(0.1, 0.2, 0.3)
    result = train(make_config(epochs=5, evaluate_every=2, patience=None))
    assert asked == ["validation"] * 3 + ["test"]
    assert ["validation" in record for record in result.log] == [False, True, False, True, True]
    assert result.best_epoch == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(make_config, monkeypatch, tmp_path, value):
    loss, steps = NextItemLoss.forward, []

    def broken(self, *arguments):
        steps.append(1)
        return loss(self, *arguments) * (value if len(steps) == 8 else 1)

    monkeypatch.setattr(NextItemLoss, "forward", broken)
    with pytest.raises(
        FloatingPointError, match=rf"loss must stay finite, got {value} at step 8 \(epoch 2\)"
    ):
        train(make_config(checkpoint_every=8))
    saved = trainer.load_checkpoint(tmp_path / "run" / "checkpoint.safetensors")
    assert saved.progress.total_steps == 5
    assert all(tensor.isfinite().all() for tensor in saved.model.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "epochs"),
    [
        (LossConfig(name="sampled_softmax", negatives=10, distribution="popularity"), 6),
        (LossConfig(name="bce"), 6),
        (LossConfig(name="gbce", negatives=10), 80),  # first it learns how seldom an event is a positive one
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_sampled_loss_learns(make_config, loss, epochs):
    result = train(make_config(epochs=epochs, evaluate_every=epochs, loss=loss))
    popularity = result.reference_baselines["Popularity"]
    assert result.test.figures["NDCG@10"].mean > 2 * popularity.figures["NDCG@10"].mean


@needs_gpu
@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax"])
@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_training_and_resuming_on_a_gpu(make_config, precision, loss):
    on_gpu = make_config(precision, precision=precision, device="auto", loss=LossConfig(name=loss))
    straight = train(on_gpu)
    assert straight.log[-1]["loss"] < straight.log[0]["loss"]
    again = train(dataclasses.replace(on_gpu, epochs=4, resume=True))
    assert [record["epoch"] for record in again.log] == [1, 2, 3, 4]


@pytest.mark.parametrize("loss", ["softmax", "sampled_softmax", "gbce"])
def test_mixed_precision_in_the_same_process(make_config, loss):
    settings = {"dropout": 0.0, "loss": LossConfig(name=loss)}
    losses = {p: train(make_config(p, precision=p, **settings)).log[-1]["loss"] for p in ("no", "bf16")}
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.02) and losses["bf16"] != losses["no"]


def test_half_precision_on_a_cpu_is_refused(make_config):
    with pytest.raises(ValueError, match="precision must be no or bf16 on a CPU, got 'fp16'"):
        train(make_config(precision="fp16"))


def test_another_run_is_not_written_over(make_config, tmp_path):
    train(make_config(epochs=1))
    (tmp_path / "run" / "checkpoint.safetensors").unlink()
    with pytest.raises(ValueError, match=r"output_dir must be a folder without a run"):
        train(make_config(epochs=1))  # the model alone is worth keeping, too
    train(make_config(epochs=1, overwrite=True))
    with pytest.raises(ValueError, match=r"output_dir must be a folder without a run, but .*run has one"):
        train(make_config(epochs=1))
    result = train(make_config(epochs=2, overwrite=True))
    assert [record["epoch"] for record in result.log] == [1, 2]
    settings = json.loads((tmp_path / "run" / "train_config.json").read_text())
    assert settings["overwrite"] is False  # who starts from these settings must say it again


def test_nothing_of_the_run_before_lies_beside_the_settings_of_a_new_one(make_config, tmp_path, monkeypatch):
    train(make_config(epochs=1))

    def stop(run):
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.TrainingRun, "train", stop)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(epochs=1, overwrite=True))
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {"train_config.json"}


def test_a_catalogue_of_another_size_is_refused(make_config):
    config = make_config()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_items=7))
    with pytest.raises(ValueError, match=r"model\.num_items must be 30 as in the data, or null, got 7"):
        train(config)


def test_all_windows_of_a_temporal_split(make_config, tmp_path):
    path = tmp_path / "events.csv"
    rows = [f"{user},{(user + step) % 12},{100 * step + user}\n" for user in range(40) for step in range(20)]
    path.write_text("user,item,timestamp\n" + "".join(rows))
    config = make_config(epochs=1)
    data = dataclasses.replace(config.data, path=str(path), split="temporal", windows="all")
    model = dataclasses.replace(config.model, max_len=6)
    result = train(dataclasses.replace(config, data=data, model=model))
    assert result.test.protocol.startswith("temporal test, 40 users")
    split = split_histories(load_histories(data), data)
    predicted = (split.train.lengths - 1).sum()
    assert result.log[0]["step"] == -(-predicted // config.batch_events)


def test_generated_histories_come_with_what_they_allow(tmp_path, capsys):
    config = TrainConfig(
        data=DataConfig(synthetic_users=30),
        model=ModelConfig(dim=8, num_blocks=1, max_len=50),
        epochs=1,
        device="cpu",
        output_dir=str(tmp_path / "run"),
    )
    train(config)
    bounds = synthetic_bounds(30)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["bounds"] == bounds
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("best achievable")]
    assert line.split()[2:] == [f"{figure:.4f}" for figure in bounds["best achievable"].values()]
    others = {"exclude_history": True}, {"min_item_events": 2}, {"split": "temporal"}, {"path": "x.csv"}
    for changes in others:
        changed = dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))
        assert known_bounds(with_fixed(changed)) == {}


@pytest.mark.parametrize("loss", [LossConfig("softmax"), LossConfig("sampled_softmax", 8)])
def test_what_only_the_moment_tells_is_learned_from_it(make_config, loss, tmp_path):
    timed = make_config(timed=True, epochs=25, loss=loss)
    with_time = train(timed)
    model = dataclasses.replace(timed.model, time_unit=None)
    without = train(dataclasses.replace(timed, model=model, output_dir=str(tmp_path / "without")))
    assert with_time.test.figures["NDCG@10"].mean > 0.9
    assert without.test.figures["NDCG@10"].mean < 0.6
    saved = load(timed.output_dir)
    for hour in range(24):
        (best,) = saved.recommend([100], k=1, timestamps=[0], at=60 * (24 * 3 + hour) + 30)
        assert best.item == 100 + hour // 2


def test_a_run_with_time_resumes_with_the_same_times_only(make_config, timed_events, tmp_path):
    train(make_config("whole", timed=True, epochs=3))
    half = make_config(timed=True, epochs=3)
    train(dataclasses.replace(half, epochs=1, optimizer=dataclasses.replace(half.optimizer)))
    train(dataclasses.replace(half, resume=True))
    text = timed_events.read_text().splitlines()
    user, item, minute = text[-1].split()
    timed_events.write_text("\n".join([*text[:-1], f"{user} {item} {int(minute) + 1}"]) + "\n")
    with pytest.raises(ValueError, match="data must be the same as when the run began"):
        train(dataclasses.replace(half, epochs=4, resume=True))


def test_a_run_does_not_change_its_unit(make_config):
    config = make_config(timed=True, epochs=1)
    train(config)
    for unit in (None, "second"):
        model = dataclasses.replace(config.model, time_unit=unit)
        with pytest.raises(ValueError, match=r"model.time_unit must be 'minute' to resume this run, got"):
            train(dataclasses.replace(config, model=model, resume=True))


def test_figures_say_that_the_moment_was_given(make_config, tmp_path):
    for timed in (True, False):
        result = train(make_config(timed=timed, epochs=1, overwrite=True))
        assert result.test.moment_given is timed
        assert ("moment of the target given" in result.test.protocol) is timed
        report = json.loads((tmp_path / "run" / "report.json").read_text())
        assert ("moment of the target given" in report["protocol"]) is timed


def test_time_needs_timestamps_of_its_unit(make_config, timed_events):
    config = make_config(timed=True)
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, time_unit="nanosecond"))
    with pytest.raises(
        ValueError, match=r"unit of the timestamps of .*, got 'nanosecond', .* over 4.31e-05 s"
    ):
        train(wrong)
    lines = timed_events.read_text().splitlines()
    timed_events.write_text("".join(line.rpartition(" ")[0] + "\n" for line in lines))
    with pytest.raises(ValueError, match=r"time_unit must be null without timestamps, which .*timed_events"):
        train(config)


@pytest.mark.parametrize("unit", ["minute", "millisecond"])
def test_unix_time_is_recognised(make_config, timed_events, unit):
    config = make_config(timed=True)
    lines = [line.split() for line in timed_events.read_text().splitlines()]
    rows = [f"{user} {item} {1_764_547_200 + 60 * int(minute)}\n" for user, item, minute in lines]
    timed_events.write_text("".join(rows))
    wrong = dataclasses.replace(config, model=dataclasses.replace(config.model, time_unit=unit))
    with pytest.raises(
        ValueError, match=rf"timed_events.txt \('second', if they are Unix time\), got '{unit}'"
    ):
        train(wrong)


def test_a_run_says_what_its_times_are_taken_for(make_config, timed_events, capsys):
    train(make_config(timed=True, epochs=1))
    assert "events run over 30 days" in capsys.readouterr().out
    lines = [line.split() for line in timed_events.read_text().splitlines()]
    rows = [f"{user} {item} {1_764_547_200 + 60 * int(minute)}\n" for user, item, minute in lines]
    timed_events.write_text("".join(rows))
    config = make_config("unix", timed=True, epochs=1)
    train(dataclasses.replace(config, model=dataclasses.replace(config.model, time_unit="second")))
    assert "events run from 2025-12-01 01:38 to 2025-12-30 23:58 UTC" in capsys.readouterr().out
