"""Model card that is saved with a pipeline: the network, its use and its licence."""

import re
from typing import Any

from huggingface_hub import ModelCardData

from edm2 import __version__
from edm2.networks import NetworkConfig

HUB_LICENCES = (
    *("apache-2.0", "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-sa-4.0", "cc0-1.0", "mit", "openrail"),
)
"""Usual licences, by the hub's names."""

OTHER_LICENCE = "other"
"""The hub's name for all others, and for weights without a known licence."""

CITATION = """\
@inproceedings{Karras2024edm2,
  title     = {Analyzing and Improving the Training Dynamics of Diffusion Models},
  author    = {Tero Karras and Miika Aittala and Jaakko Lehtinen and Janne Hellsten and Timo Aila and Samuli Laine},
  booktitle = {Proc. CVPR},
  year      = {2024},
}"""

TEMPLATE = """\
---
{header}
---

# {title}

A diffusion model of the EDM2 family ([Karras et al. 2024](https://arxiv.org/abs/2312.02696)) that draws
{what}.

## Use

With the open implementation, the package `edm2`:

```python
from edm2.pipeline import EDM2Pipeline

pipe = EDM2Pipeline.from_pretrained("{name}")
images = pipe({call}).images
```

An image depends on its seed and class alone, and equals that of `edm2 generate` for the same seed. On a GPU:
`pipe.to("cuda", torch.float16)`. Other solvers of diffusers for EDM work as well:

```python
from diffusers import EDMDPMSolverMultistepScheduler

pipe.scheduler = EDMDPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
```

## Facts

| | |
|---|---|
{facts}

## Licence

{licence}

## Citation

```bibtex
{citation}
```
"""


def model_card(
    network: NetworkConfig, codec: dict[str, Any], metadata: dict[str, Any], parameters: int, name: str
) -> str:
    """Write the text of a pipeline's README.md.

    Args:
        name: Folder or hub id to load it by.
    """
    licence = str(metadata.get("license") or "")
    header = ModelCardData(
        license=licence_on_the_hub(licence),
        library_name="diffusers",
        pipeline_tag="unconditional-image-generation",
        tags=["edm2", "diffusion", "arxiv:2312.02696"],
    )
    names = class_names(metadata)
    example = repr(names[-1]) if names else network.label_dim - 1
    facts = _facts(network, codec, metadata, parameters)
    return TEMPLATE.format(
        header=header.to_yaml(),
        title=_one_line(metadata.get("preset") or "EDM2"),
        what=_describe(network, codec),
        name=name,
        call=(f"class_labels={example}, " if network.label_dim else "") + "seeds=[0, 1, 2, 3]",
        facts="\n".join(f"| {fact} | {_one_line(value)} |" for fact, value in facts.items() if value is not None),
        licence=f"The weights are under {_one_line(licence)}. Software that loads them may be under another licence."
        if licence
        else "Not stated by the file that the weights are from. Whoever publishes them: say it here and in the header.",
        citation=CITATION,
    )


def _describe(network: NetworkConfig, codec: dict[str, Any]) -> str:
    height, width = network.size
    shape = f"{network.img_channels}x{height}x{width}"
    classes = f"of {network.label_dim} classes" if network.label_dim else "without classes"
    if codec["kind"] == "latents":
        return f"{shape} latents {classes}, decoded by the VAE `{_one_line(codec['vae'])}`"
    return f"{shape} images {classes}"


def _facts(network: NetworkConfig, codec: dict[str, Any], metadata: dict[str, Any], parameters: int) -> dict[str, Any]:
    """Rows of the table; None for what is not known."""
    names, images_seen, guide = class_names(metadata), metadata.get("images_seen"), metadata.get("guide")
    data = (metadata.get("data") or {}).get("name")
    return {
        "Preset": metadata.get("preset"),
        "Parameters": f"{parameters:,}",
        # without the folders of the user who trained on them
        "Trained on": None if data is None else re.split(r"[/\\]", str(data).rstrip("/\\"))[-1],
        "Images seen": f"{images_seen:,}" if isinstance(images_seen, int) else None,
        "EMA length sigma_rel": metadata.get("sigma_rel"),
        "Standard deviation of the data (sigma_data)": network.sigma_data,
        "VAE": codec.get("vae"),
        "Classes": ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else network.label_dim,
        "Guide": None if guide is None else ", ".join(f"{key} {value}" for key, value in guide.items()) or "included",
        "Saved by": f"edm2 {__version__}",
    }


def licence_on_the_hub(text: str) -> str:
    """Find the hub's name for a licence: "CC BY-NC-SA 4.0, non-commercial" is cc-by-nc-sa-4.0."""
    name = "-".join(text.partition(",")[0].lower().split())
    return name if name in HUB_LICENCES else OTHER_LICENCE


def class_names(metadata: dict[str, Any]) -> list[str]:
    """Names of the classes, by index; empty if they have none."""
    return [str(name) for name in (metadata.get("data") or {}).get("class_names") or ()]


def _one_line(value: Any) -> str:
    """Untrusted text on one line of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
