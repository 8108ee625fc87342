"""From a `DataConfig` to histories and their split."""

from __future__ import annotations

from hyenarec.config import SYNTHETIC, DataConfig
from hyenarec.data.filters import filter_histories
from hyenarec.data.histories import Histories
from hyenarec.data.read import read_histories
from hyenarec.data.split import Split, leave_one_out, moments_by_share, temporal_split
from hyenarec.data.synthetic import synthetic_histories


def load_histories(config: DataConfig, seed: int = 0) -> Histories:
    """Read, or make up, the events that ``config`` names; ``seed`` is that of the synthetic ones.

    The minimum-count filters are applied here, but for the temporal split: they may see its training events
    alone, so `split_histories` applies them.
    """
    minima = (1, 1) if config.split == "temporal" else (config.min_user_events, config.min_item_events)
    if config.path == SYNTHETIC:
        return filter_histories(synthetic_histories(num_users=config.synthetic_users, seed=seed), *minima)
    return read_histories(
        config.path,
        format=config.format,
        user_column=config.user_column,
        item_column=config.item_column,
        timestamp_column=config.timestamp_column,
        min_user_events=minima[0],
        min_item_events=minima[1],
        on_bad_rows=config.on_bad_rows,
    )


def split_histories(histories: Histories, config: DataConfig, with_times: bool = False) -> Split:
    """Split what `load_histories` gave for the same ``config``; ``with_times`` for models that use time."""
    if config.split == "leave-one-out":
        return leave_one_out(histories, with_times=with_times)
    if histories.timestamps is None:
        raise ValueError(f"data.split = temporal needs timestamps, and {config.path} has none")
    moments = moments_by_share(histories.timestamps, config.validation_fraction, config.test_fraction)
    return temporal_split(
        histories,
        *moments,
        targets=config.targets,
        with_times=with_times,
        min_user_events=config.min_user_events,
        min_item_events=config.min_item_events,
    )
