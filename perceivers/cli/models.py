"""`perceivers models`: the models that `create_model` knows, with their sizes."""

import argparse

import torch

from perceivers import create_model, list_models


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    parser = argparse.ArgumentParser(prog="perceivers models", description="Models of `create_model`, with their sizes.")
    parser.parse_args(arguments)
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
            flops = model.flops()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        gigaflops = f"{flops / 1e9:.1f}" if flops >= 1e9 else f"{flops / 1e9:.3f}"
        print(f"{name:40} {parameters:>12,} parameters {gigaflops:>8} GFLOPs")
    return 0
