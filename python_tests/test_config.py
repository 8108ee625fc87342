"""Every configuration refuses bad values by name."""

from __future__ import annotations

import dataclasses
from typing import get_args

import pytest

from hyenarec.config import (
    MODEL_CONFIGS,
    BenchConfig,
    DataConfig,
    GRU4RecConfig,
    HyenaConfig,
    LossConfig,
    LossName,
    ModelConfig,
    OptimizerConfig,
    RecommenderConfig,
    SASRecConfig,
    SequentialConfig,
    TrainConfig,
    model_config_from_dict,
    to_dict,
)
from hyenarec.config.loss import LOSSES


@pytest.mark.parametrize(
    ("kind", "setting", "value", "message"),
    [
        (
            DataConfig,
            "split",
            "random",
            "data.split must be one of 'leave-one-out', 'temporal', got 'random'",
        ),
        (DataConfig, "test_fraction", 1.0, "data.test_fraction must be between 0 and 1"),
        (
            DataConfig,
            "test_fraction",
            0.95,
            r"data.validation_fraction \+ data.test_fraction must be below 1",
        ),
        (DataConfig, "min_user_events", 0, "data.min_user_events must be an integer of at least 1, got 0"),
        (ModelConfig, "dim", 0, "model.dim must be an integer of at least 1, got 0"),
        (ModelConfig, "dim", True, "model.dim must be an integer"),
        (ModelConfig, "order", 1, "model.order must be an integer of at least 2, got 1"),
        (ModelConfig, "short_conv_width", 9, "model.short_conv_width must be from 1 to 8, got 9"),
        (ModelConfig, "dropout", 1.0, "model.dropout must be at least 0 and below 1"),
        (ModelConfig, "kernel", "fourier", "model.kernel must be one of 'legendre', 'mlp', 'free'"),
        (ModelConfig, "name", "hyena", "model.name must be 'hyenarec' for a ModelConfig, got 'hyena'"),
        (HyenaConfig, "kernel", "free", "model.kernel must be 'mlp' for hyena, got 'free'"),
        (HyenaConfig, "num_coeffs", 9, "model.num_coeffs must be left at its default for hyena"),
        (SASRecConfig, "num_heads", 3, "model.num_heads must be a divisor of 64, got 3"),
        (SASRecConfig, "num_blocks", 0, "model.num_blocks must be an integer of at least 1, got 0"),
        (GRU4RecConfig, "num_layers", 0, "model.num_layers must be an integer of at least 1, got 0"),
        (GRU4RecConfig, "max_len", 0, "model.max_len must be an integer of at least 1, got 0"),
        (DataConfig, "targets", "some", "data.targets must be one of 'next', 'all', got 'some'"),
        (DataConfig, "format", "xml", "data.format must be one of 'auto', 'text'"),
        (ModelConfig, "short_conv_width", 3.0, "model.short_conv_width must be an integer"),
        (LossConfig, "name", "hinge", "loss.name must be one of 'softmax', 'sampled_softmax', 'bce', 'gbce'"),
        (LossConfig, "distribution", "log", "loss.distribution must be one of 'uniform', 'popularity'"),
        (LossConfig, "negatives", 0, "loss.negatives must be an integer of at least 1, got 0"),
        (LossConfig, "calibration", 1.5, "loss.calibration must be from 0 to 1, got 1.5"),
        (LossConfig, "label_smoothing", 1.0, "loss.label_smoothing must be at least 0 and below 1, got 1.0"),
        (LossConfig, "lookahead", 0, "loss.lookahead must be an integer of at least 1, got 0"),
        (LossConfig, "lookahead", 0.5, "loss.lookahead must be an integer of at least 1, got 0.5"),
        (OptimizerConfig, "betas", (0.9,), "optimizer.betas must be two numbers"),
        (OptimizerConfig, "learning_rate", float("inf"), "optimizer.learning_rate must be positive"),
        (OptimizerConfig, "learning_rate", 0.0, "optimizer.learning_rate must be positive"),
        (OptimizerConfig, "betas", (0.9, 1.0), "optimizer.betas must be two numbers"),
        (OptimizerConfig, "gradient_clip", 0.0, "optimizer.gradient_clip must be positive or null"),
        (TrainConfig, "batch_events", 0, "batch_events must be an integer of at least 1, got 0"),
        (TrainConfig, "patience", 0, "patience must be an integer of at least 1"),
        (TrainConfig, "precision", "int8", "precision must be one of 'no', 'bf16', 'fp16'"),
    ],
)
def test_bad_values_are_refused_by_name(kind: type, setting: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**{setting: value})


def test_the_softmax_draws_nothing() -> None:
    with pytest.raises(ValueError, match=r"loss.negatives must be null with softmax, got 9"):
        LossConfig(name="softmax", negatives=9)


def test_binary_losses_have_no_smoothing() -> None:
    with pytest.raises(ValueError, match=r"loss.label_smoothing must be 0 with gbce, got 0.1"):
        LossConfig(name="gbce", label_smoothing=0.1)


@pytest.mark.parametrize("name", ["sampled_softmax", "bce", "gbce"])
def test_sampled_losses_have_the_next_item_as_their_only_target(name: LossName) -> None:
    with pytest.raises(ValueError, match=rf"loss.lookahead must be 1 with {name}, got 3"):
        LossConfig(name=name, lookahead=3)
    assert LossConfig(name=name, lookahead=1).lookahead == 1


def test_drawn_negatives_have_the_next_item_as_their_only_target() -> None:
    with pytest.raises(ValueError, match=r"loss.lookahead must be 1 where negatives are drawn, got 3"):
        LossConfig(negatives=10, lookahead=3)


def test_each_loss_has_its_own_number_of_negatives() -> None:
    names = ("softmax", "sampled_softmax", "bce", "gbce")
    assert [LossConfig(name=name).num_negatives for name in names] == [0, 1000, 1, 256]
    assert LossConfig(name="bce", negatives=7).num_negatives == 7


def test_every_loss_has_its_traits() -> None:
    assert tuple(LOSSES) == get_args(LossName)


@pytest.mark.parametrize("kind", [TrainConfig, BenchConfig])
def test_batch_tokens_is_the_old_name_of_batch_events(kind: type) -> None:
    config = kind(batch_tokens=70)
    assert config == kind(batch_events=70)
    assert config.batch_tokens == config.batch_events == 70
    assert dataclasses.replace(config, batch_tokens=80) == kind(batch_events=80)
    assert dataclasses.replace(config, seed=3) == kind(batch_events=70, seed=3)


@pytest.mark.parametrize("kind", [TrainConfig, BenchConfig])
def test_files_keep_the_old_name(kind: type) -> None:
    values = to_dict(kind(batch_events=70))
    assert values["batch_tokens"] == 70 and "batch_events" not in values
    assert kind(**{"batch_tokens": values["batch_tokens"]}) == kind(batch_events=70)


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().dim = 3  # type: ignore[misc]


def test_model_config_survives_a_dictionary() -> None:
    config = ModelConfig(num_items=9, dim=6, kernel="free")
    assert model_config_from_dict(to_dict(config)) == config


@pytest.mark.parametrize("name", MODEL_CONFIGS)
def test_the_name_leads_back_to_the_model(name: str) -> None:
    config = MODEL_CONFIGS[name](num_items=9)
    assert config.name == name
    assert model_config_from_dict(to_dict(config)) == config


def test_settings_without_a_name_are_hyenarecs() -> None:
    assert model_config_from_dict({"num_items": 9, "num_coeffs": 5}) == ModelConfig(num_items=9, num_coeffs=5)


def test_another_models_settings_are_unknown() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'num_heads'; known are .*num_layers"):
        model_config_from_dict({"name": "gru4rec", "num_heads": 2})
    with pytest.raises(ValueError, match=r"model\.name must be one of 'hyenarec', .*, got 'lstm'"):
        model_config_from_dict({"name": "lstm"})


@pytest.mark.parametrize("shared", [RecommenderConfig, SequentialConfig])
def test_what_models_share_is_no_model(shared: type) -> None:
    with pytest.raises(TypeError, match=f"{shared.__name__} must be a model's own settings"):
        shared()
