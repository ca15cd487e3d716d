"""Fixtures of the web package's tests."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from browser import Page, Site, chromium, lay_site
from web_models import FIXED_SECONDS, VOICES, WEB

from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.onnx.export import export_onnx
from redimnet2_lobes.scoring.operating_point import OperatingPoint

OPTIONS = {
    "onnx": {"operating_point": OperatingPoint(0.3, "that of a test")},
    "plain": {"target": "plain"},
    "fixed": {"target": "fixed", "seconds": FIXED_SECONDS},
    "int8": {"int8": True},
    "features": {"features": True},
}


@pytest.fixture(scope="session", autouse=True)
def needed():
    """What pip does not bring; its lack is one line."""
    programs = "chromium", "chromedriver", "node", "npm"
    missing = [name for name in programs if not shutil.which(name)]
    paths = VOICES, WEB / "node_modules"
    missing += [path.name for path in paths if not path.is_dir()]
    if missing:
        pytest.fail(
            f"missing: {', '.join(missing)}; apt install chromium "
            "chromium-driver alsa-utils nodejs npm; npm ci in the folder web",
            pytrace=False,
        )


class Models(dict):
    """The path of each form, exported at its first use."""

    def __init__(self, folder):
        self.folder = folder
        torch.manual_seed(0)
        self.network = ReDimNet2.from_variant("b0").eval()

    def __missing__(self, form):
        path = self[form] = self.folder / f"{form}.onnx"
        export_onnx(self.network, path, **OPTIONS[form])
        return path


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return Models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """Two words that the microphone hears again and again, at 48 kHz."""
    path = tmp_path_factory.mktemp("spoken") / "microphone.wav"
    words = [
        soundfile.read(VOICES / f"{name}.wav")[0]
        for name in ("Front_Center", "Rear_Left")
    ]
    soundfile.write(path, np.concatenate(words), 48000)
    return path


@pytest.fixture(scope="session")
def driver(spoken, tmp_path_factory):
    with chromium(
        tmp_path_factory.mktemp("profile"),
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={spoken}",
    ) as driver:
        yield driver


@pytest.fixture
def site(models, tmp_path):
    """A page of its own, with the model, at an address of its own."""
    lay_site(tmp_path)
    shutil.copy(models["onnx"], tmp_path / "model.onnx")
    site = Site(tmp_path)
    yield site
    site.stop()


@pytest.fixture
def page(driver, site):
    page = Page(driver, site.address)
    page.wait("#status", "Ready.")
    return page
