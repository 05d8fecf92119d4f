"""`accmt weights`: write the weights of a checkpoint or a saved model as safetensors."""

from __future__ import annotations

import argparse
from pathlib import Path

from accmt.cli.arguments import CommandError, path
from accmt.cli.output import complain, write
from accmt.rules.printable import escaped

_DTYPES = ("float32", "bfloat16", "float16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Complete the parser of the command."""
    parser.description = (
        "Write the weights of a checkpoint or a saved model as safetensors. The source is verified first, and nothing\n"
        "is written if it is damaged. Weights that were sharded among processes are assembled in main memory."
    )
    parser.epilog = """examples:
  accmt weights runs/model/best_accuracy model.safetensors
  accmt weights runs/model/checkpoints/checkpoint-0003-step-300 exported --dtype bfloat16
"""
    parser.add_argument(
        "checkpoint", type=path, metavar="CHECKPOINT", help="the folder of a checkpoint or of a saved model"
    )
    parser.add_argument(
        "out",
        type=path,
        metavar="OUT",
        help="a new file, if its name ends with .safetensors, else a new folder, with several files if they are large",
    )
    parser.add_argument(
        "--dtype", choices=_DTYPES, help="convert floating-point weights; by default they stay as they are"
    )


def run(options: argparse.Namespace) -> int:
    """Write the weights, and say how to load them.

    Raises:
        CommandError: If they cannot be read or written.
    """
    import torch
    from rich.filesize import decimal

    from accmt.checkpoint.export import CannotExport, export_weights

    target = Path(options.out)
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    try:
        written = export_weights(Path(options.checkpoint), target, dtype)
    except CannotExport as error:
        raise CommandError(escaped(error)) from None
    except OSError as error:
        raise CommandError(escaped(f"{target} cannot be written: {error.strerror or error}")) from None
    for line in written.left_out:
        complain(escaped(f"not written: {line}"))
    call = "accelerate.load_checkpoint_in_model"
    if target.is_file():
        call = "safetensors.torch.load_model"
    write(escaped(f"{target}: {written.tensors} tensors, {decimal(written.size)}, {', '.join(written.dtypes)}"))
    write(escaped(f"load them with {call}(model, {str(target)!r})"))
    return 0
