"""Codecs are exact: every level survives, and the network sees data of the promised mean and standard deviation."""

import json
import math

import pytest
import torch
from golden_data import arrays

from edm2.training.data.codecs import PixelCodec, are_alike, codec_from_json
from edm2.training.data.dataset import open_dataset, pixel_statistics

CODECS = {
    "default": PixelCodec(),
    "digits": PixelCodec.standardized([4.88], [6.02], levels=17),
    "per channel": PixelCodec.standardized([124.0, 116.3, 103.5], [58.4, 57.1, 57.4]),
    "narrow": PixelCodec.standardized([250.0], [0.5]),
    "wide": PixelCodec.standardized([-1e3], [1e4]),
}


def all_levels(codec: PixelCodec) -> torch.Tensor:
    return torch.arange(codec.levels, dtype=torch.uint8).view(1, 1, 1, -1).repeat(1, len(codec.mean), 1, 1)


@pytest.fixture(params=CODECS.values(), ids=CODECS.keys())
def codec(request: pytest.FixtureRequest) -> PixelCodec:
    return request.param


def test_default_is_the_published_rgb_encoder(golden):
    numbers = arrays(golden, "dataset/dataset.safetensors")
    encoded, decode_in = numbers["rgb/encoded_0_255"], numbers["rgb/decode_in"]
    levels = torch.arange(256, dtype=torch.uint8).view_as(encoded)
    # Stated as 1e-6, and float32 resolves 6e-8 near 1; the operations are the same, so nothing differs.
    torch.testing.assert_close(PixelCodec().encode(levels), encoded, rtol=0, atol=1e-6)
    assert torch.equal(PixelCodec().encode(levels), levels.float() / 127.5 - 1)
    assert torch.equal(PixelCodec().decode(decode_in), numbers["rgb/decode_out"])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):  # in which sampler and network may work
        x = torch.tensor([-1.0, 0.0, 1.0], dtype=dtype).view(1, 1, 1, 3)  # exact in all of them
        assert PixelCodec().decode(x).flatten().tolist() == [0, 128, 255]


def test_every_level_survives_and_decoding_takes_the_nearest_one(codec):
    """Anything less than half a level away comes back; 0.49 leaves room for the rounding of float32. What is beyond
    the levels is clipped, and what is no number has one too. JSON brings back an equal codec."""
    levels = all_levels(codec)
    encoded = codec.encode(levels)
    assert encoded.dtype == torch.float32
    assert torch.equal(codec.decode(encoded), levels)
    mean, std = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1) for x in (codec.mean, codec.std))
    for distance in (-0.49, 0.49):
        assert torch.equal(codec.decode((levels.double() + distance - mean) / std), levels)
    x = torch.tensor([-math.inf, -1e30, math.nan, 1e30, math.inf]).view(1, 1, 1, -1).repeat(1, len(codec.mean), 1, 1)
    top = codec.levels - 1
    assert codec.decode(x)[0, 0, 0].tolist() == [0, 0, 0, top, top]
    assert codec_from_json(json.loads(json.dumps(codec.to_json()))) == codec


def test_standardized_data_have_mean_0_and_the_promised_std():
    dataset = open_dataset("digits")
    codec = PixelCodec.standardized(*pixel_statistics(dataset), levels=dataset.levels, sigma_data=0.5)
    x = codec.encode(dataset.images(range(len(dataset)))).double()
    assert x.mean().item() == pytest.approx(0, abs=1e-7)  # rounding of float32, averaged
    assert x.std(correction=0).item() == pytest.approx(0.5, rel=1e-6)


def test_display_uses_all_of_8_bits():
    assert torch.equal(PixelCodec().to_display(all_levels(PixelCodec())), all_levels(PixelCodec()))
    codec = CODECS["digits"]
    expected = [math.floor(v * 255 / 16 + 0.5) for v in range(17)]
    assert codec.to_display(all_levels(codec)).flatten().tolist() == expected


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ({}, "unknown kind of codec None"),
        ({"kind": "wavelet"}, "unknown kind of codec 'wavelet': this version knows pixels"),
        ({"kind": "pixels", "gamma": 2.2}, "gamma"),
        ({"kind": "pixels", "mean": 127.5}, "not iterable"),
        ({"kind": "pixels", "mean": [], "std": []}, "must hold a finite number"),
        ({"kind": "pixels", "mean": [1, 2], "std": [1]}, "must hold a finite number"),
        ({"kind": "pixels", "mean": [math.nan], "std": [1]}, "must hold a finite number"),
        ({"kind": "pixels", "mean": [1], "std": [0]}, "must be positive"),
        ({"kind": "pixels", "levels": 1}, "levels=1"),
        ({"kind": "pixels", "levels": 65536}, "levels=65536"),
    ],
)
def test_unusable_descriptions_are_refused(description, reason):
    with pytest.raises(ValueError, match=reason):
        codec_from_json(description)


def test_data_with_another_number_of_channels_are_refused():
    """Broadcasting would otherwise turn gray images into colour ones."""
    codec = CODECS["per channel"]
    assert codec.network_channels(3) == 3
    assert PixelCodec().network_channels(4) == 4
    for use, x in ((codec.encode, torch.zeros(1, 1, 2, 2, dtype=torch.uint8)), (codec.decode, torch.zeros(1, 1, 2, 2))):
        with pytest.raises(ValueError, match="codec for 3 channels"):
            use(x)


def test_codecs_of_the_same_images_are_alike_on_every_machine():
    """Their statistics differ in the last digits, by the order of sums."""
    one = PixelCodec.standardized([205.55520271695275], [143.99787269026817]).to_json()
    assert are_alike(one, PixelCodec.standardized([205.55520271695275], [143.99787269026828]).to_json())
    assert not are_alike(one, PixelCodec.standardized([205.5], [143.99787269026817]).to_json())
    assert not are_alike(one, PixelCodec.standardized([205.5] * 2, [143.9] * 2).to_json())
    assert not are_alike(one, None)
