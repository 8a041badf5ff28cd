"""EDM2Pipeline: a network, its scheduler and its decoder, as diffusers packs them together."""

import copy
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, ImagePipelineOutput, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from edm2.io.guided import read_guided
from edm2.io.model import load, read_metadata, resolve
from edm2.networks import Precond
from edm2.networks.precond import levels_of
from edm2.pipeline.arguments import Generators, as_list, number_of_images, random_integers
from edm2.pipeline.card import class_names, model_card
from edm2.pipeline.denoiser import EDM2Denoiser
from edm2.pipeline.scheduler import EDM2HeunScheduler, EDM2MapScheduler
from edm2.pipeline.storing import StoredPipeline
from edm2.post_hoc_ema.files import plain_line
from edm2.sampling.conditions import rows_of_conditions
from edm2.sampling.external import empty_classes_of, ways_to_sample
from edm2.sampling.generation import SeedRandom, check_guide, class_index, random_classes
from edm2.sampling.guidance import EVERYWHERE, GuidedDenoiser, Interval, guided, without_conditions, without_labels
from edm2.sampling.samplers import HEUN, MAP
from edm2.sampling.samplers.heun import with_conditions
from edm2.sampling.samplers.registry import default_sampler, default_steps
from edm2.training import Codec, LatentCodec, codec_from_json
from edm2.training.data.vae import VAEError, load_vae

PIXELS = {"kind": "pixels"}
"""Codec of networks without a codec in their metadata."""

OUTPUT_TYPES = ("pil", "np", "pt", "latent")

DECODE_BATCH = 8
"""Images that a VAE decodes at a time; it needs far more memory per image than the network."""


class EDM2Pipeline(StoredPipeline):
    """Images by class and seed; the same as those of `edm2 generate` for the same seeds.

        pipe = EDM2Pipeline.from_snapshot("digits8")       # or from_pretrained(folder)
        images = pipe(class_labels=7, seeds=range(16)).images

    Args:
        unet: The network.
        scheduler: `EDM2HeunScheduler`, for a flow map `EDM2MapScheduler`, or `EDMEulerScheduler` or
            `EDMDPMSolverMultistepScheduler` of diffusers.
        vae: Decoder of latents; without one, the VAE that the codec names is loaded when it is needed.
        guide: Network to guide away from; without one, guidance is by the network itself without labels.
        codec: JSON of the codec (`edm2.training.codec_from_json`); default: pixels from -1 to 1.
        metadata: Metadata of the network's snapshot: images seen, EMA length, names of classes, licence.
    """

    model_cpu_offload_seq = "guide->unet->vae"
    _optional_components = ["vae", "guide"]  # noqa: RUF012, as diffusers has it
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        unet: EDM2Denoiser,
        scheduler: SchedulerMixin,
        vae: AutoencoderKL | None = None,
        guide: EDM2Denoiser | None = None,
        codec: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler, vae=vae, guide=guide)
        self.register_to_config(codec=codec or PIXELS, metadata=metadata or {})

    @classmethod
    def from_snapshot(
        cls, name: str | Path, guide: str | Path | None = None, vae: AutoencoderKL | None = None
    ) -> "EDM2Pipeline":
        """Make a pipeline of a network that `edm2.load` reads, in float32.

        Args:
            name: The network; of a guided.json the pipeline has the guide too, and weight and interval as defaults.
            guide: Network to guide away from.
            vae: Decoder of latents; default: the one that the network's codec names. If that cannot be loaded, the
                pipeline is made without it.

        Raises:
            OSError, ValueError: as `edm2.load`.
        """
        metadata = read_metadata(name)
        if "guided" in metadata:
            found = read_guided(resolve(name))
            if guide is not None or found.dropout is not None:
                why = "is guided already; leave out guide" if guide else "guided by dropout, which no pipeline has"
                raise ValueError(f"{name}: {why}")
            name, guide = found.network, found.guide
        codec = metadata.get("codec") or PIXELS
        about = {key: value for key, value in metadata.items() if key not in ("network", "codec")}
        if guide is not None:
            of_guide = read_metadata(guide)
            about["guide"] = {key: of_guide[key] for key in ("preset", "images_seen", "sigma_rel") if key in of_guide}
        net = load(name)
        return cls(
            EDM2Denoiser.from_network(net),
            _scheduler_of(net),
            vae or _vae_of(codec_from_json(codec)),
            None if guide is None else EDM2Denoiser.from_network(load(guide)),
            codec,
            about,
        )

    def card(self, name: str) -> str:
        """Text of README.md, for a pipeline that is loaded by this name."""
        parameters = sum(parameter.numel() for parameter in self.unet.parameters())
        return model_card(self.unet.description, self.config.codec, self.config.metadata, parameters, name)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | str | Sequence[int | str] | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_interval: Interval | None = None,
        *,
        conditions: Mapping[str, Any] | None = None,
        unguided: Collection[str] = (),
        seeds: int | Sequence[int] | None = None,
        generator: Generators = None,
        batch_size: int | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["EDM2Pipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]
        | None = None,
        callback_on_step_end_tensor_inputs: Collection[str] = ("latents",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Draw images, all in one batch: as many as there are labels, seeds, latents or generators, else one.

        Args:
            class_labels: Numbers or names, one for all images or one per image; -1: no class; None: drawn at random.
            num_inference_steps: Steps of the scheduler; default: 32, of a flow map 2, its evaluations.
            guidance_scale: Weight of guidance, D = D_guide + weight (D - D_guide); 1 is none; default: that of the
                guided.json that the pipeline was made of, with its interval, else 1.
            guidance_interval: Noise levels (low, high] with guidance; default: all.
            conditions: Conditions by name besides the class, as `edm2.generate` takes them.
            unguided: Conditions that guidance moves away from: the network itself is the guide, without these.
            seeds: One per image: everything random about it, as in `edm2.generate`.
            generator: In place of seeds: one random generator, or one per image.
            batch_size: Number of images, if nothing else determines it.
            latents: Unit Gaussian noise to start from, [N, C, H, W]; default: drawn.
            output_type: "pil"; "np", float32 [N, H, W, C] from 0 to 1; "pt", the same as a tensor [N, C, H, W]; or
                "latent", what the network draws, undecoded.
            return_dict: Return an `ImagePipelineOutput` in place of a tuple.
            callback_on_step_end: Called as callback(pipe, step, timestep, {"latents": x}) after each step; may return
                other latents to continue with.
            callback_on_step_end_tensor_inputs: Tensors that it gets; there are only latents.

        Returns:
            The images.

        Raises:
            ValueError: a class that the network does not know, numbers of things that do not match, guidance without
                a guide or a weight, latents of another shape, a scheduler of another kind, or a number out of range.
        """
        is_map = isinstance(self.scheduler, EDM2MapScheduler)
        if is_map and guidance_scale not in (None, 1):
            raise ValueError(f"guidance_scale={guidance_scale:g}: a flow map takes no guide; distil the guided network")
        steps = self._default_steps() if num_inference_steps is None else num_inference_steps
        self._check(steps, output_type)
        labels, seeds = as_list(class_labels), as_list(seeds)
        count = number_of_images(labels, seeds, latents, generator, batch_size)
        if seeds is not None:
            generator = SeedRandom(seeds).generators
        given = rows_of_conditions(self.unet.description.conditions, conditions or {}, count)
        given = {name: values.to(self._execution_device) for name, values in given.items()}
        weight, interval = self._default_guidance()
        if guidance_scale is not None:
            weight, interval = guidance_scale, EVERYWHERE
        elif weight == 1 and (guidance_interval is not None or unguided):
            raise ValueError(
                "guidance_interval and unguided need a weight of guidance: give guidance_scale, such as 1.5"
            )
        if others := set(callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs):
            raise ValueError(f"callback_on_step_end_tensor_inputs: there are only latents, not {', '.join(others)}")
        denoise = self._denoiser(weight, guidance_interval or interval, unguided)
        noise = self._noise(latents, count, generator)  # first the noise, then the classes, as `edm2.generate`
        classes = self._classes(labels, count, generator)
        samples = self._sample(denoise, noise, classes, given, steps, generator, callback_on_step_end)
        images = self._images(samples, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def codec(self) -> Codec:
        """Codec that decodes samples to pixels."""
        return codec_from_json(self.config.codec)

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by index; empty if they have none."""
        return class_names(self.config.metadata)

    def decode(self, samples: Tensor) -> Tensor:
        """Decode samples [N, C, H, W] to uint8 pixels [N, C', H', W'] with 256 levels.

        Raises:
            VAEError: the pipeline has no VAE, and the one that the codec names cannot be loaded.
        """
        codec = self.codec
        if self.vae is None or not isinstance(codec, LatentCodec):
            return codec.to_display(codec.decode(samples))
        parts = codec.to_vae(samples).to(self.vae.dtype).split(DECODE_BATCH)
        return torch.cat([codec.to_pixels(self.vae.decode(z).sample) for z in parts])

    def _default_steps(self) -> int:
        """Steps, if none are asked for: those of a map as far as its scheduler has levels for them."""
        if not isinstance(self.scheduler, EDM2MapScheduler):
            return default_steps(HEUN)
        return min(default_steps(MAP), max(self.scheduler.known_levels))

    def _check(self, num_inference_steps: int, output_type: str) -> None:
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps={num_inference_steps} must be at least 1")
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type={output_type!r} must be one of {', '.join(OUTPUT_TYPES)}")
        own = isinstance(self.scheduler, EDM2HeunScheduler | EDM2MapScheduler)
        if not own and not hasattr(self.scheduler, "precondition_outputs"):
            raise ValueError(
                f"{type(self.scheduler).__name__} is not for EDM networks; use EDM2HeunScheduler, EDMEulerScheduler "
                "or EDMDPMSolverMultistepScheduler"
            )
        abilities, _ = ways_to_sample(self.config.metadata)
        if "denoise" not in abilities and not isinstance(self.scheduler, EDM2MapScheduler):
            raise ValueError("this network is a map and no denoiser: draw with EDM2MapScheduler")

    def _noise(self, latents: Tensor | None, count: int, generator: Generators) -> Tensor:
        """Draw or check unit Gaussian noise, float32 [N, C, H, W]."""
        network = self.unet.description
        shape = (count, network.img_channels, *network.size)
        device = self._execution_device
        noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if latents is None:
            return noise
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents of shape {tuple(latents.shape)} must have the shape {shape}")
        return latents.to(device, torch.float32)

    def _classes(self, labels: list[int | str] | None, count: int, generator: Generators) -> Tensor | None:
        """Draw or look up classes, int64 [N]; None for a network without classes."""
        label_dim = self.unet.description.label_dim
        if label_dim == 0:
            if labels is not None:
                raise ValueError("this network has no classes: it was trained without labels; leave out class_labels")
            return None
        empty = empty_classes_of(self.config.metadata, label_dim)
        drawn = random_classes(lambda high: random_integers(high, count, generator), label_dim, empty)
        if labels is None:
            return drawn.to(self._execution_device)
        chosen = [class_index(label, self.class_names) for label in labels]
        for index in chosen:
            if not -1 <= index < label_dim:
                raise ValueError(f"class {index} does not exist: this network knows classes 0 to {label_dim - 1}")
        return torch.tensor(chosen * count if len(chosen) == 1 else chosen, device=self._execution_device)

    def _default_guidance(self) -> tuple[float, Interval]:
        """Weight and interval of the guided.json that the pipeline was made of; no guidance without one."""
        known = self.config.metadata.get("guided")
        if known is None:
            return 1.0, EVERYWHERE
        low, high = known["interval"]
        return known["guidance"], (low, EVERYWHERE[1] if high is None else high)

    def _denoiser(self, weight: float, interval: Interval, unguided: Collection[str] = ()) -> GuidedDenoiser:
        if weight == 1:
            return guided(self.unet, self.unet, 1, interval)
        if unguided:
            return guided(self.unet, without_conditions(self.unet, unguided), weight, interval)
        if self.guide is not None:
            check_guide(self.unet, self.guide, "its network", "the pipeline's guide")
            return guided(self.unet, self.guide, weight, interval)
        no_classes = self.unet.description.label_dim == 0
        if no_classes or (self.config.metadata.get("training") or {}).get("label_dropout") == 0:
            why = "has no classes to drop" if no_classes else "was trained with the class of every image"
            raise ValueError(
                f"guidance_scale={weight:g} needs a network to guide away from, as this network {why}: give the "
                "pipeline a guide"
            )
        return guided(self.unet, without_labels(self.unet), weight, interval)

    def _sample(
        self,
        denoise: GuidedDenoiser,
        noise: Tensor,
        classes: Tensor | None,
        conditions: Mapping[str, Tensor],
        num_steps: int,
        generator: Generators,
        callback: Callable[..., dict[str, Tensor]] | None,
    ) -> Tensor:
        """Integrate from unit noise to samples, by any of the schedulers.

        Noise at the first level is sigma_max times unit noise. Schedulers of diffusers suggest sqrt(sigma_max² + 1).
        """
        scheduler = self.scheduler
        scheduler.set_timesteps(num_steps, device=noise.device)
        x = noise * scheduler.sigmas[0]
        with self.progress_bar(total=num_steps) as bar:
            for i, timestep in enumerate(scheduler.timesteps):
                scheduler.scale_model_input(x, timestep)  # only sets step_index; the network scales its input
                sigma = scheduler.sigmas[scheduler.step_index]
                if isinstance(scheduler, EDM2MapScheduler):
                    jump = partial(self.unet, target_sigma=scheduler.target_sigma)
                    step_denoiser = with_conditions(jump, conditions or None)
                elif i % scheduler.order == 0:
                    step_denoiser = with_conditions(denoise.at_step(sigma), conditions or None)
                output = _as_model_output(scheduler, step_denoiser(x, sigma, classes), x, sigma)
                x = scheduler.step(output, timestep, x, generator=generator, return_dict=False)[0]
                if (i + 1) % scheduler.order == 0 or i + 1 == len(scheduler.timesteps):
                    if callback is not None:
                        x = (callback(self, i // scheduler.order, timestep, {"latents": x}) or {}).get("latents", x)
                    bar.update()
        return x

    def _images(self, samples: Tensor, output_type: str) -> Tensor | np.ndarray | list[Image.Image]:
        if output_type == "latent":
            return samples
        pixels = self.decode(samples).cpu()
        if output_type == "pt":
            return pixels.float() / 255
        arrays = pixels.permute(0, 2, 3, 1).numpy()
        if output_type == "np":
            return arrays.astype(np.float32) / 255
        return [Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array) for array in arrays]


diffusers.EDM2Pipeline = EDM2Pipeline  # DiffusionPipeline.from_pretrained looks there for the class that a folder names


def _as_model_output(scheduler: SchedulerMixin, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Invert the scheduler's own preconditioning (Eqs. 4-8): F, of which it makes D.

        D = c_skip x + c_out F        F = (D - c_skip x) / c_out

    c_skip x and c_out are computed by the scheduler, so that its sigma_data and prediction type do not matter.
    """
    if isinstance(scheduler, EDM2HeunScheduler | EDM2MapScheduler):
        return denoised
    skipped = scheduler.precondition_outputs(x, torch.zeros_like(x), sigma)
    c_out = scheduler.precondition_outputs(torch.zeros_like(sigma), torch.ones_like(sigma), sigma)
    return (denoised - skipped) / c_out


def _scheduler_of(net: Precond) -> SchedulerMixin:
    """Scheduler that suits a network."""
    if default_sampler(net.abilities) != MAP:
        return EDM2HeunScheduler()
    known = levels_of(net.abilities, net.map_levels)
    return EDM2MapScheduler({str(steps): levels for steps, levels in known.items()})


def _vae_of(codec: Codec) -> AutoencoderKL | None:
    """Load a copy of the VAE that a codec names; None with a warning if that fails, and for codecs without one."""
    if not isinstance(codec, LatentCodec):
        return None
    try:
        return copy.deepcopy(load_vae(codec.vae, torch.device("cpu")))
    except VAEError as error:
        reason = plain_line(str(error))  # it names the VAE, as an untrusted file does
        warnings.warn(f"the pipeline is made without its VAE, which is loaded when it draws: {reason}", stacklevel=3)
        return None
