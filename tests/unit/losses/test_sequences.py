import torch

from raytune.losses.sequences import label_sequences

NO = -100


def test_one_answer_a_row():
    labels = torch.tensor([[NO, NO, 5, 6], [NO, NO, NO, NO], [7, NO, 8, NO]])
    found = label_sequences(labels, None)
    # the first label of a row has no token before it, so 7 is never predicted
    assert (found.index.tolist(), found.count) == ([0, 0, 2], 3)


def test_packed_answers_are_numbered_through_all_rows():
    labels = torch.tensor([[NO, 5, NO, 6, 7, NO], [NO, NO, 8, NO, 9, 9]])
    segments = torch.tensor([[1, 1, 2, 2, 2, 0], [1, 1, 1, 2, 3, 3]])
    found = label_sequences(labels, segments)
    # the second row's answers are 2, 3, 4, and 3 has no labelled token
    assert (found.index.tolist(), found.count) == ([0, 1, 1, 2, 4, 4], 5)


def test_an_empty_batch_of_labels():
    found = label_sequences(torch.full((2, 3), NO), None)
    assert (found.index.numel(), found.count) == (0, 2)
