from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from hyenarec.config import (
    DataConfig,
    LossConfig,
    MarkovConfig,
    ModelConfig,
    OptimizerConfig,
    SASRecConfig,
    TrainConfig,
)
from hyenarec.config.auto import FIXED, open_settings
from hyenarec.data import Histories, Vocabulary
from hyenarec.data.histories import offsets_of
from hyenarec.train import train
from hyenarec.train.recipe import RULES, Statistics, complete


def histories_of(*users: list[int], num_items: int = 9) -> Histories:
    return Histories(
        offsets=offsets_of(np.array([len(items) for items in users])),
        items=np.array([item for items in users for item in items], dtype=np.int32),
        timestamps=None,
        user_ids=np.arange(len(users)),
        vocabulary=Vocabulary(np.arange(num_items)),
    )


def test_statistics_of_a_small_table():
    data = Statistics.of(histories_of([1, 2, 1, 1], [], [3], [1, 2, 3]))
    assert data == Statistics(num_items=9, num_targets=5, usual_length=3, repeats=2 / 8)
    assert data.targets_per_item == 5 / 9


def test_every_open_setting_has_a_rule_and_a_fixed_value():
    assert open_settings(TrainConfig()) == set(FIXED) == set(RULES)
    assert open_settings(complete(TrainConfig(), histories_of([1, 2, 3]))[0]) == set()
    assert open_settings(complete(TrainConfig(recipe="none"), histories_of([1, 2, 3]))[0]) == set()


def test_what_is_given_wins():
    given = TrainConfig(
        model=SASRecConfig(dropout=0.35, max_len=70),
        optimizer=OptimizerConfig(learning_rate=0.1),
        loss=LossConfig(name="bce"),
        patience=None,
        batch_events=33,
    )
    config, choices = complete(given, histories_of([1, 2, 3]))
    assert (config.model.dropout, config.model.max_len, config.loss.name) == (0.35, 70, "bce")
    assert (config.optimizer.learning_rate, config.patience, config.batch_events) == (0.1, None, 33)
    assert {choice.setting for choice in choices} == {
        "data.exclude_history", "data.windows", "model.repeats", "model.own_followers", "model.followers",
        "model.repeats_by_time", "model.lag_bias", "loss.lookahead", "optimizer.schedule", "epochs",
    }  # fmt: skip


@pytest.mark.parametrize("repeated, excluded", [(0, True), (1, True), (10, False), (300, False)])
def test_where_nobody_repeats_the_history_is_excluded_and_elsewhere_scored(repeated, excluded):
    items = histories_of([*range(1, 201), *[1] * repeated], num_items=200)
    config, _ = complete(TrainConfig(), items)
    assert config.data.exclude_history is excluded
    assert config.model.repeats is config.model.own_followers is not excluded
    assert config.model.followers is True


@pytest.mark.parametrize("unit", [None, "hour"])
@pytest.mark.parametrize("repeated", [0, 300])
def test_repeats_count_by_time_where_they_count_and_the_time_is_known(repeated, unit):
    items = histories_of([*range(1, 201), *[1] * repeated], num_items=200)
    config, _ = complete(TrainConfig(model=ModelConfig(time_unit=unit)), items)
    assert config.model.repeats_by_time is (repeated > 0 and unit is not None)


def test_sizes_follow_from_the_histories():
    sparse, dense = (histories_of(*[list(range(1, n))] * 500, num_items=8000) for n in (12, 900))
    small, large = (complete(TrainConfig(), data)[0] for data in (sparse, dense))
    assert (small.model.max_len, large.model.max_len) == (50, 1000)
    assert (small.batch_events, large.batch_events) == (128, 3584)
    assert small.model.dropout > large.model.dropout


def test_tiny_data_have_as_many_steps_in_more_epochs():
    users = [[1, 2, 3, 4, 5]] * 8000
    tiny, usual = (complete(TrainConfig(), histories_of(*users[:n], num_items=5))[0] for n in (64, 8000))
    assert (tiny.batch_events, usual.batch_events) == (128, 256)
    assert (tiny.epochs, usual.epochs) == (round(30 * 125 / 2), 30)
    assert (tiny.patience, usual.patience) == (round(15 * 125 / 2), 15)


def test_an_epoch_has_a_step_however_few_events_there_are():
    config, _ = complete(TrainConfig(), histories_of([1, 2, 3], num_items=3))
    assert (config.epochs, config.patience) == (60 * 125, 6 * 125)


@pytest.mark.parametrize(
    "schedule, rate, epochs, patience", [("cosine", 2e-3, 30, 15), ("constant", 1e-3, 60, 6)]
)
@pytest.mark.parametrize("num_items", [5, 8000])
def test_rate_and_epochs_follow_a_schedule_that_is_given(schedule, rate, epochs, patience, num_items):
    data = histories_of(*[[1, 2, 3, 4, 5]] * 8000, num_items=num_items)
    config, _ = complete(TrainConfig(optimizer=OptimizerConfig(schedule=schedule)), data)
    assert (config.optimizer.learning_rate, config.epochs, config.patience) == (rate, epochs, patience)


def test_epochs_follow_a_batch_that_is_given():
    data = histories_of(*[[1, 2, 3, 4, 5]] * 8000, num_items=5)
    config, _ = complete(TrainConfig(batch_events=2560), data)
    assert config.epochs == 30 * 10  # 12.5 instead of 125 steps in each


def test_a_large_catalogue_has_a_sampled_loss_and_no_table_of_followers():
    config, _ = complete(TrainConfig(), histories_of([1, 2, 1, 1, 3], num_items=100_001))
    assert (config.loss.name, config.model.repeats) == ("sampled_softmax", True)
    assert config.model.lag_bias is False
    assert config.model.followers is False


def test_what_is_asked_for_decides_the_loss_and_the_repeats():
    few = histories_of([1, 2, 1, 1, 3])
    assert complete(TrainConfig(loss=LossConfig(negatives=4)), few)[0].loss.name == "sampled_softmax"
    config, _ = complete(TrainConfig(data=DataConfig(exclude_history=True)), few)
    assert config.model.repeats is config.model.own_followers is config.model.lag_bias is False
    assert complete(TrainConfig(), few)[0].model.lag_bias is True


@pytest.mark.parametrize(
    ("changes", "chosen"),
    [
        ({}, 3),
        ({"model": ModelConfig(followers=False)}, 1),
        ({"model": ModelConfig(lag_bias=True)}, 1),
        ({"model": ModelConfig(repeat_head=True)}, 1),
        ({"model": ModelConfig(time_unit="hour")}, 1),
        ({"model": MarkovConfig()}, 1),
        ({"data": DataConfig(exclude_history=False)}, 1),
        ({"loss": LossConfig(name="gbce")}, 1),
        ({"loss": LossConfig(lookahead=5)}, 5),
    ],
)
def test_later_items_are_targets_of_sparse_data_only(changes, chosen):
    users = [[1, 2, 3, 4, 5]] * 100
    sparse, dense = (histories_of(*users, num_items=n) for n in (8000, 5))
    assert complete(TrainConfig(**changes), sparse)[0].loss.lookahead == chosen
    given = chosen if chosen == 5 else 1
    assert complete(TrainConfig(**changes), dense)[0].loss.lookahead == given


def test_later_items_as_targets_decide_the_loss_and_leave_no_bias():
    config, _ = complete(
        TrainConfig(loss=LossConfig(lookahead=2)), histories_of([1, 2, 1, 1], num_items=100_001)
    )
    assert (config.loss.name, config.model.lag_bias) == ("softmax", False)


def test_fixed_values_ask_no_data():
    config, choices = complete(TrainConfig(recipe="none"), histories_of([1, 2, 3]))
    assert choices == []
    assert (config.epochs, config.batch_events, config.model.max_len) == (20, 8192, 200)
    with pytest.raises(ValueError, match=r"recipe must be one of 'data', 'none', got 'magic'"):
        TrainConfig(recipe="magic")


def test_a_run_prints_and_stores_what_was_chosen(make_config, tmp_path, capsys):
    config = dataclasses.replace(
        make_config(epochs=1, recipe="data"),
        model=ModelConfig(dim=8, num_blocks=1),
        optimizer=OptimizerConfig(),
    )
    result = train(config)
    printed = capsys.readouterr().out
    assert "model.max_len            50         nine histories of ten have at most" in printed
    assert "\n  epochs " not in printed  # it was given
    saved = json.loads((tmp_path / "run" / "train_config.json").read_text())
    assert saved["model"]["max_len"] == result.config.model.max_len == result.model.max_len == 50
    assert saved["optimizer"]["schedule"] == result.config.optimizer.schedule
    assert json.loads((tmp_path / "run" / "config.json").read_text())["max_len"] == 50
    resumed = train(dataclasses.replace(config, epochs=2, resume=True))
    assert [record["epoch"] for record in resumed.log] == [1, 2]
