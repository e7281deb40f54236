"""Readers of pickled files that run nothing from them."""
