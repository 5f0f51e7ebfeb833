"""Every command in the documents: all are ones that the command line understands, and those of users' pages run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_text
import pytest
from networks import CNN, DIGITS, filled

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
# Pages of results: their commands take hours and files that are not in the repository.
RESULTS = ROOT / "docs" / "results"
# Commands that need what the test does not have: samples or functions of the user's, a GPU, another machine's time.
FOREIGN = re.compile(
    r"my_\w+:|--provider cuda|compared/|detector\.onnx|encoder\.onnx|vad\.onnx|unet\.onnx|exported/|yolo11n|imagenet|"
    r"wild/|cifar10|compare-reports|retrained|--output logits|calibrat|MODEL|in\.onnx|OLD\.json"
)


def lines(page: Path) -> Iterator[str]:
    """Lines of code of a page: indented or fenced, with those that end in a backslash joined."""
    fenced, waiting = False, ""
    for line in page.read_text().splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            waiting += line.strip()
            if waiting.endswith("\\"):
                waiting = waiting[:-1]
                continue
            yield waiting
            waiting = ""


def commands() -> list[tuple[str, str]]:
    found = [
        (str(page.relative_to(ROOT)), re.split(r"\s#\s", line)[0].strip())
        for page in PAGES
        for line in lines(page)
        if re.match(r"onnxprune (?!\w+ \w+ \w+ )\S*", line) and not re.search(r"[`=]$|\.\.\.|\[--|\bfinds out\b", line)
    ]
    return list(dict.fromkeys(found))


def test_the_pages_have_commands():
    assert len(commands()) > 30
    assert {"README.md", "docs/first-steps.md", "docs/recipes.md"} <= {page for page, _ in commands()}


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda value: value[:60])
def test_a_command_is_understood(cli, page, command, tmp_path, monkeypatch):
    """Without the files that it names a command ends where it looks for them, behind the reading of its options."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    if words[0] in ("methods", "ops", "calibrate"):
        words += ["-h"]
    ran = cli(*words)
    assert "shows the options" not in ran.err, ran.err
    assert "unknown" not in ran.err, ran.err
    assert ran.code == 0 or re.search(r"no such|No such|cannot be read|does not exist|module '", ran.err), ran.err


# Wide enough for all methods: cci takes groups of 16 channels.
WIDE = re.sub(r"\b8\b(?=, [38], 3|, 1, 3|\] b|, 1, 1)", "32", CNN).replace("group = 8", "group = 32")
WIDE = WIDE.replace("float[32, 8,", "float[32, 32,").replace("12", "48")
RUNNABLE = [
    (page, command)
    for page, command in commands()
    if not (ROOT / page).is_relative_to(RESULTS) and not FOREIGN.search(command)
]


DECODER = (
    "(int64[n,s] xids, float[50,16] e, float[16,32] w, float[32,50] v) => (float[n,s,50] logits) "
    "{ a = Gather(e, xids) b = MatMul(a, w) c = Relu(b) logits = MatMul(c, v) }"
)
STREAMING = (
    "(float[1,1,6] x, float[1,1,8] xh, float[1,1,8] xc, float[1,32,6] w, float[1,32,8] r, float[1,64] b, "
    "float[8,3] v) => (float[1,1,1,3] y, float[1,1,8] yh, float[1,1,8] yc) "
    "{ s, yh, yc = LSTM <hidden_size: int = 8> (x, w, r, b, , xh, xc) y = MatMul(s, v) }"
)


def world(folder: Path, command: str) -> None:
    """What the documents' commands name: a model, its samples, images with and without labels."""
    from PIL import Image

    (folder / "models").mkdir()
    (folder / "models" / "digits.onnx").write_bytes(DIGITS.read_bytes())
    if "--data digits" in command or "small.onnx --data pages" in command:
        (folder / "model.onnx").write_bytes(DIGITS.read_bytes())
    else:
        onnx.save(filled(WIDE), folder / "model.onnx")
    onnx.save(onnx_text.proto(DECODER), folder / "decoder.onnx")
    onnx.save(onnx_text.proto(STREAMING), folder / "streaming.onnx")
    (folder / "ids.txt").write_text("".join(f"{number}\n" for number in range(0, 50, 2)))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "samples.npz", x=x)
    np.savez(folder / "x.npz", x=x)
    for name in ("images", "photos"):
        (folder / name).mkdir()
        for index in range(40):
            image = Image.fromarray(rng.integers(0, 255, (12, 12, 3), np.uint8))
            image.save(folder / name / f"{index}.png")
    (folder / "photos.csv").write_text("".join(f"{index}.png,{index % 4}\n" for index in range(40)))
    (folder / "classes.txt").write_text("a\nb\nc\nd\n")
    for index in range(40):
        (folder / "photos" / "abcd"[index % 4]).mkdir(exist_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), RUNNABLE, ids=lambda value: value[:60])
def test_a_command_runs(cli, page, command, tmp_path, monkeypatch):
    world(tmp_path, command)
    if "photos/ --labels classes.txt" in command:
        for file in (tmp_path / "photos").glob("*.png"):
            file.rename(tmp_path / "photos" / "abcd"[int(file.stem) % 4] / file.name)
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command)[1:]
    model = "models/digits.onnx" if "models/digits.onnx" in words or "--data digits" in command else "model.onnx"
    needs_result = words[0] in ("verify", "bench", "apply", "check", "card")
    if needs_result:
        first = ("--method", "l1", "--no-latency", "-q", "--plan", "plan.json", "--report", "report.json")
        assert cli(model, "small.onnx", *first).code == 0
    ran = cli(*words)
    gated = any(word in ("--max-drop", "--min-speedup", "--target") for word in words)
    assert ran.code == 0 or (ran.code == 1 and gated and "nearest" in ran.err), ran.err


@pytest.mark.slow
def test_the_python_of_its_page_runs(tmp_path, monkeypatch):
    world(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    assert len(blocks) == 4
    space: dict = {}
    for block in blocks:
        exec(compile(block, "docs/python.md", "exec"), space)
    assert space["result"].after.macs < space["result"].before.macs
