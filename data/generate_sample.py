"""Draw the synthetic sample dataset beside this script: `python data/generate_sample.py [--output data/sample]`.

Everything in it is invented: the pictures imitate dermoscopy with noise fields and simple geometry, and the table is
drawn from made-up frequencies. The same bytes come out on every machine, because

- random numbers come only from `integers` and `random` of NumPy's PCG64 generator, whose streams are stable;
- arrays are combined only with operations that IEEE 754 rounds in one way (+ - * / sqrt, comparisons), element by
  element: sin, exp, pow and sums over an axis differ in the last bit from one processor to the next;
- Pillow only encodes finished 8-bit pictures.

Lengths are in pixels of an image seen at zoom 1, colours are RGB from 0 to 1. A picture is an array of shape
(3, HEIGHT, WIDTH), a field one of shape (HEIGHT, WIDTH).
"""

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

SEED = 20180814
WIDTH, HEIGHT = 128, 96
# Each lesion is a blend of its diagnosis with a random second one, whose weight is uniform between 0 and this. 0: every
# lesion is a textbook case; 1: half of the lesions look more like the other diagnosis than like their own.
DIFFICULTY = 0.68
VISIBLE = 0.04  # cues weaker than this are not drawn: nobody would see them, and most lesions have many of them
CELLS = 32  # side of the grids that noise is made from; a power of 2: `& (CELLS - 1)` wraps around

# HAM10000's order of frequency, with its imbalance softened so that every diagnosis reaches every split.
LESIONS_PER_DIAGNOSIS = {"akiec": 34, "bcc": 48, "bkl": 64, "df": 24, "mel": 72, "nv": 132, "vasc": 26}
LESIONS_PER_VIEW_COUNT = {1: 250, 2: 110, 3: 30, 4: 10}  # 400 lesions, 600 images

# fmt: off
# Every cue is a range from which a lesion draws one value: the radius in pixels, the others strengths from 0 (absent)
# to 1 (striking). `softness` is the width of the border as a fraction of the radius, `asymmetry` the size and distance
# of a second lobe. A diagnosis lists what differs from these.
COMMON_LOOKS = {
    "radius": (22, 35), "elongation": (0.0, 0.25), "asymmetry": (0.0, 0.3), "irregularity": (0.05, 0.25),
    "softness": (0.1, 0.25), "opacity": (0.6, 0.9), "mottling": (0.1, 0.4), "dark_patches": (0.0, 0.15),
    "network": (0.0, 0.1), "network_disorder": (0.1, 0.3), "globules": (0.0, 0.2), "veil": (0.0, 0.05),
    "nests": (0.0, 0.03), "vessels": (0.0, 0.08), "strawberry": (0.0, 0.08), "scale": (0.0, 0.08),
    "milia": (0.0, 0.1), "white_centre": (0.0, 0.06), "ring": (0.0, 0.1), "lagoons": (0.0, 0.03),
}
LOOKS = {
    "akiec": {
        "body": ((0.83, 0.55, 0.47), (0.68, 0.46, 0.36)), "irregularity": (0.2, 0.5), "softness": (0.25, 0.5),
        "opacity": (0.45, 0.75), "mottling": (0.3, 0.7), "strawberry": (0.4, 1.0), "scale": (0.3, 0.9),
        "vessels": (0.0, 0.25), "asymmetry": (0.1, 0.6),
    },
    "bcc": {
        "body": ((0.88, 0.64, 0.60), (0.78, 0.52, 0.46)), "irregularity": (0.1, 0.4), "opacity": (0.5, 0.8),
        "vessels": (0.5, 1.0), "nests": (0.2, 1.0), "white_centre": (0.0, 0.3), "asymmetry": (0.1, 0.7),
        "scale": (0.0, 0.25),
    },
    "bkl": {
        "body": ((0.74, 0.55, 0.42), (0.52, 0.38, 0.30)), "softness": (0.04, 0.12), "irregularity": (0.1, 0.35),
        "opacity": (0.7, 0.95), "mottling": (0.2, 0.6), "milia": (0.4, 1.0), "scale": (0.0, 0.3),
        "globules": (0.0, 0.5), "network": (0.0, 0.3), "elongation": (0.05, 0.4),
    },
    "df": {
        "body": ((0.80, 0.60, 0.49), (0.66, 0.46, 0.36)), "radius": (20, 30), "softness": (0.3, 0.5),
        "opacity": (0.4, 0.7), "white_centre": (0.5, 1.0), "ring": (0.4, 1.0), "network": (0.1, 0.5),
        "asymmetry": (0.0, 0.15),
    },
    "mel": {
        "body": ((0.50, 0.33, 0.24), (0.36, 0.24, 0.19)), "radius": (26, 40), "irregularity": (0.3, 0.75),
        "asymmetry": (0.3, 1.0), "opacity": (0.7, 0.95), "mottling": (0.4, 1.0), "dark_patches": (0.3, 1.0),
        "network": (0.1, 0.8), "network_disorder": (0.5, 1.0), "globules": (0.0, 0.7), "veil": (0.1, 1.0),
        "white_centre": (0.0, 0.2),
    },
    "nv": {
        "body": ((0.66, 0.46, 0.33), (0.44, 0.29, 0.20)), "irregularity": (0.03, 0.25), "softness": (0.15, 0.4),
        "network": (0.2, 1.0), "network_disorder": (0.0, 0.35), "globules": (0.0, 0.6), "dark_patches": (0.0, 0.3),
        "asymmetry": (0.0, 0.25),
    },
    "vasc": {
        "body": ((0.80, 0.42, 0.40), (0.60, 0.28, 0.34)), "radius": (18, 30), "softness": (0.06, 0.2),
        "lagoons": (0.5, 1.0), "veil": (0.0, 0.15), "irregularity": (0.05, 0.3),
    },
}
REFERENCE_SKIN = np.array([0.88, 0.70, 0.60])  # the skin on which the body colours above were chosen
FAIR_SKIN, DARK_SKIN = np.array([0.93, 0.77, 0.70]), np.array([0.66, 0.47, 0.36])
BLACK_BROWN, MESH_BROWN = np.array([0.17, 0.11, 0.10]), np.array([0.30, 0.17, 0.11])
BLUE_WHITE, BLUE_GREY = np.array([0.60, 0.64, 0.72]), np.array([0.36, 0.38, 0.47])
VESSEL_RED, FLUSH_RED = np.array([0.72, 0.20, 0.20]), np.array([0.80, 0.38, 0.34])
FOLLICLE, FLAKE = np.array([0.93, 0.80, 0.68]), np.array([0.95, 0.90, 0.80])
SCAR_WHITE = np.array([0.95, 0.87, 0.83])
LAGOON_RED, LAGOON_PURPLE = np.array([0.62, 0.10, 0.13]), np.array([0.33, 0.10, 0.24])

# What the table says of each diagnosis: weights, roughly HAM10000's own proportions.
DX_TYPES = {
    "akiec": {"histo": 100}, "bcc": {"histo": 100}, "bkl": {"histo": 70, "consensus": 22, "confocal": 8},
    "df": {"histo": 30, "consensus": 70}, "mel": {"histo": 100}, "nv": {"follow_up": 54, "histo": 36, "consensus": 10},
    "vasc": {"histo": 20, "consensus": 80},
}
MEAN_AGE = {"akiec": 67, "bcc": 67, "bkl": 64, "df": 52, "mel": 61, "nv": 45, "vasc": 51}  # years
SEXES = {"male": 53, "female": 45, "unknown": 2}
LOCALIZATIONS = {
    "akiec": {"face": 34, "upper extremity": 18, "lower extremity": 16, "back": 10, "hand": 8, "scalp": 8, "neck": 6},
    "bcc": {"back": 28, "face": 26, "chest": 10, "trunk": 10, "upper extremity": 9, "neck": 9, "ear": 4, "unknown": 4},
    "bkl": {"back": 24, "face": 22, "trunk": 14, "abdomen": 11, "chest": 10, "upper extremity": 10, "scalp": 4,
            "genital": 2, "unknown": 3},
    "df": {"lower extremity": 62, "upper extremity": 22, "trunk": 10, "unknown": 6},
    "mel": {"back": 30, "upper extremity": 18, "lower extremity": 16, "face": 12, "chest": 9, "abdomen": 8,
            "trunk": 4, "foot": 2, "unknown": 1},
    "nv": {"trunk": 20, "back": 20, "lower extremity": 20, "abdomen": 14, "upper extremity": 11, "foot": 4,
           "chest": 5, "acral": 2, "unknown": 4},
    "vasc": {"trunk": 24, "back": 18, "abdomen": 16, "lower extremity": 16, "chest": 10, "face": 9,
             "upper extremity": 7},
}
BENIGN_SOURCES = {"vidir_molemax": 45, "vidir_modern": 30, "rosendahl": 20, "vienna_dias": 5}
MALIGNANT_SOURCES = {"rosendahl": 55, "vidir_modern": 30, "vienna_dias": 15}
# fmt: on


@dataclass(frozen=True)
class Lesion:
    """One lesion: its row in the table, and all that stays the same when it is photographed again.

    Attributes:
        row: of the table, but for the image id.
        cues: the value that it has of each of `COMMON_LOOKS`.
        body: colour of the lesion.
        skin: colour around it.
        noise: values from 0 to 1, shape (9, CELLS, CELLS).
        points: offset in x, offset in y and rank of each cell's point, shape (3, CELLS, CELLS).
        vessels: segments (x0, y0, x1, y1, half width).
        lobe: unit vector from the centre to the second lobe.
        hairy: whether hairs cross its photographs.
    """

    row: dict[str, str]
    cues: dict[str, float]
    body: np.ndarray
    skin: np.ndarray
    noise: np.ndarray
    points: np.ndarray
    vessels: list[tuple]
    lobe: tuple[float, float]
    hairy: bool


def generator(*key):
    """The random generator of a key of small integers, independent of every other key's."""
    return np.random.Generator(np.random.PCG64([SEED, *key]))


def between(rng, low, high):
    """A uniform number from low to high."""
    return low + (high - low) * rng.random()


def pick(rng, weights) -> str:
    """One of the keys of `weights`, whose values are whole numbers."""
    ticket = int(rng.integers(sum(weights.values())))
    for key, weight in weights.items():
        ticket -= weight
        if ticket < 0:
            return key
    raise ValueError("weights must be positive")


def shuffled(rng, items):
    """The items in random order, by a sort: `rng.shuffle` may change between NumPy versions."""
    keys = rng.random(len(items))
    return [items[i] for i in sorted(range(len(items)), key=lambda i: keys[i])]


def rotation(t):
    """Cosine and sine of the angle whose half has the tangent t."""
    return (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)


def direction(rng):
    """A random unit vector."""
    cosine, sine = rotation(between(rng, -1.0, 1.0))
    return (cosine, sine) if rng.random() < 0.5 else (-cosine, sine)


def turned(vector, t):
    """A unit vector, turned by the angle whose half has the tangent t."""
    cosine, sine = rotation(t)
    return vector[0] * cosine - vector[1] * sine, vector[0] * sine + vector[1] * cosine


def smoothstep(low, high, values):
    """0 below low, 1 above high, and a smooth S in between."""
    t = np.clip((values - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def mix(picture, colour, amount):
    """Paint a colour, shape (3,) or that of a picture, over a picture, opaque where the field `amount` is 1."""
    if colour.ndim == 1:
        colour = colour[:, None, None]
    return picture + (colour - picture) * amount


def grid_position(x, y, spacing):
    """The cell of each place, as column and row, and where in it the place lies, from 0 to 1."""
    x, y = x / spacing, y / spacing
    left, top = np.floor(x), np.floor(y)
    return left.astype(np.int64), top.astype(np.int64), x - left, y - top


def smooth_noise(grid, x, y, spacing):
    """Noise from 0 to 1 at (x, y): the grid's values, `spacing` pixels apart, smoothly interpolated."""
    column, row, x, y = grid_position(x, y, spacing)
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    left, right = column & (CELLS - 1), (column + 1) & (CELLS - 1)
    top, bottom = (row & (CELLS - 1)) * CELLS, ((row + 1) & (CELLS - 1)) * CELLS
    upper_left, lower_left = grid.take(top + left), grid.take(bottom + left)
    upper = upper_left + (grid.take(top + right) - upper_left) * x
    lower = lower_left + (grid.take(bottom + right) - lower_left) * x
    return upper + (lower - upper) * y


def rough_noise(grid, x, y, spacing):
    """Noise from 0 to 1 with detail at `spacing` and at less than half of it."""
    fine = smooth_noise(grid, y + 7.3, x + 3.1, spacing * 0.43)
    return 0.65 * smooth_noise(grid, x, y, spacing) + 0.35 * fine


def cells(points, x, y, spacing):
    """Divide the plane into cells about scattered points, one to each square of `spacing` pixels.

    Returns:
        The distance to the nearest point and to the second nearest, in spacings (their difference is 0 on the wall
        between two cells), and the nearest point's rank, from 0 to 1.
    """
    column, row, x, y = grid_position(x, y, spacing)
    nearest, second, owner = np.full(x.shape, 9.0), np.full(x.shape, 9.0), np.zeros(x.shape, np.int64)
    columns = {right: (column + right) & (CELLS - 1) for right in (-1, 0, 1)}
    for down in (-1, 0, 1):
        row_start = ((row + down) & (CELLS - 1)) * CELLS
        for right in (-1, 0, 1):
            index = row_start + columns[right]
            dx = right + points[0].take(index) - x
            dy = down + points[1].take(index) - y
            distance = dx * dx + dy * dy
            owner = np.where(distance < nearest, index, owner)
            second = np.minimum(second, np.maximum(nearest, distance))
            nearest = np.minimum(nearest, distance)
    return np.sqrt(nearest), np.sqrt(second), points[2].take(owner)


def strokes(segments):
    """How much of each pixel is covered by line segments (x0, y0, x1, y1, half width)."""
    cover = np.zeros((HEIGHT, WIDTH))
    for x0, y0, x1, y1, half_width in segments:
        # Only the pixels around a segment can be covered by it.
        left, right = max(int(min(x0, x1)) - 3, 0), max(int(max(x0, x1)) + 4, 0)
        top, bottom = max(int(min(y0, y1)) - 3, 0), max(int(max(y0, y1)) + 4, 0)
        near = cover[top:bottom, left:right]
        x = np.arange(left, left + near.shape[1]) + 0.5 - x0
        y = (np.arange(top, top + near.shape[0]) + 0.5 - y0)[:, None]
        along_x, along_y = x1 - x0, y1 - y0
        t = np.clip((x * along_x + y * along_y) / (along_x * along_x + along_y * along_y), 0.0, 1.0)
        dx, dy = x - t * along_x, y - t * along_y
        # A line thinner than a pixel is drawn a pixel wide and fainter, or it would break into dots.
        covered = np.clip(half_width + 0.6 - np.sqrt(dx * dx + dy * dy), 0.0, min(1.0, 2 * half_width))
        near[...] = np.maximum(near, covered)
    return cover


def draw_looks(rng, diagnosis):
    """A value of every cue, and a body colour: the diagnosis blended with a second one."""
    mimic = pick(rng, {other: 1 for other in LOOKS if other != diagnosis})
    weight = DIFFICULTY * rng.random()

    def blend(own, borrowed):
        own, borrowed = between(rng, *own), between(rng, *borrowed)
        return own + (borrowed - own) * weight

    cues = {
        cue: blend(LOOKS[diagnosis].get(cue, common), LOOKS[mimic].get(cue, common))
        for cue, common in COMMON_LOOKS.items()
    }
    return cues, blend(np.array(LOOKS[diagnosis]["body"]), np.array(LOOKS[mimic]["body"]))


def grow_vessels(rng, radius):
    """The segments of a few branching vessels that run inwards from the border."""
    segments = []
    for _ in range(int(rng.integers(2, 5))):
        outwards = direction(rng)
        heading = turned((-outwards[0], -outwards[1]), between(rng, -0.3, 0.3))
        start = (outwards[0] * radius * 0.95, outwards[1] * radius * 0.95)
        branches = [(start, heading, between(rng, 0.35, 0.65), 8)]
        while branches:
            (x, y), heading, half_width, steps = branches.pop()
            for step in range(steps):
                heading = turned(heading, between(rng, -0.25, 0.25))
                length = radius * between(rng, 0.1, 0.17)
                end = (x + heading[0] * length, y + heading[1] * length)
                segments.append((x, y, *end, half_width))
                x, y = end
                half_width *= 0.93
                if steps > 4 and step % 2 == 1:
                    side = 0.35 if rng.random() < 0.5 else -0.35
                    branches.append((end, turned(heading, side), half_width * 0.75, 3))
    return segments


def draw_age(rng, diagnosis):
    """An age as HAM10000 writes it (a multiple of 5 years, such as 45.0), empty for a few lesions."""
    spread = rng.random() + rng.random() - 1.0  # near 0 more often than near -1 or 1
    years = min(max(int((MEAN_AGE[diagnosis] + 38 * spread) / 5 + 0.5) * 5, 5), 85)
    return "" if rng.random() < 0.03 else f"{years}.0"


def draw_lesion(number, diagnosis):
    """Lesion `number`, from 1, a case of the diagnosis."""
    rng = generator(1, number)
    cues, body = draw_looks(rng, diagnosis)
    darkness = rng.random()
    skin = FAIR_SKIN + (DARK_SKIN - FAIR_SKIN) * darkness * darkness
    row = {
        "lesion_id": f"SYN_L{number:05d}",
        "dx": diagnosis,
        "dx_type": pick(rng, DX_TYPES[diagnosis]),
        "age": draw_age(rng, diagnosis),
        "sex": pick(rng, SEXES),
        "localization": pick(rng, LOCALIZATIONS[diagnosis]),
        "dataset": pick(rng, MALIGNANT_SOURCES if diagnosis in ("akiec", "bcc", "mel") else BENIGN_SOURCES),
    }
    return Lesion(
        row=row,
        cues=cues,
        body=body * skin / REFERENCE_SKIN,
        skin=skin,
        noise=rng.integers(0, 256, (9, CELLS, CELLS)) / 255.0,
        points=rng.integers(0, 256, (3, CELLS, CELLS)) / 255.0,
        vessels=grow_vessels(rng, cues["radius"]),
        lobe=direction(rng),
        hairy=rng.random() < 0.35,
    )


def distance_from_centre(lesion, x, y):
    """Each pixel's distance from the lesion's centre, 1 on its border."""
    cues = lesion.cues
    x_axis = cues["radius"] * (1 + 0.5 * cues["elongation"])
    y_axis = cues["radius"] * (1 - 0.5 * cues["elongation"])
    r = np.sqrt((x / x_axis) * (x / x_axis) + (y / y_axis) * (y / y_axis))
    lobe_x, lobe_y = (part * cues["radius"] * 0.75 * cues["asymmetry"] for part in lesion.lobe)
    lobe_radius = cues["radius"] * (0.6 + 0.2 * cues["asymmetry"])
    dx, dy = (x - lobe_x) / lobe_radius, (y - lobe_y) / lobe_radius
    r = np.minimum(r, np.sqrt(dx * dx + dy * dy))
    # Noise that depends on the direction alone makes lobes and notches; noise in the plane makes the border fray.
    length = np.sqrt(x * x + y * y) + 1e-6
    lobes = smooth_noise(lesion.noise[0], x / length + 9, y / length + 9, 0.45) - 0.5
    fray = rough_noise(lesion.noise[1], x, y, 9.0) - 0.5
    return r + cues["irregularity"] * (0.8 * lobes * np.minimum(r, 1.0) + 0.75 * fray)


def paint_pigment(picture, lesion, x, y, r, inside, core):
    """Paint the lesion's own colour and what melanin adds to it: patches, rim, mesh, globules, nests and veil."""
    cues, noise = lesion.cues, lesion.noise
    picture = mix(picture, lesion.body, inside * cues["opacity"])
    picture = picture * (1 + inside * cues["mottling"] * 0.7 * (rough_noise(noise[2], x, y, 13.0) - 0.5))
    rim = smoothstep(0.55, 0.85, r) * (1 - smoothstep(0.9, 1.2, r))
    picture = mix(picture, lesion.body * 0.72, rim * cues["ring"] * 0.7)
    if cues["dark_patches"] > VISIBLE:
        dark = smoothstep(0.48, 0.66, rough_noise(noise[3], x, y, 16.0))
        picture = mix(picture, BLACK_BROWN, inside * dark * cues["dark_patches"] * 0.85)
    if max(cues["network"], cues["globules"]) > VISIBLE:
        disorder = cues["network_disorder"]
        warp_x = x + disorder * 8 * (smooth_noise(noise[4], x, y, 8.0) - 0.5)
        warp_y = y + disorder * 8 * (smooth_noise(noise[5], x, y, 8.0) - 0.5)
        near, second, rank = cells(lesion.points * 0.7 + 0.15, warp_x, warp_y, 4.6 + 2.0 * disorder)
        mesh = 1 - smoothstep(0.05, 0.4 + 0.15 * disorder, second - near)
        mesh = mesh * (1 - disorder * smoothstep(0.35, 0.6, smooth_noise(noise[6], x, y, 11.0)))
        # In a dermatofibroma the mesh is left only around the scar.
        mesh = mesh * (1 - cues["white_centre"] * core)
        fading = inside * (1 - 0.6 * smoothstep(0.5, 1.0, r))
        picture = mix(picture, MESH_BROWN, fading * mesh * cues["network"] * 0.62)
        globule = (1 - smoothstep(0.18, 0.42, near)) * (rank < 0.4)
        picture = mix(picture, MESH_BROWN, inside * globule * cues["globules"] * 0.8)
    if cues["nests"] > VISIBLE:
        warp = 7 * (smooth_noise(noise[4], x, y, 9.0) - 0.5)
        near, _, rank = cells(lesion.points, x + 40 + warp, y + 40 - warp, 11.0)
        nest = (1 - smoothstep(0.25, 0.55, near)) * (rank < 0.45)
        picture = mix(picture, BLUE_GREY, inside * nest * cues["nests"] * 0.8)
    if cues["veil"] > VISIBLE:
        veil = smoothstep(0.48, 0.7, rough_noise(noise[7], x, y, 21.0)) * (1 - smoothstep(0.6, 0.95, r))
        picture = mix(picture, BLUE_WHITE, veil * cues["veil"] * 0.75)
    return picture


def paint_surface(picture, lesion, x, y, r, inside, core):
    """Paint what blood, keratin and scars add to a lesion: lagoons, strawberry, milia, scar and flakes."""
    cues, noise = lesion.cues, lesion.noise
    if cues["lagoons"] > VISIBLE:
        warp = 7 * (smooth_noise(noise[4], x, y, 9.0) - 0.5)
        near, _, rank = cells(lesion.points, x + 40 + warp, y + 40 - warp, 10.0)
        lake = 1 - smoothstep(-0.18, 0.18, near - 0.35 - 0.25 * rank)
        colour = LAGOON_RED[:, None, None] + (LAGOON_PURPLE - LAGOON_RED)[:, None, None] * smoothstep(0.2, 0.9, rank)
        picture = mix(picture, colour, lake * smoothstep(0.0, 0.25, 1.05 - r) * cues["lagoons"] * 0.85)
    if max(cues["strawberry"], cues["milia"]) > VISIBLE:
        near, _, rank = cells(lesion.points, x + 80, y + 20, 6.5)
        picture = mix(picture, FLUSH_RED, inside * smoothstep(0.25, 0.6, near) * cues["strawberry"] * 0.55)
        picture = mix(picture, FOLLICLE, inside * (1 - smoothstep(0.15, 0.36, near)) * cues["strawberry"] * 0.6)
        milium = (1 - smoothstep(0.16, 0.3, near)) * (rank > 0.62)
        picture = mix(picture, FLAKE, inside * milium * cues["milia"] * 0.8)
    scar = core * (0.4 + 0.9 * rough_noise(noise[6], y, x, 9.0))
    picture = mix(picture, SCAR_WHITE, scar * cues["white_centre"] * 0.85)
    if cues["scale"] > VISIBLE:
        flake = smoothstep(0.54, 0.72, rough_noise(noise[8], x, y, 5.0))
        flake = flake * smoothstep(0.35, 0.6, smooth_noise(noise[1], y, x, 15.0))
        picture = mix(picture, FLAKE, inside * flake * cues["scale"] * 0.75)
    return picture


def paint_lesion(picture, lesion, x, y, vessels):
    """Paint a lesion over skin: (x, y) are the pixels' places as seen from its centre, `vessels` their cover."""
    r = distance_from_centre(lesion, x, y)
    softness = lesion.cues["softness"]
    inside = 1 - smoothstep(1 - softness, 1 + softness, r)
    core = 1 - smoothstep(0.15, 0.75, r + 0.5 * (smooth_noise(lesion.noise[5], x, y, 9.0) - 0.5))
    picture = paint_pigment(picture, lesion, x, y, r, inside, core)
    picture = mix(picture, VESSEL_RED, vessels * np.minimum(inside * 2, 1) * lesion.cues["vessels"] * 0.85)
    return paint_surface(picture, lesion, x, y, r, inside, core)


def draw_hairs(rng):
    """The segments of a few bent hairs that cross the image."""
    segments = []
    for _ in range(int(rng.integers(2, 8))):
        x, y = between(rng, -10, WIDTH + 10), between(rng, -10, HEIGHT + 10)
        heading, bend, half_width = direction(rng), between(rng, -0.08, 0.08), between(rng, 0.3, 0.65)
        for _ in range(int(rng.integers(4, 10))):
            end = (x + heading[0] * 10, y + heading[1] * 10)
            segments.append((x, y, *end, half_width))
            (x, y), heading = end, turned(heading, bend)
    return segments


def draw_ruler(rng):
    """The segments of a scale's marks along the lower or the upper edge."""
    edge, inwards = (HEIGHT, -1) if rng.random() < 0.5 else (0, 1)
    pitch, start = between(rng, 7, 10), between(rng, 0, 8)
    return [(start + i * pitch, edge, start + i * pitch, edge + inwards * (6 if i % 5 else 11), 0.5) for i in range(20)]


def add_bubbles(picture, rng, x, y):
    """Paint air bubbles in the contact gel: bright rims with a glint."""
    for _ in range(int(rng.integers(1, 6))):
        centre_x, centre_y, radius = between(rng, 0, WIDTH), between(rng, 0, HEIGHT), between(rng, 1.5, 6)
        dx, dy = x - centre_x, y - centre_y
        rim = np.clip(1.2 - np.abs(np.sqrt(dx * dx + dy * dy) - radius), 0.0, 1.0)
        glint = np.clip(1.3 - np.abs(dx + 0.4 * radius) - np.abs(dy + 0.4 * radius), 0.0, 1.0)
        picture = mix(picture, np.ones(3), 0.35 * rim + 0.5 * glint)
    return picture


def photograph(lesion, rng):
    """One photograph of a lesion, from a new side and in a new light: uint8, shape (HEIGHT, WIDTH, 3)."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    x, y = columns + 0.5, rows + 0.5
    # Where each pixel lies as seen from the lesion, and where the lesion's vessels lie in the image.
    zoom, (cosine, sine) = between(rng, 0.85, 1.3), direction(rng)
    centre_x, centre_y = WIDTH / 2 + between(rng, -8, 8), HEIGHT / 2 + between(rng, -6, 6)
    away_x, away_y = (x - centre_x) / zoom, (y - centre_y) / zoom
    lesion_x, lesion_y = cosine * away_x + sine * away_y, cosine * away_y - sine * away_x

    def placed(px, py):
        return centre_x + zoom * (cosine * px - sine * py), centre_y + zoom * (sine * px + cosine * py)

    visible = lesion.vessels if lesion.cues["vessels"] > VISIBLE else []
    vessels = [(*placed(x0, y0), *placed(x1, y1), half_width * zoom) for x0, y0, x1, y1, half_width in visible]

    pores = rng.integers(0, 256, (2, CELLS, CELLS)) / 255.0
    texture = 0.10 * (smooth_noise(pores[0], x, y, 22.0) - 0.5) + 0.07 * (rough_noise(pores[1], x, y, 4.5) - 0.5)
    picture = lesion.skin[:, None, None] * (1 + texture)
    picture = paint_lesion(picture, lesion, lesion_x, lesion_y, strokes(vessels))
    if lesion.hairy:
        hair_colour = np.array([0.16, 0.11, 0.09]) * between(rng, 0.6, 2.5)
        picture = mix(picture, hair_colour, strokes(draw_hairs(rng)) * 0.85)
    if rng.random() < 0.2:
        picture = add_bubbles(picture, rng, x, y)
    if rng.random() < 0.1:
        picture = mix(picture, np.array([0.12, 0.12, 0.14]), strokes(draw_ruler(rng)) * 0.8)

    # From here on the camera: a tilted light, its colour, dark corners, and grain.
    tilt_x, tilt_y = direction(rng)
    from_middle_x, from_middle_y = (x - WIDTH / 2) / (WIDTH / 2), (y - HEIGHT / 2) / (WIDTH / 2)
    light = between(rng, 0.86, 1.08) * (1 + 0.07 * (tilt_x * from_middle_x + tilt_y * from_middle_y))
    white_balance = np.array([between(rng, 0.96, 1.04), 1.0, between(rng, 0.95, 1.06)])
    picture = picture * light * white_balance[:, None, None]
    off_axis = np.sqrt(from_middle_x * from_middle_x + from_middle_y * from_middle_y)
    if rng.random() < 0.2:
        aperture = between(rng, 0.95, 1.15)  # the round opening of the dermatoscope shows in the corners
        picture = picture * (0.06 + 0.94 * (1 - smoothstep(aperture - 0.05, aperture + 0.03, off_axis)))
    else:
        picture = picture * (1 - between(rng, 0.0, 0.45) * smoothstep(0.5, 1.35, off_axis))
    grain = (rng.integers(0, 256, (HEIGHT, WIDTH)) / 255.0 - 0.5) * between(rng, 0.01, 0.035)
    picture = np.floor(np.clip(picture + grain, 0.0, 1.0) * 255 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(picture.transpose(1, 2, 0))


def generate(output):
    """Write the table and the images into the folder `output`, as HAM10000 lays them out."""
    rng = generator(0)
    diagnoses = shuffled(rng, [dx for dx, count in LESIONS_PER_DIAGNOSIS.items() for _ in range(count)])
    view_counts = shuffled(rng, [views for views, count in LESIONS_PER_VIEW_COUNT.items() for _ in range(count)])
    lesions = [draw_lesion(number, diagnosis) for number, diagnosis in enumerate(diagnoses, start=1)]
    views = shuffled(rng, [lesion for lesion, count in zip(lesions, view_counts) for _ in range(count)])

    # Like HAM10000, the first half of the ids lies in the first folder, wherever the rest of a lesion lies.
    folders = [output / f"HAM10000_images_part_{part}" for part in (1, 2)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob("SYN_*.jpg"):
            stale.unlink()
    columns = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization", "dataset"]
    with (output / "HAM10000_metadata.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        for number, lesion in enumerate(views, start=1):
            image_id = f"SYN_{number:07d}"
            table.writerow(lesion.row | {"image_id": image_id})
            picture = Image.fromarray(photograph(lesion, generator(2, number)))
            path = folders[number > len(views) // 2] / f"{image_id}.jpg"
            picture.save(path, quality=85, subsampling="4:2:0", optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the synthetic sample dataset.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("sample"), help="folder to write")
    generate(parser.parse_args().output)
