from edm2.pipeline.denoiser import EDM2Denoiser as EDM2Denoiser
from edm2.pipeline.folder import (
    is_pipeline_folder as is_pipeline_folder,
    read_pipeline_metadata as read_pipeline_metadata,
    read_pipeline_tensors as read_pipeline_tensors,
)
from edm2.pipeline.pipeline import EDM2Pipeline as EDM2Pipeline
from edm2.pipeline.scheduler import EDM2HeunScheduler as EDM2HeunScheduler
