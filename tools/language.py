"""Finds words that this project does not use, and suggests others.

    python tools/language.py [PATH ...]    the whole repository without a path

Checks .py, .md, .c, .yaml and .toml files. A line that must keep a word, such as a quoted title, says `language: keep` in a
comment.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUFFIXES = {".py", ".md", ".c", ".yaml", ".yml", ".toml"}
EXCLUDED = {"tools/language.py", "tests/test_language.py"}  # they hold the words themselves
KEEP = "language: keep"

# Pattern, ignoring case: what to write instead.
WORDS = {
    r"\bpictures?\b": "image; a figure or plot is what matplotlib draws",
    r"\bsounds\b": "audio, audio clips",
    r"(?<!\bthere )\b(is|are|was|were) no (?!longer|more|less|larger|smaller)": "is not a",
    r"\blinear maps?\b": "linear layer, linear projection",
    r"(?<!standard )\bdeviations?\b": "standard deviation",
    r"\bperceptrons?\b": "MLP, feed-forward",
    r"\bone an? (axis|batch|class|file|group|head|input|layer|line|row|sample)\b": "one per ...",
    r"\bnobody\b": "what happens, or does not",
    r"\b(is|are|was|were|being) (told|said)\b": "is given, is specified, is reported",
    r"\bin no (checkpoint|state_dict)\b": "not saved in checkpoints",
    r"\bbrings? back\b": "gather, scatter",
    r"\bslabs?\b": "tile, block",
    r"\bwarm_up\b": "warmup, warmup_steps",
    r"\btime_spans\b": "time_masks",
    r"\bset_activation_checkpointing\b": "set_grad_checkpointing",
}
PATTERNS = [(re.compile(pattern, re.IGNORECASE), instead) for pattern, instead in WORDS.items()]


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the line number, the word found and its replacement, for each word that is not used here."""
    for number, line in enumerate(text.splitlines(), 1):
        if KEEP not in line:
            for pattern, instead in PATTERNS:
                for match in pattern.finditer(line):
                    yield number, match[0], instead


def main(arguments: list[str]) -> int:
    """Print the findings in all files and return the exit status: 0 if there are none.

    Args:
        arguments: Files and folders to check, relative to the repository; all of it if empty.
    """
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *arguments]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    count = 0
    for name in sorted(set(listed.splitlines()) - EXCLUDED):
        path = ROOT / name
        if path.suffix in SUFFIXES and path.exists():
            for number, word, instead in findings(path.read_text(encoding="utf-8")):
                print(f"{name}:{number}: {word!r}: write {instead}")
                count += 1
    print(f"{count} words to replace" if count else "no words to replace")
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
