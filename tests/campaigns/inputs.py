"""Bad inputs: strategies for each kind of file and option."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import yaml
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from campaigns.mutating import ODD, change, mutated, other_header, paths, same_file
from campaigns.world import TRAINED, World

WORDS = st.one_of(
    st.sampled_from(["ghost", "a dog", "кот", "猫", "a\u0301", "\u202egnp", "\ufeffdog",
                     "d\u200bog",
                     "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "a" * 400,
                     "[bold]x[/bold]", "{}", "{0}", "a,b", '"', "-", "--model", " ", "../../x"]),
    st.text(max_size=20),
)  # fmt: skip


@dataclass(frozen=True)
class Input:
    """A command with its files."""

    about: str
    files: Mapping[str, bytes]
    """By path in the case's folder, where the command runs."""
    arguments: tuple[str, ...]
    refused: bool = False
    """Whether a referee says that the input is wrong: the exit code must be 2."""
    expected: Mapping[str, bytes] = field(default_factory=dict)
    """What files must hold after exit code 0."""


# --- files of tensors


@st.composite
def tensor_files(draw: Callable[..., Any], world: World) -> Input:
    """An edit, a prior, a classifier or a published result that something has happened to."""
    kind = draw(st.sampled_from(["edit", "prior", "classifier", "weights", "pickle", "lora"]))
    name = {"pickle": "weights.pt"}.get(kind, f"{kind}.safetensors")
    good = world.files[name]
    other = world.files["prior.safetensors" if kind == "edit" else "edit.safetensors"]
    if kind == "pickle" or draw(st.booleans()):
        bad = draw(mutated(good, other))
    else:
        bad = draw(other_header(good, other))
    called = draw(st.sampled_from([name, "x.safetensors", "x.pt"]))
    own = ("--model", str(world.model), "--output")
    entry = {"prior": "expunge.prior", "classifier": "expunge.classifier"}.get(kind, "expunge")
    if kind == "edit":
        arguments = ("generate", "--edit", called, *own, "out", "--prompt", "ghost", "--steps", "1")
    elif kind == "prior":
        arguments = ("erase", "--concept", "ghost", "--anchor", "dog", "--method", "trce",
                     "--set", f"prior={called}", *own, "out.safetensors")  # fmt: skip
        if draw(st.booleans()):
            arguments = ("prior", "--legacy", called, *own, "out.safetensors")
    elif kind == "classifier":
        called = "x.safetensors"
        arguments = ("erase", *TRAINED, "--stop-when", "erased<=0.05", "--judge",
                     f"trained:{called}", *own, "out.safetensors")  # fmt: skip
    else:
        arguments = ("import", called, *own, "out.safetensors")
    checked = kind in ("edit", "prior", "classifier")
    wrong = checked and not same_file(good, bad, entry)
    return Input(f"{kind} as {called}", {called: bad}, arguments, refused=wrong)


@st.composite
def trainings(draw: Callable[..., Any], world: World) -> Input:
    """A folder of checkpoints of which a file was damaged: the same edit, or none."""
    files = {name.removeprefix("run/"): data for name, data in world.under("run").items()}
    name = draw(st.sampled_from(sorted(files)))
    good = files[name]
    if name.endswith(".safetensors") and draw(st.booleans()):
        bad = draw(other_header(good, world.files["edit.safetensors"]))
    else:
        bad = draw(mutated(good, world.files["edit.safetensors"]))
    arguments = ("erase", *TRAINED, "--checkpoints", "run", "--model", str(world.model), "--output",
                 "out.safetensors")  # fmt: skip
    expected = {"out.safetensors": world.files["trained.safetensors"]}
    placed = {f"run/{other}": bad if other == name else data for other, data in files.items()}
    return Input(f"checkpoints: {name}", placed, arguments, expected=expected)


@st.composite
def drawn_folders(draw: Callable[..., Any], world: World) -> Input:
    """A folder of pictures of which a file was damaged: the same pictures in the end, or none."""
    files = world.under("drawn")
    name = draw(st.sampled_from(sorted(files)))
    bad = draw(mutated(files[name], world.files["drawn/0_0.png"]))
    arguments = ("generate", "--model", str(world.model), "--output", "drawn", "--prompt", "ghost",
                 "--prompt", "dog", "--steps", "1", "--edit", "edit.safetensors")  # fmt: skip
    expected = {one: data for one, data in files.items() if one.endswith(".png")}
    placed = {**files, name: bad, "edit.safetensors": world.files["edit.safetensors"]}
    return Input(f"drawn: {name}", placed, arguments, expected=expected)


@st.composite
def reports(draw: Callable[..., Any], world: World) -> Input:
    """A report that something has happened to."""
    good = world.files["report/report.json"]
    bad = draw(mutated(good, world.files["edit.safetensors"]))
    if draw(st.booleans()):
        tree = json.loads(good)
        change(tree, draw(st.sampled_from(list(paths(tree)))), draw(ODD), drop=draw(st.booleans()))
        bad = json.dumps(tree).encode("utf-8", "surrogatepass")
    files = {**world.under("report"), "report/report.json": bad, "good.json": good}
    arguments = draw(st.sampled_from([("report", "report"), ("diff", "report", "good.json")]))
    return Input("report", files, arguments)


@st.composite
def picture_folders(draw: Callable[..., Any], world: World) -> Input:
    """Folders of pictures to learn from, of which one was damaged."""
    files = world.under("pictures")
    name = draw(st.sampled_from(sorted(files)))
    bad = draw(mutated(files[name], world.files["edit.safetensors"]))
    arguments = (
        "train-classifier",
        "pictures",
        "--backbone",
        "things",
        "--output",
        "x.safetensors",
    )
    return Input(f"picture {name}", {**files, name: bad}, arguments)


# --- text that users write


@st.composite
def prompt_files(draw: Callable[..., Any], world: World) -> Input:
    """A CSV file of prompts, perhaps with a cell that is wrong."""
    columns = ["case_number", "prompt", "evaluation_seed", "guidance", "height", "width"]
    rows = [[str(number), "a dog", str(number), "", "", ""] for number in range(3)]
    faults = {
        "case_number": ["", "../x", "a/b", "0", "x" * 101, "\x00", " ", "-1"],
        "prompt": ["", " "],
        "evaluation_seed": ["", "-1", "x", "1.5", str(2**64), "nan", "1e3", "١x"],
        "guidance": ["0", "nan", "inf", "x", "-3", "1e999"],
        "height": ["0", "-8", "17", "nan", "9" * 30, "100000", "8192", "x"],
        "width": ["4", "1.5", "9999999", "65536"],
    }
    wrong = draw(st.booleans())
    if wrong:
        column = draw(st.sampled_from(columns))
        rows[2][columns.index(column)] = draw(st.sampled_from(faults[column]))
    else:
        rows[1][1] = draw(WORDS)
    text = "\n".join(",".join(_quoted(cell) for cell in row) for row in [columns, *rows])
    content = text.encode("utf-8", "surrogatepass")
    if not wrong and draw(st.booleans()):
        content = draw(mutated(content))
    arguments = ("generate", "--prompts", "p.csv", "--model", str(world.model), "--steps", "1",
                 "--output", "out")  # fmt: skip
    return Input(f"prompts {rows}", {"p.csv": content}, arguments, refused=wrong)


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell


@st.composite
def policies(draw: Callable[..., Any], world: World) -> Input:
    """A policy, perhaps with an entry that is wrong."""
    policy: dict[str, Any] = {"erase": [{"target": "ghost", "anchor": "dog"}], "keep": ["cat"]}
    fault = draw(st.sampled_from(["", "", "type", "unknown", "both", "twice", "bytes", "deep"]))
    if fault == "type":
        key = draw(st.sampled_from(["erase", "target", "kind"]))
        value = draw(st.sampled_from([3, None, {}, [], [[]], [{}], {"a": 1}, float("nan")]))
        (policy if key == "erase" else policy["erase"][0])[key] = value
    elif fault == "unknown":
        policy["erase"][0]["tarrget"] = "x"
    elif fault == "both":
        policy["keep"] = ["Ghost"]
    elif fault == "twice":
        policy["erase"] *= 2
    else:
        policy["erase"][0]["target"], policy["keep"] = draw(WORDS), [draw(WORDS)]
    content = yaml.safe_dump(policy, allow_unicode=True).encode("utf-8", "surrogatepass")
    if fault == "bytes":
        content = draw(mutated(content))
    if fault == "deep":
        content = b"erase: " + b"[" * draw(st.integers(1, 3000))
    wrong = fault in ("type", "unknown", "both", "twice", "deep")
    own = ("--model", str(world.model), "--output", "out.safetensors")
    return Input(
        f"policy {fault} {policy}",
        {"p.yaml": content},
        ("erase", "--policy", "p.yaml", *own),
        refused=wrong,
    )


@st.composite
def caption_files(draw: Callable[..., Any], world: World) -> Input:
    """Captions as lines or as CSV."""
    name = draw(st.sampled_from(["c.txt", "c.csv", "c.bin"]))
    lines = ["prompt", *draw(st.lists(WORDS, min_size=1, max_size=4))]
    content = "\n".join(map(_quoted, lines)).encode("utf-8", "surrogatepass")
    if draw(st.booleans()):
        content = draw(mutated(content))
    own = ("--model", str(world.model), "--output", "out.safetensors")
    return Input(
        "captions", {name: content}, ("prior", "--prompts", name, *own), refused=name == "c.bin"
    )


@st.composite
def plans(draw: Callable[..., Any], world: World) -> Input:
    """A plan of a bench, perhaps with a task whose name wants to leave the folder."""
    plan: dict[str, Any] = {
        "suite": "emoji", "size": "brief", "seeds": [0], "sampler": {"steps": 1},
        "methods": ["uce"], "tasks": {draw(WORDS): {"erase": [{"target": "pizza"}]}},
    }  # fmt: skip
    if draw(st.booleans()):
        path = draw(st.sampled_from(list(paths(plan))))
        change(plan, path, draw(ODD), drop=draw(st.booleans()))
    try:
        content = yaml.dump(plan, allow_unicode=True).encode("utf-8", "surrogatepass")
    except ValueError:  # of a very large number
        content = b"tasks: []"
    if draw(st.booleans()):
        content = draw(mutated(content))
    return Input(
        f"plan {plan}",
        {"plan.yaml": content},
        ("bench", "--plan", "plan.yaml", "--output", "a/b/runs"),
    )


# --- options


@st.composite
def options(draw: Callable[..., Any], world: World) -> Input:
    """An odd value of an option or a setting."""
    number = st.one_of(
        st.sampled_from(["nan", "inf", "-inf", "1e999", "-1", "", "x", "0x10", "9" * 40, "1_0",
                         "[1]", "[[", "null", "{}", "\x00", "١", "1e-400", "true", "[1, [2"]),
        st.text(max_size=8),
    )  # fmt: skip
    value = draw(number)
    own = ("--model", str(world.model), "--output")
    generate = ("generate", *own, "out", "--prompt", "ghost", "--steps", "1")
    erase = ("erase", *own, "out.safetensors", "--concept", "ghost", "--anchor", "dog")
    method, setting = draw(st.sampled_from([
        ("uce", "lamb"), ("uce", "contexts"), ("uce", "preserve"), ("uce", "fidelity"),
        ("uce", "technique"), ("rece", "lamb"), ("trce", "preserve_scale"), ("trce", "prior"),
        ("esd", "lr"), ("esd", "optimizer"), ("esd", "variant"), ("esd", "start_guidance"),
        ("uce", "preset"), ("mace", "prior"), ("ac", "pictures"),
    ]))  # fmt: skip
    short = ("--set", "iterations=1", "--set", "trajectories=1", "--set", "num_inference_steps=2")
    command = draw(st.sampled_from([
        (*generate, "--seed", value), (*generate, "--guidance-scale", value),
        (*generate, "--samples", value), (*generate[:-1], value),
        (*generate, "--scheduler", value), (*generate, "--prompt", value),
        (*erase, "--keep", value), (*erase, "--synonym", value), (*erase, "--kind", value),
        (*erase, "--seed", value), (*erase[:-1], value),
        (*erase, "--method", method, *(short if method == "esd" else ()), "--set",
         f"{setting}={value}"),
        (*erase, "--method", "uce", "--set", value),
        ("report", value), ("diff", value, value), ("methods", value), ("prompts", value),
        ("compose", value, "--output", "x.safetensors"),
        (*generate[:3], "--output", value, *generate[5:]),
    ]))  # fmt: skip
    never = {"nan", "inf", "-inf", "1e999", "", "x", "[[", "\x00", "{}"}
    named = {one for one in command if one[:2] == "--"} - {"--anchor"}
    numbers = ("--seed", "--guidance-scale", "--samples", "--steps")
    wrong = any(
        (given in never and option in numbers) or (not given and option in named)
        for option, given in pairwise(command)
    )
    return Input(f"option {command}", {}, command, refused=wrong)


def inputs(world: World) -> SearchStrategy[Input]:
    """Inputs of every kind."""
    kinds = (tensor_files, tensor_files, trainings, drawn_folders, reports, picture_folders,
             prompt_files, policies, caption_files, plans, options, options)  # fmt: skip
    return st.one_of([kind(world) for kind in kinds])
