"""The columns that an objective may read: one value for each supervised token, shape (N,). The only list of them.

A positional parameter of an objective is the name of a column. Where it comes from decides when it is there: columns of
the `head` and the `batch` always are; those of the `step` depend on all of its rows, which costs a forward pass more
where a step has several micro-batches; `pairs` need rows of pairs; `reference` and `old policy` cost a forward pass of
another model; those of a `rollout` exist only in `rectune rl`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Source = Literal["head", "batch", "step", "pairs", "reference", "old policy", "rollout"]


class Column(NamedTuple):
    """What a column holds and who computes it."""

    source: Source
    meaning: str


COLUMNS: dict[str, Column] = {
    "logp": Column(
        "head", "log-probability of the target, in nats; the only one with a gradient besides `kl`"
    ),
    "entropy": Column("head", "entropy of the model's distribution, in nats"),
    "entropy20": Column("head", "entropy of the 20 most probable tokens, renormalised, in nats"),
    "log_sum_p2": Column(
        "head", "log of the sum of squared probabilities, in nats: minus the Rényi entropy of order 2"
    ),
    "lower_mass": Column(
        "head", "sum of the probabilities of all tokens that are at most as likely as the target"
    ),
    "top1": Column("head", "whether the target is the most probable token"),
    "kl": Column("head", "KL(base || model) over the whole vocabulary, in nats; differentiable"),
    "row": Column("batch", "index of the row that the token belongs to, int64"),
    "structural": Column("batch", "whether the token ends a turn or is special"),
    "weight": Column(
        "batch",
        "weight of the token's row and turn over the mean of all targets; the loss is multiplied with it",
    ),
    "row_nll_z": Column(
        "step",
        "mean NLL of the token's row, less the mean over the step's rows, over their standard deviation",
    ),
    "pair": Column("pairs", "index of the pair that the token's row belongs to, int64"),
    "sign": Column("pairs", "+1 in the better row of a pair, -1 in its worse row"),
    "ref_logp": Column("reference", "log-probability of the target under the reference model, in nats"),
    "old_logp": Column("old policy", "log-probability of the target under the model some steps ago, in nats"),
    "advantage": Column("rollout", "how much better than expected a sampled token turned out"),
}

COLUMNS |= {
    f"ref_{name}": Column(
        "step" if column.source == "step" else "reference", f"`{name}` under the reference model"
    )
    for name, column in COLUMNS.items()
    if column.source in ("head", "step") and name not in ("logp", "kl")
}

HEAD_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.source == "head")
"""What `logprobs.token_columns` computes."""
STEP_COLUMNS = tuple(name for name, column in COLUMNS.items() if column.source == "step")
"""What `objective_spec.Phase.over_step` computes."""
