"""Write the table of docs/scaling.md from the formula below; with --check only say whether it is up to date.

python scripts/make_scaling_docs.py [--check]

The formula is an estimate on paper for H100s (80 GB, 989 TFLOP/s in bfloat16, 50 GB/s between machines); nothing of it
was measured on more than one GPU.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- table by scripts/make_scaling_docs.py -->\n", "<!-- end of table -->\n"
PEAK = 989e12  # FLOP/s of an H100 in bfloat16, without sparsity
UTILISATION = 0.4  # share of it that training gets; an assumption
LINK = 50e9  # bytes/s of each GPU between machines (400 Gbit/s), and the slowest link of a ring
BUDGET = 256 << 20  # bytes of logits, as `memory_budget`
TOKENS = 8192  # of a micro-batch of one GPU


@dataclass(frozen=True)
class Shape:
    """A gated decoder: layers L, width D, inner width I, width of keys K, vocabulary V."""

    layers: int
    width: int
    inner: int
    keys: int
    vocabulary: int
    tied: bool = False
    attention_bias: bool = False

    @property
    def layer(self) -> int:
        """Parameters of a layer: q and o, k and v, three of the feed-forward, two norms."""
        biases = (self.width + 2 * self.keys) * self.attention_bias
        matrices = 2 * self.width**2 + 2 * self.width * self.keys + 3 * self.width * self.inner
        return matrices + biases + 2 * self.width

    @property
    def root(self) -> int:
        """Parameters outside the layers: embedding, head unless it is the embedding, last norm."""
        return self.vocabulary * self.width * (1 if self.tied else 2) + self.width

    @property
    def parameters(self) -> int:
        return self.layers * self.layer + self.root


SHAPES = {
    "1.5B": Shape(28, 1536, 8960, 256, 151_936, tied=True, attention_bias=True),  # Qwen2.5-1.5B
    "7B": Shape(28, 3584, 18_944, 512, 152_064, attention_bias=True),  # Qwen2.5-7B
    "70B": Shape(80, 8192, 28_672, 1024, 128_256),  # Llama-3.1-70B
}


@dataclass(frozen=True)
class Estimate:
    """Bytes on each GPU by part, and seconds of one micro-batch of `TOKENS` on every GPU."""

    states: float
    gathered: float
    activations: float
    head: float
    compute: float
    communication: float

    @property
    def memory(self) -> float:
        return self.states + self.gathered + self.activations + self.head

    @property
    def seconds(self) -> float:
        """The two overlap, so the longer one counts."""
        return max(self.compute, self.communication)


def estimate(
    shape: Shape, gpus: int, replicas: int = 1, *, tokens: int = TOKENS, link: float = LINK
) -> Estimate:
    """bfloat16 with gradient checkpointing under FSDP2, each of `replicas` groups of GPUs holding the whole model.

    - states: float32 shards, their gradients and AdamW's two moments, 16 bytes a parameter over the group's GPUs;
    - gathered: the root's weights and their gradient in bfloat16 and its float32 copy to be summed (8 bytes a
      parameter), and of the layers two at a time in bfloat16, a gradient, and the same float32 copy (10 bytes);
    - activations: a layer's input for each layer, and all of one layer, 16 widths and 4 inner widths a token;
    - head: the budget for logits, and the float32 gradient of its weight;
    - compute: 8 FLOPs a parameter and token (forward, forward again, backward), and attention's causal half of
      16 x layers x width x length, as if one row filled the micro-batch;
    - communication: weights gathered twice in bfloat16, gradients summed in float32: 8 bytes a parameter through each
      GPU's link, and between replicas twice the float32 shard.
    """
    size = gpus // replicas
    matrices = shape.parameters - (0 if shape.tied else shape.vocabulary * shape.width)  # no product to embed
    attention = 8 * shape.layers * shape.width * tokens
    several = 0.0 if gpus == 1 else 1.0
    moved = 8 * shape.parameters * (size - 1) / size + 8 * shape.parameters / size * (replicas - 1) / replicas
    return Estimate(
        states=16 * shape.parameters / size,
        gathered=several * (8 * shape.root + 10 * shape.layer) + (1 - several) * 2 * shape.parameters,
        activations=2 * tokens * (shape.layers * shape.width + 16 * shape.width + 4 * shape.inner),
        head=BUDGET + 4 * shape.vocabulary * shape.width,
        compute=tokens * (8 * matrices + attention) / (UTILISATION * PEAK),
        communication=moved / link,
    )


CASES = (
    ("1.5B", 1, 1),
    ("1.5B", 8, 1),
    ("7B", 8, 1),
    ("7B", 64, 1),
    ("70B", 64, 1),
    ("70B", 256, 4),
    ("70B", 1024, 16),
)


def table() -> str:
    head = (
        "| model | GPUs | groups | states | gathered | activations | head | in all | compute | communication | "
        "micro-batch | tokens/s |"
    )
    lines = [head, "|" + "---|" * 12]
    for name, gpus, replicas in CASES:
        link = 450e9 if gpus <= 8 else LINK  # NVLink within a machine
        e = estimate(SHAPES[name], gpus, replicas, link=link)
        sizes = (e.states, e.gathered, e.activations, e.head, e.memory)
        cells = [name, f"{gpus:,}", str(replicas), *(f"{size / 1e9:.1f} GB" for size in sizes)]
        cells += [f"{t:.2f} s" for t in (e.compute, e.communication, e.seconds)]
        lines.append("| " + " | ".join([*cells, f"{gpus * TOKENS / e.seconds:,.0f}"]) + " |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with the table as the formula gives it now."""
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


def main() -> int:
    new = page()
    if "--check" in sys.argv[1:]:
        if new != PAGE.read_text("utf-8"):
            print("docs/scaling.md is out of date: run python scripts/make_scaling_docs.py")
            return 1
        return 0
    PAGE.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
