"""Scenes of the built-in dataset's art prints: how each motif and each mood is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["HEIGHT", "MOODS", "MOTIFS", "PALETTES", "WIDTH", "Print", "draw"]

Colour = tuple[int, int, int]

WIDTH, HEIGHT = 240, 180
FINE = 2
"Pictures are drawn this many times as large, and then reduced, so that edges are smooth."
MOTIFS = ("mountain", "harbour", "orchard", "city", "lighthouse", "desert", "forest", "river", "moon", "garden")
PALETTES: dict[str, tuple[Colour, Colour, Colour, Colour]] = {
    "amber": ((92, 44, 16), (206, 112, 34), (246, 196, 96), (255, 240, 208)),
    "cobalt": ((10, 24, 72), (36, 82, 176), (120, 168, 232), (224, 238, 252)),
    "moss": ((22, 44, 26), (78, 116, 56), (164, 190, 108), (238, 244, 218)),
    "rose": ((82, 16, 44), (190, 58, 98), (240, 150, 166), (254, 232, 232)),
    "slate": ((26, 30, 38), (86, 98, 116), (168, 178, 192), (238, 240, 244)),
    "teal": ((4, 46, 54), (22, 120, 124), (126, 200, 192), (226, 246, 240)),
}
"Colours of the inks, from the darkest to the paper."
MOODS = ("quiet", "stormy", "festive", "lonely", "playful", "solemn")


@dataclass(frozen=True, slots=True)
class Print:
    """What determines a print: names of MOTIFS, PALETTES and MOODS."""

    motif: str
    palette: str
    mood: str


class _Sheet:
    """A picture under way. Lengths are shares of its width, so that a motif can be drawn at any size."""

    def __init__(self, made: Print, rng: np.random.Generator) -> None:
        self.made, self.rng = made, rng
        self.dark, self.middle, self.light, self.paper = PALETTES[made.palette]
        self.image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), self.paper)
        self.pen = ImageDraw.Draw(self.image)
        self.ground = HEIGHT / WIDTH * float(rng.uniform(0.58, 0.7))

    def at(self, *points: tuple[float, float]) -> list[tuple[float, float]]:
        return [(x * WIDTH * FINE, y * WIDTH * FINE) for x, y in points]

    def area(self, colour: Colour, *points: tuple[float, float]) -> None:
        self.pen.polygon(self.at(*points), fill=colour)

    def box(self, colour: Colour, x: float, y: float, width: float, height: float) -> None:
        self.area(colour, (x, y), (x + width, y), (x + width, y + height), (x, y + height))

    def disc(self, colour: Colour, x: float, y: float, r: float) -> None:
        self.pen.ellipse([*self.at((x - r, y - r))[0], *self.at((x + r, y + r))[0]], fill=colour)

    def line(self, colour: Colour, width: float, *points: tuple[float, float]) -> None:
        self.pen.line(self.at(*points), fill=colour, width=max(1, round(width * WIDTH * FINE)))

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def hills(self, colour: Colour, base: float, height: float) -> None:
        """A wavy edge from side to side, filled down to the bottom."""
        phase, waves = self.between(0, 6), self.between(1.5, 3.5)
        edge = [(x / 24, base - height * (0.5 + 0.5 * math.sin(phase + waves * x / 4))) for x in range(25)]
        self.area(colour, *edge, (1, 1), (0, 1))


def draw(made: Print, rng: np.random.Generator) -> Image.Image:
    """Draw a print: a sky by its mood, its motif, and what its mood adds. RGB, WIDTH by HEIGHT."""
    sheet = _Sheet(made, rng)
    _sky(sheet)
    DRAWN[made.motif](sheet)
    WEATHER[made.mood](sheet)
    return sheet.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _sky(sheet: _Sheet) -> None:
    night = sheet.made.mood in {"solemn", "lonely"}
    top, low = (sheet.dark, sheet.middle) if night else (sheet.light, sheet.paper)
    if sheet.made.mood == "stormy":
        top, low = sheet.middle, sheet.light
    bands = 14
    for n in range(bands):
        share = n / (bands - 1)
        colour = tuple(round(a + (b - a) * share) for a, b in zip(top, low, strict=True))
        sheet.box((colour[0], colour[1], colour[2]), 0, n * sheet.ground / bands, 1, sheet.ground / bands + 0.01)
    sheet.box(sheet.middle if not night else sheet.dark, 0, sheet.ground, 1, 1)
    if sheet.made.mood == "playful":
        sheet.disc(sheet.middle, sheet.between(0.2, 0.8), 0.16, 0.13)
    elif sheet.made.mood in {"quiet", "festive"}:
        sheet.disc(sheet.paper if sheet.made.mood == "quiet" else sheet.middle, sheet.between(0.15, 0.85), 0.14, 0.06)


def _mountain(sheet: _Sheet) -> None:
    for shade, share in ((sheet.light, 1.0), (sheet.middle, 0.8), (sheet.dark, 0.6)):
        x, height = sheet.between(0.2, 0.8), sheet.between(0.26, 0.4) * share + 0.06
        half = height * sheet.between(0.8, 1.2)
        sheet.area(shade, (x - half, sheet.ground), (x, sheet.ground - height), (x + half, sheet.ground))
        snow = 0.28
        edge = (x - half * snow, sheet.ground - height * (1 - snow)), (x + half * snow, sheet.ground - height * (1 - snow))
        sheet.area(sheet.paper, edge[0], (x, sheet.ground - height), edge[1], (x, sheet.ground - height * 0.62))
    sheet.hills(sheet.dark, sheet.ground + 0.06, 0.05)


def _harbour(sheet: _Sheet) -> None:
    for n in range(5):
        sheet.line(
            sheet.light, 0.004, (0.05 * n, sheet.ground + 0.03 + 0.04 * n), (1 - 0.07 * n, sheet.ground + 0.03 + 0.04 * n)
        )
    for _ in range(int(sheet.rng.integers(2, 5))):
        x, size = sheet.between(0.08, 0.8), sheet.between(0.09, 0.15)
        y = sheet.ground + sheet.between(0.0, 0.1)
        sheet.area(sheet.dark, (x, y), (x + size, y), (x + size * 0.8, y + size * 0.25), (x + size * 0.15, y + size * 0.25))
        sheet.line(sheet.dark, 0.006, (x + size / 2, y), (x + size / 2, y - size * 1.5))
        sheet.area(sheet.paper, (x + size / 2, y - size * 1.4), (x + size / 2, y - 0.02), (x + size * 1.05, y - 0.02))


def _orchard(sheet: _Sheet) -> None:
    sheet.hills(sheet.light, sheet.ground + 0.05, 0.06)
    for row in range(2):
        for n in range(4):
            x, y = 0.12 + 0.25 * n + 0.1 * row + sheet.between(-0.03, 0.03), sheet.ground + 0.02 + 0.11 * row
            sheet.line(sheet.dark, 0.012, (x, y + 0.05), (x, y - 0.06))
            sheet.disc(sheet.middle if row else sheet.dark, x, y - 0.1, 0.07)
            for _ in range(6):
                sheet.disc(sheet.paper, x + sheet.between(-0.05, 0.05), y - 0.1 + sheet.between(-0.05, 0.05), 0.01)


def _city(sheet: _Sheet) -> None:
    for shade, low, high in ((sheet.light, 0.14, 0.36), (sheet.middle, 0.08, 0.28), (sheet.dark, 0.04, 0.2)):
        x = sheet.between(-0.08, 0)
        while x < 1:
            width, height = sheet.between(0.07, 0.14), sheet.between(low, high)
            sheet.box(shade, x, sheet.ground - height, width, 1)
            if shade == sheet.dark:
                sheet.area(
                    shade,
                    (x, sheet.ground - height),
                    (x + width / 2, sheet.ground - height - 0.05),
                    (x + width, sheet.ground - height),
                )
                for n in range(int((height + 0.12) / 0.05)):
                    if sheet.rng.random() < 0.6:
                        sheet.box(sheet.paper, x + width * 0.3, sheet.ground - height + 0.02 + 0.05 * n, width * 0.18, 0.02)
            x += width + sheet.between(0.0, 0.02)


def _lighthouse(sheet: _Sheet) -> None:
    x, height = sheet.between(0.3, 0.7), sheet.between(0.3, 0.38)
    top = sheet.ground - height
    if sheet.made.mood in {"solemn", "lonely", "stormy"}:
        sheet.area(sheet.light, (x, top), (0 if x > 0.5 else 1, top - 0.12), (0 if x > 0.5 else 1, top + 0.1))
    sheet.area(
        sheet.dark,
        (x - 0.35, sheet.ground + 0.1),
        (x - 0.1, sheet.ground - 0.03),
        (x + 0.14, sheet.ground),
        (x + 0.3, sheet.ground + 0.1),
    )
    sheet.area(sheet.paper, (x - 0.05, sheet.ground), (x - 0.032, top), (x + 0.032, top), (x + 0.05, sheet.ground))
    for n in range(3):
        sheet.box(sheet.middle, x - 0.045 + 0.004 * n, sheet.ground - 0.06 - height * 0.3 * n, 0.09 - 0.008 * n, height * 0.13)
    sheet.box(sheet.dark, x - 0.04, top - 0.01, 0.08, 0.012)
    sheet.box(sheet.light, x - 0.022, top - 0.05, 0.044, 0.04)
    sheet.area(sheet.dark, (x - 0.035, top - 0.05), (x, top - 0.09), (x + 0.035, top - 0.05))


def _desert(sheet: _Sheet) -> None:
    sheet.hills(sheet.light, sheet.ground + 0.02, 0.1)
    sheet.hills(sheet.middle, sheet.ground + 0.09, 0.1)
    sheet.hills(sheet.dark, sheet.ground + 0.2, 0.09)
    for _ in range(int(sheet.rng.integers(1, 4))):
        x, y, size = sheet.between(0.1, 0.9), sheet.ground + sheet.between(0.03, 0.12), sheet.between(0.1, 0.18)
        sheet.line(sheet.dark, 0.026, (x, y), (x, y - size))
        for side in (-1, 1):
            arm = size * sheet.between(0.4, 0.7)
            sheet.line(sheet.dark, 0.018, (x, y - arm), (x + side * 0.05, y - arm), (x + side * 0.05, y - arm - size * 0.3))


def _forest(sheet: _Sheet) -> None:
    for shade, base, size in ((sheet.light, 0.0, 0.22), (sheet.middle, 0.05, 0.28), (sheet.dark, 0.13, 0.36)):
        for n in range(7):
            x, y, high = n / 6 + sheet.between(-0.06, 0.06), sheet.ground + base, size * sheet.between(0.8, 1.15)
            for layer in range(3):
                half, top = high * (0.2 + 0.07 * layer), y - high * (1 - 0.25 * layer)
                sheet.area(shade, (x - half, top + high * 0.42), (x, top), (x + half, top + high * 0.42))


def _river(sheet: _Sheet) -> None:
    sheet.hills(sheet.middle, sheet.ground, 0.1)
    sheet.hills(sheet.dark, sheet.ground + 0.03, 0.03)
    bend, edge = sheet.between(0.3, 0.7), []
    for n in range(12):
        share = n / 11
        edge.append((bend + 0.2 * math.sin(3 * share) * (1 - share), sheet.ground + share * 0.35, 0.02 + 0.22 * share))
    sheet.area(sheet.paper, *((x - half, y) for x, y, half in edge), *((x + half, y) for x, y, half in reversed(edge)))
    for n in range(4):
        x, y, half = edge[3 + 2 * n]
        sheet.line(sheet.light, 0.006, (x - half * 0.7, y), (x + half * 0.4, y))
    x, y, half = edge[5]
    sheet.pen.arc(
        [*sheet.at((x - half * 1.3, y - 0.09))[0], *sheet.at((x + half * 1.3, y + 0.09))[0]],
        180,
        360,
        fill=sheet.dark,
        width=14,
    )


def _moon(sheet: _Sheet) -> None:
    x, r = sheet.between(0.35, 0.65), sheet.between(0.13, 0.19)
    y = sheet.ground - r - sheet.between(0.0, 0.06)
    sheet.disc(sheet.light, x, y, r * 1.18)
    sheet.disc(sheet.paper, x, y, r)
    if sheet.rng.random() < 0.4:
        sheet.disc(sheet.light, x + r * 0.45, y - r * 0.1, r * 0.92)
    for _ in range(4):
        sheet.disc(sheet.light, x + sheet.between(-r, r) * 0.5, y + sheet.between(-r, r) * 0.5, r * sheet.between(0.06, 0.16))
    sheet.box(sheet.dark, 0, sheet.ground, 1, 1)
    for n in range(6):
        half = r * sheet.between(0.4, 1.1)
        sheet.line(sheet.light, 0.007, (x - half, sheet.ground + 0.03 + 0.035 * n), (x + half, sheet.ground + 0.03 + 0.035 * n))


def _garden(sheet: _Sheet) -> None:
    for n in range(13):
        sheet.box(sheet.light, 0.08 * n, sheet.ground - 0.09, 0.05, 0.12)
    sheet.box(sheet.light, 0, sheet.ground - 0.06, 1, 0.015)
    for _ in range(11):
        x, high, r = sheet.between(0.04, 0.96), sheet.between(0.08, 0.24), sheet.between(0.022, 0.042)
        y = sheet.ground + 0.16
        sheet.line(sheet.dark, 0.008, (x, y), (x, y - high))
        sheet.area(sheet.dark, (x, y - high * 0.4), (x + 0.04, y - high * 0.6), (x + 0.01, y - high * 0.35))
        for petal in range(6):
            angle = petal * math.pi / 3
            sheet.disc(sheet.paper, x + r * math.cos(angle), y - high + r * math.sin(angle), r * 0.62)
        sheet.disc(sheet.dark, x, y - high, r * 0.55)


DRAWN: dict[str, Callable[[_Sheet], None]] = {
    "mountain": _mountain,
    "harbour": _harbour,
    "orchard": _orchard,
    "city": _city,
    "lighthouse": _lighthouse,
    "desert": _desert,
    "forest": _forest,
    "river": _river,
    "moon": _moon,
    "garden": _garden,
}


def _mist(sheet: _Sheet) -> None:
    for n in range(3):
        y = sheet.ground - 0.05 + 0.05 * n
        sheet.line(sheet.paper, 0.014, (sheet.between(0, 0.3), y), (sheet.between(0.6, 1), y))


def _rain(sheet: _Sheet) -> None:
    for _ in range(3):
        x, y = sheet.between(0.05, 0.85), sheet.between(0.05, 0.14)
        for n in range(4):
            sheet.disc(sheet.dark, x + 0.05 * n, y + 0.012 * (n % 2), 0.05)
    for _ in range(60):
        x, y = sheet.between(0, 1.1), sheet.between(0.12, HEIGHT / WIDTH)
        sheet.line(sheet.paper, 0.004, (x, y), (x - 0.025, y + 0.06))


def _bunting(sheet: _Sheet) -> None:
    cord = [(n / 14, 0.07 + 0.05 * math.sin(math.pi * n / 14)) for n in range(15)]
    for n, (x, y) in enumerate(cord):
        sheet.area((sheet.dark, sheet.middle, sheet.paper)[n % 3], (x - 0.025, y), (x + 0.025, y), (x, y + 0.055))
    sheet.line(sheet.dark, 0.004, *cord)


def _gull(sheet: _Sheet) -> None:
    x, y = sheet.between(0.2, 0.8), sheet.between(0.08, 0.2)
    sheet.line(sheet.paper, 0.008, (x - 0.05, y - 0.02), (x, y), (x + 0.05, y - 0.02))


def _kites(sheet: _Sheet) -> None:
    for _ in range(3):
        x, y, r = sheet.between(0.1, 0.9), sheet.between(0.06, 0.24), sheet.between(0.03, 0.045)
        sheet.area(sheet.dark, (x, y - r), (x + r * 0.7, y), (x, y + r), (x - r * 0.7, y))
        sheet.line(sheet.dark, 0.003, (x, y + r), (x - 0.03, y + r + 0.05), (x + 0.01, y + r + 0.1))


def _stars(sheet: _Sheet) -> None:
    for _ in range(40):
        x, y = sheet.between(0, 1), sheet.between(0, sheet.ground - 0.1)
        sheet.disc(sheet.paper, x, y, sheet.between(0.002, 0.005))


WEATHER: dict[str, Callable[[_Sheet], None]] = {
    "quiet": _mist,
    "stormy": _rain,
    "festive": _bunting,
    "lonely": _gull,
    "playful": _kites,
    "solemn": _stars,
}
