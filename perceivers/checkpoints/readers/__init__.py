"""Readers of files of tensors that run nothing from them."""
