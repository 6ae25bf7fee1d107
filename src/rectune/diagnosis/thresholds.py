"""Every line that the diagnosis draws, with where it comes from. Nothing else in this room holds a threshold.

Numbers are shares or probabilities in [0, 1] unless a name says otherwise. "arXiv:2510.00526" is Beyond Log-Likelihood,
"the paper" arXiv:2508.05629.
"""

from __future__ import annotations

from typing import NamedTuple


class Line(NamedTuple):
    """A threshold and its source."""

    value: float
    source: str


OWN = "our choice"

STRONG = Line(0.75, "arXiv:2510.00526: at mean p 0.76 to 0.81 (mathematics) prior-leaning objectives win")
INTERMEDIATE = Line(0.5, "arXiv:2510.00526: at mean p of about 0.5 (medicine) SFT and -p tie")
WEAK = Line(0.1, "arXiv:2510.00526: at mean p of about 0.01 (puzzles in figlets) SFT wins, -p learns nothing")
NEAR = Line(0.05, OWN + ": this close to a line the verdict is less sure")

STRUCTURAL_P = Line(
    0.05, "the paper's tracker: end tokens with p near 0 get no weight, so DFT never learns to stop"
)
CONTENT_P = Line(0.1, "the paper, section 4.5: Natural Questions, where DFT falls below the base model")
CONTENT_SHARE = Line(0.3, OWN + ": share of improbable content tokens from which rows look like facts")
SHORT_ANSWER = Line(40, OWN + ": targets in an answer; facts and labels are short, reasoning is long")
CERTAIN_ENTROPY = Line(0.15, OWN + ": nats a token below which the model is nearly certain")
DETERMINISTIC_ANSWERS = Line(
    0.2,
    "the paper's README: DFT is weak on near-deterministic targets; the line is ours: distinct answers per row",
)
FORMAT_ROWS = Line(0.5, OWN + ": share of rows in which a token stands that belongs to their format")
FORMAT_P = Line(0.05, OWN + ": median p of a format token below which weight p hardly teaches it")
FIRST_TOKEN_P = Line(
    0.02, OWN + ": the first token of nearly every answer is improbable while the rest is not"
)
FIRST_TOKEN_REST = Line(0.3, OWN + ": mean p of the rest, beside an improbable first token")
TRUNCATED = Line(0.01, OWN + ": share of rows cut at max_length; their answers have no end to learn")
DUPLICATES = Line(0.02, OWN + ": share of rows that repeat an earlier one")
ODD_ROW_Z = Line(5.0, OWN + ": robust z-score of a row's NLL per token, the rest of the set being confident")
ODD_ROW_REST = Line(0.4, OWN + ": mean p of the set from which an odd row is told")
LOW_ESS = Line(0.1, OWN + ": effective share of targets below which few tokens carry the training")
ERRORS_NEAR = Line(2.0, OWN + ": as near as so many standard errors (over rows) counts as near, too")
FEW_TARGETS = Line(2000, OWN + ": targets below which the figures are coarse")
RATE_BOUNDS = (0.5, 10.0)
"""Of a learning-rate factor: beyond ten times nobody has reported a gain (the paper's tracker has one of ten)."""
