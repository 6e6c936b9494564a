"""Fetch the seven emoji sets with npm and render every drawing of the catalogue once."""

from __future__ import annotations

import io
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import resvg_py
from common import HERE, parser, settings, write
from PIL import Image

from expunge.models.emoji.vocabulary import catalog

RESOLUTION = 128


def fetch(packages: Path) -> Path:
    """The folder of the Iconify packages, installed if it isn't there."""
    folder = packages / "node_modules" / "@iconify-json"
    if not folder.exists():
        packages.mkdir(parents=True, exist_ok=True)
        (packages / "package.json").write_text((HERE / "package.json").read_text())
        subprocess.run(["npm", "install", "--no-audit", "--no-fund"], cwd=packages, check=True)
    return folder


@cache
def icon_set(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def svg(folder: Path, iconify: str, name: str) -> str:
    """The drawing of one object in one set, whatever that set calls it."""
    icons = icon_set(folder / iconify / "icons.json")
    slug = name.replace(" ", "-")
    for candidate in (slug, f"{slug}-face"):
        key = icons.get("aliases", {}).get(candidate, {}).get("parent", candidate)
        if key in icons["icons"]:
            icon = icons["icons"][key]
            width = icon.get("width", icons.get("width", 16))
            height = icon.get("height", icons.get("height", 16))
            side = max(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            return (
                f'<svg xmlns="http://www.w3.org/2000/svg" color="#000" '
                f'viewBox="{left} {top} {side} {side}">{icon["body"]}</svg>'
            )
    raise KeyError(f"{iconify} has no drawing called {slug}")


def render(source: str) -> np.ndarray[Any, Any]:
    """[RESOLUTION, RESOLUTION, 4] uint8."""
    png = resvg_py.svg_to_bytes(svg_string=source, width=RESOLUTION, height=RESOLUTION)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--packages", type=Path, help="a folder with node_modules already in it")
    args = options.parse_args()
    work = settings(args).work
    work.mkdir(parents=True, exist_ok=True)
    folder = fetch(args.packages or work / "npm")
    drawings = np.stack(
        [
            np.stack([render(svg(folder, style.iconify, entry.name)) for style in catalog().styles])
            for entry in catalog().objects
        ]
    )
    write(work / "drawings.npz", lambda path: np.savez_compressed(path.open("wb"), rgba=drawings))
    print(f"{drawings.shape[0]} objects x {drawings.shape[1]} styles -> {work / 'drawings.npz'}")


if __name__ == "__main__":
    main()
