"""From events to packed batches.

Data flows one way: events (`read_histories`, or made up by `synthetic_histories`) become `Histories`, flat
arrays in time order whose items are numbered by a `Vocabulary`; `leave_one_out` or `temporal_split` cut them
into a `Split` of training histories and evaluation `Targets`; `TrainingBatches` and `evaluation_batches` pack
those into `Batch`es, sequences end to end without padding, which is what a model reads.
"""

from hyenarec.data.batches import Batch, TrainingBatches, evaluation_batches, history_batches
from hyenarec.data.histories import Histories
from hyenarec.data.split import Split, Targets, leave_one_out
from hyenarec.data.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "Histories",
    "Split",
    "Targets",
    "TrainingBatches",
    "Vocabulary",
    "evaluation_batches",
    "history_batches",
    "leave_one_out",
]
