"""Output modules of `PerceiverIO`, which query the latents and convert the decoded queries to results."""

from perceivers.outputs.base import Encoded, Output, QueryOutput
from perceivers.outputs.given_queries import GivenQueries
from perceivers.outputs.grid import Grid
from perceivers.outputs.learned import LearnedQueries, MultiTask
from perceivers.outputs.multimodal import Multimodal
from perceivers.outputs.per_input import PerInput, PerToken
from perceivers.outputs.pooled import MeanPool
from perceivers.outputs.vocabulary import TokenLogits

__all__ = [
    "Encoded",
    "GivenQueries",
    "Grid",
    "LearnedQueries",
    "MeanPool",
    "MultiTask",
    "Multimodal",
    "Output",
    "PerInput",
    "PerToken",
    "QueryOutput",
    "TokenLogits",
]
