"""The page in Chromium: by keyboard, offline, to screen readers, in error."""

import re

import numpy as np
import pytest
import soundfile
import torch
from browser import Page, Site, chromium, lay_site
from scipy.signal import correlate
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from torch.nn.functional import cosine_similarity
from web_models import RESAMPLED, VOICES, WEB, close, embedding_of

from redimnet2_lobes.data.audio import load_waveform
from redimnet2_lobes.models.redimnet2 import ReDimNet2
from redimnet2_lobes.onnx.export import export_onnx

AXE = (WEB / "node_modules" / "axe-core" / "axe.min.js").read_text()


def press(page, name, *keys):
    """Goes to what has an accessible name by the tabulator, and types there."""

    def type_keys(*keys):
        ActionChains(page.driver).send_keys(*keys).perform()

    for _ in range(40):
        if page.driver.switch_to.active_element.accessible_name == name:
            break
        type_keys(Keys.TAB)
    else:
        raise AssertionError(f"no way by keyboard to {name}")
    outline = page.call(
        "return getComputedStyle(document.activeElement).outlineStyle"
    )
    assert outline != "none", name
    type_keys(*keys)


def record(page, seconds):
    press(page, "Record", Keys.ENTER)
    for second in range(1, seconds + 1):
        page.wait("#recording", f"Recording, {second}.")
    press(page, "Stop recording", Keys.SPACE)
    page.wait("#recording", "From the microphone")


def row(page, term):
    """What a result says of a term."""
    text = page.text("#result").splitlines()
    return text[text.index(term) + 1]


def test_by_keyboard_with_the_microphone(page):
    record(page, 3)
    press(page, "Name", "Anna", Keys.ENTER)
    page.wait("#status", "Anna is enrolled.")
    record(page, 2)
    press(page, "Name", "Anna", Keys.ENTER)
    page.wait("#names", "Anna, 2 recordings")
    press(page, "Verify Anna", Keys.ENTER)
    page.wait("#result", "This is Anna")
    assert float(row(page, "Score").split()[0]) > 0.9
    assert row(page, "Threshold") == "0.3000 (that of a test)"
    assert re.fullmatch(r"[23]\.\d s", row(page, "Audio"))
    assert re.fullmatch(r"\d+ ms", row(page, "Time"))
    field = "Threshold, from −1 to 1"
    press(page, field, Keys.CONTROL + "a" + Keys.NULL, "1", Keys.ENTER)
    page.wait("#status", "The threshold is set.")
    press(page, "Verify Anna", Keys.SPACE)
    page.wait("#result", "This is not Anna")
    assert row(page, "Threshold") == "1.0000 (given)"
    press(page, "Identify the recording", Keys.ENTER)
    page.wait("#result", "Nobody enrolled")
    press(page, "Remove Anna", Keys.ENTER)
    page.wait("#status", "Anna is removed.")
    assert page.find("#nobody").is_displayed()
    press(page, "Check the model here", Keys.ENTER)
    page.wait("#status", "The model computes here what it should")


def test_the_microphone_is_recorded_as_it_is(page, spoken, models, tmp_path):
    file, embedding = page.call("""
        const { record } = await import("/recorder.js");
        const { load } = await import("/redimnet2.js");
        const stop = await new Promise(async (resolve) => {
          const stop = await record((seconds) => seconds > 4 && resolve(stop));
        });
        const blob = await stop();
        const recognition = await load("/model.onnx");
        const bytes = new Uint8Array(await blob.arrayBuffer());
        return [
          Array.from(bytes, (x) => String.fromCharCode(x)).join(""),
          Array.from(await recognition.embed(blob)),
        ];
    """)
    path = tmp_path / "recorded.wav"
    path.write_bytes(file.encode("latin-1"))
    recorded, original = load_waveform(path), load_waveform(spoken)
    of_recorded = embedding_of(models["onnx"], recorded)
    assert close(embedding, of_recorded, RESAMPLED)
    of_original = embedding_of(models["onnx"], original)
    assert cosine_similarity(of_recorded, of_original, dim=0) > 0.99
    # And the sound is what went in; a busy machine may lose a block of it.
    heard = np.tile(original.numpy(), 3)
    likenesses = []
    for part in recorded[8000:56000].split(4000):
        products = correlate(heard, part.numpy(), "valid")
        powers = correlate(heard**2, np.ones(len(part)), "valid")
        powers = powers.clip(1e-6) * (part**2).sum().item()
        likenesses.append((products / np.sqrt(powers)).max())
    assert np.median(likenesses) > 0.99


def choose(page, label, path):
    """Chooses a file where the label says."""
    (field,) = [
        field
        for field in page.driver.find_elements("css selector", "[type=file]")
        if field.accessible_name.startswith(label)
    ]
    field.send_keys(str(path))


def enrol_file(page, name, path):
    choose(page, "or a file", path)
    page.wait("#recording", path.name)
    page.find("#name").send_keys(name)
    page.find("#enrolment button").click()
    page.wait("#status", f"{name} is enrolled.")


def test_scores_of_files_are_those_of_python(page, models):
    paths = [VOICES / f"{name}.wav" for name in ("Front_Left", "Noise")]
    for name, path in zip(("Anna", "Bert"), paths, strict=True):
        enrol_file(page, name, path)
    test = VOICES / "Rear_Right.wav"
    choose(page, "or a file", test)
    page.wait("#recording", "Rear_Right.wav, 1.5 s.")
    page.find("#identify").click()
    page.wait("#result", "This is Anna")
    expected = cosine_similarity(
        *(
            torch.stack(
                [embedding_of(models["onnx"], load_waveform(x)) for x in files]
            )
            for files in (paths, [test])
        )
    )
    found = re.findall(r"(?:Anna|Bert) (\S+\d)", row(page, "Scores"))
    assert torch.allclose(
        torch.tensor([float(x) for x in found]), expected, atol=1e-3
    )


def test_without_a_network(page, site):
    page.wait("#offline", "without a network from now on")
    site.stop()
    page.driver.refresh()
    page.wait("#status", "Ready.")
    enrol_file(page, "Anna", VOICES / "Front_Left.wav")
    page.find("#names button").click()
    page.wait("#result", "This is Anna")
    record(page, 1)
    page.driver.get(f"{page.address}index.html?theme=dark")
    page.wait("#status", "Ready.")


def test_nothing_can_leave_the_page(page, driver, tmp_path):
    elsewhere = Site(tmp_path)
    try:
        assert page.call("return (await fetch(values.at)).ok", at=page.address)
        page.error("await fetch(values.at)", at=elsewhere.address)
        page.error("await import(values.at + 'page.js')", at=elsewhere.address)
    finally:
        elsewhere.stop()


def test_voices_are_kept_if_wanted(page, site, models):
    stored = "return JSON.stringify(localStorage)"
    enrol_file(page, "Anna", VOICES / "Front_Left.wav")
    assert page.call(stored) == "{}"
    press(page, page.find("#keep").accessible_name, Keys.SPACE)
    enrol_file(page, "Bert", VOICES / "Front_Right.wav")
    kept = page.call("return JSON.parse(localStorage.redimnet2)")
    assert set(kept) == {"embeddingSpace", "speakers"}
    sizes = [
        (x["name"], [len(row) for row in x["embeddings"]])
        for x in kept["speakers"]
    ]
    assert sizes == [("Anna", [192]), ("Bert", [192])]
    page.driver.refresh()
    page.wait("#names", "Anna, 1 recording")
    # Another model leaves them as they are.
    network = ReDimNet2.from_variant("b0", embedding_size=16).eval()
    other = site.folder / "other.onnx"
    export_onnx(network, other, target="plain")
    choose(page, "Another model", other)
    page.wait("#status", "kept in this browser cannot be used by this model")
    assert page.text("#names") == "" and not page.find("#keep").is_selected()
    assert "none known" in page.text("#model")
    enrol_file(page, "Carl", VOICES / "Front_Right.wav")
    page.find("#names button").click()
    page.wait("#result", "No decision without a threshold")
    page.driver.refresh()
    page.wait("#names", "Bert, 1 recording")
    assert page.find("#keep").is_selected()
    press(page, page.find("#keep").accessible_name, Keys.SPACE)
    assert page.call(stored) == "{}"


def test_errors_are_shown(page, tmp_path):
    page.find("#identify").click()
    page.wait("#error", "no recording; record one or choose a file")
    text = tmp_path / "text.wav"
    text.write_text("no sound")
    choose(page, "or a file", text)
    page.wait("#error", "cannot be decoded")
    silence = tmp_path / "silence.wav"
    soundfile.write(silence, np.zeros(16000), 16000)
    choose(page, "or a file", silence)
    page.wait("#error", "audio: silent")
    choose(page, "or a file", VOICES / "Front_Left.wav")
    page.wait("#recording", "Front_Left.wav")
    page.find("#identify").click()
    page.wait("#error", "nobody is enrolled")
    choose(page, "Another model", text)
    page.wait("#error", "model: not a")
    page.find("#check").click()  # the one before is still there
    page.wait("#status", "The model computes here what it should")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(scheme, page):
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
    )
    is_dark = page.call(
        "return matchMedia('(prefers-color-scheme: dark)').matches"
    )
    assert is_dark == (scheme == "dark")
    enrol_file(page, "Anna", VOICES / "Front_Left.wav")
    page.find("#identify").click()
    page.wait("#result", "This is Anna")
    page.call("document.getElementById('error').textContent = 'one'")
    page.driver.execute_script(AXE)
    found = page.call("return axe.run()")
    faults = found["violations"] + found["incomplete"]
    assert [(x["id"], [y["html"] for y in x["nodes"]]) for x in faults] == []
    assert len(found["passes"]) > 20


def test_without_model_and_microphone(models, tmp_path):
    """A browser that gives none to pages, and a site that has none."""
    folder = tmp_path / "site"
    lay_site(folder)
    site = Site(folder)
    try:
        with chromium(
            tmp_path / "profile", "--deny-permission-prompts"
        ) as driver:
            page = Page(driver, site.address)
            page.wait("#error", "model.onnx cannot be loaded (HTTP 404)")
            page.find("#check").click()
            page.wait("#error", "no model; choose a file of redimnet2 export")
            page.find("#record").click()
            page.wait("#error", "microphone: ")
            assert page.text("#record") == "Record"
            choose(page, "Another model", models["onnx"])
            page.wait("#status", "Ready.")
    finally:
        site.stop()


def test_colours_do_not_say_it_alone(page):
    page.find("#identify").click()
    page.wait("#error", "no recording")
    content = page.call(
        "return getComputedStyle(document.getElementById('error'), "
        "'::before').content"
    )
    assert content == '"Error: "'
