from edm2.training.callbacks import Callback as Callback
from edm2.training.config import TrainingConfig as TrainingConfig
from edm2.training.data.codecs import Codec as Codec, PixelCodec as PixelCodec, codec_from_json as codec_from_json
from edm2.training.data.dataset import (
    ArrayDataset as ArrayDataset,
    Dataset as Dataset,
    DatasetError as DatasetError,
    open_dataset as open_dataset,
)
from edm2.training.data.vae import LatentCodec as LatentCodec
from edm2.training.loss.bins import NoiseBins as NoiseBins, equal_bins as equal_bins, x0_gradients as x0_gradients
from edm2.training.loss.by_name import (
    NOISE_DISTRIBUTIONS as NOISE_DISTRIBUTIONS,
    SNR_CONVENTIONS as SNR_CONVENTIONS,
    WEIGHTINGS as WEIGHTINGS,
    make_weighting as make_weighting,
    noise_distribution as noise_distribution,
)
from edm2.training.loss.flow_map import FlowMapLoss as FlowMapLoss
from edm2.training.loss.learned import LearnedWeighting as LearnedWeighting
from edm2.training.loss.noise import (
    DDPMCosine as DDPMCosine,
    DDPMLinear as DDPMLinear,
    LnNormal as LnNormal,
    LnUniform as LnUniform,
    NoiseDistribution as NoiseDistribution,
    levels as levels,
)
from edm2.training.loss.objective import DenoisingLoss as DenoisingLoss, EDM2Loss as EDM2Loss
from edm2.training.loss.pareto import Pareto as Pareto, pareto_weights as pareto_weights
from edm2.training.loss.snr import (
    P2 as P2,
    Constant as Constant,
    Eps as Eps,
    InDataUnits as InDataUnits,
    MaxSNR as MaxSNR,
    MinSNR as MinSNR,
    SoftMinSNR as SoftMinSNR,
    V as V,
)
from edm2.training.loss.weighting import (
    EDM as EDM,
    Relative as Relative,
    StaticWeighting as StaticWeighting,
    Uncertainty as Uncertainty,
    Weighting as Weighting,
    normalized as normalized,
)
from edm2.training.run.checkpoint import CheckpointError as CheckpointError
from edm2.training.run.run_folder import (
    RunFolder as RunFolder,
    RunFolderError as RunFolderError,
    read_run_config as read_run_config,
)
from edm2.training.schedule import inverse_sqrt_lr as inverse_sqrt_lr
from edm2.training.step import TrainStep as TrainStep
from edm2.training.trainer import Trainer as Trainer, TrainingError as TrainingError
