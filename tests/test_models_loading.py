"""Loading and tokenizing: golden checkpoints, and what cannot be loaded or traced."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tracer.errors import CircuitWarning, FormatError, SettingError, TracingError
from tracer.models import Model, load_model, loading, outline_model

PROMPT = "The capital of the state"
GOLDEN = {
    "gpt2": "gpt2_clt_residmid",
    "llama": "llama_clt_residmid",
    "gemma2": "gemma2_clt_residmid",
    "qwen3": "qwen3_clt_mlp",
}


@pytest.fixture
def folder(data: Path) -> Callable[[str], Path]:
    return lambda family: data / "golden/models" / family


@pytest.fixture
def spoiled(folder: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """Copy of the golden Llama, with its configuration or weights changed."""

    def make(
        config: Callable[[dict[str, Any]], Any] | None = None,
        weights: Callable[[dict[str, torch.Tensor]], Any] | None = None,
    ) -> Path:
        copy = tmp_path / "spoiled"
        shutil.copytree(folder("llama"), copy)
        if config is not None:
            values = json.loads((copy / "config.json").read_text())
            config(values)
            (copy / "config.json").write_text(json.dumps(values))
        if weights is not None:
            tensors = load_file(copy / "model.safetensors")
            weights(tensors)
            save_file(tensors, copy / "model.safetensors", {"format": "pt"})
        return copy

    return make


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What transformers logs; its own handler writes past pytest's capture."""
    said: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    keeper, logger = Keeper(), logging.getLogger("transformers")
    logger.addHandler(keeper)
    yield said
    logger.removeHandler(keeper)


@pytest.fixture
def llama(folder: Callable[[str], Path]) -> Model:
    return load_model(folder("llama"), check=False)


@pytest.mark.parametrize("family", GOLDEN)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_golden_checkpoints(
    family: str,
    dtype: torch.dtype,
    folder: Callable[[str], Path],
    data: Path,
    notes: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = load_model(folder(family), dtype=dtype)
    assert (model.family, model.model_id, model.dtype) == (family, family, dtype)
    assert (model.n_layers, model.width, model.vocab_size, model.context) == (3, 32, 296, 64)
    with np.load(data / "golden" / f"{GOLDEN[family]}_a.npz") as golden:
        ids = golden["input_tokens"].tolist()
        assert str(golden["prompt"]) == PROMPT
    assert model.tokenize(PROMPT) == ids
    assert model.tokenize("<bos>" + PROMPT) == ids  # not twice
    assert model.tokenize(ids[1:]) == ids[1:]  # ids are taken as they are
    assert model.tokens(ids) == ["<bos>", "The", " capital", " of", " the", " state"]
    proof = model.prove(PROMPT)
    assert proof.holds
    assert proof.worst.error < {torch.bfloat16: 1e-2, torch.float32: 1e-6}.get(dtype, 1e-14)
    assert json.loads(json.dumps(model.info)) == model.info
    assert capfd.readouterr() == ("", "")  # no bars
    assert notes == []


def test_logits_are_those_of_transformers(folder: Callable[[str], Path]) -> None:
    for family in GOLDEN:
        model = load_model(folder(family))
        frozen = model.freeze(model.tokenize(PROMPT))
        with torch.no_grad():
            logits = model.module(input_ids=frozen.token_ids[None]).logits[0, -1]
        torch.testing.assert_close(frozen.logits, logits, rtol=1e-5, atol=1e-6)


def test_verbosity_of_transformers_is_left_alone(folder: Callable[[str], Path]) -> None:
    before = transformers.logging.get_verbosity()
    shown = transformers.logging.is_progress_bar_enabled()
    load_model(str(folder("gpt2")), check=False)
    assert transformers.logging.get_verbosity() == before
    assert transformers.logging.is_progress_bar_enabled() == shown


def test_sharded_weights(llama: Model, tmp_path: Path) -> None:
    llama.module.save_pretrained(tmp_path / "shards", max_shard_size="20kB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    model = load_model(tmp_path / "shards")
    assert model.tokenizer is None
    assert torch.equal(model.freeze([1, 2]).logits, llama.freeze([1, 2]).logits)


# What cannot be loaded.


def test_unknown_architecture(spoiled: Callable[..., Path]) -> None:
    path = spoiled(lambda config: config.update(model_type="bloom", architectures=["BloomX"]))
    with pytest.raises(TracingError) as caught:
        load_model(path)
    assert 'model_type "bloom" (architecture BloomX)' in caught.value.what
    assert "gpt_neox" in caught.value.what
    assert "tracer/models/families/bloom.py" in caught.value.remedy


def test_architecture_that_transformers_does_not_know(spoiled: Callable[..., Path]) -> None:
    path = spoiled(lambda config: config.update(model_type="next-year's"))
    with pytest.raises(TracingError, match="no family describes model_type"):
        load_model(path)


def test_no_model_type(spoiled: Callable[..., Path]) -> None:
    with pytest.raises(TracingError, match='names no "model_type"'):
        load_model(spoiled(lambda config: config.pop("model_type")))


def test_folder_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(TracingError, match=r"holds no config\.json\. Give the folder of"):
        load_model(tmp_path)


def test_a_file_and_a_folder_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(TracingError, match=r"is a file\. Give the folder"):
        load_model(file)
    for name in (tmp_path / "none", str(tmp_path / "none"), "./none", "a/b/c", ""):
        with pytest.raises(TracingError, match="there is no folder"):
            load_model(name)


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name, revision in (("nobody/no-model", None), ("nobody/no-model@v1", "v1")):
        with pytest.raises(TracingError) as caught:
            load_model(name)
        assert "nobody/no-model" in caught.value.what
        assert (revision or "") in caught.value.what
        assert "Check the name, the connection" in caught.value.remedy
        assert "\n" not in str(caught.value)


def test_hub_download_is_of_weights_and_tokenizer_only(
    monkeypatch: pytest.MonkeyPatch, folder: Callable[[str], Path]
) -> None:
    asked: dict[str, Any] = {}

    def download(repo: str, **options: Any) -> str:
        asked.update(repo=repo, **options)
        return str(folder("llama"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = load_model("some/one@abc")
    assert (asked["repo"], asked["revision"]) == ("some/one", "abc")
    assert "*.bin" not in asked["allow_patterns"]
    assert (model.model_id, model.info["source"]) == ("some/one", "some/one")
    assert model.info["revision"] == "abc"
    assert load_model("some/one", revision="main").info["revision"] == "main"


def test_weights_that_are_not_finite(spoiled: Callable[..., Path]) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    path = spoiled(weights=lambda tensors: tensors[name].__setitem__((3, 3), torch.nan))
    with pytest.raises(
        FormatError, match=r"spoiled: tensor model\.layers\.1\.mlp\.up_proj\.weight"
    ):
        load_model(path)


def test_weights_that_are_missing(spoiled: Callable[..., Path]) -> None:
    path = spoiled(weights=lambda tensors: tensors.pop("model.layers.2.self_attn.v_proj.weight"))
    with pytest.raises(
        TracingError, match=r"do not hold tensor model\.layers\.2\.self_attn\.v_proj"
    ):
        load_model(path)


def test_weights_of_another_shape(spoiled: Callable[..., Path]) -> None:
    path = spoiled(lambda config: config.update(intermediate_size=48))
    with pytest.raises((TracingError, FormatError), match="spoiled"):
        load_model(path)


def test_weights_cut_short(spoiled: Callable[..., Path]) -> None:
    path = spoiled()
    raw = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(FormatError, match=r"weights in .*spoiled cannot be read"):
        load_model(path)


def test_pickled_weights_are_not_opened(spoiled: Callable[..., Path]) -> None:
    path = spoiled()
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(TracingError, match="pickled ones are never opened"):
        load_model(path)


def test_broken_configuration(spoiled: Callable[..., Path]) -> None:
    path = spoiled()
    (path / "config.json").write_text('{"model_type": ')
    with pytest.raises(FormatError, match=r"config\.json cannot be read"):
        load_model(path)
    (path / "config.json").write_text("[1]")
    with pytest.raises(TracingError, match="names no"):
        load_model(path)


def test_configuration_with_a_wrong_value(spoiled: Callable[..., Path]) -> None:
    with pytest.raises(FormatError, match=r"config\.json cannot be read"):
        load_model(spoiled(lambda config: config.update(hidden_size="wide")))


@pytest.mark.parametrize("load", [load_model, outline_model])
@pytest.mark.parametrize("heads", [7, 0])
def test_configuration_whose_numbers_do_not_go_together(
    folder: Callable[[str], Path], tmp_path: Path, load: Callable[[Path], Model], heads: int
) -> None:
    shutil.copytree(folder("gpt2"), tmp_path / "odd")
    path = tmp_path / "odd/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_head": heads}))
    with pytest.raises(FormatError, match="odd"):
        load(tmp_path / "odd")


def test_foreign_messages_are_cut() -> None:
    assert loading._reason(ValueError("short.\n\n second. ")) == "short. second"
    assert loading._reason(ValueError()) == "ValueError"
    long = loading._reason(ValueError("word " * 100))
    assert len(long) <= 200
    assert long.endswith("word…")


@pytest.mark.parametrize("load", [load_model, outline_model])
def test_a_folder_has_no_revision(
    folder: Callable[[str], Path], load: Callable[..., Model]
) -> None:
    with pytest.raises(SettingError, match=r"revision v1 is given, but .* folder on disk"):
        load(folder("llama"), revision="v1")


def test_fingerprint_is_of_weights_and_of_what_configuration_changes(
    spoiled: Callable[..., Path], folder: Callable[[str], Path]
) -> None:
    def fingerprint(path: Path) -> object:
        return outline_model(path).info["fingerprint"]

    plain = fingerprint(folder("llama"))
    copy = spoiled()
    assert fingerprint(copy) == plain == load_model(copy, check=False).info["fingerprint"]
    path = copy / "config.json"
    values = json.loads(path.read_text())
    path.write_text(
        json.dumps(
            dict(reversed(values.items()))
            | {"_name_or_path": "me/mine", "transformers_version": "9.9", "use_cache": False}
        )
    )
    assert fingerprint(copy) == plain
    path.write_text(json.dumps({k: v for k, v in values.items() if "dtype" not in k}))
    assert fingerprint(copy) == plain
    path.write_text(json.dumps(values | {"rms_norm_eps": 0.25}))
    changed = fingerprint(copy)
    assert changed != plain
    path.write_text(json.dumps(values | {"rms_norm_eps": 0.5}))
    assert fingerprint(copy) not in (plain, changed)


def test_a_module_in_memory_has_no_fingerprint_unless_given(llama: Model) -> None:
    assert "fingerprint" not in Model(llama.module).info
    assert Model(llama.module, info={"fingerprint": "abc"}).info["fingerprint"] == "abc"


def test_broken_tokenizer(spoiled: Callable[..., Path]) -> None:
    path = spoiled()
    (path / "tokenizer.json").write_text("{")
    with pytest.raises(FormatError, match=r"tokenizer in .*spoiled cannot be read"):
        load_model(path)


def test_quantised(spoiled: Callable[..., Path]) -> None:
    path = spoiled(lambda config: config.update(quantization_config={"quant_method": "gptq"}))
    with pytest.raises(TracingError, match="is quantised"):
        load_model(path)


def test_settings(folder: Callable[[str], Path]) -> None:
    with pytest.raises(SettingError, match=r"dtype is torch\.int8"):
        load_model(folder("llama"), dtype=torch.int8)
    with pytest.raises(SettingError, match='device "abacus" cannot be used'):
        load_model(folder("llama"), device="abacus")


def test_a_device_that_is_too_small(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "to", full)
    with pytest.raises(TracingError, match=r"llama \(0\.0 GiB\) does not fit on device"):
        load_model(folder("llama"))


def test_a_freeze_that_does_not_hold_is_refused_at_loading(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.models.families.gemma2._norm", _norm_without_one)
    with pytest.raises(TracingError, match="gemma2 model does not hold at layer 0, norm before"):
        load_model(folder("gemma2"))
    load_model(folder("gemma2"), check=False)


def _norm_without_one(module: Any) -> Any:
    from tracer.models.families.parts import rms_norm

    return rms_norm(module)


# What cannot be traced.


@pytest.mark.parametrize("prompt", ["", [], np.array([], np.int64)], ids=["text", "ids", "array"])
def test_empty_prompts(llama: Model, prompt: Any) -> None:
    with pytest.raises(TracingError, match="the prompt is empty"):
        llama.tokenize(prompt)


def test_long_prompts(llama: Model) -> None:
    assert len(llama.tokenize([3] * 64)) == 64
    with pytest.raises(TracingError, match="has 65 tokens, and llama reads at most 64"):
        llama.tokenize([3] * 65)
    with pytest.raises(TracingError, match="reads at most 64"):
        llama.freeze([3] * 65)


def test_long_texts_bring_no_note_of_transformers(llama: Model, notes: list[str]) -> None:
    llama.tokenizer.model_max_length = 4
    assert len(llama.tokenize(PROMPT)) == 6
    with pytest.raises(TracingError, match="reads at most 64"):
        llama.tokenize(PROMPT * 100)
    assert notes == []


def test_odd_configurations_bring_no_note_of_transformers(
    spoiled: Callable[..., Path], notes: list[str]
) -> None:
    load_model(spoiled(lambda config: config.update(eos_token_id=10**6)))
    assert notes == []


@pytest.mark.parametrize("bad", [-1, 296, 10**12])
def test_token_ids_out_of_range(llama: Model, bad: int) -> None:
    with pytest.raises(TracingError, match=f"token id {bad} at position 1 is not one of the 296"):
        llama.tokenize([1, bad])


@pytest.mark.parametrize("bad", [1.0, True, "1", None, [1]], ids=str)
def test_token_ids_that_are_not_integers(llama: Model, bad: Any) -> None:
    with pytest.raises(TracingError, match="at position 1 is not an integer"):
        llama.tokenize([1, bad])


def test_arrays_and_tensors_of_ids(llama: Model) -> None:
    for ids in (np.array([1, 5]), torch.tensor([1, 5]), (1, 5), [np.int64(1), 5]):
        assert llama.tokenize(ids) == [1, 5]
    with pytest.raises(TracingError, match="flat sequence"):
        llama.tokenize(torch.tensor([[1, 5]]))


def test_tokenizer_without_bos(llama: Model) -> None:
    llama.tokenizer.bos_token = None
    with pytest.warns(CircuitWarning, match="has no BOS"):
        assert llama.tokenize(PROMPT) == [265, 294, 281, 283, 293]
    assert llama.tokenize(PROMPT)[0] == 265  # said once


def test_tokenizer_that_adds_bos_itself(llama: Model) -> None:
    from tokenizers.processors import TemplateProcessing

    llama.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    assert llama.tokenizer(PROMPT)["input_ids"][:2] == [1, 265]
    assert llama.tokenize(PROMPT)[:2] == [1, 265]


def test_no_tokenizer(llama: Model) -> None:
    model = Model(llama.module)
    with pytest.raises(TracingError, match="came without a tokenizer"):
        model.tokenize("The")
    assert model.tokens([1, 5]) == ["<1>", "<5>"]
    assert model.freeze([1, 5]).n_positions == 2


def test_token_strings(llama: Model) -> None:
    class Pieces:
        bos_token_id = None
        pieces = {1: "▁the", 2: "Ã", 3: None, 4: "Ġa"}  # noqa: RUF012

        def convert_ids_to_tokens(self, token: int) -> str | None:
            return self.pieces[token]

        def decode(self, ids: list[int], **_: Any) -> str:
            return {1: "the", 2: "\ufffd", 4: " a"}[ids[0]]

    model = Model(llama.module, Pieces())
    assert model.tokens([1, 2, 3, 4]) == [" the", "Ã", "<3>", " a"]


@pytest.mark.parametrize(
    ("model_id", "chats", "expected"),
    [
        ("google/gemma-3-1b-it", False, 4),
        ("google/gemma-3-1b-pt", True, 1),
        ("mine", True, 4),
        ("mine", False, 1),
        ("written-by-italians", False, 1),
    ],
)
def test_gemma_3_instruct_leaves_out_four(model_id: str, chats: bool, expected: int) -> None:
    config = transformers.Gemma3TextConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=9,
    )
    module = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")

    class Tokenizer:
        chat_template = "{{ messages }}" if chats else None

    assert Model(module, Tokenizer(), model_id=model_id).default_zero_first == expected


def test_other_families_leave_out_one(llama: Model) -> None:
    llama.model_id = "llama-3-it"
    assert llama.default_zero_first == 1
