"""Position features, one table an axis."""

from perceivers.position.fourier import FourierFeatures

__all__ = ["FourierFeatures"]
