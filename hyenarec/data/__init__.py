"""From events to packed batches.

Data flows one way: events (`read_histories`, or made up by `synthetic_histories`) become `Histories`, flat
arrays in time order whose items are numbered by a `Vocabulary`; `leave_one_out` or `temporal_split` cut them
into a `Split` of training histories and evaluation `Targets`; `TrainingBatches` and `evaluation_batches` pack
those into `Batch`es, sequences end to end without padding, which is what a model reads. `load_histories` and
`split_histories` do the first two steps as a `DataConfig` says.
"""

from hyenarec.data.batches import Batch, TrainingBatches, evaluation_batches, history_batches
from hyenarec.data.filters import filter_histories
from hyenarec.data.histories import Histories
from hyenarec.data.load import load_histories, split_histories
from hyenarec.data.read import read_histories
from hyenarec.data.split import Split, Targets, leave_one_out, moments_by_share, temporal_split
from hyenarec.data.synthetic import (
    SyntheticProcess,
    best_achievable,
    simulate,
    synthetic_bounds,
    synthetic_histories,
)
from hyenarec.data.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "Histories",
    "Split",
    "SyntheticProcess",
    "Targets",
    "TrainingBatches",
    "Vocabulary",
    "best_achievable",
    "evaluation_batches",
    "filter_histories",
    "history_batches",
    "leave_one_out",
    "load_histories",
    "moments_by_share",
    "read_histories",
    "simulate",
    "split_histories",
    "synthetic_bounds",
    "synthetic_histories",
    "temporal_split",
]
