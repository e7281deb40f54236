import pytest

from perceivers.data import Sizes, Text
from perceivers.inputs import ByteTokenizer

COMMON = {"labels": ["a", "b"], "task": "classification"}


def test_text_is_truncated_padded_and_masked():
    x, mask = Text(**COMMON, max_length=6)("Grüße, all")
    assert ByteTokenizer().decode(x.tolist()).startswith("Grü")
    assert mask.all()
    x, mask = Text(**COMMON, max_length=6)("ab")
    assert mask.tolist() == [True, True, False, False, False, False]
    x, mask = Text(**COMMON, max_length=6)("")
    assert mask.sum() == 1  # never nothing
    x, _ = Text(**COMMON, max_length=6, cls_sep=True)("a long text")
    whole = ByteTokenizer(cls_sep=True).encode("a long text")
    assert x.tolist() == [*whole[:5], whole[-1]]


def test_files(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("äb" * 200, encoding="utf-8")
    assert Text.choose([file, "ab"], Sizes(), **COMMON).max_length == 600
    assert Text.choose([file], Sizes(max_length=7), **COMMON).max_length == 7
    assert [len(piece) for piece in Text.pieces(file)] == [256, 144]
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"a\.txt is not UTF-8 text"):
        Text(**COMMON, max_length=6)(file)
    with pytest.raises(ValueError, match="must be a string, not a int"):
        Text(**COMMON, max_length=6)(3)
