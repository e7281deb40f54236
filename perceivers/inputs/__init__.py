"""Input modules, which convert data of one kind to token groups; one file per modality."""

from perceivers.inputs.audio import LogMel, Waveform
from perceivers.inputs.base import InputModule, Located
from perceivers.inputs.conv import ConvStem
from perceivers.inputs.features import Features
from perceivers.inputs.flow import FramePairs
from perceivers.inputs.labels import Labels
from perceivers.inputs.multimodal import Multimodal
from perceivers.inputs.patches import Patches
from perceivers.inputs.pixels import LearnedPixels, Pixels
from perceivers.inputs.points import Events, Points
from perceivers.inputs.ragged import packed, pad_ragged
from perceivers.inputs.tabular import Tabular
from perceivers.inputs.text import ByteTokenizer, TokenIds
from perceivers.inputs.time_series import TimeSeries

__all__ = [
    "ByteTokenizer",
    "ConvStem",
    "Events",
    "Features",
    "FramePairs",
    "InputModule",
    "Labels",
    "LearnedPixels",
    "Located",
    "LogMel",
    "Multimodal",
    "Patches",
    "Pixels",
    "Points",
    "Tabular",
    "TimeSeries",
    "TokenIds",
    "Waveform",
    "packed",
    "pad_ragged",
]
