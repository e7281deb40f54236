"""Input modules: what turns one kind of data into token groups, one modality a file."""

from perceivers.inputs.audio import LogMel, Waveform
from perceivers.inputs.base import InputModule, Located, pad_ragged
from perceivers.inputs.conv import ConvStem
from perceivers.inputs.flow import FramePairs
from perceivers.inputs.labels import Labels
from perceivers.inputs.multimodal import Multimodal
from perceivers.inputs.patches import Patches
from perceivers.inputs.pixels import LearnedPixels, Pixels
from perceivers.inputs.text import ByteTokenizer, TokenIds

__all__ = [
    "ByteTokenizer",
    "ConvStem",
    "FramePairs",
    "InputModule",
    "Labels",
    "LearnedPixels",
    "Located",
    "LogMel",
    "Multimodal",
    "Patches",
    "Pixels",
    "TokenIds",
    "Waveform",
    "pad_ragged",
]
