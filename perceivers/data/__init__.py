"""Data: detecting what a path holds, and turning each record into what a model takes. One file per kind of data.

To add a kind, write a file with a subclass of `Preprocessing`, import it here, and test it as the others are.
"""

from perceivers.data.arrays import Arrays
from perceivers.data.audio import Audio
from perceivers.data.images import CenterCroppedImages, Images
from perceivers.data.points import PointClouds
from perceivers.data.preprocessing import Preprocessing, Sample, Sizes
from perceivers.data.tables import Table
from perceivers.data.text import Text
from perceivers.data.videos import Videos

__all__ = [
    "Arrays",
    "Audio",
    "CenterCroppedImages",
    "Images",
    "PointClouds",
    "Preprocessing",
    "Sample",
    "Sizes",
    "Table",
    "Text",
    "Videos",
]
