"""SaD, PaD and HCS: the golden numbers of the specification, identities, what cannot be told, words."""
from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from metrics_golden_data import LITERAL, PAIRS, SINGLE, correlated, normal

from frozen_diffusion.modules.metrics import density, divergence
from frozen_diffusion.modules.metrics.attributes import attributes_of_captions, parse_attributes
from frozen_diffusion.modules.metrics.compare import DULL, FLAT, compare, without_chance
from frozen_diffusion.modules.metrics.disentanglement import disentanglement, rank_correlation
from frozen_diffusion.modules.metrics.divergence import GENERAL, PAPER_PARITY, all_pairs, pad, sad
from frozen_diffusion.modules.metrics.hcs import (
    OFFICIAL_BARE,
    TEMPLATED,
    AttributeListError,
    Ruler,
    alike_attributes,
    hcs,
    text_directions,
)
from frozen_diffusion.modules.metrics.neighbours import neighbours
from frozen_diffusion.modules.metrics.report import as_csv, as_json, conclusion, report_text, versus
from frozen_diffusion.modules.metrics.report_page import report_page
from frozen_diffusion.modules.metrics.report_picture import report_picture
from frozen_diffusion.modules.metrics.significance import benjamini_hochberg, bootstrap, pair_null
from frozen_diffusion.modules.metrics.trajectory import trajectory
from frozen_diffusion.modules.seeding import stream

QUICK = without_chance(GENERAL)


def drawn(count: int, attributes: int, seed: int, deviation: float = 8.0) -> torch.Tensor:
    return deviation * torch.randn(count, attributes, generator=stream("scores", seed), dtype=torch.float64)


@pytest.mark.parametrize("settings, within", [(PAPER_PARITY, 1e-4), (replace(PAPER_PARITY, method="binned"), 1e-3)])
def test_golden_numbers_of_one_attribute(settings, within):
    for (one, other), (forward, back) in SINGLE.items():
        found = sad(normal(*one), normal(*other), settings)
        assert float(found.kl) == pytest.approx(forward, rel=within)
        assert float(found.reverse) == pytest.approx(back, rel=within)
    assert float(sad(normal(0, 4), normal(0, 4), settings).kl) == 0


@pytest.mark.parametrize("settings, within", [(PAPER_PARITY, 1e-4), (replace(PAPER_PARITY, method="binned"), 1e-3),
                                              (GENERAL, 1e-4)])
def test_golden_numbers_of_pairs(settings, within):
    for (one, other), wanted in PAIRS.items():
        found = pad(correlated(*one), correlated(*other), all_pairs(2), settings)
        assert float(found.kl) == pytest.approx(wanted, rel=within)
    a, c, d = correlated(0, 0), correlated(0, 0.5), correlated(0, -0.5)
    assert float(pad(a, a, all_pairs(2), settings).kl) == 0
    assert sad(c, d, settings).kl.tolist() == pytest.approx([0, 0.104113], abs=1e-4)


def test_the_literal_unit_of_the_code_depends_on_points_and_ours_does_not():
    for nodes, literal in LITERAL.items():
        found = float(sad(normal(0, 4), normal(1, 4), replace(PAPER_PARITY, nodes=nodes)).kl)
        assert found * 10_000 / nodes == pytest.approx(literal, rel=1e-4)
    few, many = (float(sad(normal(0, 4), normal(1, 4), replace(GENERAL, nodes=nodes)).kl) for nodes in (1000, 10_000))
    assert few == pytest.approx(many, rel=2e-3)


def test_gaussian_data_gives_the_analytic_divergence():
    variance = 16 * 2000 / 1999 * (1 + 2000 ** -0.4)
    assert float(sad(normal(0, 4), normal(1, 4)).kl) / 1000 == pytest.approx(0.5 / variance, rel=0.01)
    assert float(sad(normal(0, 4), normal(1, 4), replace(GENERAL, method="gaussian")).kl) / 1000 == pytest.approx(
        1 / 32, rel=0.01)


def test_a_pair_is_at_least_as_far_as_its_attributes():
    one, other = drawn(400, 3, 1), drawn(400, 3, 2) + torch.tensor([3.0, 0, -2])
    single, pairs = sad(one, other).kl, all_pairs(3)
    paired = pad(one, other, pairs).kl
    assert (paired >= 0.95 * single[pairs].amax(1) - 5).all()


def directions(attributes: int = 5, width: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    make = stream("texts", attributes)
    return (torch.randn(attributes, width, generator=make, dtype=torch.float64) + 2,
            torch.randn(attributes, width, generator=make, dtype=torch.float64) + 1)


def test_zero_sum_holds_for_the_papers_centre_and_not_for_the_codes():
    images, (texts, bare) = torch.randn(20, 16, generator=stream("images"), dtype=torch.float64), directions()
    for centre, holds in ((TEMPLATED, True), (OFFICIAL_BARE, False)):
        vectors = text_directions(texts, bare, [""] * 5, centre)
        total = (vectors.norm(dim=1) * hcs(images, images.mean(0), vectors)).sum(1).abs().max() / vectors.norm() / 100
        assert bool(total < 1e-9) is holds
    two = text_directions(texts[:2], bare[:2], [""] * 2, TEMPLATED)
    scores = hcs(images, images.mean(0), two)
    assert torch.allclose(scores[:, 0], -scores[:, 1], atol=1e-9)


def test_groups_are_centred_by_themselves():
    texts, bare = directions()
    found = text_directions(texts, bare, ["a", "a", "b", "b", "b"], TEMPLATED)
    assert found[:2].sum(0).abs().max() < 1e-12 and found[2:].sum(0).abs().max() < 1e-12
    with pytest.raises(AttributeListError, match="'b' has one attribute"):
        text_directions(texts[:3], bare[:3], ["a", "a", "b"], TEMPLATED)
    with pytest.raises(AttributeListError, match="at least 2 attributes"):
        text_directions(texts[:1], bare[:1], [""], TEMPLATED)
    assert len(text_directions(texts[:1], bare[:1], [""], OFFICIAL_BARE)) == 1


def test_scores_do_not_change_with_scale_or_a_common_shift_and_do_with_a_shift_of_one_set():
    first, second = torch.randn(2, 30, 16, generator=stream("sets"), dtype=torch.float64)
    vectors = text_directions(*directions(), [""] * 5, TEMPLATED)
    plain = hcs(second, first.mean(0), vectors)
    moved, constant = 3 * first, torch.arange(16.0)
    assert torch.allclose(hcs(3 * second, moved.mean(0), vectors), plain)
    assert torch.allclose(hcs(second + constant, (first + constant).mean(0), vectors), plain)
    assert not torch.allclose(hcs(second + constant, first.mean(0), vectors), plain, atol=1)


def test_order_and_parts_do_not_matter():
    one, other = drawn(300, 3, 1), drawn(200, 3, 2)
    mixed = one[torch.randperm(300, generator=stream("mix"))]
    found, again = compare(one, other, "abc", QUICK), compare(mixed, other, "abc", QUICK)
    assert torch.allclose(found.sad.kl, again.sad.kl, rtol=1e-5)
    assert torch.allclose(found.pad.kl, again.pad.kl, rtol=1e-5)


def test_the_same_set_twice_is_exactly_nothing():
    scores = drawn(60, 4, 3)
    found = compare(scores, scores.clone(), "abcd", replace(GENERAL, pair_draws=4, resamples=20))
    assert found.mean_sad == 0 and found.mean_pad == 0 and not found.difference.any()
    assert found.reliable == [] and "no attribute" in conclusion(found)
    assert report_picture({"same": found}, conclusion(found), []).shape[-1] == 3


def test_what_differs_is_found_with_its_direction_and_nothing_else():
    one, other = drawn(300, 12, 1), drawn(250, 12, 2)
    other[:, 3] += 6
    other[:, 7] -= 5
    names = [f"attribute {number}" for number in range(12)]
    found = compare(one, other, names, replace(GENERAL, pair_draws=20))
    assert set(found.reliable) == {3, 7}
    assert float(found.difference[3]) > 4 and float(found.difference[7]) < -3
    assert "attribute 3 (too much" in conclusion(found) and "attribute 7 (too little" in conclusion(found)
    low, high = found.interval
    assert low[3] > found.null.floor[3] and bool((low <= found.sad.kl + 5).all() and (high >= low).all())


def test_a_coupling_with_equal_marginals_is_a_finding_of_pairs_only():
    base = drawn(400, 3, 1)
    one, other = base.clone(), drawn(400, 3, 5)
    one[:, 1], other[:, 1] = 0.8 * one[:, 0] + 0.6 * one[:, 1], -0.8 * other[:, 0] + 0.6 * other[:, 1]
    found = compare(one, other, "abc", replace(GENERAL, pair_draws=20))
    worst = found.pad.kl.argmax()
    assert found.reliable == [] and found.pairs[worst].tolist() == [0, 1]
    assert found.pad.kl[worst] > 10 * found.pair_null.floor[worst] and found.coupled_pairs == [int(worst)]
    assert found.coupling[worst] < -1 and "a with b (less often)" in conclusion(found)


def test_chance_finds_nothing_and_draws_are_repeatable():
    one, other = drawn(150, 8, 11), drawn(120, 8, 12)
    found = compare(one, other, "abcdefgh", replace(GENERAL, pair_draws=20), seed=3)
    again = compare(one, other, "abcdefgh", replace(GENERAL, pair_draws=20), seed=3)
    assert found.reliable == [] and torch.equal(found.null.p, again.null.p)
    assert 0.3 < found.mean_sad / float(found.null.floor.mean()) < 3


def test_a_normal_a_set_is_tested_by_no_other_density():
    found = compare(drawn(30, 3, 1), drawn(30, 3, 2), "abc", replace(GENERAL, method="gaussian"))
    assert found.null is None and found.interval is None and found.pair_null is None
    assert "whether that is more than chance was not tested" in conclusion(found)


def test_sets_that_do_not_differ_have_no_winner():
    one = drawn(120, 6, 1)
    found = {name: compare(one, drawn(count, 6, seed), "abcdef", replace(GENERAL, pair_draws=0))
             for name, count, seed in (("many", 120, 2), ("few", 30, 3))}
    assert "no verdict between them" in versus(found)


def test_nothing_varies_is_a_sentence_and_valid_json():
    found = compare(torch.ones(5, 3), torch.ones(4, 3), "abc", GENERAL)
    assert json.loads(as_json({"x": found}, ruler_of("abc")))["sets"]["x"]["sad"] is None
    assert found.flags == (FLAT,) * 3 and len(found.pairs) == 0


def test_nearly_equal_attributes_do_not_fill_the_memory():
    one, other = drawn(80, 3, 1), drawn(80, 3, 2)
    for values in (one, other):
        values[:, 1] = values[:, 0] + 0.3 * values[:, 1]
    found = compare(one, other, "abc", replace(GENERAL, pair_draws=2, resamples=2))
    assert found.pad.kl.isfinite().all()


def test_benjamini_hochberg():
    found = benjamini_hochberg(torch.tensor([0.01, 0.04, 0.03, 0.5]))
    assert found.tolist() == pytest.approx([0.04, 0.16 / 3, 0.16 / 3, 0.5])


def test_constant_and_equal_scores_are_values_with_a_flag():
    one, other = drawn(80, 4, 1), drawn(80, 4, 2)
    one[:, 0] = other[:, 0] = 2.0
    one[:, 2], other[:, 2] = -one[:, 1], -other[:, 1]
    one[:, 3] *= 0.01
    found = compare(one, other, "abcd", replace(GENERAL, pair_draws=4, resamples=20))
    assert found.flags[0] == FLAT and found.flags[3] == DULL and not found.counted[0]
    assert found.sad.kl.isfinite().all() and found.pad.kl.isfinite().all()
    assert [0, 1] not in found.pairs.tolist() and [1, 2] not in found.pairs.tolist()
    text = report_text(found)
    assert "no variance, in no mean: a" in text and "b and c" in text and "may not see it: d" in text


def test_two_attributes_that_mirror_each_other_have_no_pair():
    one, other = drawn(80, 1, 1), drawn(80, 1, 2)
    found = compare(torch.cat([one, -one], 1), torch.cat([other, -other], 1), ("a", "b"), QUICK)
    assert len(found.pairs) == 0 and math.isnan(found.mean_pad)
    json.loads(as_json({"x": found}, ruler_of("ab")))


def test_sizes_that_cannot_be_compared_are_errors():
    with pytest.raises(ValueError, match="has 1 pictures"):
        compare(drawn(1, 2, 1), drawn(5, 2, 2), "ab", QUICK)
    with pytest.raises(ValueError, match="4 and 3 attributes"):
        compare(drawn(5, 4, 1), drawn(5, 3, 2), "abcd", QUICK)
    broken = drawn(5, 2, 1)
    broken[2, 1] = torch.nan
    with pytest.raises(ValueError, match="generated set has scores that are not finite"):
        compare(drawn(5, 2, 1), broken, "ab", QUICK)
    found = compare(drawn(2, 2, 1), drawn(9, 2, 2), "ab", QUICK)
    assert len(found.pairs) == 0 and "only 2 pictures" in "\n".join(found.notes)


def test_the_range_widens_or_says_so():
    far = normal(40, 4)
    narrow = compare(normal(0, 4), far, "a", replace(PAPER_PARITY, text_centre=TEMPLATED))
    wide = compare(normal(0, 4), far, "a", QUICK)
    assert narrow.settings.half_range == 35 and "outside of the paper's range" in "\n".join(narrow.notes)
    assert wide.settings.half_range == 70


def test_bins_series_and_scipy_agree():
    one, other = drawn(300, 3, 1), drawn(200, 3, 2) + 2
    exact, series, binned = (pad(one, other, all_pairs(3), replace(GENERAL, method=method)).kl
                             for method in ("exact", "auto", "binned"))
    assert torch.allclose(series, exact, rtol=1e-5) and torch.allclose(binned, exact, rtol=2e-3)
    assert torch.allclose(sad(one, other).kl, sad(one, other, replace(GENERAL, method="exact")).kl, rtol=1e-3)


def test_sets_too_large_for_waves_go_by_bins(monkeypatch):
    from frozen_diffusion.modules.metrics import series
    one, other = drawn(300, 3, 1), drawn(200, 3, 2)
    wanted = pad(one, other, all_pairs(3)).kl
    monkeypatch.setattr(series, "BYTES", 300 * 3 * 16 * 20)
    assert torch.allclose(pad(one, other, all_pairs(3)).kl, wanted, rtol=2e-3)
    monkeypatch.setattr(series, "BYTES", 1)
    assert pair_null(one, other, all_pairs(3), GENERAL) is None


def test_a_density_holds_one():
    grid = torch.linspace(-35, 35, 10_000, dtype=torch.float64)
    assert density.binned_1d(normal(0, 4), grid).sum() * 70 / 9999 == pytest.approx(1, abs=1e-6)
    assert density.exact_1d(torch.zeros(5, 1), grid).sum() * 70 / 9999 == pytest.approx(1, abs=1e-6)


def test_bootstrap_tells_a_clear_difference_from_none():
    one, other = drawn(400, 2, 1), drawn(400, 2, 2) + torch.tensor([6.0, 0])
    low, high = bootstrap(one, other, GENERAL)
    value = sad(one, other).kl
    assert low[0] < value[0] < high[0] and low[0] > high[1]


def test_neighbours_of_equal_and_of_distant_sets():
    features = torch.randn(60, 8, generator=stream("features"))
    same = neighbours(features, features.clone())
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1) and same.density >= 1
    apart = neighbours(features, features + 100)
    assert (apart.precision, apart.recall, apart.density, apart.coverage) == (0, 0, 0, 0)
    constant = neighbours(torch.ones(9, 4), torch.ones(9, 4))
    assert constant.precision == 1 and constant.coverage == 1
    with pytest.raises(ValueError, match="more than k = 5"):
        neighbours(features[:5], features)


def test_lists_are_read_as_people_write_them():
    found = parse_attributes("# mine\nsmiling\n\nColours:\nred: a red thing | red paint\nblue\nRed: again\n")
    assert found.names == ("smiling", "red", "blue") and found.groups == ("", "Colours", "Colours")
    assert found.attributes[1].texts("x {}") == ("a red thing", "red paint")
    assert found.attributes[2].texts("x {}") == ("x blue",) and "Red" in found.report()
    assert parse_attributes("man, woman, child").names == ("man", "woman", "child")
    assert found.hash == parse_attributes("smiling\nColours:\nred: a red thing | red paint\nblue").hash
    assert found.hash != parse_attributes("smiling\nColours:\nred\nblue").hash
    assert parse_attributes("a hat | a cap\nshoes").attributes[0].texts("x {}") == ("a hat", "a cap")
    for text, told in (("  \n# only", "is empty"), ("red: | x", "empty part"),
                       ("\n".join(map(str, range(500))), "500")):
        with pytest.raises(AttributeListError, match=told):
            parse_attributes(text)
    with pytest.raises(AttributeListError, match="expected a text with one {}"):
        parse_attributes("a", "a photo")


def test_captions_give_words_and_pairs_of_words():
    captions = ["a photo of a black cat quietly sleeping", "a black cat on a table", "a dog on a table",
                "the white dog", "a white house"]
    found = attributes_of_captions(captions)
    assert "black cat" in found.names and "table" in found.names and "dog" in found.names
    assert not {"black", "cat", "photo", "quietly", "on"} & set(found.names)
    with pytest.raises(AttributeListError, match="No picture of the folder has a caption"):
        attributes_of_captions(["", " "])


def ruler_of(names, list_hash="abc") -> Ruler:
    return Ruler(tuple(names), ("",) * len(names), torch.eye(len(names), 4).double(), torch.zeros(4), 10, "encoder",
                 TEMPLATED, list_hash)


def test_words_that_mean_the_same_are_named():
    vectors = torch.tensor([[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0]])
    assert [pair[:2] for pair in alike_attributes(("beard", "bearded", "hat"), vectors)] == [("beard", "bearded")]


def test_tables_and_page():
    one, other = drawn(60, 3, 1), drawn(60, 3, 2) + torch.tensor([9.0, 0, 0])
    found = {name: compare(one, part, ("a", "b<c>", "d,e"), replace(GENERAL, pair_draws=4, resamples=20))
             for name, part in (("far", other), ("near", drawn(60, 3, 3)))}
    lines = as_csv(found).splitlines()
    assert len(lines) == 1 + 2 * (3 + 3) and lines[0].startswith("set,kind,name,score")
    told = json.loads(as_json(found, ruler_of("abc")))
    assert told["sets"]["far"]["rows"][0]["name"] == "a" and told["list_hash"] == "abc"
    assert versus(found).startswith("near is nearer to the reference than far")
    page = report_page(found, report_picture(found, versus(found), []), versus(found))
    assert "b&lt;c&gt;" in page and "data:image/png;base64" in page and "http" not in page


def test_an_edit_of_one_attribute_is_pure_and_of_all_is_not():
    before = drawn(20, 5, 1)
    one, every = before.clone(), before + 5
    one[:, 2] += 8
    assert disentanglement(before, one).purity == pytest.approx(1) and disentanglement(before, one).target == 2
    assert disentanglement(before, every).purity == pytest.approx(0.5)
    assert disentanglement(before, one, target=0).purity == pytest.approx(0)
    grouped = disentanglement(before, every, 2, ["a", "b", "b", "c", "c"])
    assert grouped.purity == pytest.approx(0.5)
    with pytest.raises(ValueError, match="same pictures"):
        disentanglement(before, before[:3])
    assert rank_correlation([1, 2, 3], [2, 4, 9]) == pytest.approx(1)


def test_curves_of_a_clip():
    scores = torch.zeros(12, 3)
    scores[:, 0] = torch.linspace(-10, 10, 12)
    scores[::2, 1] = 5
    found = trajectory(scores, ("grows", "flickers", "still"))
    assert found.drift[0] > 10 and found.flicker[1] == 5 and found.flicker[2] == 0
    assert found.temporal_sad[0] > 1000 and found.temporal_sad[2] == 0
    assert "drifts most: grows" in found.text()
    with pytest.raises(ValueError, match="at least 6"):
        trajectory(scores[:5], ("a", "b", "c"))


def test_units_are_nats_times_a_thousand():
    p, q = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
    assert float(divergence.kl(p, q)) == pytest.approx(1000 * (0.5 * math.log(2) + 0.5 * math.log(2 / 3)), rel=1e-5)
