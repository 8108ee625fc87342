"""The ranks against an oracle in plain Python, and what a wrong evaluation would get wrong."""

from __future__ import annotations

import dataclasses
import json
import math
import socket
import warnings
import weakref
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from devices import DEVICES, needs_gpu
from host_reads import HostReads
from largest_tensor import LargestTensor
from torch import Tensor, nn

from hyenarec import HyenaRec, ModelConfig
from hyenarec.data import Histories, Targets, Vocabulary
from hyenarec.evaluation import scoring
from hyenarec.evaluation.evaluate import Evaluation, _ranks_within, evaluate
from hyenarec.evaluation.metrics import MISS
from hyenarec.evaluation.recommend import recommend
from hyenarec.evaluation.scoring import Places, score_blocks, scoring_mode
from hyenarec.models.counting import Markov, Popularity


def targets_of(histories: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> Targets:
    def flat(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        return offsets, np.array([item for row in rows for item in row], dtype=np.int32)

    return Targets(*flat(histories), *flat(wanted), users=np.arange(len(histories), dtype=np.int64))


class Table:
    """Scores that depend on the last event only: row `last` of a table `[V + 1, V]`."""

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self.calls: list[int] = []

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        self.calls.append(len(offsets) - 1)
        return self.table[items[offsets[1:] - 1]]


class TiledTable(Table):
    """The same, a tile at a time."""

    def __init__(self, table: Tensor) -> None:
        super().__init__(table)
        self.num_items = table.shape[1]

    def encode(self, items: Tensor, offsets: Tensor) -> Tensor:
        return items[offsets[1:] - 1]

    def score_tile(self, state: Tensor, first: int, last: int) -> Tensor:
        self.calls.append(len(state) * (last - first))
        return self.table[state, first:last]


class Constant:
    """The same scores for everyone, an expanded view as `Popularity` gives it."""

    def __init__(self, *scores: float) -> None:
        self.scores = torch.tensor(scores, dtype=torch.float32)

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        return self.scores.expand(len(offsets) - 1, -1)


def slow_ranks(
    table: Tensor, histories: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]], exclude_history: bool
) -> list[int]:
    ranks = []
    for history, relevant in zip(histories, wanted, strict=True):
        scores = {item + 1: float(score) for item, score in enumerate(table[history[-1]])}
        for target in relevant:
            if target == 0 or (exclude_history and target in history):
                ranks.append(MISS)
                continue
            rank = 1
            for item, score in scores.items():
                left_out = exclude_history and item in history
                if item != target and not left_out and score >= scores[target]:
                    rank += 1
            ranks.append(rank)
    return ranks


def random_case(
    seed: int, users: int, num_items: int, most_targets: int
) -> tuple[Table, list[list[int]], list[list[int]]]:
    generator = np.random.default_rng(seed)
    table = torch.from_numpy(generator.integers(0, 12, size=(num_items + 1, num_items)).astype(np.float32))
    histories = [
        generator.integers(1, num_items + 1, size=generator.integers(1, 30)).tolist() for _ in range(users)
    ]
    wanted = [
        generator.permutation(num_items + 1)[: generator.integers(1, most_targets + 1)].tolist()
        for _ in range(users)
    ]
    return Table(table), histories, wanted


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("most_targets", [1, 6])
@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_ranks_equal_the_slow_oracle(exclude_history: bool, most_targets: int, batch_size: int) -> None:
    table, histories, wanted = random_case(0, users=40, num_items=25, most_targets=most_targets)
    result = evaluate(
        table,
        targets_of(histories, wanted),
        max_len=5,
        exclude_history=exclude_history,
        batch_size=batch_size,
    )
    assert result.ranks.values.tolist() == slow_ranks(table.table, histories, wanted, exclude_history)
    assert max(table.calls) <= batch_size
    assert ("Recall@10" in result.figures) == (most_targets > 1)


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("most_targets", [1, 6])
@pytest.mark.parametrize("tile_scores", [1, 40, 90, 25 * 7])
def test_ranks_in_tiles_equal_the_slow_oracle(
    monkeypatch: pytest.MonkeyPatch, exclude_history: bool, most_targets: int, tile_scores: int
) -> None:
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", tile_scores)
    table, histories, wanted = random_case(0, users=40, num_items=25, most_targets=most_targets)
    tiled = TiledTable(table.table)
    result = evaluate(
        tiled, targets_of(histories, wanted), max_len=5, exclude_history=exclude_history, batch_size=7
    )
    assert result.ranks.values.tolist() == slow_ranks(table.table, histories, wanted, exclude_history)
    assert max(tiled.calls) <= max(tile_scores, 7)  # a tile has one item at least
    assert sum(tiled.calls) == 40 * 25 * (1 if tile_scores == 25 * 7 else 2)


def model_with_equal_items(num_items: int) -> HyenaRec:
    """A model in which item j + 100 is a copy of item j, for every tenth j."""
    torch.manual_seed(0)
    model = HyenaRec(ModelConfig(num_items=num_items, dim=8, num_blocks=1, max_len=5, num_coeffs=4))
    nn.init.normal_(model.items.weight)
    with torch.no_grad():
        model.items.weight[101::10] = model.items.weight[1:-100:10].clone()
    return model


@pytest.mark.parametrize("tile_scores", [300, 1024, 4000])
def test_tiles_rank_as_the_whole_does(monkeypatch: pytest.MonkeyPatch, tile_scores: int) -> None:
    model = model_with_equal_items(500)
    _, histories, _ = random_case(3, users=40, num_items=500, most_targets=1)
    targets = targets_of(histories, [[1 + 10 * (row % 50)] for row in range(40)])  # all of them have copies

    def ranks(recommender: scoring.Recommender) -> list[int]:
        result = evaluate(recommender, targets, max_len=5, exclude_history=True, batch_size=8)
        return result.ranks.values.tolist()

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def score(self, items: Tensor, offsets: Tensor) -> Tensor:
            return model.score(items, offsets)

    expected = ranks(Whole())
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", tile_scores)
    assert ranks(model) == expected


def test_a_rank_is_at_least_1_however_a_tile_is_rounded() -> None:
    class Restless(TiledTable):
        """Its scores are a little lower each time."""

        def score_tile(self, state: Tensor, first: int, last: int) -> Tensor:
            return super().score_tile(state, first, last) - 1e-3 * len(self.calls)

    table = torch.arange(12.0).expand(13, -1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(scoring.TILE_SCORES, "cpu", 6)
        result = evaluate(Restless(table), targets_of([[1]], [[12]]), max_len=1, exclude_history=False)
    assert result.ranks.values.tolist() == [1]


@pytest.mark.parametrize("name", ["HyenaRec", "Markov", "Popularity"])
def test_memory_does_not_grow_with_the_catalogue(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", 2**18)
    users, num_items = 64, 40_000
    generator = np.random.default_rng(0)
    histories = generator.integers(1, num_items + 1, size=(users, 4)).tolist()
    targets = targets_of(histories, generator.integers(1, num_items + 1, size=(users, 1)).tolist())
    train = Histories(targets.offsets, targets.items, None, targets.users, Vocabulary(np.arange(num_items)))
    recommenders: dict[str, Callable[[], scoring.Recommender]] = {
        "HyenaRec": lambda: HyenaRec(ModelConfig(num_items=num_items, dim=4, num_blocks=1, max_len=4)),
        "Markov": lambda: Markov.of(train),
        "Popularity": lambda: Popularity.of(train),
    }
    recommender = recommenders[name]()
    with LargestTensor() as largest:
        evaluate(recommender, targets, max_len=4, exclude_history=True)
        recommend(recommender, train, max_len=4, exclude_history=True)
    assert largest.nbytes <= 8 * scoring.TILE_SCORES["cpu"] < 4 * users * num_items / 4


def test_ties_count_against_us() -> None:
    result = evaluate(
        Constant(1, 3, 1, 1, 0), targets_of([[2]] * 3, [[1], [2], [5]]), max_len=1, exclude_history=False
    )
    assert result.ranks.values.tolist() == [4, 1, 5]


def test_equal_scores_everywhere_rank_last() -> None:
    result = evaluate(Constant(*[0.0] * 50), targets_of([[1]], [[3]]), max_len=1, exclude_history=False)
    assert result.ranks.values.tolist() == [50]
    assert result.figures["HR@10"].mean == 0


def test_an_unknown_target_is_a_miss_and_is_counted() -> None:
    result = evaluate(
        Constant(4, 3, 2, 1), targets_of([[1], [1]], [[1], [0]]), max_len=1, exclude_history=False, ks=(1, 4)
    )
    assert result.ranks.values.tolist() == [1, MISS]
    assert result.figures["HR@4"].mean == 0.5
    assert (result.num_users, result.unknown_targets) == (2, 1)
    assert "1 unknown targets counted as misses" in str(result)


def test_the_whole_history_is_excluded_not_only_its_window() -> None:
    recommender = Constant(5, 4, 3, 2, 1)
    # The window shows item 3 only; items 1 and 2 are in the history all the same.
    assert rank_of(recommender, history=[1, 2, 3], target=5, exclude_history=False) == 5
    assert rank_of(recommender, history=[1, 2, 3], target=5, exclude_history=True) == 2


def test_a_target_in_the_excluded_history_is_a_miss_and_is_counted() -> None:
    # Were the target kept, it would be the one item of the history in the list, and rank first.
    targets = targets_of([[2, 1, 3], [4]], [[2], [1]])
    result = evaluate(Constant(5, 4, 3, 2, 1), targets, max_len=3, exclude_history=True)
    assert result.ranks.values.tolist() == [MISS, 1]
    assert (result.excluded_targets, result.unknown_targets) == (1, 0)
    assert "1 targets in the excluded history counted as misses" in str(result)
    kept = evaluate(Constant(5, 4, 3, 2, 1), targets, max_len=3, exclude_history=False)
    assert kept.ranks.values.tolist() == [2, 1]
    assert kept.excluded_targets == 0


def rank_of(recommender: Constant, history: list[int], target: int, exclude_history: bool) -> int:
    result = evaluate(
        recommender, targets_of([history], [[target]]), max_len=1, exclude_history=exclude_history
    )
    return int(result.ranks.values[0])


def test_other_targets_stay_in_the_list() -> None:
    result = evaluate(
        Constant(4, 3, 2, 1), targets_of([[1]], [[4, 2, 3]]), max_len=2, exclude_history=True, ks=(2,)
    )
    assert result.ranks.values.tolist() == [3, 1, 2]
    assert result.figures["Recall@2"].mean == pytest.approx(2 / 3)
    assert result.figures["NDCG@2"].mean == 1


def test_the_recommender_sees_the_last_events_only() -> None:
    seen: list[tuple[list[int], list[int]]] = []

    class Recorder:
        def score(self, items: Tensor, offsets: Tensor) -> Tensor:
            seen.append((items.tolist(), offsets.tolist()))
            return torch.zeros(len(offsets) - 1, 9)

    evaluate(Recorder(), targets_of([[7], [1, 2, 3, 4]], [[9], [9]]), max_len=3, exclude_history=False)
    windows = [items[a:b] for items, ends in seen for a, b in pairwise(ends)]
    assert sorted(windows) == [[2, 3, 4], [7]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite_are_an_error(bad: float) -> None:
    # Far from the target: a comparison with NaN would silently leave the item out and improve the rank.
    with pytest.raises(ValueError, match=r"scores must be finite, got \S+ for item 2 in row 0"):
        evaluate(Constant(1, bad, 2), targets_of([[1]], [[3]]), max_len=1, exclude_history=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tile_scores", [1, 40, 1000])
def test_the_place_of_a_score_that_is_not_finite_is_named(
    monkeypatch: pytest.MonkeyPatch, tile_scores: int, bad: float
) -> None:
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", tile_scores)
    table, _, _ = random_case(0, users=1, num_items=25, most_targets=1)
    table.table[9, 22] = table.table[9, 24] = bad
    histories = [[1 + row % 8] for row in range(20)]
    histories[13] = [9]
    with pytest.raises(ValueError, match=rf"scores must be finite, got {bad} for item 23 in row 13"):
        evaluate(
            TiledTable(table.table),
            targets_of(histories, [[3]] * 20),
            max_len=5,
            exclude_history=True,
            batch_size=7,
        )


def test_a_score_that_is_finite_the_second_time_is_no_better() -> None:
    class Unsteady(TiledTable):
        def score_tile(self, state: Tensor, first: int, last: int) -> Tensor:
            return super().score_tile(state, first, last) * (math.nan if len(self.calls) == 1 else 1)

    with pytest.raises(ValueError, match="scores must be finite and the same each time"):
        evaluate(Unsteady(torch.ones(4, 3)), targets_of([[1]], [[3]]), max_len=1, exclude_history=False)


@pytest.mark.parametrize("exclude_history", [False, True])
@pytest.mark.parametrize("tile_scores", [1, 40, 1000])
def test_scores_are_looked_at_once_a_block(
    monkeypatch: pytest.MonkeyPatch, tile_scores: int, exclude_history: bool
) -> None:
    monkeypatch.setitem(scoring.TILE_SCORES, "cpu", tile_scores)
    table, histories, wanted = random_case(0, users=40, num_items=25, most_targets=6)
    with HostReads() as reads:
        evaluate(
            TiledTable(table.table),
            targets_of(histories, wanted),
            max_len=5,
            exclude_history=exclude_history,
            batch_size=7,
        )
    assert reads.names == ["aten.is_nonzero.default"] * 6


def test_ranks_come_from_a_device_whose_values_nobody_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scoring.TILE_SCORES, "meta", 80)
    model = HyenaRec(ModelConfig(num_items=25, dim=8, num_blocks=1, max_len=5)).to("meta")
    offsets, items = np.array([0, 2, 3]), np.array([4, 5, 6], dtype=np.int32)
    with scoring_mode(model):
        blocks = score_blocks(model, offsets, items, max_len=5, batch_size=7, exclude_history=True)
        block = next(blocks)
        assert (block.width, len(block)) == (40, 1)
        block = dataclasses.replace(block, width=9)
        targets = Places.of(np.array([0, 1, 1]), np.array([2, 9, 24]), torch.device("meta"))
        ranks = _ranks_within(block, targets)
    assert ranks.device.type == "meta" and (ranks.shape, ranks.dtype) == ((3,), torch.int64)


@needs_gpu
def test_a_gpu_waits_no_longer_for_more_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with_equal_items(500).cuda()
    _, histories, _ = random_case(3, users=40, num_items=500, most_targets=1)
    targets = targets_of(histories, [[1 + row] for row in range(40)])

    def waits(tile_scores: int) -> int:
        monkeypatch.setitem(scoring.TILE_SCORES, "cuda", tile_scores)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                evaluate(model, targets, max_len=5, exclude_history=True, batch_size=8)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)

    waits(300)  # what is made once may wait
    assert waits(300) == waits(8 * 500) <= 2 * 5


def test_malformed_input_is_named() -> None:
    recommender = Constant(1, 2, 3)
    options = {"max_len": 1, "exclude_history": False}
    with pytest.raises(ValueError, match="targets must hold at least one user"):
        evaluate(recommender, targets_of([], []), **options)
    with pytest.raises(ValueError, match=r"targets must lie in 0..V = 0..3, got 4"):
        evaluate(recommender, targets_of([[1]], [[4]]), **options)
    with pytest.raises(ValueError, match=r"items must lie in 1..V = 1..3, got 5"):
        evaluate(recommender, targets_of([[5]], [[1]]), **options)
    with pytest.raises(ValueError, match="items must be known ones, from 1 on, got 0"):
        evaluate(recommender, targets_of([[1, 0]], [[1]]), **options)
    with pytest.raises(ValueError, match="histories must hold at least one item, got none in row 1"):
        evaluate(recommender, targets_of([[1], []], [[1], [1]]), **options)
    with pytest.raises(ValueError, match=r"scores must be floating-point \[B, V\] with B = 1"):
        evaluate(Table(torch.zeros(3)), targets_of([[1]], [[1]]), **options)


class DropoutModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.arange(12.0).reshape(4, 3))
        self.dropout = nn.Dropout(0.9)
        self.frozen = nn.Dropout(0.9).eval()
        self.saw_gradients = False

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        scores: Tensor = self.frozen(self.dropout(self.table[items[offsets[1:] - 1]]))
        self.saw_gradients |= scores.requires_grad
        return scores


def test_modules_are_evaluated_and_put_back() -> None:
    model = DropoutModel()
    result = evaluate(model, targets_of([[1]] * 20, [[1]] * 20), max_len=1, exclude_history=False)
    assert result.ranks.values.tolist() == [3] * 20
    assert not model.saw_gradients
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)
    with pytest.raises(RuntimeError), scoring_mode(model):
        raise RuntimeError
    assert (model.training, model.dropout.training, model.frozen.training) == (True, True, False)


def test_memory_does_not_grow_with_users_times_items() -> None:
    blocks: list[weakref.ref[Tensor]] = []
    most_alive = 0

    class Watcher:
        def score(self, items: Tensor, offsets: Tensor) -> Tensor:
            nonlocal most_alive
            most_alive = max(most_alive, sum(block() is not None for block in blocks))
            scores = torch.zeros(len(offsets) - 1, 5)
            blocks.append(weakref.ref(scores))
            return scores

    evaluate(Watcher(), targets_of([[1]] * 40, [[2]] * 40), max_len=1, exclude_history=True, batch_size=2)
    assert len(blocks) == 20
    assert most_alive <= 1


class TableModule(nn.Module):
    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def score(self, items: Tensor, offsets: Tensor) -> Tensor:
        return self.table[items[offsets[1:] - 1]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("device", DEVICES)
def test_every_device_and_dtype_ranks_alike(device: str, dtype: torch.dtype) -> None:
    table, histories, wanted = random_case(
        2, users=30, num_items=25, most_targets=3
    )  # scores of 0 to 11 are exact
    model = TableModule(table.table).to(device, dtype)
    result = evaluate(model, targets_of(histories, wanted), max_len=5, exclude_history=True, batch_size=8)
    assert result.ranks.values.tolist() == slow_ranks(table.table, histories, wanted, exclude_history=True)


def test_figures_and_text() -> None:
    result = evaluate(
        Constant(*range(20, 0, -1)),
        targets_of([[20]] * 4, [[1], [2], [3], [11]]),
        max_len=50,
        exclude_history=True,
        split="leave-one-out test",
        ks=(1, 10),
    )
    assert list(result.figures) == ["HR@1", "NDCG@1", "MRR@1", "HR@10", "NDCG@10", "MRR@10"]
    assert result.figures["HR@10"].mean == 0.75
    assert result.figures["MRR@10"].mean == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert str(result).splitlines()[0] == (
        "leave-one-out test, 4 users, all 20 items ranked, history excluded, max_len 50"
    )
    assert "  HR@10    0.7500 [0.2500, 1.0000]" in str(result).splitlines()
    figures = json.loads(json.dumps(result.to_dict()))["figures"]
    assert figures["HR@10"] == {"mean": 0.75, "low": 0.25, "high": 1.0}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def distributed_case(users: int) -> tuple[Table, Targets]:
    table, histories, wanted = random_case(1, users=users, num_items=25, most_targets=3)
    return table, targets_of(histories, wanted)


def evaluate_in_process(rank: int, world_size: int, port: int, folder: Path) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    for users in (1, 13):
        table, targets = distributed_case(users)
        result = evaluate(table, targets, max_len=5, exclude_history=True, distributed=True)
        report = {
            "ranks": result.ranks.values.tolist(),
            "result": result.to_dict(),
            "scored": sum(table.calls),
        }
        (folder / f"{users}_{rank}.json").write_text(json.dumps(report))
    dist.destroy_process_group()


@pytest.mark.slow
def test_processes_share_the_users_and_agree(tmp_path: Path) -> None:
    mp.spawn(evaluate_in_process, args=(2, free_port(), tmp_path), nprocs=2)
    for users in (1, 13):
        table, targets = distributed_case(users)
        alone: Evaluation = evaluate(table, targets, max_len=5, exclude_history=True)
        reports = [json.loads((tmp_path / f"{users}_{rank}.json").read_text()) for rank in range(2)]
        for report in reports:
            assert report["ranks"] == alone.ranks.values.tolist()
            assert report["result"] == alone.to_dict()
        assert [report["scored"] for report in reports] == [users // 2, users - users // 2]
