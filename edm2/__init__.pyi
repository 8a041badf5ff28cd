from collections.abc import Callable

from edm2.io.model import load as load, read_metadata as read_metadata, save as save
from edm2.pipeline.pipeline import EDM2Pipeline as EDM2Pipeline
from edm2.sampling.generation import generate as generate
from edm2.sampling.guidance import (
    guided as guided,
    without_conditions as without_conditions,
    without_labels as without_labels,
)
from edm2.sampling.samplers.deis import sample_deis as sample_deis
from edm2.sampling.samplers.dpmpp import sample_dpmpp_2m as sample_dpmpp_2m
from edm2.sampling.samplers.euler import sample_euler as sample_euler
from edm2.sampling.samplers.flow_map import sample_map as sample_map
from edm2.sampling.samplers.heun import sample_heun as sample_heun, sigma_steps as sigma_steps

__version__: str

def lazy_names(package: str, file: str) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]: ...
