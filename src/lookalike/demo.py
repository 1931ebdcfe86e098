"""A small catalog of drawn garments, so that a newcomer with no photos of their own sees visual search work.

Everything is drawn with Pillow alone, so nothing is downloaded and nothing is licensed. A :class:`Sketch` is a sheet of
paper with x from −180 to 180, 0 in the middle, and y from 0 (top) to 480. An outline is written as words: ``12,80`` is
a corner, ``12,80~`` a point that is passed in a curve, and a leading ``|`` says that this is only the right half, from
the top's middle to the bottom's middle. To add a type of product, write its function and its row in ``KINDS``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import copysign, cos, degrees, pi, sin
from pathlib import Path
from random import Random

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from lookalike.errors import UsageError

RGB = tuple[int, int, int]
Points = list[tuple[complex, bool]]  # where, and whether it is passed in a curve
Line = str | Points

WIDTH, HEIGHT = 360, 480
FINE = 2  # a sketch is drawn this many times finer than the photo, then shrunk: Pillow's polygons have hard edges
COARSE = 8  # shading is soft, so it is computed on a grid this many times coarser than the sketch

BRANDS = ("Harbour", "Tarnwick", "Oddmere", "Quillbeck", "Fenhollow", "Saltrigg", "Brindlecote", "Pellorin", "Lindlow")
COLOURS: dict[str, RGB] = {
    "Black": (38, 38, 42), "White": (245, 245, 246), "Grey": (146, 149, 153), "Red": (205, 38, 44),
    "Maroon": (112, 24, 44), "Pink": (240, 150, 180), "Orange": (238, 122, 36), "Yellow": (246, 206, 62),
    "Green": (48, 138, 78), "Olive": (112, 114, 62), "Blue": (48, 108, 196), "Navy Blue": (32, 44, 86),
    "Purple": (120, 66, 156), "Brown": (116, 74, 48), "Beige": (218, 198, 166),
}  # fmt: skip
WHITE, INK, STEEL, GOLD, TAN = (244, 244, 242), (44, 44, 48), (188, 192, 198), (206, 166, 84), (206, 168, 120)


def mix(a: RGB, b: RGB, share: float) -> RGB:
    """Colour ``a`` with a share of ``b``."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def tone(colour: RGB, by: float) -> RGB:
    """The colour made lighter (``by`` > 0) or darker (``by`` < 0)."""
    return mix(colour, (255, 255, 255) if by > 0 else (0, 0, 0), abs(by))


def outline(text: Line) -> Points:
    """The points that the words of an outline stand for."""
    if not isinstance(text, str):
        return text
    pairs = (word.split(",") for word in text.lstrip("|").split())
    points = [(complex(float(x), float(y.rstrip("~"))), y.endswith("~")) for x, y in pairs]
    return points + flip([p for p in reversed(points) if p[0].real]) if text.startswith("|") else points


def flip(text: Line) -> Points:
    """The other side of a garment."""
    return [(-at.conjugate(), bent) for at, bent in outline(text)]


def oval(x: float, y: float, rx: float, ry: float, bend: float = 1.0) -> Points:
    """An ellipse; the smaller ``bend``, the nearer to a rectangle."""
    turns = [(cos(k * pi / 12), sin(k * pi / 12)) for k in range(24)]
    return [
        (complex(x + rx * copysign(abs(c) ** bend, c), y + ry * copysign(abs(s) ** bend, s)), True) for c, s in turns
    ]


def curve(points: Points, closed: bool) -> Iterator[complex]:
    """The outline as a fine polygon. Tangents are as long as their chord, so that uneven steps do not overshoot."""
    n = len(points)
    for i in range(n if closed else n - 1):
        (a, bent_a), (b, bent_b) = points[i], points[(i + 1) % n]
        yield a
        if bent_a or bent_b:
            leave = b - points[i - 1][0] if bent_a and (closed or i) else b - a
            enter = points[(i + 2) % n][0] - a if bent_b and (closed or i + 2 < n) else b - a
            leave, enter = (v / (abs(v) or 1) * abs(b - a) for v in (leave, enter))
            for t in (k / 8 for k in range(1, 8)):
                yield a + (b - a) * t * t * (3 - 2 * t) + leave * t * (1 - t) ** 2 - enter * t * t * (1 - t)
    if not closed:
        yield points[-1][0]


def weave(r: Random, pattern: str, colour: RGB, accent: RGB) -> Image.Image:
    """A square of patterned cloth, large enough to be turned under any part of a garment."""
    side, step = 640 * FINE, r.uniform(14, 36) * FINE
    cloth, mask = Image.new("RGB", (side, side), colour), Image.new("L", (side, side))
    if pattern in ("Striped", "Checked"):
        share, pen = r.uniform(0.22, 0.5), ImageDraw.Draw(mask)
        for k in range(int(side / step) + 1):
            pen.rectangle((0, k * step, side, (k + share) * step), fill=255 if pattern == "Striped" else 120)
        turned = mask.transpose(Image.Transpose.ROTATE_90)
        upright = turned if r.random() < 0.3 else mask
        cloth.paste(accent, mask=ImageChops.add(mask, turned) if pattern == "Checked" else upright)
        return cloth
    pen, size, spread = ImageDraw.Draw(cloth), step * r.uniform(0.16, 0.26), 0.0
    petals = (accent, r.choice((COLOURS["Pink"], COLOURS["Yellow"], COLOURS["Red"])))
    if pattern == "Floral":
        step, spread = step * 1.3, step * 0.3
    for k in range(int(side / step + 2) ** 2):
        row, column = divmod(k, int(side / step + 2))
        x, y = (column + row % 2 / 2) * step + r.uniform(-1, 1) * spread, row * step + r.uniform(-1, 1) * spread
        turn, petal, spots = r.random() * 6, r.choice(petals), [(0.0, 0.0, 1.0, accent)]
        if spread:  # two leaves, five petals, and the eye
            spots = [(turn + a, 1.8, 0.4, COLOURS["Green"]) for a in (0.5, 2.3)]
            spots += [(turn + a * 2 * pi / 5, 0.8, 0.6, petal) for a in range(5)] + [(0, 0, 0.4, GOLD)]
        for angle, far, big, ink in spots:
            u, v, big = x + cos(angle) * far * size, y + sin(angle) * far * size, big * size
            pen.ellipse((u - big, v - big, u + big, v + big), fill=ink)
    return cloth


class Sketch:
    """One product on paper: its cloth, and the means to lay shaded parts and lines of it."""

    def __init__(self, r: Random, colour: RGB, pattern: str = "Plain", kid: bool = False) -> None:
        self.r, self.colour, self.short, self.plain = r, colour, 36 * kid, pattern == "Plain"
        self.dim, self.dark = tone(colour, -0.14), tone(colour, -0.42)
        on_light = (INK, COLOURS["Navy Blue"], COLOURS["Maroon"], self.dark)
        self.accent: RGB = r.choice(on_light if sum(colour) > 360 else (WHITE, (250, 236, 200)))
        self.at = (0.0, 0.0, 1.0)  # where the next parts go (shift, scale): pairs are drawn in two places
        self.image = Image.new("RGB", (WIDTH * FINE, HEIGHT * FINE), "white")
        self.cover = Image.new("L", self.image.size)  # what is garment and not background
        self._cloth = None if self.plain else weave(r, pattern, colour, self.accent)

    def trace(self, line: Line, closed: bool = True) -> list[tuple[float, float]]:
        """An outline in pixels."""
        dx, dy, k = self.at
        points = curve(outline(line), closed)
        return [((WIDTH / 2 + dx + z.real * k) * FINE, (dy + z.imag * k) * FINE) for z in points]

    def part(self, line: Line, paint: RGB | None = None, angle: float = 0, folds: str = "", flat: bool = False) -> None:
        """Lay one piece of cloth or of ``paint``, rounded by light from the upper left and edged unless it is ``flat``.

        ``angle`` turns the pattern, to run along a sleeve; ``folds`` are dark creases, separated by semicolons.
        """
        points = self.trace(line)
        x0, y0, x1, y1 = (int(f(p[axis] for p in points)) + (f is max) for f in (min, max) for axis in (0, 1))
        mask = Image.new("L", (x1 - x0 + 1, y1 - y0 + 1))
        ImageDraw.Draw(mask).polygon([(x - x0, y - y0) for x, y in points], fill=255)
        layer = Image.new("RGB", mask.size, paint or self.colour)
        if self._cloth and not paint:
            turned = self._cloth.rotate(degrees(angle), fillcolor=self.colour) if angle else self._cloth
            layer.paste(turned, ((WIDTH - 640) // 2 * FINE - x0, (HEIGHT - 640) // 2 * FINE - y0))
        if not flat:
            small = ImageOps.expand(mask.resize((mask.width // COARSE + 1, mask.height // COARSE + 1)), 8)
            shade = ImageChops.offset(small.filter(ImageFilter.GaussianBlur(min(5.0, min(small.size) / 5 - 3))), -1, -1)
            creases = Image.new("L", small.size)
            for fold in filter(None, folds.split(";")):
                path = [((x - x0) / COARSE + 8, (y - y0) / COARSE + 8) for x, y in self.trace(fold, closed=False)]
                ImageDraw.Draw(creases).line(path, fill=140, width=1)
            shade = ImageChops.subtract(shade, creases.filter(ImageFilter.GaussianBlur(1.0)))
            box = (8, 8, small.width - 8, small.height - 8)
            shade = shade.resize(mask.size, Image.Resampling.BICUBIC, box)
            bright = layer.point([min(255, round(v * 1.01 + 7)) for v in range(256)] * 3)
            layer = Image.composite(bright, layer.point([round(v * 0.55) for v in range(256)] * 3), shade)
        self.image.paste(layer, (x0, y0), mask)
        self.cover.paste(255, (x0, y0), mask)
        if not flat:
            self._ink([*points, *points[:2]], 1.0, self.seam(paint or self.colour))

    def both(self, line: Line, paint: RGB | None = None, angle: float = 0.0) -> None:
        """The same piece on the right and on the left."""
        self.part(line, paint, angle)
        self.part(flip(line), paint, -angle)

    def line(self, line: Line, width: float = 1.0, ink: RGB | None = None, two: bool = False) -> None:
        """A seam, a lace or a handle; ``two`` draws it on both sides."""
        for side in (outline(line), flip(line))[: 1 + two]:
            self._ink(self.trace(side, closed=False), width, ink or self.seam(self.colour))

    def _ink(self, path: list[tuple[float, float]], width: float, ink: RGB) -> None:
        for image, colour in ((self.image, ink), (self.cover, 255)):
            ImageDraw.Draw(image).line(path, fill=colour, width=round(width * FINE), joint="curve")

    def seam(self, colour: RGB) -> RGB:
        """The colour of an edge: darker than the cloth, or lighter on cloth too dark for that."""
        return tone(colour, -0.42) if max(colour) > 100 else tone(colour, 0.26)

    def dots(self, x: float, ys: Sequence[float], size: float, ink: RGB) -> None:
        """Buttons, eyelets and rivets, one above the other."""
        for y in ys:
            self.part(oval(x, y, size, size), ink)


Neck = tuple[float, float, bool]  # how wide, how deep, and whether it is a V


def torso(s: Sketch, hem: float, sleeve: float, neck: Neck, chest: float, foot: float, rib: RGB | None = None) -> str:
    """What every upper garment shares: back, sleeves (with cuffs, if ribbed) and body; returns the neckline."""
    (wide, deep, vee), shoulder, slant = neck, chest + 6, 0.15 if sleeve > 150 else s.r.uniform(0.3, 0.6)
    ux, uy, cuff, waist = sin(slant), cos(slant), 40 if sleeve > 150 else 50, (chest + foot) / 2 - s.r.uniform(0, 8)
    s.part(f"|0,61~ {wide},54 {wide - 1},{deep + 56} 0,{deep + 56}", tone(s.colour, -0.35), flat=True)
    tip, lift = f"{(wide + chest) / 2 + 6},68", 0 if rib or hem < 300 else s.r.uniform(0, 16)
    if sleeve:
        x, y, tip = shoulder + ux * sleeve, 82 + uy * sleeve, f"{shoulder - 4},80"
        arm = f"{shoulder - 30},72 {shoulder - 4},81~ {shoulder + 5},96~ {x},{y} {x - uy * cuff},{y + ux * cuff}"
        s.both(f"{arm} {chest - 6},170 {chest - 40},144", None, slant)
        if rib:
            s.both(f"{x - 3},{y - 24} {x},{y + 1} {x - cuff},{y + 7} {x - cuff - 2},{y - 18}", rib, slant)
    line = f"0,{deep + 56} {wide},56" if vee else f"0,{deep + 56}~ {wide * 0.72},{deep * 0.68 + 56}~ {wide},56"
    side = f"{chest - 10},122~ {chest},164 {waist},{(164 + hem) / 2}~ {foot},{hem - lift}"
    folds = [f"{k * chest},174 {k * 50},208;{k * foot},{hem - 70} {k * 45},{hem - 40}" for k in (-1, 1)]
    s.part(f"|{line} {tip} {side} {foot * 0.6},{hem}~ 0,{hem + 3}~", folds=";".join(folds))
    return line


def t_shirt(s: Sketch) -> None:
    """Short or long sleeves, a crew or a V neck; a plain one may carry a print."""
    r, vee, wide = s.r, s.r.random() < 0.3, s.r.uniform(90, 102)
    neck, foot = (r.uniform(32, 46), r.uniform(28, 44) + 22 * vee, vee), wide + r.uniform(-8, 6)
    line = torso(s, r.uniform(390, 440) - s.short, r.choice((70, 90, 262)), neck, wide, foot)
    s.line(line, 7, s.accent if r.random() < 0.25 else s.dim, two=True)
    if s.plain and r.random() < 0.7:
        ink, y, k = r.choice((s.accent, GOLD, COLOURS["Red"], COLOURS["Blue"])), r.uniform(175, 205), r.uniform(24, 42)
        star = (0, -k * 1.2, k * 0.28, -k * 0.4, k * 1.1, -k * 0.4, k * 0.45, k * 0.15, k * 0.7, k, 0, k * 0.45)
        words = "|" + " ".join(f"{u},{v + y}" for u, v in zip(star[::2], star[1::2], strict=True))
        bars = [oval(0, y + n * k / 2, k * r.uniform(0.8, 1.8), k / 7, 0.2) for n in range(3)]
        for shape in r.choice(([oval(0, y, k, k)], [f"|0,{y - k} {k * 1.1},{y + k} 0,{y + k}"], bars, [words])):
            s.part(shape, ink, flat=True)
    elif r.random() < 0.5:
        s.part("30,150 70,150 70,192 50,202 30,192")


def shirt(s: Sketch) -> None:
    """A collar, a placket with buttons, cuffs and pockets."""
    r, hem, wide, long = s.r, s.r.uniform(410, 448) - s.short, s.r.uniform(92, 100), s.r.random() < 0.65
    torso(s, hem, 266 if long else r.uniform(76, 96), (32, 46, True), wide, wide, s.dim if long else None)
    s.part(f"|0,100 9,100 9,{hem + 2} 0,{hem + 2}")
    s.dots(0, range(128, int(hem) - 20, r.choice((36, 42))), 3.4, r.choice((WHITE, INK, s.dark)))
    s.both("2,100 26,46 40,54~ 52,74 30,116")
    s.part("|0,48~ 26,46 22,58 0,64~", s.dim)
    pocket = "30,160 72,160 72,202 51,212 30,202"
    for side in r.choice(([], [flip(pocket)], [flip(pocket), outline(pocket)])):
        s.part(side)


def flare(s: Sketch, top: float, waist: float, hem: float, wide: float, pleats: int) -> None:
    """A skirt from its waist down, smooth (no pleats) or falling in folds."""
    steps = [k / pleats for k in range(1 - pleats, pleats)]
    lines = [f"{k * waist},{top + 16} {k * wide * 0.97},{hem - 8}" for k in steps]
    bulge = f"{waist + (wide - waist) * 0.5 + 9},{top + (hem - top) * 0.4}~"
    s.part(f"|0,{top} {waist},{top} {bulge} {wide},{hem - 8} {wide / 2},{hem + 3}~ 0,{hem + 5}~", folds=";".join(lines))
    for line in lines if pleats > 5 else ():
        s.line(line, 0.8)


def dress(s: Sketch) -> None:
    """A bodice, with or without sleeves, on a skirt of any width and length."""
    r, low, slim, wide = s.r, s.r.uniform(206, 236), s.r.uniform(56, 66), s.r.uniform(76, 158)
    neck = (r.uniform(28, 40), r.uniform(34, 62), r.random() < 0.4)
    s.line(torso(s, low, r.choice((0, 0, 54, 200)), neck, 74, slim), 2.5, s.dim, two=True)
    flare(s, low - 8, slim + 2, r.uniform(370, 470), wide, 4 if wide > 90 else 0)
    if r.random() < 0.6:
        s.part(f"|0,{low - 11} {slim + 3},{low - 12} {slim + 4},{low + 5} 0,{low + 7}", r.choice((s.accent, None)))


def skirt(s: Sketch) -> None:
    """From pencil to circle, above the knee or to the ankle; gathered, pleated, or smooth with buttons."""
    hem, waist, pleats = s.r.uniform(240, 420), s.r.uniform(60, 74), s.r.choice((0, 4, 7))
    flare(s, 46, waist, hem, s.r.uniform(72, 156), pleats)
    s.part(f"|0,44 {waist},41 {waist + 2},63 0,66")
    if not pleats:
        s.line(f"0,66 0,{hem + 4}")
        s.dots(0, range(84, int(hem) - 12, 34), 4.5, s.dark)


def legs(s: Sketch, hem: float, outer: float, inner: float, jeans: bool = False) -> None:
    """Trousers of any length: two legs, a waistband with loops, a fly and pockets."""
    waist, hip, crotch, mid = s.r.uniform(62, 72), s.r.uniform(84, 92), s.r.uniform(150, 176), (outer + inner) / 2
    folds = [f"{k * 6},{crotch} {k * hip * 0.6},{crotch - 24}" for k in (-1, 1)]
    folds += [f"{k * mid},{crotch} {k * mid},{hem - 30}" for k in (-1, 1) if not jeans]
    leg = f"{outer},{hem} {inner},{hem + 4} 3,{crotch + 16} 0,{crotch}"
    s.part(f"|0,26 {waist},26 {hip},{crotch - 40}~ {leg}", folds=";".join(folds))
    s.part(f"|0,24 {waist},22 {waist + 3},46 0,48")
    s.line(f"0,48 0,{crotch}")
    s.line(f"13,48 13,{crotch - 58} 2,{crotch - 34}~", 0.8, TAN if jeans else None)
    s.line(f"{waist - 28},48 {waist - 14},80~ {waist + 9},86", 1.2, TAN if jeans else None, two=True)
    s.dots(0, [35], 4.5, GOLD if jeans else s.dark)
    for x in (waist - 14, 26):
        s.both(f"{x},20 {x + 6},20 {x + 6},50 {x},50")


def trousers(s: Sketch) -> None:
    """Straight, slim or wide, full length or cropped."""
    inner = s.r.uniform(8, 26)
    legs(s, s.r.uniform(400, 458), inner + s.r.uniform(46, 92), inner)


def jeans(s: Sketch) -> None:
    """Of washed colour, stitched, riveted, and faded at the thighs."""
    s.colour = mix(s.colour, COLOURS["Grey"], 0.35 if s.colour[2] > s.colour[0] * 1.2 else 0.1)
    inner, fade = s.r.uniform(12, 28), Image.new("L", s.image.size)
    outer = inner + s.r.uniform(42, 74)
    legs(s, s.r.uniform(424, 458), outer, inner, jeans=True)
    for x in (-1, 1):
        ImageDraw.Draw(fade).polygon(s.trace(oval(x * (outer + inner) / 2, 230, 20, s.r.uniform(60, 120))), fill=90)
    fade = fade.reduce(COARSE).filter(ImageFilter.GaussianBlur(3)).resize(fade.size, Image.Resampling.BICUBIC)
    s.image.paste(tone(s.colour, 0.7), mask=ImageChops.multiply(fade, s.cover))


def shorts(s: Sketch) -> None:
    """Trousers that end above the knee."""
    legs(s, s.r.uniform(190, 258), s.r.uniform(96, 114), s.r.uniform(6, 16), s.r.random() < 0.3)


def jacket(s: Sketch) -> None:
    """A blazer with lapels and buttons, or a bomber with a zip and ribs."""
    r = s.r
    if r.random() < 0.5:
        hem = r.uniform(380, 440) - s.short
        torso(s, hem, 272, (36, 120, True), 98, 102)
        s.line(f"0,176 3,230~ 0,{hem + 2}", 1.6)
        s.both("0,178 30,48 44,56 64,92 48,98 56,110 30,152~")
        s.dots(5, r.choice(([196], [196, 236])), 5.5, s.dark)
        s.both("38,300 86,296 86,308 38,312")
        s.line("40,160 72,154", 3)
        return
    hem, rib = r.uniform(340, 400) - s.short, r.choice((s.dim, tone(s.colour, -0.3), s.accent))
    torso(s, hem, 268, (36, 26, False), 98, 106, rib)
    s.part(f"|0,{hem - 24} 105,{hem - 26} 106,{hem + 1} 0,{hem + 5}", rib)
    s.part("|0,74~ 34,52 40,62 26,88~ 0,96~", rib)
    for width, ink in ((5, STEEL), (1, INK)):
        s.line(f"0,78 0,{hem + 3}", width, ink)
    s.line("44,260 70,308", 2.5, two=True)


def jumper(s: Sketch, hood: bool = False) -> None:
    """Knitted, with ribs at neck, cuffs and hem; a hood comes with strings and a pocket."""
    r, hem, wide, vee = s.r, s.r.uniform(380, 424) - s.short, s.r.uniform(96, 106), not hood and s.r.random() < 0.3
    if hood:
        s.part("|0,20~ 44,34~ 60,84~ 30,116 0,120")
    neck = torso(s, hem, 270, (r.uniform(32, 42), r.uniform(26, 38) + 30 * vee, vee), wide, wide - 1, s.dim)
    s.part(f"|0,{hem - 22} {wide},{hem - 24} {wide - 1},{hem + 1} 0,{hem + 5}", s.dim)
    for k in range(-int(wide) + 10, int(wide) - 6, 8):
        s.line(f"{k},{hem - 20} {k},{hem + 1}", 0.5)
    if hood:
        s.both("0,96 22,34~ 50,50~ 58,84~ 34,112~ 4,130")
        s.line(f"14,112 16,150~ 13,{r.uniform(170, 210)}", 2.5, s.accent, two=True)
        s.part(f"|0,{hem - 130} 46,{hem - 130} 72,{hem - 70} 72,{hem - 28} 0,{hem - 28}")
    else:
        s.line(neck, 12, s.dim, two=True)


def hoodie(s: Sketch) -> None:
    """A jumper with a hood."""
    jumper(s, hood=True)


def sneakers(s: Sketch) -> None:
    """Low or high, with a rubber sole, a toe cap, laces and stripes or a panel."""
    r, sole, laces, rise = s.r, s.r.choice((WHITE, WHITE, TAN, INK)), s.r.choice((WHITE, INK)), s.r.choice((0, 0, 46))
    toe, style, mark, low = r.random() < 0.5, r.randrange(3), r.choice((s.accent, s.dark, WHITE)), r.uniform(298, 310)
    for s.at in ((14, -20, 0.94), (-6, 70, 1)):
        top = 190 - rise
        s.part(f"-40,{top - 16} -14,{top - 22}~ 0,{top - 8} 26,226 -60,240", tone(s.colour, -0.25))
        heel = f"-146,{low + 6} -150,250~ -140,{top - 8} -118,{top - 14}~ -96,{top + 12 - rise / 3}~ -50,{top + 12}"
        s.part(f"{heel} -26,{top - 6} 4,214~ 62,244~ 128,266~ 156,{low - 4}~ 154,{low + 8}")
        if toe:
            s.part(f"84,{low + 6} 92,270~ 112,258 140,274~ 157,{low}~ 154,{low + 8}", mark)
        s.part(f"-147,{low + 4} -151,256~ -146,222 -112,236~ -100,{low + 4}", mark)
        for k in (-40, 4) if style == 0 else ():
            s.part(f"{k},234 {k + 9},232 {k - 7},{low + 3} {k - 18},{low + 3}", mark)
        if style == 1:
            s.part(f"-90,246 -30,250 40,272~ 80,{low + 3} -90,{low + 3}", mark)
        s.part(f"-26,{top + 6} 6,216~ 66,248 56,262~ 10,244~ -42,{226 - rise / 2}", s.dim)
        for k in range(5 + rise // 16):
            for width, ink in ((5, tone(laces, -0.3)), (3.6, laces)):
                s.line(f"{58 - k * 17},{241 - k * 11} {40 - k * 17},{255 - k * 11}", width, ink)
        s.part(f"-152,{low} 154,{low + 2} 162,{low + 4}~ 158,324~ 130,334 -140,334 -156,326~", sole)
        s.line(f"-152,{low + 15} 156,{low + 15}", 0.8, tone(sole, -0.25))


def heels(s: Sketch) -> None:
    """Pumps, with or without an ankle strap, on a stiletto or a block."""
    r, seat, width, strap = s.r, s.r.uniform(190, 250), s.r.choice((12, 16, 40)), s.r.random() < 0.4
    top = seat - r.uniform(66, 80)
    for s.at in ((14, -10, 0.94), (-6, 70, 1)):
        s.part(f"-128,{seat - 4} -96,{seat + 4} {width / 2 - 102},334 {-112 - width / 3},334", s.dim)
        s.part(f"-116,{top + 10} -40,{seat - 18}~ 30,262~ 84,268 40,296 -60,{seat + 20}", s.dark)
        back = f"-134,{seat + 4} -138,{seat - 40}~ -126,{top + 12} -112,{top + 8}~ -84,{top + 36}~ -30,{seat + 4}~"
        toe = "30,280~ 60,288~ 88,266 116,276~ 160,312~ 170,328 120,333~ 64,333"
        s.part(f"{back} {toe} 10,308~ -60,{seat + 34}~")
        s.line(f"-134,{seat + 5} -60,{seat + 35}~ 10,309~ 64,334 168,330", 3, s.dark)
        if strap:
            s.part(f"-128,{top + 14} -90,{top - 8}~ -34,{top}~ -30,{top + 11} -88,{top + 4}~ -126,{top + 30}")
            s.dots(-40, [top + 4], 5, GOLD)


def boots(s: Sketch) -> None:
    """From the ankle to the knee, laced, zipped or with elastic sides."""
    r, top, heel, wide = s.r, s.r.choice((60, 150, 190)) + s.r.uniform(-14, 14), s.r.uniform(8, 36), s.r.uniform(0, 12)
    s.part(f"{-112 - wide},{top} -48,{top - 9}~ {16 + wide},{top} 16,{top + 14} -112,{top + 14}", s.dark)
    shaft = f"{-112 - wide},{top} -48,{top + 8}~ {16 + wide},{top} 8,{(top + 270) / 2}~ 14,268~"
    foot = "64,306~ 122,330~ 146,362~ 144,384 -116,384 -112,320~ -98,270~"
    s.part(f"{shaft} {foot}", folds="-60,290 0,262;-70,308 10,290")
    sole = f"-118,382 -30,382 -6,376~ 146,380 150,388~ 140,394 0,394 -34,390 -38,{392 + heel} -116,{392 + heel}"
    s.part(sole, r.choice((INK, (92, 60, 40), TAN)))
    s.line("-116,350 -60,346~ -40,382")
    if r.random() < 0.45:
        for y in range(int(top) + 20, 290, 20):
            s.line(f"-8,{y} {14 + max(0, y - 268)},{y + 6}", 3.5, s.accent)
        s.line("60,306 40,340~ 50,382")
    elif top > 100:
        s.part(f"-66,{top + 7} -22,{top + 7} -34,296 -54,296", s.dark)
    else:
        s.line(f"-60,{top + 8} -50,320", 2.5, STEEL)


def handbag(s: Sketch) -> None:
    """A tote with two handles, or a flap bag with one."""
    r, metal, low, wide = s.r, s.r.choice((GOLD, STEEL)), s.r.uniform(350, 430), s.r.uniform(116, 150)
    top, trim, reach, rise = wide * r.uniform(0.78, 1), r.choice((s.dim, s.dark)), r.uniform(44, 70), r.uniform(70, 150)
    tote = r.random() < 0.6
    for y in (rise - 12, rise) if tote else (rise,):
        for width, ink in ((11.0, s.dark), (8.5, s.dim if y == rise else tone(s.colour, -0.3))):
            s.line(f"{-reach},240 {5 - reach},{y + 44}~ 0,{y}~ {reach - 5},{y + 44}~ {reach},240", width, ink)
    s.part(f"|0,210~ {top - 12},210 {top},224~ {wide},{low - 22}~ {wide - 16},{low} 0,{low + 3}~")
    if tote:
        if r.random() < 0.5:
            s.part(f"|0,{low - 60} {wide - 2},{low - 60} {wide - 15},{low} 0,{low + 3}~", trim)
        s.line(f"{8 - top},226 {top - 8},226")
        s.both(f"{reach - 9},214 {reach + 9},214 {reach + 9},254 {reach},264 {reach - 9},254", trim)
        for x in (-reach, 0, reach):
            s.dots(x, [242], 5, metal)
    else:
        mid = (210 + low) / 2
        s.part(f"|0,208 {top - 10},208 {top + 4},224~ {top},{mid}~ {top * 0.7},{mid + 32}~ 0,{mid + 44}~")
        s.part(oval(0, mid + 38, 13, 17, 0.4), metal)


def backpack(s: Sketch) -> None:
    """A rounded body with side and front pockets and straps, closed by a zip or by a flap with two buckles."""
    r, wide, top, low, y = s.r, s.r.uniform(100, 126), s.r.uniform(70, 96), s.r.uniform(410, 440), s.r.uniform(280, 320)
    trim: RGB = r.choice((s.dark, s.accent, (132, 88, 56)))
    s.line(f"-26,{top + 10} -22,{top - 34}~ 22,{top - 34}~ 26,{top + 10}", 12, tone(trim, -0.2))
    s.both(f"{wide - 8},170 {wide + 26},240~ {wide + 20},350~ {wide - 10},{low - 30} {wide},240~", trim)
    s.both(f"{wide - 14},280 {wide + 14},286~ {wide + 16},{low - 34}~ {wide - 14},{low - 10}")
    body = f"|0,{top}~ {wide * 0.62},{top + 12}~ {wide - 4},{top + 80}~"
    s.part(f"{body} {wide},{low - 60}~ {wide - 18},{low - 4}~ 0,{low}~")
    if r.random() < 0.4:
        s.part(f"{body} {wide - 8},{top + 130} 0,{top + 142}~")
        for x in (-wide / 2, wide / 2):
            s.part(oval(x, top + 140, 9, 42, 0.3), trim)
            s.dots(x, [top + 160], 6, GOLD)
    else:
        s.line(f"0,{top + 26}~ {wide * 0.6},{top + 42}~ {wide * 0.82},{top + 96}~ {wide - 9},250", 4, trim, two=True)
    s.part(oval(0, (y + low - 16) / 2, wide - 24, (low - 16 - y) / 2, 0.35))
    s.line(f"{40 - wide},{y + 20} {wide - 40},{y + 20}", 4, trim)
    s.part(oval(0, y + 62, r.uniform(16, 30), 12, 0.3), trim)


def cap(s: Sketch) -> None:
    """A baseball cap from the side: panels, a button, a curved brim and a badge."""
    r, brim, y = s.r, s.r.choice((s.colour, s.accent, s.dim)), s.r.uniform(110, 140)
    crown = f"-126,266 -132,230~ -122,170~ -84,{y + 20}~ -20,{y}~ 46,{y + 18}~ 88,170~ 102,260 0,282~"
    s.part(crown, folds=f"-20,{y + 8} -70,260;-20,{y + 8} 40,264")
    s.line(f"-20,{y + 2} -84,160~ -84,273")
    s.line(f"-20,{y + 2} 34,150~ 48,274")
    s.dots(-20, [y], 7, brim)
    s.part("-40,278 30,262~ 98,246 146,266~ 172,302~ 160,314~ 90,302~ 0,298~", brim)
    for k in (8, 16, 24):
        s.line(f"{k - 34},{287 - k / 3} 60,{291 - k}~ {160 - k},{306 - k * 0.6}", 0.6, s.seam(brim))
    if r.random() < 0.7:
        badge = oval(0, 208, r.uniform(16, 26), r.uniform(14, 22), r.choice((1, 0.3)))
        s.part(badge, s.accent if s.accent != brim else GOLD)


def hat(s: Sketch) -> None:
    """A fedora with a band, or a knitted beanie."""
    r, tall, ink = s.r, s.r.uniform(130, 160), s.r.choice((s.accent, s.dark))
    if r.random() < 0.5:
        s.part(oval(0, 270, r.uniform(150, 170), r.uniform(34, 56)))
        crown = f"|0,{284 - tall}~ 46,{272 - tall}~ 76,{290 - tall}~ 92,272 40,290~ 0,294~"
        s.part(crown, folds=f"0,{280 - tall} 0,{330 - tall}")
        s.part("|0,262~ 50,258~ 89,240 93,272 40,291~ 0,295~", ink)
        return
    top = 240 - tall * 1.2
    ribs = [f"{k * 0.5},{top + 12 + abs(k) * 0.3} {k * 1.4},170~ {k * 1.6},250" for k in range(-72, 73, 12)]
    s.part(f"|0,{top}~ 70,{top + 24}~ 116,170~ 122,280 0,290~", folds=";".join(ribs[1::3]))
    for rib in ribs:
        s.line(rib, 0.7)
    s.part("|0,244~ 126,236 128,300 0,312~")
    for k in range(-117, 118, 9):
        s.line(f"{k},{246 - abs(k) * 0.05} {k},{308 - abs(k) * 0.07}", 0.9)
    for k in range(30 if r.random() < 0.6 else 0):  # a pompom: tufts on a spiral
        far = 30 - k * 0.75
        s.dots(cos(k * 2.4) * far, [top - 14 + sin(k * 2.4) * far], 9, tone(ink, r.uniform(0, 0.25)))


def sunglasses(s: Sketch) -> None:
    """Round, square, aviator or cat-eye; the arms seen behind the lenses."""
    r, tall, form = s.r, s.r.uniform(42, 54), s.r.randrange(4)
    lens = r.choice((INK, (70, 52, 40), (40, 66, 74), (88, 60, 96), (54, 82, 128)))
    rim = 3 if form == 2 else r.uniform(6, 11)
    s.both("130,214 150,208 166,214~ 128,150~ 122,160 148,216~ 134,226")
    aviator = outline("-54,-40 0,-46~ 58,-38 62,0~ 26,54~ -26,44~ -54,0~")
    cat = outline("-56,-20~ 0,-38~ 66,-54 56,14~ 8,44~ -46,26~")
    shape = (oval(0, 0, tall + 8, tall + 6), oval(0, 0, r.uniform(56, 64), tall, 0.45), aviator, cat)[form]
    for y in (226, 198)[: 1 + (form == 2)]:
        for width, ink in ((rim + 3, s.seam(s.colour)), (rim + 1, s.colour)):
            s.line(f"-34,{y} 0,{y - 10}~ 34,{y}", width, ink)
    for k, ink in ((0, s.colour), (rim, lens)):
        s.both([(complex(78 + z.real * (1 - k / 60), 240 + z.imag * (1 - k / 52)), bent) for z, bent in shape], ink)
    for x in (-80, 76):
        s.part(f"{x - 26},216 {x - 6},214 {x - 24},258 {x - 34},252", tone(lens, 0.16), flat=True)


def watch(s: Sketch) -> None:
    """A round or square case on a strap or a bracelet."""
    r, size, metal = s.r, s.r.uniform(62, 82), s.r.choice((STEEL, GOLD, INK, (214, 160, 134)))
    face, bend = r.choice((WHITE, INK, COLOURS["Navy Blue"], s.colour, (232, 224, 206))), r.choice((0.4, 1, 1))
    w, ink = size * r.uniform(0.5, 0.66), INK if sum(face) > 360 else WHITE
    steel = max(s.colour) - min(s.colour) < 16 and r.random() < 0.7  # a bracelet of links, not a strap
    for y in (1, -1):  # below and above the case
        band = f"|0,{240 + y * 30} {w},{240 + y * 30} {w * 0.96},{240 + y * 120}~ {w * 0.8},{240 + y * 214}"
        s.part(f"{band} {w * 0.5},{240 + y * 222}~ 0,{240 + y * 224}~")
        for k in range(int(size) + 8, 212, 18) if steel else ():
            s.line(f"{-w * 0.8},{240 + y * k} {w * 0.8},{240 + y * k}")
        if not steel:
            s.line(f"{w * 0.84},{240 + y * 60} {w * 0.7},{240 + y * 208}", two=True)
    if not steel:
        s.dots(0, range(370, 450, 22), 4, tone(s.colour, -0.6))
    s.part(oval(size + 6, 240, 10, 9, 0.4), tone(metal, -0.15))
    s.part(oval(0, 240, size, size, bend), metal)
    s.part(oval(0, 240, size * 0.84, size * 0.84, bend), face)
    marks = [(k * pi / 6, 0.66 - 0.08 * (k % 3 == 0), 0.74, 1.6 + 1.4 * (k % 3 == 0), ink) for k in range(12)]
    marks += [(5.27, 0, 0.4, 4.0, ink), (1.05, 0, 0.62, 2.8, ink), (r.uniform(2, 4), 0, 0.66, 1.0, COLOURS["Red"])]
    for a, near, far, width, colour in marks:  # twelve hours, then three hands
        u, v = sin(a) * size, -cos(a) * size
        s.line(f"{u * near},{240 + v * near} {u * far},{240 + v * far}", width, colour)
    s.dots(0, [240], 4, ink)


def scarf(s: Sketch) -> None:
    """Wound once, its two ends hanging, with or without a fringe."""
    r, fringe, wide = s.r, s.r.random() < 0.7, s.r.uniform(34, 46)
    for side in (-1, 1):
        x, to, low = side * 34, side * (34 + r.uniform(6, 22)), r.uniform(330, 440)
        for k in range(3 - int(wide), int(wide) - 1, 5) if fringe else ():
            s.line(f"{to + k},{low - 2} {to + k * 1.1},{low + 26}", 2.4, tone(s.colour, -r.uniform(0, 0.3)))
        folds = f"{x - 8},200 {to - 10},{low - 20};{x + 14},190 {to + 14},{low - 60}"
        end = f"{x - wide * 0.8},150 {x + wide * 0.8},150 {to + wide},{low} {to - wide},{low}"
        s.part(end, None, side * -0.1, folds)
    s.part("|0,34~ 64,44~ 104,110~ 70,178~ 0,206~", folds="-80,120 0,176~ 80,120;-70,90 0,150~ 76,90")
    s.part("|0,62~ 40,66~ 52,92~ 0,118~", s.dark)
    s.part("|0,122~ 40,108 62,84~ 92,96 96,120~ 60,172~ 0,190~", None, 0.25, "-70,120 0,158~ 70,120")


def socks(s: Sketch) -> None:
    """A pair, ankle or calf high, with a ribbed cuff and a heel and toe of another colour."""
    top, tip = s.r.choice((60, 130, 200)) + s.r.uniform(-16, 16), s.r.choice((s.dim, s.accent, s.colour))
    for s.at in ((26, 6, 1), (-26, 34, 1)):
        foot = "26,318~ 80,344~ 112,376~ 92,408~ 30,404~ -44,384~ -72,344~ -60,290~"
        s.part(f"-64,{top} 16,{top} 14,280 {foot}", folds="16,330 -30,350;14,310 -20,322")
        s.part("-62,322 -22,348~ -26,390 -52,380~ -72,346~", tip)
        s.part("78,342 104,360~ 112,378~ 96,405~ 66,409 62,372~", tip)
        s.part(f"-66,{top - 4} 18,{top - 4} 17,{top + 34} -64,{top + 34}", tip)
        for k in range(-58, 14, 8):
            s.line(f"{k},{top} {k},{top + 33}", 0.7)


@dataclass(frozen=True)
class Kind:
    """A type of product: how it is drawn, for whom, of what and for how much."""

    category: str
    draw: Callable[[Sketch], None]
    genders: Sequence[str]
    prices: tuple[int, int]
    stuff: Sequence[str]
    patterns: Sequence[str] = ("Plain",)
    colours: Sequence[str] = tuple(COLOURS)


ALL, GROWN, HERS = ("Men", "Women", "Boys", "Girls"), ("Men", "Women", "Unisex"), ("Women", "Girls")
ANY, LINES = ("Plain", "Plain", "Striped", "Checked", "Dotted", "Floral"), ("Plain", "Plain", "Striped", "Checked")
LEATHER = ("Black", "Brown", "Beige", "Red", "Maroon", "Navy Blue", "White", "Pink", "Olive", "Grey")
KINDS = (
    Kind("T-shirt", t_shirt, ALL, (9, 35), ("Cotton", "Jersey", "Slub"), ("Plain", "Plain", "Striped", "Dotted")),
    Kind("Shirt", shirt, ALL, (25, 79), ("Cotton", "Linen", "Poplin"), ANY),
    Kind("Dress", dress, HERS, (29, 129), ("Cotton", "Viscose", "Crepe"), ANY),
    Kind("Trousers", trousers, ALL, (29, 99), ("Twill", "Wool", "Linen"), ("Plain", "Plain", "Checked")),
    Kind("Jeans", jeans, ALL, (35, 119), ("Denim",), colours=("Blue", "Blue", "Navy Blue", "Black", "Grey", "White")),
    Kind("Shorts", shorts, ALL, (15, 55), ("Cotton", "Twill"), ANY),
    Kind("Skirt", skirt, HERS, (19, 79), ("Cotton", "Satin", "Wool"), ANY),
    Kind("Jacket", jacket, ALL, (59, 249), ("Wool", "Twill", "Nylon"), ("Plain", "Plain", "Checked")),
    Kind("Jumper", jumper, ALL, (29, 109), ("Wool", "Cotton", "Mohair"), ("Plain", "Plain", "Striped")),
    Kind("Hoodie", hoodie, (*ALL, "Unisex"), (29, 79), ("Fleece", "Cotton"), ("Plain", "Plain", "Plain", "Striped")),
    Kind("Sneakers", sneakers, ALL, (39, 139), ("Canvas", "Leather", "Mesh")),
    Kind("Heels", heels, ("Women",), (49, 159), ("Leather", "Suede", "Satin"), colours=LEATHER),
    Kind("Boots", boots, ALL, (59, 219), ("Leather", "Suede"), colours=LEATHER),
    Kind("Handbag", handbag, ("Women",), (39, 249), ("Leather", "Canvas"), ("Plain", "Plain", "Checked", "Floral")),
    Kind("Backpack", backpack, (*ALL, "Unisex"), (29, 129), ("Canvas", "Nylon"), ("Plain", "Dotted", "Checked")),
    Kind("Cap", cap, (*ALL, "Unisex"), (12, 39), ("Cotton", "Twill"), ("Plain", "Plain", "Plain", "Checked")),
    Kind("Hat", hat, GROWN, (19, 69), ("Wool", "Felt")),
    Kind("Sunglasses", sunglasses, GROWN, (19, 159), ("Acetate", "Polarised"), colours=("Black", "Brown", *COLOURS)),
    Kind("Watch", watch, GROWN, (49, 299), ("Analogue", "Quartz"), colours=LEATHER),
    Kind("Scarf", scarf, GROWN, (15, 79), ("Wool", "Cashmere"), LINES),
    Kind("Socks", socks, ALL, (5, 19), ("Cotton", "Wool"), ("Plain", "Striped", "Dotted", "Checked")),
)


def photographs(r: Random, kind: Kind, gender: str, colour: RGB, pattern: str) -> list[Image.Image]:
    """One product's photo and, for one in five, a second: from another side, or a close-up of the cloth."""
    s = Sketch(r, colour, pattern, gender in ("Boys", "Girls"))
    kind.draw(s)
    shadow = s.cover.reduce(COARSE).filter(ImageFilter.GaussianBlur(2.5)).point([v // 6 for v in range(256)])
    paper = Image.new("RGB", s.image.size, "white")
    paper.paste((90, 90, 96), (3 * FINE, 4 * FINE), shadow.resize(paper.size, Image.Resampling.BICUBIC))
    paper.paste(s.image, mask=s.cover)
    x0, y0, x1, y1 = s.cover.getbbox() or (0, 0, *paper.size)
    fit = max((x1 - x0) / paper.width, (y1 - y0) / paper.height) / r.uniform(0.86, 0.94)
    views = [(fit * r.uniform(0.97, 1.03), fit, 0.0, 0.5)]
    if r.random() < 0.2:
        side = (-fit * r.uniform(1.05, 1.2), fit * r.uniform(1.0, 1.15), r.uniform(-0.12, 0.12), 0.5)
        views.append(r.choice((side, side, (fit * 0.55, fit * 0.55, r.uniform(-0.3, 0.3), 0.35))))
    photos = []
    for w, h, turn, aim in views:  # a pixel of the sheet = the garment's middle + matrix · (pixel − photo's middle)
        a, b, d, e = w * cos(turn), w * sin(turn), -h * sin(turn), h * cos(turn)
        x, y = paper.width / 2, paper.height / 2
        matrix = (a, b, (x0 + x1) / 2 - a * x - b * y, d, e, y0 + (y1 - y0) * aim - d * x - e * y)
        view = paper.transform(paper.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor="white")
        photos.append(view.reduce(FINE))
    return photos


def write(path: Path, data: bytes) -> None:
    """Whole or not at all: a run that is cut short leaves no half file under the real name."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)


def draw(
    directory: Path, products: int = 300, seed: int = 0, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Draw a catalog of ``products`` into ``directory`` and return its ``products.csv``.

    The same seed gives the same bytes; product n does not depend on how many there are. A run that was cut short is
    mended by running it again. ``progress`` is called with (products done, products in all).
    """
    if products < 1:
        raise UsageError(f"products must be at least 1, not {products}")
    (directory / "images").mkdir(parents=True, exist_ok=True)
    order, table = Random(f"{seed}").sample(KINDS, len(KINDS)), io.StringIO(newline="")
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("id", "title", "category", "gender", "colour", "pattern", "price", "image"))
    for n in range(products):
        r, kind, id_ = Random(f"{seed}/{n}"), order[n % len(order)], f"P{n + 1:04d}"
        brand, gender, stuff = r.choice(BRANDS), r.choice(kind.genders), r.choice(kind.stuff)
        colour, pattern = r.choice(kind.colours), r.choice(kind.patterns)
        lift = r.uniform(-0.02, 0) if colour == "White" else r.uniform(-0.1, 0.08)
        owner = {"Men": "Men's", "Women": "Women's", "Boys": "Boys'", "Girls": "Girls'"}.get(gender, "")
        title = " ".join(filter(None, (brand, owner, colour, pattern.replace("Plain", ""), stuff, kind.category)))
        price = f"{r.randint(*kind.prices) + r.choice((0, 0.5, 0.95, 0.99)):.2f}"
        for shot, photo in enumerate(photographs(r, kind, gender, tone(COLOURS[colour], lift), pattern)):
            image, data = f"images/{id_}{'-2' * shot}.jpg", io.BytesIO()
            photo.save(data, "JPEG", quality=92, subsampling=0)
            write(directory / image, data.getvalue())
            rows.writerow((id_, title, kind.category, gender, colour, pattern, price, image))
        if progress:
            progress(n + 1, products)
    write(directory / "products.csv", table.getvalue().encode())
    return directory / "products.csv"
