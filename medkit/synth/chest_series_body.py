"""A made-up chest section by section: skin, ribs, spine, heart, great vessels, lungs.

Places are in mm about the middle of the scan: x to the patient's left, y to the back, z to the
head. Only ``+``, ``-``, ``*``, ``/``, ``sqrt`` and ``floor``, one a call, as in
:mod:`medkit.synth.exact`. All proportions are guesses from looking at chests.
"""

from __future__ import annotations

import numpy as np

from medkit.synth.chest_ct_scanner import MUSCLE_HU
from medkit.synth.chest_series_draws import Point
from medkit.synth.chest_series_lungs import Chest, ellipse, rounded, without_middle
from medkit.synth.exact import Floats

FAT_HU, BLOOD_HU, LIVER_HU, SPLEEN_HU = -100.0, 40.0, 58.0, 48.0
MARROW_HU, CORTEX_HU, DISC_HU, CORD_HU = 190.0, 620.0, 85.0, 25.0
TRACHEA_MM, CARINA_MM = 8.5, 28.0  # its radius; where it divides
_RIB_PERIOD_MM, _RIB_SLOPE = 25.0, 0.45  # from rib to rib; how much they sink to the front
_SPINE_Y, _VERTEBRA_MM = 50.0, 26.0
_ABOVE_MM = 14.0  # the bronchi, from where on the windpipe is alone for 5 mm around


def section(chest: Chest, x: Floats, y: Floats, z: float, texture: Floats) -> Floats:
    """Return one section of a chest, without vessels and airways, ``(rows, columns)`` [HU].

    Args:
        chest: Which.
        x: Of the columns, ``(1, columns)`` [mm].
        y: Of the rows, ``(rows, 1)`` [mm].
        z: Of the section [mm].
        texture: Of the lungs, ``(rows, columns)`` [HU].
    """
    hu = np.full((y.shape[0], x.shape[1]), -1000.0)
    couch = 4 - np.abs(y - 0.0006 * (x * x) - (chest.half_depth + 9))
    fill(hu, couch, -880.0)
    fill(hu, 1 - np.abs(couch), -350.0)
    rows, columns = _between(y[:, 0], chest.half_depth + 2), _between(x[0], chest.half_width + 2)
    _body(hu[rows, columns], chest, x[:, columns], y[rows], z, texture[rows, columns])
    return hu


def _between(axis: Floats, most: float) -> slice:
    first, end = np.searchsorted(axis, (-most, most)).tolist()
    return slice(first, end)


def _body(hu: Floats, chest: Chest, x: Floats, y: Floats, z: float, texture: Floats) -> None:
    """Draw all below the skin, in place."""
    at = np.full((1, 1), z)
    skin = rounded(x, y, chest.half_width, chest.half_depth)
    fill(hu, skin, 20.0)
    fill(hu, skin - 1.5, FAT_HU)
    fill(hu, skin - chest.fat, MUSCLE_HU)
    cavity, floor = chest.cavity(x, y, at), chest.diaphragm(x, y, at)
    fill(hu, cavity, FAT_HU)
    fill(hu, np.minimum(cavity, -floor), np.where(x < 0, LIVER_HU, SPLEEN_HU))
    heart = chest.heart_depth(x, y, at)
    fill(hu, np.minimum(heart, cavity), BLOOD_HU)
    columns = _between(x[0], 48.0)
    middle, near = hu[:, columns], x[:, columns]
    _great_vessels(middle, near, y, z)
    lung = without_middle(np.minimum(cavity, floor), heart, x, y)
    fill(hu, lung, chest.lung_hu + 0.25 * y + texture)
    _fissures(hu, lung, x, y, z)
    _ribs(hu, chest, cavity, skin, x, y, z)
    back = ellipse(np.abs(x) - 29, y - _back_y(chest), 17.0, 10.0)
    fill(hu, np.minimum(back, -cavity - 1.5), MUSCLE_HU)
    _spine(middle, near, y, z)


def fill(hu: Floats, depth: Floats, value: Floats | float) -> None:
    """Fill a shape, where its signed distance is positive, in place; its edge is 1 mm soft."""
    share = depth + 0.5
    np.maximum(share, 0, out=share)
    np.minimum(share, 1, out=share)
    hu += share * (value - hu)


def _great_vessels(hu: Floats, x: Floats, y: Floats, z: float) -> None:
    """Draw aorta, vena cava and gullet; without contrast they stand out from fat only."""
    arch = 55.0
    if z < arch:
        fill(hu, 11 - np.sqrt((x - 20) * (x - 20) + (y - 32) * (y - 32)), BLOOD_HU + 4)
    if -10 < z < arch:
        fill(hu, 14 - np.sqrt((x + 6) * (x + 6) + (y + 22) * (y + 22)), BLOOD_HU + 4)
        fill(hu, 13 - np.sqrt((x - 6) * (x - 6) + (y + 4) * (y + 4)), BLOOD_HU if z < 18 else -70)
    along = np.clip(((x + 6) * 26 + (y + 22) * 54) / 3592, 0, 1)
    dx, dy = x + 6 - 26 * along, y + 22 - 54 * along
    up = (z - arch) * (z - arch)
    fill(hu, 12 - np.sqrt((dx * dx + dy * dy) + up), BLOOD_HU + 4)
    fill(hu, 8 - np.sqrt((x + 20) * (x + 20) + (y + 14) * (y + 14)), BLOOD_HU)
    fill(hu, ellipse(x - 5, y - 27, 8.0, 5.0), 35.0)


def _fissures(hu: Floats, lung: Floats, x: Floats, y: Floats, z: float) -> None:
    """Draw an oblique fissure a side and the horizontal one on the right."""
    oblique = 0.75 * y + 0.62 * z + np.where(x < 0, 4.0, 10.0) + 0.03 * np.abs(x)
    inside = np.minimum(lung - 0.5, 0.3 - 0.5 * np.abs(oblique))
    fill(hu, inside, -600.0)
    level = z - 6 - 0.12 * (y + 20) + 0.08 * (x + 60)
    front = np.minimum(-oblique, np.broadcast_to(-x, oblique.shape))
    fill(hu, np.minimum(np.minimum(lung - 0.5, front), 0.3 - 0.5 * np.abs(level)), -600.0)


def _ribs(
    hu: Floats, chest: Chest, cavity: Floats, skin: Floats, x: Floats, y: Floats, z: float
) -> None:
    """Draw ribs, which sink to the front, and the breastbone."""
    turn = (z - _RIB_SLOPE * y) / _RIB_PERIOD_MM + chest.ribs
    across = (turn - np.floor(turn) - 0.5) * (_RIB_PERIOD_MM * 0.91)
    out = -cavity - 6
    p, q = out / 4, across / 6.5
    rib = (1 - np.sqrt(p * p + q * q)) * 4
    rib = np.minimum(np.minimum(rib, np.abs(x) - 20), skin - chest.fat)
    front = np.clip((y + 45) / 15 + 0.5, 0, 1)  # cartilage towards the breastbone
    fill(hu, rib, 95 + front * (CORTEX_HU - 95))
    fill(hu, rib - 1.3, 85 + front * (MARROW_HU - 85))
    plate = ellipse(x, y + chest.half_depth - 17, 17.0, 5.5)
    fill(hu, plate, 420.0)
    fill(hu, plate - 1.3, 130.0)


def _spine(hu: Floats, x: Floats, y: Floats, z: float) -> None:
    """Draw a vertebra or a disc, the canal, arches and the process behind."""
    turn = z / _VERTEBRA_MM
    part = (turn - float(np.floor(turn))) * _VERTEBRA_MM
    body = ellipse(x, y - _SPINE_Y, 17.0, 13.5)
    disc = part < 5
    fill(hu, body, DISC_HU if disc else CORTEX_HU - 150)
    if not disc:
        fill(hu, body - 1.2, MARROW_HU)
    arch = 4 - np.abs(np.sqrt(x * x + (y - _SPINE_Y - 19) * (y - _SPINE_Y - 19)) - 10)
    fill(hu, arch, CORTEX_HU - 200 if 8 < part < 20 else MUSCLE_HU)
    fill(hu, 8 - np.sqrt(x * x + (y - _SPINE_Y - 19) * (y - _SPINE_Y - 19)), CORD_HU)
    if 6 < part < 18:
        wing = np.minimum(3.5 - np.abs(y - _SPINE_Y - 14 - 0.3 * np.abs(x)), 18 - np.abs(x))
        fill(hu, np.minimum(wing, np.abs(x) - 9), CORTEX_HU - 250)
    if part > 10:
        fill(hu, np.minimum(2.5 - np.abs(x), np.minimum(y - 77, 86 - y)), CORTEX_HU - 250)


def reference_places(chest: Chest, top_mm: float) -> dict[str, Point]:
    """Return where air is all air, and muscle all muscle, for 5 mm around.

    Args:
        chest: Which.
        top_mm: Of the scan.
    """
    found: dict[str, Point] = {"muscle": (30.0, _back_y(chest) + 1, 0.0)}
    if top_mm >= CARINA_MM + _ABOVE_MM:
        found["air"] = (0.0, 0.0, top_mm - 6)
    return found


def _back_y(chest: Chest) -> float:
    """Return where the muscles beside the spine lie."""
    return chest.half_depth - 13
