"""`from models.perceiver import Perceiver, PerceiverBlock`, as the original README has it."""

from perceivers import Perceiver, PerceiverBlock

__all__ = ["Perceiver", "PerceiverBlock"]
