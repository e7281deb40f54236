"""Compiled code and its loader, importable without PyTorch."""
