"""Draws: the streams, the inverse-CDF draw against the softmax, top-p against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from rectune.sampling.hf.engine import CANDIDATES, _nucleus_floor, sample_tokens, uniforms


def test_streams_are_stable_across_versions_and_processes():
    # Written down: a change of the hash or the generator would draw other samples for an old seed.
    assert uniforms(0, "gsm8k/0", 0, 3) == pytest.approx(
        [0.8733057583513256, 0.4618341431766304, 0.9677869296052838], abs=1e-15
    )


def test_streams_have_the_prefix_property_and_differ_by_each_part_of_the_key():
    base = uniforms(0, "p", 0, 8)
    assert (uniforms(0, "p", 0, 4096)[:8] == base).all()
    for other in (uniforms(1, "p", 0, 8), uniforms(0, "q", 0, 8), uniforms(0, "p", 1, 8)):
        assert not np.intersect1d(base, other).size


def test_streams_are_uniform_and_independent_of_each_other():
    grid = np.stack([uniforms(3, f"p{i}", j, 50) for i in range(20) for j in range(10)])
    assert stats.kstest(grid.ravel(), "uniform").pvalue > 0.01
    assert abs(np.corrcoef(grid)[np.triu_indices(len(grid), 1)]).mean() == pytest.approx(0.8 / 7, rel=0.1)


@pytest.mark.parametrize("vocabulary", [5, 256, 700])
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8), (1.7, 0.5)])
def test_frequencies_agree_with_the_softmax(vocabulary, temperature, top_p):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(vocabulary, generator=generator, dtype=torch.float64) * 2
    expected = (logits / temperature).softmax(-1)
    order = expected.argsort(descending=True)
    before = expected[order].cumsum(-1) - expected[order]
    expected[order[before >= top_p]] = 0.0
    expected /= expected.sum()
    count = 20_000
    uniform = torch.from_numpy(uniforms(0, "frequencies", vocabulary, count))
    ids, logps = sample_tokens(
        logits.float().expand(count, -1), uniform, temperature=temperature, top_p=top_p
    )
    observed = torch.bincount(ids, minlength=vocabulary).double()
    assert (observed[expected == 0] == 0).all()
    assert torch.allclose(logps.double(), logits.log_softmax(-1)[ids], atol=1e-5)
    common = expected * count >= 5
    pooled = [[*t[common].tolist(), t[~common].sum().item()] for t in (observed, expected * count)]
    if pooled[1][-1] < 5:
        pooled = [[*row[:-2], row[-2] + row[-1]] for row in pooled]
    assert stats.chisquare(*pooled).pvalue > 0.01


def test_draw_is_the_inverse_of_the_running_sum():
    logits = torch.tensor([[0.1, 0.2, 0.0, 0.7]]).log()
    cases = {0.0: 0, 0.0999: 0, 0.1001: 1, 0.2999: 1, 0.3001: 3, 1 - 2**-53: 3}
    uniform = torch.tensor(list(cases), dtype=torch.float64)
    ids, _ = sample_tokens(logits.expand(len(cases), -1), uniform, temperature=1.0, top_p=1.0)
    assert ids.tolist() == list(cases.values())


def test_a_row_does_not_depend_on_its_neighbours():
    logits = torch.randn(64, 1000, generator=torch.Generator().manual_seed(1)) * 4
    uniform = torch.from_numpy(uniforms(0, "rows", 0, 64))
    for settings in ({"temperature": 1.0, "top_p": 1.0}, {"temperature": 0.8, "top_p": 0.9}):
        together, logps = sample_tokens(logits, uniform, **settings)
        for i in range(64):
            alone, logp = sample_tokens(logits[i : i + 1], uniform[i : i + 1], **settings)
            assert alone[0] == together[i]
            assert logp[0] == logps[i]


def test_flat_distribution_needs_more_than_the_candidates_for_top_p():
    uniform = torch.from_numpy(uniforms(0, "flat", 0, 4000))
    logits = torch.linspace(0, 1e-3, 2000).expand(4000, -1)
    ids, _ = sample_tokens(logits, uniform, temperature=1.0, top_p=0.75)
    assert ids.min() >= 498  # the most probable three quarters are the last 1500 words
    assert len(ids.unique()) > 1200


def test_the_nucleus_of_sharp_and_flat_rows_together_is_that_of_sorted_rows():
    logits = torch.randn(12, 20_000, generator=torch.Generator().manual_seed(2))
    sharpness = torch.tensor([0.3, 3.0, 8.0]).repeat(4)  # in turn all, some and few words
    weights = (logits * sharpness[:, None]).exp()
    ordered = weights.sort(-1, descending=True).values
    reached = ordered.cumsum(-1, dtype=torch.float64)
    needed = (reached - ordered < 0.95 * weights.sum(-1, keepdim=True, dtype=torch.float64)).sum(-1)
    assert needed[:3].tolist() == sorted(needed[:3].tolist(), reverse=True)
    assert needed[0] > CANDIDATES[1] > needed[1] > CANDIDATES[0] > needed[2]
    floor = _nucleus_floor(weights, 0.95)
    assert torch.equal(floor, ordered.gather(-1, needed[:, None] - 1))


def test_greedy_takes_the_most_probable_in_bfloat16_too():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 3.0, 4.0]], dtype=torch.bfloat16)
    ids, logps = sample_tokens(logits, torch.zeros(2, dtype=torch.float64), temperature=0.0, top_p=1.0)
    assert ids.tolist() == [1, 0]
    assert logps.tolist() == pytest.approx(logits.float().log_softmax(-1).amax(-1).tolist())
