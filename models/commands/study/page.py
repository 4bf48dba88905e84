"""The page of a study: pictures and questions in one file, `page.html` with its data put in."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from models.data import InputError, encode_png, pair_files, read_photo
from models.data.files import readable
from models.evaluate.pictures import busiest_window

_TEMPLATE = Path(__file__).with_name("page.html")


class Page(NamedTuple):
    """The file's text, the study's identifier, and how many pictures are to be scored."""

    html: str
    study: str
    questions: int


def build_page(methods: Mapping[str, Path], hr: Path, crop: int, seed: int) -> Page:
    """The page of these folders of results; of a larger picture it shows `crop` pixels a side, or all with 0.

    The identifier tells the study from any other: a digest of the names, the pictures, the crop and the seed.
    Raises InputError naming a picture that is missing, cannot be read, or has another size than its reference.
    """
    pairs = {name: pair_files(folder, hr) for name, folder in methods.items()}
    references, results = [], []
    digest = hashlib.sha256(json.dumps([list(methods), crop, seed]).encode())

    def embed(png: bytes) -> str:
        digest.update(png)
        return base64.b64encode(png).decode()

    for picture, paths in enumerate(zip(*pairs.values(), strict=True)):
        hr_path = paths[0][1]
        reference = read_photo(hr_path).pixels
        whole = crop == 0 or max(reference.shape) <= crop
        window = np.s_[:, :] if whole else busiest_window(reference, crop, step=1)
        references.append({"name": readable(hr_path.stem), "png": embed(encode_png(reference[window]))})
        digest.update(json.dumps(references[-1]["name"]).encode())
        for method, (path, _) in enumerate(paths):
            pixels = read_photo(path).pixels
            if pixels.shape != reference.shape:
                (height, width, _), (wanted_height, wanted_width, _) = pixels.shape, reference.shape
                raise InputError(
                    f"{path} is {width} x {height} pixels, {hr_path} is {wanted_width} x {wanted_height}: "
                    "a result must have its reference's size"
                )
            results.append({"picture": picture, "method": method, "png": embed(encode_png(pixels[window]))})
    study = f"s{digest.hexdigest()[:12]}"
    # Whoever looks at the page's source should not read a method's name by accident.
    hidden = base64.b64encode(json.dumps([readable(name) for name in methods]).encode()).decode()
    data = {"study": study, "seed": seed, "methods": hidden, "references": references, "results": results}
    # In a script element nothing but "<" could end it; JSON may escape every character.
    text = json.dumps(data).replace("<", "\\u003c")
    return Page(_TEMPLATE.read_text("utf-8").replace("{{data}}", text), study, len(results))
