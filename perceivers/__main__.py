"""`python -m perceivers`: what is installed here, and which models there are."""

import argparse
import importlib.metadata
import platform
import sys

from perceivers import __version__


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m perceivers", description="The Perceiver family in PyTorch.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("info", help="print versions, devices and attention implementations (the default)")
    commands.add_parser("models", help="print the models that create_model knows, with their sizes")
    chosen = parser.parse_args(arguments)
    print("\n".join(_models() if chosen.command == "models" else _info()))
    return 0


def _info() -> list[str]:
    import torch

    from perceivers.ops.cross_attention import IMPLEMENTATIONS, native

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    packages = ("torch", "einops", "numpy", "safetensors", "huggingface_hub")
    return [
        f"perceivers {__version__}",
        f"python {platform.python_version()} on {platform.system()} {platform.machine()}",
        *(f"{package} {importlib.metadata.version(package)}" for package in packages),
        f"devices: cpu ({torch.get_num_threads()} threads){''.join(f', {name}' for name in cuda)}",
        f"attention implementations: {', '.join(IMPLEMENTATIONS)}; {native.description()}",
    ]


def _models() -> list[str]:
    import torch

    from perceivers import PerceiverIO, create_model, list_models
    from perceivers.factory import example_inputs

    lines = []
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
            flops = model.flops(example_inputs(name)) if isinstance(model, PerceiverIO) else model.flops()
        parameters = sum(parameter.numel() for parameter in model.parameters())
        gigaflops = flops / 1e9
        shown = f"{gigaflops:.1f}" if gigaflops >= 1 else f"{gigaflops:.3f}"
        lines.append(f"{name:40} {parameters:>12,} parameters {shown:>8} GFLOPs")
    return lines


if __name__ == "__main__":
    sys.exit(main())
