"""Folders of models that would run code, lead elsewhere or are damaged: one clear error, and nothing runs."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from rectune.errors import UserError
from rectune.models.load import load_model, load_tokenizer
from toys import byte_tokenizer, save_toy

SOURCE = Path(__file__).parents[2] / "src" / "rectune"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(save_toy(tmp_path_factory.mktemp("whole")))


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Bomb:
    """Writes a file when it is read as pickle."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "went off")


@pytest.mark.parametrize(
    "names", ["pytorch_model.bin", "../other.safetensors", "/etc/x.safetensors", 7, "x.pt"]
)
def test_an_index_of_weights_names_safetensors_of_its_folder_only(
    folder: Path, tmp_path: Path, names: object
) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "bomb")))
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="not a safetensors file of this folder"):
        load_model(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="not an index of weights"):
        load_model(folder)
    assert not (tmp_path / "bomb").exists()


def test_pickle_beside_safetensors_is_not_read(folder: Path, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "bomb")))
    load_model(folder)
    assert not (tmp_path / "bomb").exists()


def test_code_of_a_model_is_neither_run_nor_asked_about(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object) -> str:
        raise AssertionError("the terminal was asked")

    monkeypatch.setattr("builtins.input", asked)
    code = f"from pathlib import Path\nPath({str(tmp_path / 'bomb')!r}).write_text('went off')\n"
    (folder / "evil.py").write_text(code)
    change(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}, tokenizer_class="T"
    )
    with pytest.raises(UserError, match="code"):
        load_tokenizer(str(folder))
    change(
        folder / "config.json",
        auto_map={"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"},
        model_type="evil",
    )
    with pytest.raises(UserError, match="comes with code of its own"):
        load_model(folder)
    assert not (tmp_path / "bomb").exists()


def test_attention_code_from_elsewhere_is_refused(folder: Path) -> None:
    change(folder / "config.json", attn_implementation="someone/attention")
    with pytest.raises(UserError, match="attention code from elsewhere"):
        load_model(folder)


def test_a_template_reaches_nothing(folder: Path, tmp_path: Path) -> None:
    from rectune.data.chat_template import Writer, choose_template
    from rectune.data.schema import Turn

    tokenizer = byte_tokenizer()
    for attack in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('x') }}",
        "{{ messages.append(messages) }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content.x.y }}",
        "{{ 'a'|attr('__class__')|attr('mro') }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages + 1 }}",
        "{% include '/etc/passwd' %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    ):
        path = tmp_path / "t.jinja"
        path.write_text(attack + "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
        with pytest.raises(UserError):
            Writer(choose_template(str(path), tokenizer), tokenizer).text((Turn("user", "x"),), "here")


@pytest.mark.parametrize(
    "file", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    "content", [b"", b"\x00\xff" * 99, b"[]", b"{}", b'{"model_type": 7}', b"[" * 100_000]
)
def test_damaged_files_are_named(folder: Path, file: str, content: bytes) -> None:
    if file == "tokenizer_config.json" and content in (b"{}", b'{"model_type": 7}'):
        pytest.skip("says nothing that is wrong")
    (folder / file).write_bytes(content)
    with pytest.raises(UserError, match=str(folder)):
        load_model(folder)


@pytest.mark.parametrize("base", ["", "[]", "{}", '{"%s": 7}', '{"%s": "\\u0000"}', '{"%s": "../.."}'])
def test_a_damaged_adapter(tmp_path: Path, base: str) -> None:
    pytest.importorskip("peft")
    (tmp_path / "adapter_config.json").write_text(base.replace("%s", "base_model_name_or_path"))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UserError):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["x" * 5000, "a\x00b", "~nobody-at-all/x", "../" * 30, "\ud800"])
def test_names_that_are_no_paths(name: str) -> None:
    with pytest.raises(UserError):
        load_model(name)


def test_nothing_reads_pickle() -> None:
    """Neither by itself nor through torch, numpy, joblib or shelve; nor YAML with objects in it."""
    wrong = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.partition(".")[0] for name in names} & wrong, path
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            assert called not in ("torch.load", "yaml.load"), f"{path}:{called}"
            settings = (
                {k.arg: ast.unparse(k.value) for k in node.keywords} if isinstance(node, ast.Call) else {}
            )
            assert settings.get("trust_remote_code") in (None, "False", "trust_remote_code"), path
            assert settings.get("weights_only") != "False", path
            assert settings.get("allow_pickle") in (None, "False"), path
