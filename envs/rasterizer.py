"""Polygons to pixels without a display: Pillow draws them enlarged, and a box filter makes the edges smooth.

Equal polygons give equal bytes. What never moves is drawn once, when the rasterizer is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["Color", "Rasterizer"]

Color = tuple[int, int, int]
Polygon = Sequence[tuple[float, float]]


class Rasterizer:
    """Draws on a square [-half_side, half_side]², x to the right and y up, as size x size pixels.

    Args:
        size: of a frame [px].
        half_side: of what is seen, in the unit of the polygons.
        background: where nothing else is.
        still: (corners, color) of what never moves, from below to above.

    >>> frame = Rasterizer(4, 1.0, (255, 255, 255), [([(-1, 0), (1, 0), (1, 1), (-1, 1)], (200, 0, 0))]).draw([])
    >>> frame[:, 0].tolist()
    [[200, 0, 0], [200, 0, 0], [255, 255, 255], [255, 255, 255]]
    """

    def __init__(
        self, size: int, half_side: float, background: Color, still: Iterable[tuple[Polygon, Color]] = ()
    ) -> None:
        self.size = size
        self._enlarged = 4 if size <= 128 else 2  # pixels drawn per pixel and axis: 16 or 4 shades of an edge
        self._half_side = half_side
        side = size * self._enlarged
        self._still = Image.new("RGB", (side, side), background)
        self._paint(self._still, still)

    def draw(self, moving: Iterable[tuple[Polygon, Color]]) -> np.ndarray:
        """(size, size, 3) uint8 of (corners, color), from below to above, on what is still."""
        picture = self._still.copy()
        self._paint(picture, moving)
        return np.array(picture.reduce(self._enlarged))

    def _paint(self, picture: Image.Image, shapes: Iterable[tuple[Polygon, Color]]) -> None:
        draw = ImageDraw.Draw(picture)
        half = self._half_side
        scale = self.size * self._enlarged / (2.0 * half)
        for corners, color in shapes:
            # a pixel is named by its corner: by half a pixel less, what is covered has the polygon's own size
            draw.polygon([((x + half) * scale - 0.5, (half - y) * scale - 0.5) for x, y in corners], fill=color)
