"""The widgets of the series viewer: what a hand does becomes a call of the viewer."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np

from medkit.widgets.looks import WINDOWS, Overlay, window_name
from medkit.widgets.planes import PLANES

if TYPE_CHECKING:
    from medkit.widgets.viewer import SeriesViewer

try:  # sliders do without
    from ipyevents import Event
except ModuleNotFoundError:
    Event = None

_WAIT_MS = 40  # between two events of the wheel or the pointer
_PAUSE_S = 0.01
_OWN = "own"
_NOWHERE = -1
_BUTTON = {"width": "2.2em", "padding": "0"}


class Controls:
    """Pictures with sliders below, and a column of settings.

    The state is the viewer's: widgets are set from it and call it, and a call that changes
    nothing ends there.
    """

    def __init__(self, viewer: SeriesViewer) -> None:
        self.viewer = viewer
        self._images: dict[str, Any] = {}
        self._sliders: dict[str, Any] = {}
        self._events: list[Any] = []
        self._due: set[str] = set()
        self._drawing: asyncio.TimerHandle | None = None
        self._refreshing = False
        self._last = -1  # nodule that was jumped to
        self._under_pointer = ipywidgets.HTML(layout={"min_height": "1.6em"})
        columns = [self._column(plane) for plane in PLANES]
        pictures = ipywidgets.HBox(
            columns, layout={"flex_flow": "row wrap", "align_items": "flex-end"}
        )
        self.box = ipywidgets.VBox([pictures, self._under_pointer, *self._settings()])
        self.refresh(PLANES)

    def refresh(self, planes: Iterable[str]) -> None:
        """Draw planes anew, and let the widgets say what the viewer's state is."""
        viewer, (centre, width) = self.viewer, self.viewer.window
        self._refreshing = True
        try:
            for plane in planes:
                self._sliders[plane].value = viewer.index[plane]
            self._preset.value = window_name(viewer.window) or _OWN
            _put(self._centre, centre)
            _put(self._width, width)
            self._opacity.value = viewer.opacity
            self._choice.value = _NOWHERE if viewer.nodule is None else viewer.nodule
        finally:
            self._refreshing = False
        self._due.update(planes)
        if self._drawing is None:
            self._draw()

    def _draw(self) -> None:
        self._drawing = None
        while self._due:
            plane = self._due.pop()
            self._images[plane].value = self.viewer.png(plane)

    def _draw_soon(self) -> None:
        """Draw when the events that wait have come in: one drawing for many turns of a wheel."""
        with suppress(RuntimeError):  # no loop: nothing waits
            self._drawing = self._drawing or asyncio.get_running_loop().call_later(
                _PAUSE_S, self._draw
            )

    def close(self) -> None:
        """Close every widget: none stays in a saved notebook."""
        if self._drawing is not None:
            self._drawing.cancel()
        _close(self.box)
        for event in self._events:
            event.close()

    def _column(self, plane: str) -> Any:
        viewer, count = self.viewer, self.viewer.planes[plane].count
        canvas_px = viewer.picture_px[plane]
        picture = ipywidgets.Image(
            format="png",
            layout={"width": f"{canvas_px[0]}px", "height": f"{canvas_px[1]}px", "margin": "0"},
        )
        slider = ipywidgets.IntSlider(
            min=0, max=max(count - 1, 0), value=viewer.index[plane], description=plane,
            disabled=count == 1,
            layout={"width": "auto", "flex": "1 1 auto"}, style={"description_width": "initial"},
        )  # fmt: skip
        self._images[plane], self._sliders[plane] = picture, slider
        slider.observe(lambda change: viewer.show(plane, change["new"]), "value")
        buttons = [self._step(plane, by, icon) for by, icon in ((-1, "minus"), (1, "plus"))]
        self._watch(plane, picture)
        row = ipywidgets.HBox([buttons[0], slider, buttons[1]])
        return ipywidgets.VBox(
            [picture, row],
            layout={"width": f"{max(canvas_px[0], 260)}px", "margin": "0 4px 0 0"},
        )

    def _step(self, plane: str, by: int, icon: str) -> Any:
        said = f"{plane}: {'next' if by > 0 else 'previous'} slice"
        button = ipywidgets.Button(icon=icon, tooltip=said, layout=_BUTTON)
        button.on_click(lambda _: self.viewer.show(plane, self.viewer.index[plane] + by))
        return button

    def _watch(self, plane: str, picture: Any) -> None:
        if Event is None:
            self._under_pointer.value = "Wheel, clicks and values under the pointer need ipyevents."
            return
        # no keys: this would take every key from the notebook while the pointer is on a picture
        event = Event(
            source=picture, watched_events=["wheel", "click", "mousemove", "mouseleave"],
            prevent_default_action=True, wait=_WAIT_MS, throttle_or_debounce="throttle",
        )  # fmt: skip
        event.on_dom_event(lambda message: self._pointer(plane, message))
        self._events.append(event)

    def _pointer(self, plane: str, message: dict[str, Any]) -> None:
        viewer, kind = self.viewer, message["type"]
        if kind == "mouseleave":
            self._under_pointer.value = ""
            return
        if kind == "wheel" and message.get("deltaY"):
            by = viewer.planes[plane].up * (1 if message["deltaY"] < 0 else -1)
            self._draw_soon()
            viewer.show(plane, viewer.index[plane] + by)
        voxel = viewer.voxel_at(plane, message["dataX"], message["dataY"])
        if kind == "click" and voxel is not None:
            viewer.go_to(viewer.volume.world_of(voxel))
        self._under_pointer.value = html.escape(viewer.said_of(voxel)) if voxel else ""

    def _settings(self) -> list[Any]:
        viewer = self.viewer
        low, high, step = _range(viewer)
        unit = f" [{viewer.volume.unit}]" if viewer.volume.unit else ""
        self._preset = ipywidgets.Dropdown(
            options=[*(WINDOWS if viewer.volume.unit == "HU" else ()), _OWN],
            description="window",
            layout={"width": "13em"},
            value=_OWN,
        )
        self._centre = _slider(f"centre{unit}", low, high, step)
        self._width = _slider(f"width{unit}", step, high - low, step)
        self._opacity = _slider("opacity", 0, 1, 0.05)
        jumps = self._jumps()
        for widget, on in (
            (self._preset, self._on_preset),
            (self._centre, self._on_window),
            (self._width, self._on_window),
            (self._opacity, self._on_opacity),
            (self._choice, self._on_jump),
        ):
            widget.observe(on, "value")
        rows = [[self._preset, self._centre, self._width]]
        overlay = viewer.look.overlay
        if viewer.nodules:
            rows.append([jumps])
        if overlay is not None:
            rows[1:] = [[*(rows[1] if viewer.nodules else ()), self._opacity, _key(overlay)]]
        lines = [ipywidgets.HBox(row, layout={"flex_flow": "row wrap"}) for row in rows]
        return [*lines, *(ipywidgets.HTML(html.escape(remark)) for remark in viewer.remarks)]

    def _jumps(self) -> Any:
        names = [
            (f"{number}: {nodule.label} {nodule.diameter_mm:g} mm", number)
            for number, nodule in enumerate(self.viewer.nodules)
        ]
        self._choice = ipywidgets.Dropdown(
            options=[("jump to …", _NOWHERE), *names],
            value=_NOWHERE,
            description="nodules",
            layout={"width": "18em"},
        )
        buttons = []
        for by, icon, said in ((-1, "arrow-left", "previous"), (1, "arrow-right", "next")):
            button = ipywidgets.Button(icon=icon, tooltip=f"{said} nodule", layout=_BUTTON)
            button.on_click(partial(self._on_step, by))
            buttons.append(button)
        return ipywidgets.HBox([self._choice, *buttons])

    def _on_step(self, by: int, _: Any) -> None:
        first = self._last < 0 and by < 0
        self._jump((self._last + (0 if first else by)) % len(self.viewer.nodules))

    def _on_jump(self, change: dict[str, Any]) -> None:
        if not self._refreshing and change["new"] != _NOWHERE:
            self._jump(change["new"])

    def _jump(self, number: int) -> None:
        self._last = number
        self.viewer.jump(number)

    def _on_preset(self, change: dict[str, Any]) -> None:
        if not self._refreshing and change["new"] != _OWN:
            self.viewer.window = change["new"]

    def _on_window(self, _: dict[str, Any]) -> None:
        if not self._refreshing:
            self.viewer.window = self._centre.value, self._width.value

    def _on_opacity(self, change: dict[str, Any]) -> None:
        if not self._refreshing:
            self.viewer.opacity = change["new"]


def _slider(description: str, low: float, high: float, step: float) -> Any:
    return ipywidgets.FloatSlider(
        min=low, max=high, value=low, step=step, description=description,
        readout_format=".0f" if step == 1 else ".3g",
        layout={"width": "24em"}, style={"description_width": "6.5em"},
    )  # fmt: skip


def _put(slider: Any, value: float) -> None:
    """Set a slider, whose range grows where it has to."""
    slider.min, slider.max = min(slider.min, value), max(slider.max, value)
    slider.value = value


def _range(viewer: SeriesViewer) -> tuple[float, float, float]:
    """Return least and greatest centre, and the step."""
    if viewer.volume.unit == "HU":
        return -1024.0, 3071.0, 1.0
    centre, width = viewer.window
    return centre - width, centre + width, 2 * width / 500


def _key(overlay: Overlay) -> Any:
    """Say which colour is which value."""
    low, high = overlay.range
    shades = (overlay.colors(place, bytes=True)[:3] for place in np.linspace(0, 1, 9))
    stops = ",".join(f"rgb({r},{g},{b})" for r, g, b in shades)
    return ipywidgets.HTML(
        f"{low:.3g}&ensp;<span style='display:inline-block;width:8em;height:0.8em;"
        f"background:linear-gradient(to right,{stops})'></span>&ensp;{high:.3g}"
    )


def _close(widget: Any) -> None:
    for child in getattr(widget, "children", ()):
        _close(child)
    for model in (getattr(widget, "style", None), widget.layout, widget):
        if model is not None:
            model.close()
