from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hyenarec.config import DataConfig, LossConfig, OptimizerConfig, SASRecConfig, TrainConfig, to_dict
from hyenarec.config.auto import with_fixed
from hyenarec.data import Histories, Split, Vocabulary, leave_one_out
from hyenarec.files import replacing, write_atomically
from hyenarec.train.checkpoint import (
    Checkpoint,
    Progress,
    data_digest,
    load_checkpoint,
    pack_optimizer,
    random_state,
    require_same_config,
    restore_random_state,
    save_checkpoint,
    unpack_optimizer,
)


def make_checkpoint(value: float = 0.5) -> Checkpoint:
    return Checkpoint(
        config=to_dict(with_fixed(TrainConfig())),
        progress=Progress(
            epoch=2, step=3, total_steps=13, loss_sum=0.1, best_score=1 / 3, loss_scale={"scale": 2.0}
        ),
        data="0123",
        model={"blocks.0.weight": torch.full((2, 3), value).t()},
        best={},
        optimizer={"0.exp_avg": torch.rand(3), "0.step": torch.tensor(13.0)},
        random={"cpu": torch.get_rng_state()[None]},
    )


def test_what_is_saved_is_loaded(tmp_path):
    saved = make_checkpoint()
    save_checkpoint(tmp_path / "c", saved)
    loaded = load_checkpoint(tmp_path / "c")
    assert loaded.progress == saved.progress and loaded.data == saved.data
    for part in ("model", "best", "optimizer", "random"):
        before, after = getattr(saved, part), getattr(loaded, part)
        assert before.keys() == after.keys()
        assert all(
            torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype
            for name in before
        )
    require_same_config(loaded.config, to_dict(with_fixed(TrainConfig())))


def test_the_old_checkpoint_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "c"
    save_checkpoint(path, make_checkpoint(1.0))

    def fail(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, make_checkpoint(2.0))
    assert load_checkpoint(path).model["blocks.0.weight"].eq(1).all()
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_a_partial_file_of_a_killed_process_is_no_obstacle(tmp_path):
    (tmp_path / "c.partial").write_bytes(b"half")
    save_checkpoint(tmp_path / "c", make_checkpoint())
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    with pytest.raises(RuntimeError), replacing(path) as partial:
        partial.write_bytes(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_other_files_are_refused(tmp_path):
    (tmp_path / "garbage").write_bytes(b"not tensors at all")
    with pytest.raises(ValueError, match="garbage must be a checkpoint of a run, but it cannot be read"):
        load_checkpoint(tmp_path / "garbage")
    save_file({"x": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(ValueError, match="must be in the format hyenarec-checkpoint-4, got None"):
        load_checkpoint(tmp_path / "weights")


def test_a_checkpoint_of_fixed_numbers_of_windows_is_refused_and_says_what_to_do(tmp_path):
    older = {"config": '{"batch_size": 64}', "progress": "{}", "data": "0", "format": "hyenarec-checkpoint-2"}
    save_file({"model.x": torch.zeros(1)}, tmp_path / "c", older)
    with pytest.raises(
        ValueError, match="got 'hyenarec-checkpoint-2': resume with the version that wrote it"
    ):
        load_checkpoint(tmp_path / "c")


def test_the_first_other_setting_is_named():
    saved = make_checkpoint().config
    optimizer = OptimizerConfig(learning_rate=0.5, weight_decay=0.5)
    other = with_fixed(TrainConfig(optimizer=optimizer, batch_events=7))
    with pytest.raises(
        ValueError, match=r"optimizer.learning_rate must be 0.002 to resume this run, got 0.5"
    ):
        require_same_config(saved, to_dict(other))


def test_settings_of_how_far_and_where_to_may_differ():
    changed = dataclasses.replace(
        with_fixed(TrainConfig(recipe="none")),
        epochs=99,
        patience=None,
        checkpoint_every=3,
        output_dir="elsewhere",
        resume=True,
    )
    require_same_config(make_checkpoint().config, to_dict(changed))


def test_a_setting_that_the_checkpoint_does_not_know_had_its_default():
    older = make_checkpoint().config
    del older["model"]["name"], older["loss"]
    require_same_config(older, to_dict(with_fixed(TrainConfig())))
    with pytest.raises(ValueError, match=r"loss\.name must be 'softmax' to resume this run, got 'bce'"):
        require_same_config(older, to_dict(with_fixed(TrainConfig(loss=LossConfig(name="bce")))))
    with pytest.raises(ValueError, match=r"model\.name must be 'hyenarec' to resume this run, got 'sasrec'"):
        require_same_config(older, to_dict(with_fixed(TrainConfig(model=SASRecConfig()))))


def test_a_path_may_be_written_differently(tmp_path):
    (tmp_path / "events.txt").touch()
    (tmp_path / "link.txt").symlink_to(tmp_path / "events.txt")

    def at(path):
        return to_dict(TrainConfig(data=DataConfig(path=str(path))))

    require_same_config(at(tmp_path / "events.txt"), at(tmp_path / "link.txt"))
    require_same_config(at(tmp_path / "events.txt"), at(f"{tmp_path}/../{tmp_path.name}/events.txt"))
    with pytest.raises(ValueError, match=r"data\.path must be '.*events\.txt' to resume"):
        require_same_config(at(tmp_path / "events.txt"), at(tmp_path / "other.txt"))


def split_of(items: list[int], offsets: tuple[int, ...] = (0, 4, 8), ids: str = "abcd") -> Split:
    return leave_one_out(
        Histories(
            offsets=np.array(offsets),
            items=np.array(items, dtype=np.int32),
            timestamps=None,
            user_ids=np.arange(len(offsets) - 1),
            vocabulary=Vocabulary(list(ids)),
        )
    )


def test_the_digest_of_the_data_tells_every_difference():
    items = [1, 2, 3, 4, 4, 3, 2, 1]
    others = [[*items[:at], items[at] % 4 + 1, *items[at + 1 :]] for at in range(8)]
    splits = [split_of(items), split_of(items, ids="abdc"), split_of(items, offsets=(0, 3, 8))]
    digests = [data_digest(split) for split in (*splits, *map(split_of, others))]
    assert len(set(digests)) == len(digests) == 11
    assert data_digest(split_of(items)) == digests[0]


def test_an_optimizer_goes_on_as_if_nothing_had_happened():
    def step(weight, optimizer):
        optimizer.zero_grad()
        (weight.sin() * torch.arange(4.0)).sum().backward()
        optimizer.step()

    weight = torch.nn.Parameter(torch.linspace(0, 1, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    step(weight, optimizer)
    copy = torch.nn.Parameter(weight.detach().clone())
    resumed = torch.optim.AdamW([copy], lr=0.1, fused=True)
    unpack_optimizer(resumed, {name: tensor.clone() for name, tensor in pack_optimizer(optimizer).items()})
    step(weight, optimizer)
    step(copy, resumed)
    assert torch.equal(weight, copy)


def test_random_numbers_go_on_where_they_were():
    state = random_state()
    expected = torch.rand(3)
    of_two_processes = {name: torch.stack([torch.zeros_like(row), row]) for name, row in state.items()}
    restore_random_state({name: rows[1] for name, rows in of_two_processes.items()})
    assert torch.equal(torch.rand(3), expected)
