"""The identities of FurryGAN (furrygan.md 8, items 2 to 6), each by the tests of the suite that prove it.

`hold` is the share of items whose tests all pass. Name: furry-proofs.
"""
from __future__ import annotations

from bench.guide_proofs import passes

UNIT = "tests/unit/test_furrygan.py"
ITEMS = {
    "2 modulated convolutions and filters": [UNIT, "one_convolution_a_picture or filters_keep"],
    "3 constants of the losses": [UNIT, "constants_of_the_losses"],
    "4 compositing": [UNIT, "masks_and_composites or flat_maps"],
    "5 who moves what": [UNIT, "who_moves_what or order_of_codes"],
    "6 files, batches, W+": [UNIT, "bit_for_bit or in_any_batch or equal_rows"],
}


def run() -> dict:
    found = {item: passes(*tests) for item, tests in ITEMS.items()}
    return {"figures": {"hold": sum(found.values()) / len(found)}, "context": {"items": found}}
