"""Compiled code and its loader, importable without PyTorch."""

# Implementations of the cross-attention that come with the package, in the order of `perceivers.ops.cross_attention`'s table.
# They are named here for `perceivers info`, which does not import PyTorch.
IMPLEMENTATIONS = ("reference", "dense", "absorbed", "separable", "encoded_queries")
