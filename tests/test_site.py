"""The site of the documentation: built with warnings as errors, and looked at in a browser where there is one."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site beside the repository's own, from a copy of what makes it."""
    pytest.importorskip("mkdocs")
    target = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "docs/pages.py"], cwd=ROOT, check=True)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(target)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=quiet)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.mark.slow
def test_it_is_built_without_a_warning_and_holds_what_it_should(site):
    assert "accuracy-by-rate.png" in (site / "index.html").read_text()
    assert (site / "recipes/warmup/results/v2/lite/accuracy-by-rate.png").exists()
    api = (site / "api.html").read_text()
    assert all(name in api for name in ("CLARS", "ExampleNorms", "NoiseScale", "trust_coefficient", "mask_norms"))
    settings = (site / "settings.html").read_text()
    assert all(name in settings for name in ("base_rate", "train_examples", "warmup_from"))


@pytest.mark.slow
def test_a_page_is_drawn_by_a_browser(site, tmp_path):
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1600", f"--screenshot={picture}"]
    page = (site / "api.html").as_uri()
    subprocess.run([browser, *flags, page], check=True, capture_output=True, timeout=120)
    assert picture.stat().st_size > 20_000  # a blank page of this size has 5,000
