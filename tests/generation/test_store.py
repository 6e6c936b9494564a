import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from expunge.cli import main
from expunge.errors import ExpungeError
from expunge.generation import ImageRequest, Manifest, Sampler, generate
from expunge.journal import Journal
from expunge.models import Model
from expunge.prompts import PromptSet

FAST = Sampler(steps=2)
PROMPTS = PromptSet.of(["santa claus", "a dog", "ghost"], seed=4)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_files_and_records(pico: Model, tmp_path: Path) -> None:
    manifest = generate(pico, PROMPTS, tmp_path, FAST, samples=2)
    names = [f"{case}_{number}.png" for case in range(3) for number in range(2)]
    assert [image.file for image in manifest.images] == names
    assert {image.file: image.sha256 for image in manifest.images}.items() <= (
        contents(tmp_path).items()
    )
    assert len(set(contents(tmp_path).values())) == 8
    assert manifest.sources[0].sha256 == PROMPTS.sha256
    assert manifest.settings.model == pico.fingerprint()
    assert Manifest.load(tmp_path) == manifest


def test_a_second_run_draws_nothing(
    pico: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = generate(pico, PROMPTS, tmp_path, FAST)
    before = contents(tmp_path)
    monkeypatch.setattr(pico, "decode", None)
    assert generate(pico, PROMPTS, tmp_path, FAST) == first
    assert contents(tmp_path) == before


def test_lost_torn_and_altered_pictures_are_drawn_again(pico: Model, tmp_path: Path) -> None:
    generate(pico, PROMPTS, tmp_path, FAST)
    before = contents(tmp_path)
    (tmp_path / "0_0.png").unlink()
    (tmp_path / "1_0.png").write_bytes(b"torn")
    lines = (tmp_path / "images.jsonl").read_text()
    (tmp_path / "images.jsonl").write_text(lines[:-40])
    with pytest.raises(ExpungeError, match=r"0_0\.png isn't the picture that was drawn"):
        Manifest.load(tmp_path)
    generate(pico, PROMPTS, tmp_path, FAST)
    assert contents(tmp_path) == before


def test_a_folder_grows_by_more_prompts_and_samples(pico: Model, tmp_path: Path) -> None:
    whole = generate(pico, PROMPTS, tmp_path / "whole", FAST, samples=2)
    generate(pico, PROMPTS, tmp_path / "parts", FAST)
    more = generate(pico, PROMPTS, tmp_path / "parts", FAST, samples=2)
    assert more.images == whole.images
    other = ImageRequest(case_number="other", prompt="a cat", seed=1)
    assert len(generate(pico, [other], tmp_path / "parts", FAST).images) == 1
    assert len(Manifest.load(tmp_path / "parts").images) == 7


def test_other_settings_are_refused_by_name(pico: Model, tmp_path: Path) -> None:
    generate(pico, PROMPTS, tmp_path, FAST)
    before = contents(tmp_path)
    with pytest.raises(ExpungeError, match=r"other settings \(sampler steps 2, now 3\)"):
        generate(pico, PROMPTS, tmp_path, Sampler(steps=3))
    with torch.no_grad():
        pico.denoiser.get_parameter("conv_out.bias").add_(1)
    with pytest.raises(ExpungeError, match=r"other settings \(model [0-9a-f]{64}, now "):
        generate(pico, PROMPTS, tmp_path, FAST)
    assert contents(tmp_path) == before


def test_another_prompt_under_the_same_name_is_refused(pico: Model, tmp_path: Path) -> None:
    generate(pico, PROMPTS, tmp_path, FAST)
    with pytest.raises(ExpungeError, match=r"0_0\.png was drawn from 'santa claus', seed 4, not"):
        generate(pico, PromptSet.of(["a cat"]), tmp_path, FAST)


def test_faults_are_found_before_anything_is_written(pico: Model, tmp_path: Path) -> None:
    good = ImageRequest(case_number="0", prompt="a dog", seed=1)
    bad = ImageRequest(case_number="1", prompt="a dog", seed=1, height=25)
    for requests, message in (
        ([good, good], r"two pictures would be 0_0\.png"),
        ([good, bad], "multiples of"),
        ([], "no picture asked for"),
    ):
        with pytest.raises(ExpungeError, match=message):
            generate(pico, requests, tmp_path / "new", FAST)
    with pytest.raises(ExpungeError, match="0 samples"):
        generate(pico, PROMPTS, tmp_path / "new", FAST, samples=0)
    with pytest.raises(ExpungeError, match="timesteps"):
        generate(pico, PROMPTS, tmp_path / "new", Sampler(steps=2000))
    assert not (tmp_path / "new").exists()


def test_a_foreign_folder_is_refused(pico: Model, tmp_path: Path) -> None:
    (tmp_path / "holiday.png").write_bytes(b"")
    with pytest.raises(ExpungeError, match=r"pictures but no manifest\.json"):
        generate(pico, PROMPTS, tmp_path, FAST)
    with pytest.raises(ExpungeError, match="isn't a folder of generated pictures"):
        Manifest.load(tmp_path / "none")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ExpungeError, match=r"manifest\.json: settings: Field required"):
        Manifest.load(tmp_path)


def test_killed_in_the_middle_then_run_again(
    pico: Model, pico_folder: Path, tmp_path: Path
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    csv = tmp_path / "prompts.csv"
    rows = "".join(f"{number},a dog,{number}\n" for number in range(60))
    csv.write_text("case_number,prompt,evaluation_seed\n" + rows)
    arguments = ["generate", "--model", str(pico_folder), "--prompts", str(csv)]
    arguments += ["--output", str(killed), "--steps", "10"]
    process = subprocess.Popen([sys.executable, "-m", "expunge", *arguments])
    while not (killed / "3_0.png").exists():
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert 4 <= len(list(killed.glob("*.png"))) < 60
    generate(pico, PromptSet.load(csv), whole, Sampler(steps=10))
    assert main(arguments) == 0
    assert contents(whole).items() <= contents(killed).items()


WRITER = """
import sys, time
from pathlib import Path
from expunge import load
from expunge.generation import ImageRequest, Sampler, generate
model, folder, start, stop = load(sys.argv[1], device="cpu"), *sys.argv[2:5]
requests = [ImageRequest(case_number=str(n), prompt="a dog", seed=n)
            for n in range(int(start), int(stop))]
Path(folder).with_name(f"ready-{start}").touch()
while not Path(folder).with_name("go").exists():
    time.sleep(0.01)
generate(model, requests, folder, Sampler(steps=1))
"""


def test_several_programs_draw_into_one_folder_and_no_record_is_lost(
    pico: Model, pico_folder: Path, tmp_path: Path
) -> None:
    folder, spans = tmp_path / "out", [(0, 18), (12, 30)]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, pico_folder, folder, *map(str, span)])
        for span in spans
    ]
    while not all((tmp_path / f"ready-{start}").exists() for start, _ in spans):
        assert all(writer.poll() is None for writer in writers)
        time.sleep(0.01)
    (tmp_path / "go").touch()
    assert [writer.wait(120) for writer in writers] == [0, 0]
    manifest = Manifest.load(folder)
    assert sorted(int(image.request.case_number) for image in manifest.images) == [*range(30)]
    assert len((folder / "images.jsonl").read_bytes().splitlines()) == 30
    requests = [ImageRequest(case_number=str(n), prompt="a dog", seed=n) for n in range(30)]
    whole = generate(pico, requests, tmp_path / "whole", FAST.model_copy(update={"steps": 1}))
    assert {image.sha256 for image in whole.images} == {image.sha256 for image in manifest.images}


def test_what_another_program_draws_meanwhile_is_not_written_over(
    pico: Model, tmp_path: Path
) -> None:
    mine = [ImageRequest(case_number=str(n), prompt="a dog", seed=n) for n in range(3)]
    other = ImageRequest(case_number="1", prompt="a cat", seed=1)

    def seen(record: object) -> None:
        if not (tmp_path / "1_0.png").exists():
            generate(pico, [other], tmp_path, FAST)

    with pytest.raises(ExpungeError, match=r"1_0\.png was drawn from 'a cat'"):
        generate(pico, mine, tmp_path, FAST, seen=seen)
    drawn = {image.file: image.request.prompt for image in Manifest.load(tmp_path).images}
    assert drawn == {"0_0.png": "a dog", "1_0.png": "a cat"}


def test_a_journal_reads_what_others_add_and_what_they_write_anew(tmp_path: Path) -> None:
    mine, other = Journal(tmp_path / "a.jsonl"), Journal(tmp_path / "a.jsonl")
    assert mine.new() == []
    other.append(["1", "2"])
    assert mine.new() == [b"1", b"2"]
    (tmp_path / "a.jsonl").open("a").write("cu")
    assert mine.new() == []
    other.append(["3"])
    assert mine.new() == [b"cu", b"3"]
    other.replace(["3", "1", "2"])
    assert mine.new() == [b"3", b"1", b"2"]
    other.append(["4"])
    assert mine.new() == [b"4"]
    assert mine.new() == []


@pytest.mark.parametrize(("height", "told"), [(1024, "at most 256 a side"), (16384, "8192")])
def test_a_giant_picture_is_refused_before_anything_is_drawn(
    height: int,
    told: str,
    pico_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    csv = tmp_path / "giant.csv"
    csv.write_text(f"case_number,prompt,seed,height\n7,a dog,1,\n8,a dog,1,{height}\n")
    arguments = ["generate", "--model", str(pico_folder), "--prompts", str(csv)]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "case 8" in error or "row 3" in error
    assert not (tmp_path / "out").exists()


def test_a_case_number_too_long_for_a_file_is_refused(pico: Model, tmp_path: Path) -> None:
    long = ImageRequest(case_number=100 * "漢", prompt="a dog", seed=1)
    with pytest.raises(ExpungeError, match="too long for the name of a file"):
        generate(pico, [long], tmp_path / "new", FAST)
    assert not (tmp_path / "new").exists()
