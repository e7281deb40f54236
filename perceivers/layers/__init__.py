"""Modules that own parameters."""

from perceivers.layers.attention import CrossAttention, SelfAttention
from perceivers.layers.block import CrossAttentionBlock, LatentTransformer
from perceivers.layers.feed_forward import FeedForward

__all__ = ["CrossAttention", "CrossAttentionBlock", "FeedForward", "LatentTransformer", "SelfAttention"]
