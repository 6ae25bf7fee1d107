"""Texts that try to act where they are shown, folders full of them, and what an innocent page looks like."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from diagnosed import diagnosis
from rectune.training.metrics import PROBABILITY_BINS
from reported import comparison_record, dropped, race, sweep, trade

ACT = "window.owned=1;document.title='owned'"
TEXTS = (
    f"<script>{ACT}</script>",
    f"</script><script>{ACT}</script>",
    f"</title></style></textarea><script>{ACT}</script>",
    f'"><img src=x onerror="{ACT}">',
    f"' onmouseover='{ACT}' autofocus onfocus='{ACT}",
    f"<svg onload={ACT}><animate onbegin={ACT}>",
    f'<a href="javascript:{ACT}">javascript:alert(1)</a>',
    "</style><style>*{display:none} @import url(http://127.0.0.1:9/x.css);</style>",
    "red;background:url(http://127.0.0.1:9/x)}body{display:none",
    '<iframe src="http://127.0.0.1:9/"></iframe><base href="http://127.0.0.1:9/"><link rel=stylesheet href=//x>',
    '<meta http-equiv="refresh" content="0;url=http://127.0.0.1:9/"><form action=//x><input name=a>',
    "{{ 7 * 7 }}{% for x in y %}{{ self.__class__ }}{# ${7*7} <%= 7 %>",
    "<!-- --> --!> ]]> <![CDATA[ <?php &lt;b&gt; &#60;script&#62;",
    "zero\x00byte, bell\x07, back\x08space, delete\x7f, next line\x85",
    "turned \u202egnp.exe\u202c \u2066\u200fround",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x1b]8;;http://x\x07link\x1b]8;;\x07 \x9b31m \x1b[2J\x1bc\rover",
    "[bold red]markup[/bold red] [link=http://x]y[/link] [/] :warning: %s %n \\u001b",
    "| a | b |\n|---|---|\n# title\n```\n[x](javascript:alert(1)) ![y](http://127.0.0.1:9/y.png)",
)
"""One for each way in: tags, attributes, addresses, styles, templates, terminals, Markdown."""

ALL = " ".join(TEXTS)


def comparison(folder: Path, text: str = ALL, name: str = "x") -> Path:
    """A comparison folder of a base model and two arms; `text` stands wherever a file holds text, `name` in names."""
    folder.mkdir(parents=True)
    for arm in ("sft", "dft"):
        _run(folder / "runs" / arm / "seed-0", arm, text, name)
    _evaluation(folder / "runs" / "base" / "evaluation", "base", text, name)
    record = comparison_record(
        {"dft": f"dft {text}", "sft": f"sft {text}"}, model=text, data=text, benchmarks={f"b{name}": "out"},
        sweep=sweep(text), race=race(text), paper={"tables": [[{text: text}]], "notes": [text]},
        **trade(text, steps=(1, 2)),
    )  # fmt: skip
    record["arms"][1]["dropped"] = dropped(text)
    write(folder / "comparison.json", record)
    write(folder / "diagnosis.json", hostile_diagnosis(text))
    state = {"log_history": [{"step": n, "loss": 1.0 / (n + 1), text: text} for n in range(3)]}
    write(folder / f"trainer{name}" / "trainer_state.json", state)
    return folder


def _run(folder: Path, arm: str, text: str, name: str) -> None:
    bins = len(PROBABILITY_BINS) - 1
    ends = {"nll": 1.0, "mean_p": 0.4, "accuracy": 0.5, "entropy": 1.1, "eos_p": 0.9, "low_p": 0.1, "high_p": 0.2,
            "histogram": [1] * bins, text: text}  # fmt: skip
    objective = f"{arm} {text}"
    write(folder / "config.json", {
        "model": text, "data": text, "output_dir": str(folder), "seed": 0, "max_steps": 3, "objective": objective,
        "rows": {"template": text, "system": text}, "batch_size": 4, text: text,
    })  # fmt: skip
    write(
        folder / "environment.json", {"python": text, "platform": text + arm, "packages": {text: text + arm}}
    )
    write(folder / "summary.json", {"steps": 3, "seconds": 2.0, "before": ends, "after": ends, "note": text})
    train = {"kind": "train", "objective": 0.5, "nll": 1.0, "mean_p": 0.4, "weight": 0.4, "grad_norm": 1.0,
             "tokens": 40, "seconds": 0.5, "phase": text}  # fmt: skip
    drift = {"kind": "drift", "kl": 0.1, "entropy": 1.0, "eos_p": 0.9, "length": 3.0, "stopped": 1.0,
             "repetition": 0.0, "warnings": [text]}  # fmt: skip
    kinds = [train, {"kind": "holdout", **ends}, drift, {"kind": text, text: text}]
    lines = [{"step": step, **kind} for step in range(4) for kind in kinds]
    write(folder / "metrics.jsonl", *lines)
    tokens = [text, "a", "a", "a", text]
    row = {"where": text, "tokens": tokens, "before": [-1.0] * 5, "after": [-0.5] * 5}
    write(folder / "token_logprobs.json", {"format": 1, "rows": [row]})
    _evaluation(folder / "evaluation", str(folder / "model"), text, name)


NUMBERS = {"problems": 4, "samples": 8, "avg": {"mean": 0.5, "low": 0.1, "high": 0.9}, "pass_at": {}, "verdicts": {},
           "prompt": "{question}"}  # fmt: skip


def _evaluation(folder: Path, model: str, text: str, name: str) -> None:
    ids = [f"b{name}/{i} {text}" for i in range(4)]
    protocol = {"n": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 0, "template": text}
    run = str(Path(model).parent) if "/" in model else None
    write(folder / "evaluation.json", {
        "model": model, "fingerprint": text, "training_run": run, "protocol": protocol, "versions": {text: text},
        "warnings": [text], "overlap": None, "benchmarks": {f"b{name}": {**NUMBERS, "problem_ids": ids}},
    })  # fmt: skip
    lines = [
        {"problem_id": one, "sample_index": k, "prompt": text, "text": text, "answer": [text, text],
         "grader": "exact", "token_ids": [1, 2, 3], "logprobs": [-1.0, -0.5, -0.1],
         "finish_reason": "length" if k else "stop",
         "seed": 0, "temperature": 1.0, "top_p": 1.0, "engine": "local", "model": text, "fingerprint": text,
         "extra": None, "turns": [{"role": "user", "content": text, "supervised": False}], "max_new_tokens": 8,
         "verdict": ("correct", "wrong", "unparsed", "error")[(i + k + len(model)) % 4], "extracted": text[:200]}
        for i, one in enumerate(ids) for k in (0, 1)
    ]  # fmt: skip
    write(folder / "graded.jsonl", *lines)


def hostile_diagnosis(text: str = ALL) -> dict[str, Any]:
    """A diagnosis with `text` in every text that data, model or labels decide; in names of classes and labels, too."""
    whole = diagnosis(rows=2)
    labels = {effect["label"] for effect in whole["objectives"]} | set(
        whole["objectives"][0]["share_by_class"]
    )

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            names = {name: f"{name} {text}" if name in labels else name for name in value}
            return {names[name]: spoil(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [spoil(inner) for inner in value]
        fixed = key in ("severity", "position", "confidence")
        return f"{value} {text}" if isinstance(value, str) and not fixed else value

    whole = spoil(whole)
    whole["examples"][0]["tokens"][-2:] = ["</script>", "<!--<script>"]
    return whole


def write(path: Path, *records: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


class _Page(HTMLParser):
    """Collects what a page has that could act."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.scripts = 0
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag not in TAGS:
            self.wrong.append(f"<{tag}>")
        for name, value in attrs:
            other = name == "http-equiv" and value != "Content-Security-Policy"
            led_out = name in ("href", "xlink:href") and not (value or "").startswith("#")
            styled = name == "style" and any(word in (value or "").lower() for word in ("//", "import", "}"))
            if (
                name.startswith("on")
                or name in ("src", "action", "srcdoc", "formaction")
                or led_out
                or styled
                or other
            ):
                self.wrong.append(f"<{tag} {name}={value!r:.80}>")

    handle_startendtag = handle_starttag

    def handle_comment(self, data: str) -> None:
        self.wrong.append(f"<!--{data[:60]}")

    def unknown_decl(self, data: str) -> None:
        self.wrong.append(f"<![{data[:60]}")

    def handle_pi(self, data: str) -> None:
        self.wrong.append(f"<?{data[:60]}")


TAGS = set(re.findall(r"\w+", """
    html head meta title style body a header h1 h2 h3 main section p span b i strong small div nav ul ol li dl dt dd
    table thead tbody tr th td details summary pre code figure figcaption article footer fieldset legend label input
    noscript script br abbr em sub sup svg g path defs use text clippath rect line polyline polygon circle tspan
"""))  # fmt: skip


def check_inert(page: str, scripts: int) -> None:
    """Fail where a page has a tag, an attribute or a script that our templates did not put there."""
    found = _Page()
    found.feed(page)
    found.close()
    assert not found.wrong, found.wrong[:5]
    assert found.scripts == scripts
    hidden = [
        c for c in page if (c < " " and c not in "\n\t") or "\x7f" <= c <= "\x9f" or "\u202a" <= c <= "\u202e"
    ]
    assert not hidden, hidden[:5]
