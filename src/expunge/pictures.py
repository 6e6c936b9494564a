"""Pictures that a user gives, and masks that say where in a picture a concept is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor

from expunge.errors import ExpungeError
from expunge.files import PathLike, digest
from expunge.models import Model
from expunge.settings import or_file

Pictures = Sequence[Image.Image]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PLAIN = 0.1
"""A pixel further than this from the background's colour, as a share of the colour range, isn't
background."""


class Segmenter(Protocol):
    """Finds what ``words`` name in pictures of one size: ``[n, height, width]`` in 0..1."""

    def __call__(self, pictures: Pictures, words: str) -> Tensor: ...


def whole(pictures: Pictures, words: str) -> Tensor:
    """Masks of whole pictures. Right for styles; for objects more than is needed."""
    width, height = pictures[0].size
    return torch.ones(len(pictures), height, width)


def threshold(pictures: Pictures, words: str) -> Tensor:
    """Masks of all that differs from the border's colour. Right for one thing on a plain ground."""
    colours = picture_bytes(pictures).float() / 255
    edges = (colours[:, 0], colours[:, -1], colours[:, :, 0], colours[:, :, -1])
    background = torch.cat(edges, 1).median(1).values
    return ((colours - background[:, None, None]).abs().amax(-1) > PLAIN).float()


@dataclass(frozen=True)
class MaskFolder:
    """Masks that you made: a file for each picture in ``folder/words``, in the same order."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def __call__(self, pictures: Pictures, words: str) -> Tensor:
        masks = opened(self.folder / words, "L")
        if len(masks) != len(pictures):
            raise ExpungeError(
                f"{self.folder / words}: {len(masks)} masks for {len(pictures)} pictures; give "
                "one each, whose names sort as those of the pictures"
            )
        fitted = [ImageOps.fit(mask, pictures[0].size) for mask in masks]
        return torch.from_numpy(np.stack([np.asarray(mask) for mask in fitted])) / 255


@dataclass(frozen=True)
class GroundedSam:
    """Grounding DINO finds boxes around what the words name; SAM finds the thing in each box.

    Both are loaded with ``transformers`` when first used, from folders or hub ids.
    """

    detector: str
    """Weights of a zero-shot detector, e.g. a copy of Grounding DINO."""
    segmenter: str
    """Weights of a SAM model."""
    box_threshold: float = 0.3
    text_threshold: float = 0.25
    device: str = "cpu"

    def __str__(self) -> str:
        return f"grounded-sam:{self.detector},{self.segmenter}"

    @cached_property
    def _models(self) -> tuple[Any, Any, Any, Any]:
        import transformers as hf

        try:
            return (
                hf.AutoProcessor.from_pretrained(self.detector),
                hf.AutoModelForZeroShotObjectDetection.from_pretrained(self.detector).to(
                    self.device
                ),
                hf.SamProcessor.from_pretrained(self.segmenter),
                hf.SamModel.from_pretrained(self.segmenter).to(self.device),
            )
        except (OSError, ValueError, ImportError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ExpungeError(
                f"{self}: can't load these weights; give two folders or hub ids ({reason})"
            ) from None

    def __call__(self, pictures: Pictures, words: str) -> Tensor:
        return torch.stack([self._mask(picture, words) for picture in pictures])

    @torch.no_grad()
    def _mask(self, picture: Image.Image, words: str) -> Tensor:
        processor, detector, sam_processor, sam = self._models
        inputs = processor(images=picture, text=f"{words.lower()}.", return_tensors="pt")
        found = processor.post_process_grounded_object_detection(
            detector(**inputs.to(self.device)),
            inputs.input_ids,
            threshold=self.box_threshold,
            text_threshold=self.text_threshold,
            target_sizes=[picture.size[::-1]],
        )[0]["boxes"]
        if not len(found):
            return torch.zeros(picture.size[::-1])
        inputs = sam_processor(picture, input_boxes=[found.tolist()], return_tensors="pt")
        output = sam(**inputs.to(self.device), multimask_output=False)
        masks: Tensor = sam_processor.image_processor.post_process_masks(
            output.pred_masks.cpu(), inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )[0]
        return masks.any(0)[0].float()


def concept_masks(segmenter: Segmenter, pictures: Pictures, words: str) -> Tensor:
    """Masks ``[n, height, width]``. Where nothing is found, the mask is the whole picture.

    Raises:
        ExpungeError: the segmenter doesn't give one mask with numbers in 0..1 for each picture.
    """
    masks = segmenter(pictures, words).float()
    width, height = pictures[0].size
    if masks.shape != (len(pictures), height, width) or not bool(
        ((masks >= 0) & (masks <= 1)).all()
    ):
        raise ExpungeError(
            f"the segmenter gave masks of shape {tuple(masks.shape)}; wanted "
            f"{(len(pictures), height, width)} with numbers in 0..1"
        )
    empty = (masks <= 0.5).flatten(1).all(1)
    return masks.masked_fill(empty[:, None, None], 1.0)


def picture_bytes(pictures: Pictures) -> Tensor:
    """Bytes ``[n, height, width, 3]`` of pictures of one size."""
    return torch.from_numpy(np.stack([np.asarray(picture.convert("RGB")) for picture in pictures]))


def latents_of(model: Model, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the latents of bytes ``[pictures, height, width, 3]``.

    Both are ``[pictures, channels, latent height, latent width]`` float32.
    """
    colours = 2 * (pictures.float() / 255) - 1
    return model.posterior(colours.permute(0, 3, 1, 2))


def opened(folder: Path, mode: str) -> list[Image.Image]:
    """All pictures of a folder, in the order of their names.

    Raises:
        ExpungeError: there are none, or one can't be read.
    """
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    files = [file for file in files if file.suffix.lower() in SUFFIXES]
    if not files:
        raise ExpungeError(f"{folder}: no picture there ({', '.join(SUFFIXES)})")
    try:
        return [Image.open(file).convert(mode) for file in files]
    except (UnidentifiedImageError, OSError) as error:
        raise ExpungeError(f"{folder}: {error}") from None


def pictures_of(model: Model, pictures: Mapping[str, Pictures], words: str) -> list[Image.Image]:
    """The given pictures for these words, cropped and scaled to the model's own size.

    Raises:
        ExpungeError: there are none.
    """
    if not pictures.get(words):
        known = ", ".join(pictures) or "nothing"
        raise ExpungeError(f"pictures: none of {words!r}; there are some of {known}")
    height, width = model.image_size
    return [ImageOps.fit(picture, (width, height)) for picture in pictures[words]]


def _segmenter(value: PathLike) -> Segmenter:
    """A segmenter from its name on the command line."""
    name, _, weights = str(value).partition(":")
    built_in: Mapping[str, Segmenter] = {"whole": whole, "threshold": threshold}
    if value in built_in:
        return built_in[str(value)]
    if name == "grounded-sam":
        detector, _, segmenter = weights.partition(",")
        if not (detector and segmenter):
            raise ValueError(
                "name the weights of both models: grounded-sam:DETECTOR,SEGMENTER (folders or "
                "hub ids)"
            )
        return GroundedSam(detector, segmenter)
    if not Path(value).is_dir():
        raise ValueError(
            f"{value!r} is none of {', '.join(built_in)}, grounded-sam:DETECTOR,SEGMENTER, or a "
            "folder with masks"
        )
    return MaskFolder(Path(value))


def _by_folder(path: PathLike) -> dict[str, list[Image.Image]]:
    """Pictures by concept, from a folder that has one folder for each."""
    root = Path(path)
    folders = sorted(root.iterdir()) if root.is_dir() else []
    found = {folder.name: opened(folder, "RGB") for folder in folders if folder.is_dir()}
    if not found:
        raise ExpungeError(f"{root}: give a folder that holds one folder of pictures a concept")
    return found


def _converted(value: Any) -> Any:
    """Pictures by concept, from a mapping whose values can be turned into pictures."""
    if not isinstance(value, Mapping):
        raise ValueError("give a folder, or pictures by the concept's words")
    return {words: [_picture(one) for one in several] for words, several in value.items()}


def _picture(value: Any) -> Image.Image:
    if isinstance(value, Image.Image):
        return value.convert("RGB")
    if isinstance(value, Tensor) and value.dtype == torch.uint8 and value.shape[2:] == (3,):
        return Image.fromarray(value.cpu().numpy())
    raise ValueError("a picture is a PIL image or bytes [height, width, 3]")


def _described(value: Callable[..., Any]) -> str:
    return str(getattr(value, "__name__", value))


def _digests(value: Mapping[str, Pictures]) -> dict[str, str]:
    return {
        words: digest([picture.tobytes().hex() for picture in pictures])
        for words, pictures in value.items()
    }


SegmenterSetting = Annotated[
    Callable[..., Any],
    or_file(_segmenter),
    PlainSerializer(_described, return_type=str),
]
"""A ``Segmenter``: ``whole``, ``threshold``, a folder of masks, ``grounded-sam:A,B``, or yours."""

PicturesSetting = Annotated[
    dict[str, Any],
    BeforeValidator(_converted),
    or_file(_by_folder),
    PlainSerializer(_digests, return_type=dict),
]
"""Pictures by concept; a record of them holds their digests."""
