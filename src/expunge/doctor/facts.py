"""The records of an examination."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from expunge.edits.damage import Damage
from expunge.method.base import Need

PhraseRole = Literal["target", "synonym", "anchor"]
Problem = Literal[
    "cut_off", "unknown", "rare", "blank", "same_tokens", "same_last_piece", "same_meaning"
]


class Fact(BaseModel):
    """A finding: immutable, without unknown fields, every number finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkSize(Fact):
    """The parameters of one network, or of one role in the UNet."""

    name: str
    tensors: int
    parameters: int
    bytes: int


class Anatomy(Fact):
    """The model as it is loaded now."""

    name: str
    dtype: str
    device: str
    classes: dict[str, str]
    """Class of each network, by its name in the pipeline."""
    networks: tuple[NetworkSize, ...]
    text_width: int
    """Width of one row of a prompt's embedding."""
    positions: int
    """Rows of a prompt's embedding; two of them are its start and its end."""
    latent_shape: tuple[int, int, int]
    """Channels, height, width."""
    image_size: tuple[int, int]
    """Height and width in pixels."""
    no_drawing: str | None = None
    """Why it can't be drawn or trained with here; ``None`` if it can."""
    roles: tuple[NetworkSize, ...]
    """They overlap: ``cross_attention.kv`` is a part of ``cross_attention``."""
    versions: dict[str, str]


class Piece(Fact):
    """One token as text."""

    text: str
    id: int
    word: int
    """Number of the word that it belongs to."""
    known: bool
    """False if it stands for characters that the tokenizer doesn't know."""


class Phrase(Fact):
    """Words of a concept as the model's own tokenizer splits them."""

    text: str
    concept: str
    role: PhraseRole
    pieces: tuple[Piece, ...]
    last_row: int
    """Row of the phrase's last piece that the model reads; 0 for the empty prompt."""
    cut_off: int
    """Pieces at the end that the model doesn't read."""

    @property
    def ids(self) -> tuple[int, ...]:
        return tuple(piece.id for piece in self.pieces)


class Likeness(Fact):
    """Cosines between the embeddings of a phrase and of its anchor, each as a bare prompt."""

    phrase: str
    anchor: str
    last_piece: float
    """Between the rows of their last pieces."""
    end: float
    """Between the rows of their end-of-text tokens."""
    unrelated_last_piece: float
    """The same for the phrase and unrelated plain words (the median)."""
    unrelated_end: float
    alike_from: float
    """If ``end`` is at least this, the two mean nearly the same to the model."""


class Caution(Fact):
    """One thing about the words that the user may not expect, and what to do."""

    problem: Problem
    phrase: str
    message: str


class Timing(Fact):
    """How long one run takes."""

    seconds: float
    """The median of ``repeats`` runs; several runs follow a warm-up."""
    repeats: int


class Pace(Fact):
    """Speed of the two networks here, for one prompt or picture of the model's own size."""

    unet: Timing | None
    """``None`` if it wasn't loaded, as nothing but prompts was read."""
    text_encoder: Timing


class Cost(Fact):
    """What a method would change, and what it takes to compute that."""

    method: str
    needs: tuple[Need, ...]
    role: str
    """The smallest role that contains all that changes."""
    role_tensors: int
    tensors: int
    parameters: int
    rows: int | None
    """Most input directions of a weight that change; ``None`` if all may."""
    edit_bytes: int
    """Size of the edit's tensors."""
    seconds: float
    estimated: bool
    """Whether the time is an estimate; false if the method was run completely."""
    how: str
    """How ``seconds`` was found."""
    peak_bytes: int
    """Most memory in use at once during the trial."""
    memory: Literal["process", "GPU"]
    """What ``peak_bytes`` counts: the whole process, or what torch has allocated on the GPU."""


class Refusal(Fact):
    """A method that can't erase this here, or can't be tried quickly, and why."""

    method: str
    reason: str


class Harm(Fact):
    """What an edit that is there already does to everyday words, or why that can't be said."""

    edit: str
    """Its id."""
    summary: str
    damage: Damage | None = None
    reason: str = ""


class Diagnosis(Fact):
    """The whole examination; without concepts, only the facts on the model."""

    model: Anatomy
    pace: Pace
    phrases: tuple[Phrase, ...] = ()
    likenesses: tuple[Likeness, ...] = ()
    warnings: tuple[Caution, ...] = ()
    costs: tuple[Cost, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    harms: tuple[Harm, ...] = ()
