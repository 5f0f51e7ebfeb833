"""Records the first five minutes: runs the commands of docs/first-steps.md and writes what a terminal shows.

    python tools/record.py          # docs/images/first-steps.cast (for asciinema) and first-steps.svg (animated)

The commands run for real, one after the other in an empty folder; pauses between lines are those of the run, long ones
cut short, so that the recording can be watched.
"""

import fcntl
import json
import os
import pty
import re
import select
import shlex
import shutil
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE, IMAGES = ROOT / "docs" / "first-steps.md", ROOT / "docs" / "images"
WIDTH, HEIGHT = 110, 34
LONGEST, TYPING, READING = 0.8, 0.03, 2.5  # seconds: a pause, a letter, after a command
SHORTEST = 0.12  # seconds that a screen stays, or it is left out of the picture
MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]|\x1b\].*?\x07")  # of the cursor; colors end in m
COLORS = {"1": "font-weight:bold", "2": "opacity:.6", "31": "fill:#e06c75", "32": "fill:#98c379", "33": "fill:#e5c07b"}
COLORS |= {"34": "fill:#61afef", "35": "fill:#c678dd", "36": "fill:#56b6c2"}
Event = tuple[float, str]


def commands() -> list[str]:
    """The indented commands of the page."""
    return [line.strip() for line in PAGE.read_text().splitlines() if line.startswith("    onnxprune ")]


def output_of(words: Sequence[str], folder: Path) -> Iterator[Event]:
    """(seconds since the last, text) of a program in a terminal of WIDTH by HEIGHT."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ.update(TERM="xterm-256color", COLUMNS=str(WIDTH), LINES=str(HEIGHT), OMP_NUM_THREADS="1")
        os.environ["PYTHONPATH"] = str(ROOT)
        os.execvp(sys.executable, [sys.executable, "-m", "onnxprune", *words])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))
    last = time.monotonic()
    while True:
        select.select([terminal], [], [])
        try:
            found = os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            break
        now = time.monotonic()
        yield min(now - last, LONGEST), found
        last = now
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"failed: onnxprune {shlex.join(words)}")


def session(folder: Path) -> list[Event]:
    """(seconds since the begin, text) of all commands."""
    now, found = 0.0, []
    shutil.copytree(ROOT / "models", folder / "models")
    for command in commands():
        for number, letter in enumerate(f"$ {command}\r\n"):
            now += TYPING if number % 8 else SHORTEST + TYPING
            found.append((now, letter))
        for pause, text in output_of(shlex.split(command)[1:], folder):
            now += pause
            found.append((now, text))
        now += READING
        found.append((now, "\r\n"))
    return found


def to_cast(events: Sequence[Event]) -> str:
    """asciicast, version 2."""
    head = {"version": 2, "width": WIDTH, "height": HEIGHT, "title": "onnxprune: the first five minutes"}
    return "\n".join([json.dumps(head), *(json.dumps([round(at, 3), "o", text]) for at, text in events)]) + "\n"


# The animated picture ---------------------------------------------------------------------------------------------


def screens(events: Sequence[Event]) -> list[tuple[float, list[str]]]:
    """(seconds, the lines on the screen) whenever the screen has changed and stays for a moment."""
    lines, found = [""], []
    for index, (at, text) in enumerate(events):
        for piece in re.split(r"(\r\n|\r|\n)", MOVES.sub("", text)):
            if piece in ("\r\n", "\n"):
                lines.append("")
            elif piece == "\r":
                lines[-1] = ""
            else:
                lines[-1] += piece
        after = events[index + 1][0] if index + 1 < len(events) else at + READING
        if after - at >= SHORTEST:
            found.append((at, wrapped(lines)[-HEIGHT:]))
    return found


def wrapped(lines: Sequence[str]) -> list[str]:
    """Lines of at most WIDTH letters; colors do not count."""
    found = []
    for line in lines[-2 * HEIGHT :]:
        letters = re.findall(r"\x1b\[[0-9;]*m|.", line)
        row, count = "", 0
        for letter in letters:
            if count == WIDTH and not letter.startswith("\x1b"):
                found.append(row)
                row, count = "", 0
            row, count = row + letter, count + (not letter.startswith("\x1b"))
        found.append(row)
    return found


def styled(line: str) -> str:
    """A line as parts of an SVG text, in its colors."""
    parts, style = [], ""
    for piece in re.split(r"(\x1b\[[0-9;]*m)", line):
        if piece.startswith("\x1b"):
            codes = piece[2:-1].split(";")
            style = ";".join(filter(None, (COLORS.get(code, "") for code in codes)))
        elif piece:
            parts.append(f'<tspan style="{style}">{escape(piece)}</tspan>' if style else escape(piece))
    return "".join(parts)


def to_svg(events: Sequence[Event]) -> str:
    """The screens one after the other, for ever; each line is drawn once, and screens show those that they have."""
    shown = screens(events)
    seconds = events[-1][0] + 2 * READING
    texts = {line: f"t{number}" for number, line in enumerate(dict.fromkeys(row for _, rows in shown for row in rows))}
    defined = [f'<text id="{name}">{styled(line)}</text>' for line, name in texts.items() if line]
    frames = []
    for number, (at, rows) in enumerate(shown):
        end = shown[number + 1][0] if number + 1 < len(shown) else seconds
        used = [f'<use href="#{texts[row]}" y="{18 * place + 24}"/>' for place, row in enumerate(rows) if row]
        first, last = 100 * at / seconds, 100 * end / seconds
        times = f"0;{first / 100:.5f};{last / 100:.5f};1" if last < 100 else f"0;{first / 100:.5f};1"
        values = "none;inline;none;none" if last < 100 else "none;inline;inline"
        animation = f'<animate attributeName="display" dur="{seconds:.1f}s" repeatCount="indefinite" '
        animation += f'calcMode="discrete" keyTimes="{times}" values="{values}"/>'
        frames.append(f'<g display="none">{animation}{"".join(used)}</g>')
    width, height = 8 * WIDTH + 24, 18 * HEIGHT + 24
    style = "text{font:13.3px ui-monospace,Menlo,Consolas,monospace;fill:#dcdfe4;white-space:pre}"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
    body = f'<rect width="100%" height="100%" rx="6" fill="#20242c"/><defs>{"".join(defined)}</defs>'
    return f'{head}<style>{style}</style>{body}<g transform="translate(12 0)">{"".join(frames)}</g></svg>\n'


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        events = session(Path(folder))
    # Nothing of the machine but its speed is in the pictures.
    (IMAGES / "first-steps.cast").write_text(to_cast(events), encoding="utf-8")
    (IMAGES / "first-steps.svg").write_text(to_svg(events), encoding="utf-8")


if __name__ == "__main__":
    main()
