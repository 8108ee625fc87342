from __future__ import annotations

import json

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hyenarec.train.run_log import LOG_FILE, TENSORBOARD_FOLDER, RunLog, read_log


def record(epoch: int, loss: float = 1.0) -> dict:
    return {"epoch": epoch, "step": 5 * epoch, "loss": loss, "validation": {"NDCG@10": epoch / 10}}


def curve(folder, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / TENSORBOARD_FOLDER))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_records_are_lines_and_points(tmp_path):
    with RunLog(tmp_path, epochs=0, steps=0) as log:
        log.epoch(record(1, 3.0))
        log.epoch(record(2, 2.0))
    lines = (tmp_path / LOG_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [record(1, 3.0), record(2, 2.0)] == read_log(tmp_path)
    assert curve(tmp_path, "train/loss") == [(5, 3.0), (10, 2.0)]
    assert [step for step, _ in curve(tmp_path, "validation/NDCG@10")] == [5, 10]


def test_a_resumed_run_has_no_epoch_twice(tmp_path):
    with RunLog(tmp_path, epochs=0, steps=0) as log:
        log.epoch(record(1))
        log.epoch(record(2, 9.0))
    with RunLog(tmp_path, epochs=1, steps=7) as log:
        log.epoch(record(2, 8.0))
    assert read_log(tmp_path) == [record(1), record(2, 8.0)]
    assert curve(tmp_path, "train/loss") == [(5, 1.0), (10, 8.0)]


def test_a_new_run_leaves_nothing_of_an_old_one(tmp_path):
    with RunLog(tmp_path, epochs=0, steps=0) as log:
        log.epoch(record(1, 9.0))
    with RunLog(tmp_path, epochs=0, steps=0) as log:
        log.epoch(record(1, 8.0))
    assert read_log(tmp_path) == [record(1, 8.0)]
    assert curve(tmp_path, "train/loss") == [(5, 8.0)]


def test_a_line_cut_short_is_left_out(tmp_path):
    (tmp_path / LOG_FILE).write_text(json.dumps(record(1)) + "\n" + json.dumps(record(2))[:20])
    assert read_log(tmp_path) == [record(1)]
    with RunLog(tmp_path, epochs=1, steps=5) as log:
        log.epoch(record(2))
    assert read_log(tmp_path) == [record(1), record(2)]
