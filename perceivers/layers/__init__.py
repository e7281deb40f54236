"""Modules that own parameters."""

from perceivers.layers.attention import CrossAttention, SelfAttention
from perceivers.layers.block import BlockConfig, CrossAttentionBlock, LatentTransformer, PerceiverBlock
from perceivers.layers.feed_forward import FeedForward
from perceivers.layers.induced_set_attention import InducedSetAttention
from perceivers.layers.pooler import Pooler
from perceivers.layers.resampler import Resampler

__all__ = [
    "BlockConfig",
    "CrossAttention",
    "CrossAttentionBlock",
    "FeedForward",
    "InducedSetAttention",
    "LatentTransformer",
    "PerceiverBlock",
    "Pooler",
    "Resampler",
    "SelfAttention",
]
