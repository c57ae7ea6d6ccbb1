"""Pictures of grid worlds, drawn by numpy alone: shapes are signed distances, so that edges are smooth at any size.

Lengths are in cells, points are (x, y) with x to the right and y down. A distance is negative inside its shape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache

import numpy as np

__all__ = ["draw_agent", "draw_board", "draw_choices", "draw_path"]

Color = tuple[int, int, int]
Point = tuple[float, float]

_ROAD, _MUD, _RUT, _LINE = (240, 238, 232), (190, 155, 118), (150, 116, 84), (208, 205, 197)
_DARK, _WHITE, _GREEN, _PASTURE = (40, 42, 48), (255, 255, 255), (28, 140, 76), (246, 206, 200)
_WALL, _ROOF, _YARD = (226, 214, 190), (96, 74, 66), (172, 178, 188)
_GOLD, _RIM, _ORANGE = (246, 196, 48), (160, 112, 16), (240, 120, 24)
_AGENT, _PATH, _BUMP = (40, 110, 220), (44, 34, 120), (206, 30, 40)
_FONT = ("75557", "26227", "71747", "71717", "55711", "74717", "74757", "71222", "75757", "75717")  # 3 x 5, octal rows


class _Canvas:
    """Paints shapes onto a view of a frame, whose upper left pixel is at (left, top) [px]."""

    def __init__(self, pixels: np.ndarray, cell_size: int, left: int = 0, top: int = 0) -> None:
        self.pixels, self.cell_size = pixels, cell_size
        self.left, self.top = left, top
        height, width = pixels.shape[:2]
        self.y, self.x = np.ogrid[top + 0.5 : top + height, left + 0.5 : left + width]
        self.y, self.x = self.y / cell_size, self.x / cell_size

    def around(self, *points: Point, margin: float = 0.4) -> _Canvas:
        """The part that holds ``points`` and ``margin`` around them; small parts are quick to paint."""
        size, (xs, ys) = self.cell_size, zip(*points, strict=True)
        left, top = (max(0, int((min(values) - margin) * size)) for values in (xs, ys))
        right, bottom = (int((max(values) + margin) * size) + 1 for values in (xs, ys))
        return _Canvas(self.pixels[top:bottom, left:right], size, left, top)

    def paint(self, distance: np.ndarray, color: Color) -> None:
        """Blend ``color`` in where ``distance`` is negative, over one pixel at the edge."""
        cover = np.clip(0.5 - distance * self.cell_size, 0.0, 1.0)[..., None]
        self.pixels[...] = np.rint(self.pixels * (1 - cover) + np.array(color) * cover)

    def disc(self, x: float, y: float, radius: float) -> np.ndarray:
        return np.hypot(self.x - x, self.y - y) - radius

    def box(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        across = np.maximum(left - self.x, self.x - right)
        return np.maximum(across, np.maximum(top - self.y, self.y - bottom))

    def line(self, start: Point, end: Point, radius: float) -> np.ndarray:
        """Around the straight line between two points."""
        dx, dy = end[0] - start[0], end[1] - start[1]
        along = ((self.x - start[0]) * dx + (self.y - start[1]) * dy) / max(dx * dx + dy * dy, 1e-12)
        along = np.clip(along, 0.0, 1.0)
        return np.hypot(self.x - start[0] - along * dx, self.y - start[1] - along * dy) - radius

    def polygon(self, *corners: Point) -> np.ndarray:
        """A convex polygon, corners clockwise."""
        sides = [
            ((self.x - ax) * (by - ay) - (self.y - ay) * (bx - ax)) / np.hypot(bx - ax, by - ay)
            for (ax, ay), (bx, by) in zip(corners, [*corners[1:], corners[0]], strict=True)
        ]
        return np.max(sides, axis=0)


def _goal(canvas: _Canvas) -> None:
    """A white flag on green."""
    canvas.paint(canvas.box(0.07, 0.07, 0.93, 0.93), _GREEN)
    canvas.paint(canvas.line((0.34, 0.2), (0.34, 0.82), 0.04), _WHITE)
    canvas.paint(canvas.polygon((0.34, 0.2), (0.78, 0.36), (0.34, 0.54)), _WHITE)


def _house(canvas: _Canvas) -> None:
    """On a yard that looks closed."""
    canvas.paint(canvas.box(0.07, 0.07, 0.93, 0.93), _YARD)
    canvas.paint(canvas.box(0.22, 0.44, 0.78, 0.86), _WALL)
    canvas.paint(canvas.polygon((0.5, 0.12), (0.88, 0.48), (0.12, 0.48)), _ROOF)
    canvas.paint(canvas.box(0.43, 0.6, 0.57, 0.86), _ROOF)


def _sheep(canvas: _Canvas) -> None:
    """White wool and a dark head, on red, because it is to be avoided."""
    canvas.paint(canvas.box(0.07, 0.07, 0.93, 0.93), _PASTURE)
    for x in (0.36, 0.6):
        canvas.paint(canvas.line((x, 0.6), (x, 0.82), 0.045), _DARK)
    wool = ((0.34, 0.5, 0.16), (0.47, 0.4, 0.17), (0.62, 0.46, 0.16), (0.48, 0.58, 0.17), (0.6, 0.58, 0.14))
    for grow, color in ((0.035, _DARK), (0.0, _WHITE)):
        for x, y, radius in wool:
            canvas.paint(canvas.disc(x, y, radius + grow), color)
    canvas.paint(canvas.disc(0.77, 0.42, 0.12), _DARK)


def _coin(canvas: _Canvas) -> None:
    canvas.paint(canvas.disc(0.5, 0.5, 0.3), _RIM)
    canvas.paint(canvas.disc(0.5, 0.5, 0.24), _GOLD)
    canvas.paint(canvas.line((0.5, 0.38), (0.5, 0.62), 0.045), _RIM)


def _roadblock(canvas: _Canvas) -> None:
    """A barrier with slanting stripes on two legs."""
    for x in (0.25, 0.75):
        canvas.paint(canvas.line((x, 0.35), (x, 0.82), 0.04), _DARK)
    board = canvas.box(0.1, 0.3, 0.9, 0.62)
    canvas.paint(board - 0.025, _DARK)
    canvas.paint(board, _WHITE)
    stripes = np.abs((canvas.x + canvas.y * 0.8) * 4 % 1 - 0.5) / 4 - 0.0625
    canvas.paint(np.maximum(board, stripes), _ORANGE)


_ITEMS = (None, _goal, _house, _sheep, _coin, _roadblock)  # by the number of a cell, modulo 6


@lru_cache(maxsize=256)
def _tile(cell: int, cell_size: int) -> np.ndarray:
    """(cell_size, cell_size, 3) uint8 of one kind of cell."""
    canvas = _Canvas(np.full((cell_size, cell_size, 3), _LINE, dtype=np.uint8), cell_size)
    in_mud = cell >= len(_ITEMS)
    canvas.paint(canvas.box(0.0, 0.0, 0.97, 0.97), _MUD if in_mud else _ROAD)
    if in_mud:
        for x, y in ((0.12, 0.16), (0.58, 0.1), (0.74, 0.9), (0.16, 0.9), (0.4, 0.52), (0.06, 0.55), (0.78, 0.5)):
            canvas.paint(canvas.line((x, y), (x + 0.14, y), 0.03), _RUT)
    item = _ITEMS[cell % len(_ITEMS)]
    if item is not None:
        item(canvas)
    canvas.pixels.setflags(write=False)
    return canvas.pixels


def draw_board(board: np.ndarray, *, cell_size: int) -> np.ndarray:
    """(rows * cell_size, columns * cell_size, 3) uint8 of a (rows, columns) board of cell numbers."""
    return np.concatenate([np.concatenate([_tile(int(cell), cell_size) for cell in row], axis=1) for row in board])


def draw_agent(frame: np.ndarray, position: tuple[int, int], *, cell_size: int) -> None:
    """Paint a blue van at (row, column) into ``frame``."""
    row, column = (cell_size * index for index in position)
    canvas = _Canvas(frame[row : row + cell_size, column : column + cell_size], cell_size)
    body = canvas.box(0.1, 0.3, 0.66, 0.68)
    cabin = canvas.polygon((0.66, 0.4), (0.8, 0.4), (0.92, 0.54), (0.92, 0.68), (0.66, 0.68))
    outline = np.minimum(body, cabin)
    canvas.paint(outline - 0.05, _WHITE)
    canvas.paint(outline, _AGENT)
    canvas.paint(canvas.polygon((0.7, 0.45), (0.78, 0.45), (0.85, 0.54), (0.7, 0.54)), _WHITE)
    for x in (0.28, 0.74):
        canvas.paint(canvas.disc(x, 0.7, 0.12), _WHITE)
        canvas.paint(canvas.disc(x, 0.7, 0.09), _DARK)


def draw_path(
    frame: np.ndarray, positions: Sequence[tuple[int, int]], moves: Sequence[tuple[int, int]], *, cell_size: int
) -> np.ndarray:
    """Paint T ``moves`` between T + 1 (row, column) ``positions`` as numbered arrows into ``frame``; returns it.

    Moves along the same way, there or back, run in lanes side by side, in the order of time.
    A move that did not change the position is a stub that ends at a red bar.
    """
    canvas = _Canvas(frame, cell_size)
    ways: list[Hashable] = [
        frozenset((here, to)) if here != to else (here, move)
        for here, to, move in zip(positions[:-1], positions[1:], moves, strict=True)
    ]
    totals, used, badges = Counter(ways), Counter[Hashable](), []
    for way, here, to, (down, right) in zip(ways, positions[:-1], positions[1:], moves, strict=True):
        # lanes count to the right and down, whichever way one goes
        lane = min(0.3, 0.7 / totals[way]) * (used[way] - (totals[way] - 1) / 2)
        start, end = ((x + lane * abs(down), y + lane * abs(right)) for x, y in (_center(here), _center(to)))
        if here == to:
            end, share = (end[0] + 0.42 * right, end[1] + 0.42 * down), 0.55
            _bump(canvas.around(start, end), start, end, (right, down))
        else:
            share = 0.5 - 0.2 * (used[way] % 2 == 0)  # neighbors in lanes are numbered at different places
            _arrow(canvas.around(start, end), start, end)
        badges.append((start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])))
        used[way] += 1
    for number, badge in enumerate(badges, start=1):
        _badge(canvas.around(badge), badge, str(number))
    return frame


def draw_choices(
    frame: np.ndarray, position: tuple[int, int], choices: Sequence[tuple[tuple[int, int], float]], *, cell_size: int
) -> None:
    """Paint what is done at (row, column) into ``frame``: (move, probability) pairs as arrows.

    One choice is an arrow through the cell. Several are shorter arrows from its middle, in proportion to how likely
    each is; those less than a tenth as likely as the likeliest are left out.
    """
    x, y = _center(position)
    most = max(share for _, share in choices)
    shown = [(move, share / most) for move, share in choices if share >= 0.1 * most]
    for (down, right), share in shown:
        back, ahead = (0.34, 0.38) if len(shown) == 1 else (-0.06, 0.26 + 0.18 * share)
        start, end = (x - back * right, y - back * down), (x + ahead * right, y + ahead * down)
        _arrow(_Canvas(frame, cell_size).around(start, end), start, end)


def _center(position: tuple[int, int]) -> Point:
    """(x, y) of (row, column).

    >>> _center((0, 2))
    (2.5, 0.5)
    """
    return position[1] + 0.5, position[0] + 0.5


def _arrow(canvas: _Canvas, start: Point, end: Point) -> None:
    length = float(np.hypot(end[0] - start[0], end[1] - start[1]))
    ux, uy = (end[0] - start[0]) / length, (end[1] - start[1]) / length
    neck = end[0] - 0.2 * ux, end[1] - 0.2 * uy
    left, right = (neck[0] + 0.16 * uy, neck[1] - 0.16 * ux), (neck[0] - 0.16 * uy, neck[1] + 0.16 * ux)
    shape = np.minimum(canvas.line(start, neck, 0.05), canvas.polygon(left, end, right))
    canvas.paint(shape - 0.04, _WHITE)
    canvas.paint(shape, _PATH)


def _bump(canvas: _Canvas, start: Point, end: Point, direction: tuple[int, int]) -> None:
    ux, uy = direction
    stub = canvas.line(start, end, 0.05)
    bar = canvas.line((end[0] - 0.2 * uy, end[1] + 0.2 * ux), (end[0] + 0.2 * uy, end[1] - 0.2 * ux), 0.06)
    canvas.paint(np.minimum(stub, bar) - 0.04, _WHITE)
    canvas.paint(stub, _PATH)
    canvas.paint(bar, _BUMP)


def _badge(canvas: _Canvas, center: Point, text: str) -> None:
    """The number of a step in a disc."""
    scale = max(1, round(canvas.cell_size / 18))  # [px] of a dot of the font
    radius = (1.4 + 2.0 * len(text)) * scale / canvas.cell_size
    canvas.paint(canvas.disc(*center, radius), _WHITE)
    canvas.paint(canvas.disc(*center, radius - 0.5 * scale / canvas.cell_size), _PATH)
    rows = zip(*(_FONT[int(digit)] for digit in text), strict=True)  # 5 of one octal number per digit
    dots = np.array([list("0".join(f"{int(value):03b}" for value in row)) for row in rows]) == "1"
    dots = dots.repeat(scale, 0).repeat(scale, 1)
    top = max(0, round(center[1] * canvas.cell_size - dots.shape[0] / 2) - canvas.top)
    left = max(0, round(center[0] * canvas.cell_size - dots.shape[1] / 2) - canvas.left)
    part = canvas.pixels[top : top + dots.shape[0], left : left + dots.shape[1]]
    part[dots[: part.shape[0], : part.shape[1]]] = _WHITE
