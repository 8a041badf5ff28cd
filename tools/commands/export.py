"""`edm2 export`: a network as an ONNX file, for programs without PyTorch."""

from pathlib import Path

import click

from edm2.post_hoc_ema.files import plain_line

EPILOG = """\b
Examples:
  # The included network, for any number of images at a time
  edm2 export digits8 digits8.onnx
\n\b
  # One image at a time, for programs that want a fixed size
  edm2 export best.safetensors best.onnx --batch 1
\n\b
  # A published network
  edm2 export edm2-img512-xs-2147483-0.135.pkl xs.onnx

\b
A sampler in numpy that draws with such a file: edm2 docs export.
Needs: pip install 'edm2[export]'
"""


@click.command(epilog=EPILOG)
@click.argument("network", metavar="NET")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT.onnx")
@click.option("--batch", "batch_size", type=click.IntRange(1), help="Images of every call; default: any number.")
def export(network: str, out: Path, batch_size: int | None) -> None:
    """Write the denoiser of NET to OUT.onnx.

    NET is a snapshot, a published pickle, a pipeline's folder or an included network (digits8). The file takes noisy
    images x, their noise levels sigma, class_labels (-1: no class) and the conditions of the network by name (NaN:
    absent), and gives the denoised images; weights are normalized once and for all, numbers are float32. It appears
    once onnxruntime has computed what PyTorch computes, to 1e-5. Its metadata hold sigma_data, the range of noise
    levels, names of classes, and how samples become pixels.
    """
    from edm2.io.model import is_external, load, read_metadata
    from edm2.io.onnx import ExportError, export_onnx

    if out.suffix != ".onnx" or out.is_dir():
        raise click.UsageError(f"{out}: OUT is a file named *.onnx")
    metadata = read_metadata(network)
    if is_external(metadata):
        raise ExportError(f"{network}: a network of your own, not one that edm2 builds; torch.onnx.export it yourself")
    deviation = export_onnx(load(network), out, metadata, batch_size)
    click.echo(plain_line(f"{out}: made from {network}; onnxruntime agrees with PyTorch to {deviation:.1e}"))
