"""Pictures of synthetic breast tissue, drawn block by block in hematoxylin and eosin.

Every texture and every nucleus depends on its place on the slide alone, so that blocks that are
drawn apart join without a seam.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom
from scipy.spatial import cKDTree

Floats = NDArray[np.float32]
_Numbers = NDArray[np.floating[Any]]

STEP = 10
"""Pixels between two samples of a map."""

PAD = 2
"""Samples of a map before and after the slide, for the rims of blocks."""

RIM = 8
"""Pixels drawn around a block and cut off, so that nuclei and blur cross its edges."""

_PERIOD = 512  # px after which a texture repeats; warping hides it
_OVER = 2  # samples of a texture to a pixel
_SPACING = 2.1  # px between places for nuclei, about 8 um
_REACH = 3  # px to which a nucleus is drawn around its centre


@dataclass(frozen=True)
class Maps:
    """Slowly varying properties of a slide.

    Each is float32 [samples of rows, samples of columns], one sample to `STEP` px with `PAD`
    samples around the slide; positive is inside and negative outside.

    Attributes:
        tissue: Tissue against glass.
        tumour: Invasive carcinoma against healthy tissue.
        fat: Fat against stroma.
        lobules: Lobules and small ducts.
        ducts: Larger ducts.
        filled: Ducts filled with cells against open ones.
        lymphocytes: Dense inflammation.
        tone: Eosin of the stroma, about -2 (pale) to 2 (strong).
        cords: Tumour in cords against tumour in nests.
        shift: Displacement of textures in rows and columns, about -2 to 2.
        flow: Displacement of fibres in rows and columns, about -2 to 2.
    """

    tissue: Floats
    tumour: Floats
    fat: Floats
    lobules: Floats
    ducts: Floats
    filled: Floats
    lymphocytes: Floats
    tone: Floats
    cords: Floats
    shift: tuple[Floats, Floats]
    flow: tuple[Floats, Floats]


@dataclass(frozen=True)
class Look:
    """What differs between patients: stain, scanner, tumour.

    Attributes:
        hematoxylin: Optical density of the stain in red, green and blue, float32 [3].
        eosin: The same of eosin.
        glass: Red, green and blue of empty glass, float32 [3], 0 to 255.
        blur: Standard deviation of the scanner's blur in px.
        haze: Hematoxylin in stroma.
        angle: Main direction of fibres in radians.
        size: Factor on the tumour's nuclei.
        darkness: Factor on the hematoxylin of the tumour's nuclei.
        crowding: Share of the tumour's area that is nests.
        tubules: Whether nests have lumina, from -1 (none) to 1.
        offset: Displacement of all textures in px.
    """

    hematoxylin: Floats
    eosin: Floats
    glass: Floats
    blur: float
    haze: float
    angle: float
    size: float
    darkness: float
    crowding: float
    tubules: float
    offset: float


def random_look(rng: np.random.Generator) -> Look:
    """Draw a patient's look."""
    return Look(
        hematoxylin=np.array([0.82, 1.02, 0.55], np.float32)
        * rng.normal(1, [0.10, 0.07, 0.12]).astype(np.float32)
        * np.float32(rng.uniform(0.82, 1.2)),
        eosin=np.array([0.12, 0.60, 0.36], np.float32)
        * rng.normal(1, [0.25, 0.07, 0.12]).clip(0.4, 1.7).astype(np.float32)
        * np.float32(rng.uniform(0.82, 1.2)),
        glass=(rng.uniform(238, 250) + rng.normal(0, 1.5, 3)).clip(0, 252).astype(np.float32),
        blur=rng.uniform(0.3, 0.5),
        haze=rng.uniform(0.02, 0.18),
        angle=rng.uniform(0, np.pi),
        size=rng.uniform(0.9, 1.25),
        darkness=rng.uniform(0.5, 1.0),
        crowding=rng.uniform(0.25, 0.65),
        tubules=rng.uniform(-1, 1),
        offset=rng.uniform(0, 10_000),
    )


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> Floats:
    """Draw a smooth random field of mean 0 and standard deviation 1, float32 of the given shape.

    Args:
        rng: Source of randomness.
        shape: Samples in rows and columns.
        scale: Standard deviation of the smoothing in samples.
    """
    # Noise wider than the field keeps the share of its variance that lies inside the field.
    margin = int(2 * scale) + 1
    wide = rng.standard_normal((shape[0] + 2 * margin, shape[1] + 2 * margin), dtype=np.float32)
    field = gaussian_filter(wide, scale, mode="wrap")
    field /= field.std()
    return field[margin:-margin, margin:-margin]


def draw(maps: Maps, look: Look, top: int, left: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Draw a block of a slide.

    Args:
        maps: The slide.
        look: The patient.
        top: Row of the block's first pixel, from 0.
        left: Column of the block's first pixel, from 0.
        size: Height and width of the block in px.

    Returns:
        Red, green and blue [height, width, 3].
    """
    rows = np.arange(top - RIM, top + size[0] + RIM, dtype=np.float32)
    columns = np.arange(left - RIM, left + size[1] + RIM, dtype=np.float32)
    hematoxylin, eosin = _stains(maps, look, rows, columns)
    hematoxylin = gaussian_filter(hematoxylin, look.blur, truncate=3)
    eosin = gaussian_filter(eosin, look.blur, truncate=3)
    inner = (slice(RIM, -RIM), slice(RIM, -RIM))
    density = (
        hematoxylin[inner][..., None] * look.hematoxylin + eosin[inner][..., None] * look.eosin
    )
    return np.asarray(look.glass * np.exp(-density) + 0.5, np.uint8)


def _stains(maps: Maps, look: Look, rows: Floats, columns: Floats) -> tuple[Floats, Floats]:
    """Amounts of hematoxylin and eosin [rows, columns], about 0 to 1.5 each."""
    textures = _textures()
    at = _Sampler(rows, columns)
    y = rows[:, None] + 5 * at(maps.shift[0]) + look.offset
    x = columns[None, :] + 5 * at(maps.shift[1]) + look.offset
    flow_y = rows[:, None] + 35 * at(maps.flow[0])
    flow_x = columns[None, :] + 35 * at(maps.flow[1])
    sine, cosine = math.sin(look.angle), math.cos(look.angle)
    across = cosine * flow_y + sine * flow_x + look.offset
    along = cosine * flow_x - sine * flow_y

    grain = _look_up(textures.grain, y, x)
    blobs = _look_up(textures.blobs, y + 100, x)
    across = across + 1.5 * blobs  # fibres are wavy
    fibres = _look_up(textures.fibres, across, along)
    bands = _look_up(textures.fibres, across / 3.5, along / 3.5)

    tissue = _inside(5 * (at(maps.tissue) + 0.12 * blobs + 0.05 * fibres))
    # The tumour invades along fibres, so its rim is ragged and its label isn't.
    tumour = _inside(3 * (at(maps.tumour) + 0.25 * blobs))
    cells = _look_up(textures.fat, y, x)
    # A vacuole belongs to fat as a whole: its wall, not the map's contour, is the rim of the fat.
    fat = _inside(3 * (at(maps.fat) + 0.35 * _look_up(textures.fat_shade, y, x) - 0.5 * tumour))
    lymphocytes = _inside(1.5 * (at(maps.lymphocytes) + 0.7 * blobs)) * (1 - fat)

    acini = _look_up(textures.glands, y, x) + 6 * np.minimum(at(maps.lobules), 0)
    ducts = 3.2 * _look_up(textures.glands, y / 3.2 + 60, x / 3.2)
    ducts += 25 * np.minimum(at(maps.ducts), 0)
    healthy = (1 - tumour) * (1 - fat)
    wall = 5 + 20 * _inside(3 * (at(maps.filled) + 0.2 * blobs))
    glands = np.maximum(_inside(acini), _inside(ducts)) * healthy
    lumina = np.maximum(_inside(acini - 4), _inside(ducts - wall)) * healthy
    cuff = np.maximum(_inside(acini + 3), _inside((ducts + 7) / 3)) * healthy

    cords = _inside(at(maps.cords))
    pattern = cords * (0.6 * bands + 0.5 * blobs) + (1 - cords) * (blobs + 0.15 * grain)
    nests = _inside(3.5 * (pattern + 1.6 * look.crowding - 0.85)) * tumour * (1 - fat)
    tubules = 1.3 * _look_up(textures.glands, y / 1.3, x / 1.3 + 200) - 5 + 3 * look.tubules
    tubule_lumina = _inside(tubules) * nests
    epithelium = np.maximum(glands, nests)
    open_space = np.maximum(lumina, tubule_lumina)

    tone = at(maps.tone)
    shade = 0.72 + 0.13 * tone - 0.05 * tumour - 0.15 * cuff * (1 - glands)
    eosin = shade + 0.12 * fibres + 0.05 * bands + 0.09 * grain
    # Fixation tears stroma along its fibres.
    tears = (
        _inside(4 * (-0.8 * bands - 1.9 - 0.6 * fibres - 0.3 * tone))
        * (1 - epithelium)
        * (1 - 0.7 * tumour)
    )
    eosin = eosin * (1 - 0.85 * tears) * (1 - 0.35 * epithelium)
    hematoxylin = look.haze * (1 + 0.3 * fibres - 0.6 * tone)
    hematoxylin = hematoxylin + 0.17 * epithelium + 0.08 * lymphocytes + 0.03 * grain
    walls = np.exp(-1.5 * cells)
    eosin = eosin * (1 - fat) + fat * (0.02 + 0.65 * walls)
    hematoxylin = hematoxylin * (1 - tears) * (1 - fat) + fat * 0.12 * walls
    kept = tissue * (1 - 0.93 * open_space)

    nuclei = _nuclei(
        rows,
        columns,
        across,
        look,
        _Tissue(
            tissue * (1 - open_space) * (1 - fat * (1 - 0.12 * walls)) * (1 - tears),
            nests,
            glands,
            lymphocytes,
            tumour,
        ),
    )
    return np.maximum(hematoxylin, 0) * kept + nuclei, np.maximum(eosin, 0) * kept


@dataclass(frozen=True)
class _Tissue:
    """Kinds of tissue at pixels, each float32 [rows, columns] from 0 to 1."""

    room: Floats
    nests: Floats
    glands: Floats
    lymphocytes: Floats
    tumour: Floats

    def at(self, y: NDArray[np.int64], x: NDArray[np.int64]) -> "_Tissue":
        """The kinds at some pixels."""
        return _Tissue(
            self.room[y, x],
            self.nests[y, x],
            self.glands[y, x],
            self.lymphocytes[y, x],
            self.tumour[y, x],
        )


def _nuclei(rows: Floats, columns: Floats, across: _Numbers, look: Look, tissue: _Tissue) -> Floats:
    """Hematoxylin of the nuclei [rows, columns].

    Places for nuclei are the points of a jittered grid; the tissue at a place decides whether it
    holds a nucleus and of which kind.
    """
    height, width = len(rows), len(columns)
    chance = _chances()
    line = np.arange(int(rows[0] // _SPACING), int(rows[-1] // _SPACING) + 1)
    row = np.arange(int(columns[0] // _SPACING), int(columns[-1] // _SPACING) + 1)
    draws = chance[np.ix_(line % len(chance), row % len(chance))].reshape(-1, 6)
    y = np.repeat(line, len(row)) * _SPACING + _SPACING * draws[:, 0] - rows[0]
    x = np.tile(row, len(line)) * _SPACING + _SPACING * draws[:, 1] - columns[0]
    inside = (y >= 0) & (y <= height - 2) & (x >= 0) & (x <= width - 2)
    y, x, draws = y[inside], x[inside], draws[inside]
    iy, ix = y.astype(np.int64), x.astype(np.int64)
    here = tissue.at(iy, ix)
    epithelium = np.maximum(here.nests, here.glands)
    density = 0.045 + 0.06 * here.tumour
    density = np.maximum(density, 0.62 * here.lymphocytes * (1 - epithelium))
    density = np.maximum(density, 0.78 * here.glands)
    density = np.maximum(density, 0.70 * here.nests) * here.room
    kept = draws[:, 2] < density
    y, x, iy, ix, draws = y[kept], x[kept], iy[kept], ix[kept], draws[kept]
    here = tissue.at(iy, ix)

    malignant, benign = here.nests > 0.5, here.glands > 0.5
    lymphocyte = ~malignant & ~benign & (0.8 * draws[:, 5] < here.lymphocytes)
    spindle = ~malignant & ~benign & ~lymphocyte
    kinds = [malignant, benign, lymphocyte, spindle]
    spread = draws[:, 3]
    radius = np.select(
        kinds, [look.size * (0.72 + 0.6 * spread**2), 0.8 + 0.1 * spread, 0.72, 0.55]
    )
    stretch = np.select(kinds, [1.0 + 0.7 * draws[:, 5], 1.2, 1.0, 1.9 + spread])
    dark = np.select(
        kinds,
        [look.darkness * (0.7 + 0.6 * draws[:, 4]), 0.85 + 0.3 * draws[:, 4], 1.2, 0.85],
    )
    down = across[iy + 1, ix] - across[iy, ix]
    right = across[iy, ix + 1] - across[iy, ix]
    angle = np.where(spindle, np.arctan2(down, right) + np.pi / 2, 2 * np.pi * draws[:, 4])

    reach = np.arange(-_REACH, _REACH + 1)
    dy = (iy - y)[:, None, None] + reach[:, None]
    dx = (ix - x)[:, None, None] + reach[None, :]
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    long = (cosine * dx + sine * dy) / (radius * stretch)[:, None, None]
    short = (cosine * dy - sine * dx) / radius[:, None, None]
    square = long * long + short * short
    amount = dark[:, None, None] * np.exp(-square * (0.5 + 0.5 * square))
    wide = width + 2 * _REACH
    place = (iy[:, None, None] + reach[:, None] + _REACH) * wide
    place = place + ix[:, None, None] + reach[None, :] + _REACH
    pixels = (height + 2 * _REACH) * wide
    total = np.bincount(place.ravel(), amount.ravel(), pixels).astype(np.float64)
    inner = total.reshape(-1, wide)[_REACH:-_REACH, _REACH:-_REACH]
    # Overlapping nuclei don't darken without end.
    return np.asarray(1.25 * np.tanh(inner / 1.25), np.float32)


class _Sampler:
    """Bilinear interpolation of maps at the pixels of a block."""

    def __init__(self, rows: Floats, columns: Floats) -> None:
        self._y, self._fy = self._split(rows)
        self._x, self._fx = self._split(columns)

    @staticmethod
    def _split(positions: Floats) -> tuple[NDArray[np.int64], Floats]:
        samples = positions / STEP + PAD
        whole = np.floor(samples).astype(np.int64)
        return whole, (samples - whole).astype(np.float32)

    def __call__(self, field: Floats) -> Floats:
        """Values of a map at the pixels, float32 [rows, columns]."""
        part = field[:, self._x]
        part = part + self._fx * (field[:, self._x + 1] - part)
        top = part[self._y]
        return np.asarray(top + self._fy[:, None] * (part[self._y + 1] - top))


def _inside(value: _Numbers) -> Floats:
    """A soft step from 0 to 1 as a value passes from -0.5 to 0.5."""
    return np.asarray(np.clip(value + 0.5, 0, 1), np.float32)


def _look_up(texture: Floats, y: _Numbers, x: _Numbers) -> Floats:
    """Values of a repeating texture at positions in px."""
    size = _PERIOD * _OVER
    row = (y * _OVER).astype(np.int32) & (size - 1)
    column = (x * _OVER).astype(np.int32) & (size - 1)
    values: Floats = texture.ravel().take(row * size + column)
    return values


@dataclass(frozen=True)
class _Textures:
    """Repeating textures, each float32 [1024, 1024], two samples to a pixel.

    Attributes:
        fibres: Streaks along columns, mean 0, standard deviation 1.
        grain: Fine noise, mean 0, standard deviation 1.
        blobs: Noise of the size of small nests, mean 0, standard deviation 1.
        fat: Distance from the wall between two vacuoles in px.
        fat_shade: A random number of each vacuole, -1 to 1.
        glands: Depth inside a gland in px, negative outside.
    """

    fibres: Floats
    grain: Floats
    blobs: Floats
    fat: Floats
    fat_shade: Floats
    glands: Floats


@cache
def _textures() -> _Textures:
    # The same for all data sets: patients differ in the way the textures are warped and used.
    rng = np.random.default_rng(0)
    size = _PERIOD * _OVER

    def noise(*scales: tuple[float, float]) -> Floats:
        """Sum of noises; a scale holds the px of smoothing in rows and columns."""
        total = np.zeros((size, size), np.float32)
        for scale in scales:
            white = rng.standard_normal((size, size), dtype=np.float32)
            field = gaussian_filter(white, np.multiply(scale, _OVER), mode="wrap")
            total += field / field.std()
        return np.asarray(total / total.std())

    vacuoles = _scattered(rng, 14)
    distance, nearest = _neighbours(vacuoles, 3)
    # The third vacuole rounds the corners where walls meet.
    second, third = (distance[:, 1:] - distance[:, :1]).T / 2
    fat = second * third / (second + third + 1e-6) * 1.6
    shade = rng.uniform(-1, 1, len(vacuoles))[nearest[:, 0]]
    centres = _scattered(rng, 18)
    distance, nearest = _neighbours(centres, 1)
    glands = rng.uniform(3.5, 8.5, len(centres))[nearest[:, 0]] - distance[:, 0]
    # Glands aren't round.
    glands += 8 * gaussian_filter(rng.standard_normal((_PERIOD, _PERIOD)), 3, mode="wrap").ravel()

    def enlarged(values: NDArray[np.float64], order: Literal[0, 1]) -> Floats:
        square = values.reshape(_PERIOD, _PERIOD).astype(np.float32)
        return np.asarray(zoom(square, _OVER, order=order, mode="grid-wrap", grid_mode=True))

    return _Textures(
        fibres=noise((0.6, 4), (0.8, 9), (2, 14)),
        grain=noise((0.6, 0.6), (1.5, 1.5)),
        blobs=noise((3, 3), (5, 5), (9, 9)),
        fat=enlarged(fat, 1),
        fat_shade=enlarged(shade, 0),
        glands=enlarged(glands, 1),
    )


def _scattered(rng: np.random.Generator, spacing: float) -> NDArray[np.float64]:
    """Points [n, 2] in a period of the textures, about one to a square of the spacing (px)."""
    count = round(_PERIOD / spacing)
    grid = np.indices((count, count)).reshape(2, -1).T
    return np.asarray((grid + rng.uniform(0.05, 0.95, grid.shape)) * (_PERIOD / count))


def _neighbours(
    points: NDArray[np.float64], count: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The points nearest to each pixel of a period: distances in px and indices [pixels, count]."""
    grid = np.indices((_PERIOD, _PERIOD)).reshape(2, -1).T + 0.5
    tree = cKDTree(points, boxsize=np.full(2, float(_PERIOD)))
    distance, nearest = tree.query(grid, list(range(1, count + 1)))
    return np.asarray(distance, np.float64), np.asarray(nearest, np.int64)


@cache
def _chances() -> Floats:
    """Random numbers [257, 257, 6] from 0 to 1 for places of nuclei, repeating over the slide."""
    return np.random.default_rng(1).random((257, 257, 6), dtype=np.float32)
