"""TokenIds and ByteTokenizer, written out."""

import torch
from inputs.definitions import close

from accuracy import draw_parameters
from perceivers.inputs import ByteTokenizer, TokenIds


def test_token_ids():
    module = draw_parameters(TokenIds(vocab_size=11, max_length=9, dim=6))
    ids = torch.tensor([[1, 4, 4], [10, 0, 2]])
    wanted = [[module.embeddings.weight[i] + module.positions.embeddings[m] for m, i in enumerate(row)] for row in ids]
    close(module(ids)[0].encoded(), torch.stack([torch.stack(row) for row in wanted]))


def test_tokenizer():
    tokenizer = ByteTokenizer()
    ids, mask = tokenizer(["ab", "", "é"])
    assert ids.tolist() == [[103, 104], [0, 0], [201, 175]]
    assert mask.tolist() == [[True, True], [False, False], [True, True]]
    assert tokenizer(["ab"], length=4)[0].tolist() == [[103, 104, 0, 0]]
    assert [tokenizer.decode(row) for row in ids] == ["ab", "", "é"]
    assert tokenizer.decode([201]) == "\ufffd"
    assert ByteTokenizer(cls_sep=True).encode("a") == [4, 103, 5]
