"""What `import hyenarec` offers stays where it was, wherever its modules lie."""

from __future__ import annotations

import pytest

import hyenarec


@pytest.mark.parametrize("name", hyenarec.__all__)
def test_every_exported_name_is_there(name: str) -> None:
    assert getattr(hyenarec, name) is not None


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("baselines", "SASRec"),
        ("data", "read_histories"),
        ("evaluate", "evaluate"),
        ("loss", "NextItemLoss"),
        ("metrics", "ndcg"),
        ("recommend", "load"),
        ("registry", "load_model"),
        ("report", "make_report"),
        ("train", "train"),
        ("train", "TrainResult"),
    ],
)
def test_modules_are_attributes_of_the_package(module: str, name: str) -> None:
    assert callable(getattr(getattr(hyenarec, module), name))


def test_other_names_are_unknown() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'training_run'"):
        _ = hyenarec.training_run
