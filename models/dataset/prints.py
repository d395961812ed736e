"""Titles and texts of the built-in dataset's art prints, which `models.dataset.scenes` draws."""

from __future__ import annotations

import numpy as np

from models.dataset.scenes import MOTIFS, PALETTES, Print

__all__ = ["SCENES", "SUBJECTS", "words"]

SUBJECTS: dict[str, tuple[str, ...]] = {
    "mountain": ("The high pass", "Three summits", "The north face", "A hut below the ridge", "The glacier", "The saddle path"),
    "harbour": ("The old harbour", "Fishing boats", "The ferry landing", "Masts at the quay", "The breakwater", "A mooring"),
    "orchard": (
        "The apple orchard",
        "Cherry trees",
        "The pear espalier",
        "A ladder in the orchard",
        "The plum hedge",
        "Windfalls",
    ),
    "city": ("Rooftops", "The tram street", "Windows across the court", "The market square", "Chimneys", "The long avenue"),
    "lighthouse": ("The lighthouse", "The keeper's house", "The light on the reef", "The lamp room", "The cape", "The foghorn"),
    "desert": ("The dunes", "A caravan track", "The salt pan", "Two cacti", "The dry riverbed", "The mesa"),
    "forest": ("The pine wood", "A clearing", "Birches", "The forest edge", "The old oaks", "A path through the firs"),
    "river": ("The river bend", "The stone bridge", "The ford", "Reeds by the river", "The weir", "The rowing boat"),
    "moon": ("The full moon", "Moonrise", "The moon over the sea", "A harvest moon", "The moon in a window", "The thin moon"),
    "garden": ("The walled garden", "Poppies", "The greenhouse", "Sunflowers", "The rose arch", "A bench among tulips"),
}
SCENES: dict[str, tuple[str, ...]] = {
    "quiet": ("in early mist", "before anyone is up", "on a still morning", "under first snow", "in pale light", "at rest"),
    "stormy": ("in driving rain", "before the storm", "in a gale", "under heavy cloud", "as the weather breaks", "in November"),
    "festive": (
        "on the feast day",
        "with lanterns",
        "hung with bunting",
        "on midsummer night",
        "in carnival week",
        "with music",
    ),
    "lonely": ("with one gull", "after the last boat", "far from anywhere", "with a single star", "out of season", "alone"),
    "playful": ("with kites", "in the holidays", "under a great sun", "on a windy Sunday", "with paper birds", "upside down"),
    "solemn": ("at nightfall", "in the hour before dark", "in winter", "in memory", "by starlight", "in silence"),
}
TECHNIQUES = {
    "amber": "Woodcut",
    "cobalt": "Cyanotype",
    "moss": "Linocut",
    "rose": "Screen print",
    "slate": "Etching",
    "teal": "Lithograph",
}
FIRST = ("Ines", "Tomas", "Aiko", "Marit", "Bela", "Noor", "Jonas", "Livia", "Pavel", "Edda", "Samir", "Rosa")
LAST = ("Moreau", "Lindqvist", "Tanaka", "Haug", "Szabo", "Rahman", "Keller", "Bianchi", "Novak", "Falk", "Haddad", "Vidal")
TEXTS = (
    "{technique} by {artist}, {year}. {subject} {scene}, in {palette} inks on heavy paper. A {mood} sheet.",
    "{subject} {scene}: a {mood} {motif} in three layers of {palette}. {technique}, {artist}, {year}.",
    "A {mood} view of a {motif} by {artist}. {technique} in {palette} tones, {year}, from a small edition.",
)


def words(made: Print, rng: np.random.Generator) -> tuple[str, str]:
    """Return a title and a text. An artist has a palette and two motifs of their own."""
    motif, palette = MOTIFS.index(made.motif), tuple(PALETTES).index(made.palette)
    artist = f"{FIRST[(motif // 2 * 6 + palette) % len(FIRST)]} {LAST[(motif // 2 * 6 + palette * 5 + 3) % len(LAST)]}"
    subject, scene = (str(rng.choice(of)) for of in (SUBJECTS[made.motif], SCENES[made.mood]))
    text = str(rng.choice(TEXTS)).format(
        technique=TECHNIQUES[made.palette],
        artist=artist,
        year=1950 + int(rng.integers(70)),
        subject=subject,
        scene=scene,
        palette=made.palette,
        mood=made.mood,
        motif=made.motif,
    )
    return f"{subject} {scene}", text
