"""The description of a network: there and back through JSON, and what it refuses."""

import json

import pytest

from edm2.networks import NetworkConfig

SMALL = {"img_resolution": 8, "img_channels": 3, "label_dim": 0, "channel_mult": (1, 2)}


def test_there_and_back_through_json():
    config = NetworkConfig(**SMALL | {"img_resolution": (8, 16), "resample_filter": (1, 3, 3, 1), "clip_act": None})
    again = NetworkConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert (again, hash(again)) == (config, hash(config))
    for values, named in (
        (SMALL | {"colour": "blue"}, "colour"),
        ({"img_resolution": 8}, "img_channels"),
        (SMALL | {"model_channels": "wide"}, "malformed"),
    ):
        with pytest.raises(ValueError, match=named):
            NetworkConfig.from_json(values)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"config": "Z"}, "config='Z'"),
        ({"img_channels": 0}, "img_channels=0"),
        ({"model_channels": -1}, "model_channels=-1"),
        ({"num_blocks": -1}, "num_blocks=-1"),
        ({"label_dim": -1}, "label_dim=-1"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult_noise": 0}, "channel_mult_noise=0"),
        ({"channel_mult_emb": -2}, "channel_mult_emb=-2"),
        ({"img_resolution": (8, 8, 8)}, "img_resolution"),
        ({"img_resolution": 9}, "9x9"),
        ({"img_resolution": 2, "channel_mult": (1, 1, 1)}, "2x2"),
        ({"img_resolution": (8, 10), "channel_mult": (1, 1, 1)}, "8x10"),
        ({"resample_filter": ()}, "resample_filter"),
        ({"resample_filter": (1, 2, 1)}, "resample_filter"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"sigma_data": 0.0}, "sigma_data=0.0"),
    ],
)
def test_impossible_descriptions_are_refused_by_field(change, named):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as refused:
        NetworkConfig(**SMALL | change)
    assert named in str(refused.value)
