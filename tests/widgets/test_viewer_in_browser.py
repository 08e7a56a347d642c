"""The viewer in a real JupyterLab: wheel, keys, window, overlay and jumps show the right pixels."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import nbformat
import pytest

pytest.importorskip("jupyterlab")
pytest.importorskip("ipywidgets")
pytest.importorskip("ipyevents")
pytest.importorskip("websocket")
from tests.widgets.browser import CHROMIUM, Page, chromium
from tests.widgets.linear import full_viewer, linear_volume, truth_at

ROOT = Path(__file__).resolve().parents[2]
PLANES = ("axial", "coronal", "sagittal")
CELL = "from tests.widgets.linear import full_viewer\nfull_viewer()"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("needs Chromium, and there is none on this machine")
    folder = tmp_path_factory.mktemp("lab")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    nbformat.write(notebook, folder / "viewer.ipynb")
    token = secrets.token_hex()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JUPYTER_RUNTIME_DIR": str(folder / "run")}
    environment.pop("MEDKIT_LAUNCHER_PID", None)
    lab = subprocess.Popen(
        [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
            "--expose-app-in-browser", f"--ServerApp.root_dir={folder}", "--ServerApp.port=0",
            f"--IdentityProvider.token={token}", "--LabApp.news_url=",
        ],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = _url_of(folder / "run", lab)
        with chromium(folder / "chromium") as opened:
            opened.send("Page.navigate", url=f"{url}lab/tree/viewer.ipynb?token={token}&reset")
            opened.wait_for("!!document.querySelector('.jp-Notebook .jp-CodeCell')")
            kernel = "[...jupyterapp.shell.widgets('main')][0]?.sessionContext?.session?.kernel"
            opened.wait_for(f"{kernel}?.status == 'idle'")  # else it asks which is meant
            opened.run("jupyterapp.commands.execute('application:toggle-left-area'); 1")
            opened.run("jupyterapp.commands.execute('notebook:run-all-cells'); 1")
            opened.wait_for("document.querySelectorAll('.widget-image').length == 3")
            yield opened
    finally:
        lab.terminate()
        lab.wait(60)


def _url_of(runtime: Path, lab: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + 90
    while time.monotonic() < end:
        assert lab.poll() is None, "JupyterLab ended"
        for file in runtime.glob("jpserver-*.json"):
            try:
                url = str(json.loads(file.read_text())["url"])
                urlopen(f"{url}api", timeout=5).close()
            except (OSError, ValueError):
                continue
            return url
        time.sleep(0.2)
    raise AssertionError("JupyterLab did not start")


def image(plane: str) -> str:
    return f"document.querySelectorAll('.widget-image')[{PLANES.index(plane)}]"


def handle(plane: str) -> str:
    return f"document.querySelectorAll('.noUi-handle')[{PLANES.index(plane)}]"


def shown(page: Page, plane: str) -> bytes:
    """Return the very PNG that the browser shows."""
    text = page.run(
        f"fetch({image(plane)}.src).then(r => r.arrayBuffer()).then(b => "
        "btoa(String.fromCharCode(...new Uint8Array(b))))"
    )
    return base64.b64decode(text)


def agrees(page: Page, expected: Any, planes: tuple[str, ...] = PLANES) -> None:
    """Wait until the browser shows what a viewer in this process draws."""
    end = time.monotonic() + 60
    while any(shown(page, plane) != expected.png(plane) for plane in planes):
        assert time.monotonic() < end, f"the browser shows something else, wanted {expected.index}"
        time.sleep(0.1)


@pytest.mark.slow
def test_wheel_keys_window_overlay_and_jumps_show_the_right_pixels(
    page: Page, tmp_path: Path
) -> None:
    pictures = Path(os.environ.get("MEDKIT_TEST_PICTURES", tmp_path))
    expected = full_viewer()
    agrees(page, expected)
    page.screenshot(pictures / "1_start.png")

    left, top, width, height = page.place_of(image("axial"))
    assert (round(width), round(height)) == expected.picture_px["axial"]
    x, y = left + 0.3 * width, top + 0.6 * height
    for delta in (100, 100, -100, 100):
        page.mouse("mouseWheel", x, y, deltaX=0, deltaY=delta)
        time.sleep(0.3)
    expected.show("axial", expected.index["axial"] - 2)  # to the feet
    agrees(page, expected)
    page.screenshot(pictures / "2_wheel.png")

    voxel = expected.voxel_at("axial", 0.3 * width, 0.6 * height)
    assert voxel is not None
    hu = float(truth_at(linear_volume().world_of(voxel)))
    page.mouse("mouseMoved", x, y)
    page.wait_for(f"document.body.innerText.includes('{hu:g} HU')")
    page.click(x, y)
    expected.go_to(linear_volume().world_of(voxel))
    agrees(page, expected)
    page.screenshot(pictures / "3_click.png")

    page.run(f"{handle('coronal')}.focus()")
    for name, code, by in (("ArrowRight", 39, 1), ("ArrowUp", 38, 1), ("PageDown", 34, -5)):
        page.key(name, code)
        expected.show("coronal", expected.index["coronal"] + by)
        agrees(page, expected)

    pick(page, 0, "lung")
    expected.window = "lung"
    agrees(page, expected)
    page.run("document.querySelectorAll('.noUi-handle')[4].focus()")  # width
    page.key("ArrowRight", 39)
    expected.window = (-600, 1501)
    agrees(page, expected)
    page.wait_for("document.querySelectorAll('.widget-dropdown select')[0].value == 'own'")

    page.run("document.querySelectorAll('.noUi-handle')[5].focus()")  # opacity
    page.key("ArrowLeft", 37)
    expected.opacity = 0.55
    agrees(page, expected)

    pick(page, 1, "1: two 20 mm")
    expected.jump(1)
    agrees(page, expected)
    page.run("document.querySelector('button[title=\"next nodule\"]').click()")
    expected.jump(0)
    agrees(page, expected)
    page.screenshot(pictures / "4_jump.png")

    page.run("document.querySelector('button[title=\"sagittal: next slice\"]').click()")
    expected.show("sagittal", expected.index["sagittal"] + 1)
    agrees(page, expected)
    page.wait_for("document.querySelectorAll('.widget-dropdown select')[1].value == 'jump to …'")


def pick(page: Page, number: int, option: str) -> None:
    chosen = f"document.querySelectorAll('.widget-dropdown select')[{number}]"
    change = "new Event('change', {bubbles: true})"
    page.run(f"{chosen}.value = '{option}'; {chosen}.dispatchEvent({change})")
