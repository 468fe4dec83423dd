"""The transformer ranker on tiny models made here: it learns, it is saved, it refuses what does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.predictors import Prompt, load_predictor
from slosched.predictors.answers import Answers
from slosched.predictors.ranker import tau

torch = pytest.importorskip("torch", reason="the transformer ranker needs torch")
transformers = pytest.importorskip("transformers", reason="the transformer ranker needs transformers")

from slosched.predictors.pretrained import open_model  # noqa: E402
from slosched.predictors.transformer_training import Recipe, train_transformer  # noqa: E402

WORDS = ("say", "list", "derive", "one", "ten", "hundred", "songs", "laws", "please", "now")


def tiny(folder: Path, kind: str) -> Path:
    """A transformer with two layers over ten words, random weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    torch.manual_seed(0)
    special = ("<pad>", "<eos>", "<unk>")
    words = {word: i for i, word in enumerate((*special, *WORDS))}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    tokens = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **tokens).save_pretrained(folder)
    shape = {"vocab_size": len(words), "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}
    if kind == "encoder":
        config = transformers.BertConfig(**shape, intermediate_size=64, max_position_embeddings=64)
        transformers.BertModel(config).save_pretrained(folder)
    else:
        config = transformers.LlamaConfig(**shape, intermediate_size=64, max_position_embeddings=64)
        transformers.LlamaModel(config).save_pretrained(folder)
    return folder


def made_up(n: int, seed: int) -> Answers:
    rng = np.random.default_rng(seed)
    size = {"one": 5.0, "ten": 60.0, "hundred": 700.0}
    texts, lengths = [], []
    for _ in range(n):
        verb, many, what = (str(rng.choice(w)) for w in (WORDS[:3], WORDS[3:6], WORDS[6:8]))
        texts.append(" ".join([verb, many, what, *rng.choice(WORDS[8:], rng.integers(0, 4)).tolist()]))
        lengths.append(1 + int(size[many] * np.exp(0.3 * rng.normal())))
    return Answers(
        prompts=[Prompt(t, len(t.split())) for t in texts],
        prompt=np.arange(n),
        output_tokens=np.array(lengths),
        cut=np.zeros(n, bool),
    )


@pytest.mark.parametrize(
    ("kind", "objective"),
    [("encoder", "listmle"), ("decoder", "listmle"), ("decoder", "classes-10"), ("encoder", "classes-100")],
)
def test_it_learns_and_comes_back_from_disk(tmp_path: Path, kind: str, objective: str) -> None:
    model = tiny(tmp_path / "model", kind)
    recipe = Recipe(objective=objective, epochs=4, learning_rate=2e-3)
    made = train_transformer(made_up(800, 0), model, recipe, seed=1)
    test = made_up(300, 5)
    scores = made.score([p.text for p in test.prompts])
    assert tau(scores, test.output_tokens) > 0.6
    assert len(made.report["curve"]) == 4
    again = load_predictor(made.save(tmp_path / "ranker"))
    atoms = made.forecast(test.prompts)
    assert again.forecast(test.prompts) == pytest.approx(atoms, rel=1e-5)
    assert np.mean(test.output_tokens <= atoms[:, -1]) > 0.8
    files = [p.suffix for p in (tmp_path / "ranker").rglob("*") if p.is_file()]
    assert not {".bin", ".pt", ".pkl", ".py"} & set(files)


def test_prompts_of_any_length_are_scored_alone_as_in_company(tmp_path: Path) -> None:
    """Empty, and far beyond the model's 64 positions; padding changes nothing."""
    made = train_transformer(made_up(60, 0), tiny(tmp_path, "decoder"), Recipe(epochs=1))
    texts = ["", "say one " * 500, "derive ten laws"]
    together = made.score(texts)
    assert np.isfinite(together).all()
    assert together == pytest.approx([float(made.score([t])[0]) for t in texts], abs=1e-4)


def test_what_is_not_a_whole_model_is_refused_by_name(tmp_path: Path) -> None:
    """No folder, no tokenizer, no download unless asked; too few prompts."""
    with pytest.raises(InputError, match="model must be a folder"):
        open_model("nobody/such-model")
    folder = tiny(tmp_path / "m", "encoder")
    with pytest.raises(InputError, match="at least 20"):
        train_transformer(made_up(5, 0), folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(InputError, match="tokenizer"):
        open_model(folder)


def test_a_head_of_another_size_is_refused(tmp_path: Path) -> None:
    made = train_transformer(made_up(60, 0), tiny(tmp_path / "m", "decoder"), Recipe(epochs=1))
    folder = made.save(tmp_path / "r")
    from slosched.predictors.states import read_tensors, write_tensors

    arrays, about = read_tensors(folder / "ranker.safetensors")
    write_tensors(folder / "ranker.safetensors", arrays | {"head": arrays["head"][:, :16]}, about)
    with pytest.raises(InputError, match="hidden size 32"):
        load_predictor(folder)


ODD = ("", "say one " * 5_000, "\x00\xff\ud800", "derive ten \u2028 laws", "列出十首歌 🎵", " " * 5000)


def test_prompts_of_any_content_get_a_score(tmp_path: Path) -> None:
    """Empty, huge, binary, in any script."""
    recipe = Recipe(epochs=1, most_tokens=16)
    made = train_transformer(made_up(40, 0), tiny(tmp_path / "m", "encoder"), recipe)
    assert np.isfinite(made.score(ODD)).all()
    assert np.isfinite(made.forecast([Prompt(text) for text in ODD])).all()


@pytest.mark.parametrize("both_ends", [False, True])
def test_a_huge_prompt_costs_no_more_than_its_window(tmp_path: Path, both_ends: bool) -> None:
    """What cannot come into the window is not tokenized either; the score is that of the rest."""
    recipe = Recipe(epochs=1, most_tokens=16, both_ends=both_ends)
    made = train_transformer(made_up(40, 0), tiny(tmp_path / "m", "encoder"), recipe)
    read: list[int] = []
    inner = made.tokenizer

    def noted(texts: list[str], **options: object) -> object:
        read.extend(map(len, texts))
        return inner(texts, **options)

    made.tokenizer = noted
    for name in ("eos_token", "pad_token", "chat_template", "pad"):
        setattr(made.tokenizer, name, getattr(inner, name))
    long, longer = "say one " * 1_000 + "laws", "say one " * 500_000 + "laws"
    scores = made.score([long, longer])
    assert max(read) <= 16 * 16 + 1
    assert scores[0] == pytest.approx(scores[1])


@pytest.mark.parametrize("model", ["no-such-folder", "someone/model", "json"])
def test_a_name_that_is_neither_folder_nor_package_with_a_model(model: str) -> None:
    """Nothing is looked for elsewhere, and the word says what would do."""
    with pytest.raises(InputError, match=f"--download, got '{model}'"):
        open_model(model)


@pytest.mark.parametrize("kind", ["images", "with a decoder", "few tokens", "unknown", "broken weights"])
def test_a_model_of_another_architecture_is_named(tmp_path: Path, kind: str) -> None:
    """One that reads no text, needs more than text, or has another vocabulary; a clear word, no traceback."""
    folder = tiny(tmp_path / "m", "encoder")
    small = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 16}
    if kind == "images":
        transformers.ViTModel(transformers.ViTConfig(**small, image_size=32, patch_size=16)).save_pretrained(
            folder
        )
    elif kind == "with a decoder":
        config = transformers.T5Config(vocab_size=13, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        transformers.T5Model(config).save_pretrained(folder)
    elif kind == "few tokens":
        transformers.BertModel(transformers.BertConfig(vocab_size=5, **small)).save_pretrained(folder)
    elif kind == "unknown":
        (folder / "config.json").write_text('{"model_type": "nonsense"}')
    else:
        (folder / "model.safetensors").write_bytes(b"x" * 500)
    with pytest.raises(InputError, match="model must be"):
        open_model(folder)


def test_a_model_that_lacks_weights_is_refused(tmp_path: Path) -> None:
    """Half downloaded, or beside another model's config.json: random weights would take their place."""
    folder = tiny(tmp_path / "m", "encoder")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"all its weights, 16 are missing in .* encoder\.layer\.2\."):
        open_model(folder)


def test_half_a_file_of_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny(tmp_path / "m", "encoder")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="model must be a folder of a Hugging Face model with safetensors"):
        open_model(folder)


def test_a_models_own_code_is_neither_run_nor_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a terminal the library would ask whether to run it, and wait for an answer."""
    folder = tiny(tmp_path / "m", "encoder")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config", "AutoModel": "mine.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked at the terminal"))
    with pytest.raises(InputError, match="custom code"):
        open_model(folder)
    assert not (tmp_path / "ran").exists()
