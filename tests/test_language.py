"""tools/language.py finds what it must, and nothing else."""

import subprocess

import pytest

language = pytest.importorskip("tools.language", reason="needs the checkout")  # a wheel's tests are collected without it

pytestmark = pytest.mark.checkout

BAD = [
    "one picture, Pictures",
    "of sounds",
    "x is no tensor",
    "a linear map",
    "the inverse deviation",
    "a multilayer perceptron",
    "one an axis",
    "nobody looks",
    "as it was told",
    "in no checkpoint",
    "what brings back the rows",
    "a slab",
    "warm_up=0.1",
    "time_spans",
    "model.set_activation_checkpointing()",
]
GOOD = [
    "one image per axis",
    "it is no longer there, and there is no file",
    "the standard deviation",
    "attention maps",
    "a picture's title  # language: keep",
]


def test_words():
    assert [len({instead for _, _, instead in language.findings(line)}) for line in BAD] == [1] * len(BAD)
    assert len(BAD) == len(language.PATTERNS)
    assert [list(language.findings(line)) for line in GOOD] == [[]] * len(GOOD)


def test_main(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(language, "ROOT", tmp_path)
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "a.py").write_text("# fine\n# a picture\n")
    (tmp_path / "b.md").write_text("an image\n")
    (tmp_path / "c.txt").write_text("a picture\n")
    assert language.main([]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "a.py:2: 'picture': write image; a figure or plot is what matplotlib draws",
        "1 words to replace",
    ]
    assert language.main(["b.md"]) == 0
