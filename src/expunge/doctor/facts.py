"""The records of an examination."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from expunge.method.base import Need

PhraseRole = Literal["target", "synonym", "anchor"]
Problem = Literal[
    "cut_off", "unknown", "rare", "blank", "same_tokens", "same_last_piece", "same_meaning"
]


class Fact(BaseModel):
    """Something found out: immutable, with no unknown field and no number that isn't finite."""

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
    roles: tuple[NetworkSize, ...]
    """They overlap: ``cross_attention.kv`` is a part of ``cross_attention``."""
    versions: dict[str, str]


class Piece(Fact):
    """One token, in letters."""

    text: str
    id: int
    word: int
    """Which word of the phrase it belongs to."""
    known: bool
    """False if it stands for characters that the tokenizer doesn't know."""


class Phrase(Fact):
    """Words of a concept as the model's own tokenizer splits them."""

    text: str
    concept: str
    role: PhraseRole
    pieces: tuple[Piece, ...]
    last_row: int
    """Row of the last piece that the model reads in the bare prompt; 0 for the empty prompt."""
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
    """The same of the phrase and a plain word that has nothing to do with it (a median)."""
    unrelated_end: float
    alike_from: float
    """The ``end`` from which on the two mean nearly the same to the model."""


class Caution(Fact):
    """One thing about the words that the user may not expect, and what to do."""

    problem: Problem
    phrase: str
    message: str


class Timing(Fact):
    """How long one run takes."""

    seconds: float
    """The median of ``repeats`` runs, which follow one to warm up if they are several."""
    repeats: int


class Pace(Fact):
    """The two networks on this machine, for one prompt or picture of the model's own size."""

    unet: Timing
    text_encoder: Timing


class Cost(Fact):
    """What a method would change, and what it takes to compute that."""

    method: str
    needs: tuple[Need, ...]
    role: str
    """The smallest role that holds all that changes."""
    role_tensors: int
    tensors: int
    parameters: int
    rows: int | None
    """Input directions of a weight that change at most; ``None`` if all may."""
    edit_bytes: int
    """Size of the edit's tensors."""
    seconds: float
    estimated: bool
    """False if the method was run to its end, true if the time is added up from parts."""
    how: str
    """Where ``seconds`` comes from."""
    peak_bytes: int
    """Most memory in use at once during the trial."""
    memory: Literal["process", "GPU"]
    """Whose memory: of the whole process with its libraries, or what torch has on the GPU."""


class Refusal(Fact):
    """A method that can't erase this here, or can't be tried in short, and why."""

    method: str
    reason: str


class Diagnosis(Fact):
    """All of it; what stands on words is empty when there are none."""

    model: Anatomy
    pace: Pace
    phrases: tuple[Phrase, ...] = ()
    likenesses: tuple[Likeness, ...] = ()
    warnings: tuple[Caution, ...] = ()
    costs: tuple[Cost, ...] = ()
    refusals: tuple[Refusal, ...] = ()
