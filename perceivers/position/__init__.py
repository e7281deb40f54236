"""Position features: Fourier features, one table per axis, and learned position embeddings."""

from perceivers.position.fourier import FourierFeatures, by_kinds, coordinates_of, crop_coordinates, grid_coordinates
from perceivers.position.learned import LearnedPositions

__all__ = ["FourierFeatures", "LearnedPositions", "by_kinds", "coordinates_of", "crop_coordinates", "grid_coordinates"]
