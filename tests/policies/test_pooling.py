"""Pooling of feature maps: closed forms."""

from __future__ import annotations

import torch

from mcr.policies.pooling import SpatialSoftmax, TokenAttention


def test_spatial_softmax_finds_a_peak():
    pool = SpatialSoftmax(1)
    pool.keypoints.weight.data.fill_(1.0)
    features = torch.zeros(1, 1, 5, 9)
    features[0, 0, 1, 6] = 50.0  # row 1 of 0..4 is y = -0.5, column 6 of 0..8 is x = 0.5
    x, y = pool(features).split(32, dim=1)
    torch.testing.assert_close(x, torch.full((1, 32), 0.5))
    torch.testing.assert_close(y, torch.full((1, 32), -0.5))


def test_attention_over_tokens_begins_as_their_mean():
    pool, features = TokenAttention(2), torch.randn(3, 2, 4, 5)
    torch.testing.assert_close(pool(features), features.mean(dim=(2, 3)))
    pool.query.data = torch.tensor([1e4, 0.0])
    strongest = features.flatten(2)[:, 0].argmax(dim=1)
    expected = features.flatten(2)[torch.arange(3), :, strongest]
    torch.testing.assert_close(pool(features), expected)


def test_queries_find_their_tokens_and_the_tokens_places():
    features = torch.zeros(1, 3, 5, 9)
    features[0, :, 1, 6] = torch.tensor([9.0, 0.0, 2.0])  # row 1 of 0..4 is y = -0.5
    features[0, :, 4, 0] = torch.tensor([0.0, 9.0, 3.0])
    pool = TokenAttention(3, num_queries=2, size=(5, 9))
    pool.query.data = 1e3 * torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert pool.out_dim == 2 * (3 + 2)
    torch.testing.assert_close(
        pool(features), torch.tensor([[9.0, 0.0, 2.0, 0.5, -0.5, 0.0, 9.0, 3.0, -1.0, 1.0]])
    )


def test_a_query_may_choose_by_place():
    features = torch.randn(4, 3, 2, 3)
    pool = TokenAttention(3, num_queries=2, size=(2, 3))
    pool.query.data.zero_()
    everywhere = torch.cat([features.mean(dim=(2, 3)), torch.zeros(4, 2)], dim=1)
    torch.testing.assert_close(pool(features), everywhere.repeat(1, 2))
    pool.places.data[1, 5] = 1e3  # the last token: x = y = 1
    torch.testing.assert_close(pool(features)[:, 5:8], features[:, :, 1, 2])
    assert pool(features)[:, 8:].tolist() == [[1.0, 1.0]] * 4


def test_random_queries_differ_and_depend_on_the_generator():
    first, again, other = (
        TokenAttention(4, 3, generator=torch.Generator().manual_seed(seed)).query
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
