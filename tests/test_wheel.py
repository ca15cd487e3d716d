"""The wheel, in an environment that has its requirements and nothing else."""

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch

import redimnet2_lobes

ROOT = Path(__file__).parent.parent
SITE = Path("lib", f"python{sys.version_info[0]}.{sys.version_info[1]}")


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation"]
        + ["--wheel-dir", folder, ROOT],
        check=True,
    )
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    site = folder / "venv" / SITE / "site-packages"
    subprocess.run(
        [*pip, "install", "-q", "--no-deps", "--target", site, wheel],
        check=True,
    )
    # The requirements, but not what is installed in place (a .pth file).
    installed = Path(torch.__file__).parent.parent
    (site / "requirements.pth").write_text(f"{installed}\n")
    return folder / "venv"


def run(environment, *arguments):
    done = subprocess.run(
        [environment / "bin" / "python", *arguments],
        capture_output=True,
        text=True,
        cwd=environment,
        env={"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_by_itself(environment):
    program = "from redimnet2_lobes.cli import main; main()"
    assert redimnet2_lobes.__version__ in run(
        environment, "-c", program, "--version"
    )
    names = run(environment, "-c", program, "hparams").split()
    assert names == sorted(p.stem for p in (ROOT / "hparams").glob("*.yaml"))
    path = run(environment, "-c", program, "hparams", "redimnet2_b3").strip()
    assert str(environment) in path
    expected = (ROOT / "hparams" / "redimnet2_b3.yaml").read_text()
    assert Path(path).read_text() == expected
    run(environment, "-c", program, "hparams", "demo_redimnet2_b0")
    (package,) = environment.glob("lib/*/site-packages/redimnet2_lobes")
    assert (package / "py.typed").is_file()
    page = json.loads((package / "web" / "files.json").read_text())
    own = [name for name in page if not name.startswith("node_modules/")]
    assert all((package / "web" / name).is_file() for name in own)
    assert not (package / "web" / "node_modules").exists()
    # Every module is in it, from the root's names to a network.
    found = run(
        environment,
        "-c",
        "import redimnet2_lobes as package, torch; "
        "[getattr(package, name) for name in package.HOMES]; "
        "network = package.ReDimNet2.from_variant('b0').eval(); "
        "print(package.__file__, tuple(network(torch.ones(1, 8000)).shape))",
    )
    assert re.match(rf"{environment}.* \(1, 1, 192\)$", found.strip())
