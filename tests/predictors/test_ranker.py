"""The light ranker: order, forecasts, files, and bad input."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slosched.core.errors import InputError
from slosched.core.forecast import FORECAST_ATOMS
from slosched.predictors import Prompt, load_predictor
from slosched.predictors.answers import Answers, read_answers
from slosched.predictors.base import ABOUT
from slosched.predictors.calibration import _spread, calibrate, interval
from slosched.predictors.evaluation import evaluate, quality
from slosched.predictors.features import BUCKETS, COUNTS, featurise
from slosched.predictors.ranker import Ranker, fit, tau, train_ranker
from slosched.predictors.rules_of_thumb import PATTERNS, PLACES, rules_of_thumb
from slosched.predictors.states import read_tensors, write_tensors

VERBS = {"List": 3.0, "Name": 2.0, "Explain": 5.0, "Describe": 4.5, "Derive": 6.0}
THINGS = ("rivers", "planets", "proofs", "songs", "engines", "birds", "laws", "cities")
MANNERS = {"briefly": -0.7, "in detail": 0.9, "to a child": 0.0}


def made_up(n: int, seed: int) -> Answers:
    """Prompts whose meaning tells the length, up to noise."""
    rng = np.random.default_rng(seed)
    texts, log_lengths = [], []
    for i in range(n):
        verb, thing, manner = (str(rng.choice(list(words))) for words in (VERBS, THINGS, MANNERS))
        texts.append(f"{verb} {rng.integers(2, 9)} {thing} {manner}. ({i})")
        log_lengths.append(VERBS[verb] + MANNERS[manner])
    noisy = np.exp(np.array(log_lengths) + 0.4 * rng.normal(size=n))
    return Answers.single(texts, np.maximum(1, noisy).astype(np.int64))


@pytest.fixture(scope="module")
def answers() -> Answers:
    return made_up(1200, 0)


@pytest.fixture(scope="module")
def ranker(answers: Answers) -> Ranker:
    return train_ranker(answers)


def test_it_ranks_and_covers_what_it_has_not_seen(ranker: Ranker) -> None:
    """Near the ceiling that the noise leaves, with intervals that hold four of five."""
    test = made_up(1500, 7)
    found, atoms = evaluate(ranker, test)
    clean = np.array([p.text.split()[0] for p in test.prompts])
    ceiling = tau(
        np.array([VERBS[v] for v in clean])
        + np.array([next(m for w, m in MANNERS.items() if w in p.text) for p in test.prompts]),
        test.output_tokens,
    )
    assert found.tau > ceiling - 0.05
    assert 0.76 < found.coverage < 0.85
    assert atoms.shape == (1500, FORECAST_ATOMS)
    assert np.all(np.diff(atoms, axis=1) >= 0)
    assert atoms.min() >= 1
    plain = np.quantile(test.output_tokens, (np.arange(8) + 0.5) / 8)
    know_nothing = quality(np.tile(plain, (1500, 1)), test.output_tokens.astype(float))
    assert found.pinball_tokens < 0.6 * know_nothing.pinball_tokens
    assert found.regret < 0.5 * know_nothing.regret


def test_a_cap_does_not_pull_forecasts_down(answers: Answers) -> None:
    """Trained on answers cut at 150 tokens, long ones are still forecast beyond."""
    capped = train_ranker(answers.capped(150))
    long = [Prompt("Derive 5 laws in detail. (3)")]
    assert capped.forecast(long)[0, 4] > 150
    same_cap_as_truth = Answers.single(
        [p.text for p in answers.prompts], np.minimum(answers.output_tokens, 150)
    )
    assert train_ranker(same_cap_as_truth).forecast(long)[0, 4] <= 151


def test_a_higher_score_never_means_a_shorter_forecast(ranker: Ranker) -> None:
    grid = np.linspace(-1e3, 1e3, 4001)
    atoms = ranker.calibration.atoms(grid)
    assert np.all(np.diff(atoms, axis=0) >= -1e-9)


def test_several_samples_become_a_distribution() -> None:
    """Two equally likely lengths: the atoms stand at both, not between."""
    texts = [f"Flip a coin, number {i}." for i in range(100)]
    one = Answers.single(texts, np.full(100, 10))
    both = Answers(
        prompts=one.prompts,
        prompt=np.repeat(np.arange(100), 2),
        output_tokens=np.tile([10, 1000], 100),
        cut=np.zeros(200, bool),
    )
    atoms = train_ranker(both).forecast(one.prompts)
    assert np.median(atoms[:, 0]) < 20
    assert np.median(atoms[:, -1]) > 500


def test_training_is_deterministic_and_files_are_exact(
    ranker: Ranker, answers: Answers, tmp_path: Path
) -> None:
    """The same seed gives the same ranker; a loaded one the same forecasts. No file is a pickle."""
    asked = made_up(30, 3).prompts
    again = train_ranker(answers)
    assert np.array_equal(again.forecast(asked), ranker.forecast(asked))
    loaded = load_predictor(ranker.save(tmp_path / "r"))
    assert np.array_equal(loaded.forecast(asked), ranker.forecast(asked))
    assert sorted(p.name for p in (tmp_path / "r").iterdir()) == [ABOUT, "ranker.safetensors"]


@pytest.mark.speed
def test_it_is_fast_enough_to_stand_in_the_request_path(ranker: Ranker) -> None:
    """A millisecond a prompt, 10 ms for 64, with room for a busy machine."""
    prompts = made_up(64, 5).prompts
    ranker.forecast(prompts)
    for asked, most_s in ((prompts, 0.010), (prompts[:1], 0.005)):
        took_s = []
        for _ in range(20):
            begun = time.perf_counter()
            ranker.forecast(asked)
            took_s.append(time.perf_counter() - begun)
        assert min(took_s) < most_s


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "x" * 100_000, "é漢字🙂" * 3000, "a " * 50_000, "((((" * 9000]
)
def test_any_text_has_a_finite_forecast(ranker: Ranker, text: str) -> None:
    """Empty, huge, far beyond the context, of any script."""
    atoms = ranker.forecast([Prompt(text), Prompt("List 3 songs briefly.")])
    assert np.isfinite(atoms).all()
    assert np.array_equal(atoms[1], ranker.forecast([Prompt("List 3 songs briefly.")])[0])


def test_features_do_not_depend_on_company() -> None:
    """A text counts the same alone and in a batch; buckets stay in range and counts add up."""
    texts = ["Two words", "Two words and two words", "f(x) = {1, 2}?"]
    offsets, buckets, counts, lexical = featurise(texts)
    for i, text in enumerate(texts):
        alone = featurise([text])
        part = slice(offsets[i], offsets[i + 1])
        assert dict(zip(alone[1], alone[2], strict=True)) == dict(
            zip(buckets[part], counts[part], strict=True)
        )
        assert np.array_equal(alone[3][0], lexical[i])
    assert buckets.min() >= 0
    assert buckets.max() < BUCKETS
    count = dict(zip(COUNTS, np.round(np.expm1(lexical[2])).astype(int).tolist(), strict=True))
    assert (count["brackets"], count["questions"], count["numbers"], count["words"]) == (4, 1, 2, 4)


def test_objectives_rank_alike(answers: Answers) -> None:
    """All three learn this; an unknown one is refused."""
    test = made_up(400, 9)
    texts = [p.text for p in test.prompts]
    taus = [
        tau(fit(answers, objective=o).score(texts), test.output_tokens)
        for o in ("listmle", "lists", "pointwise")
    ]
    assert max(taus) - min(taus) < 0.03
    with pytest.raises(InputError, match="objective must be one of listmle"):
        fit(answers, objective="best")


def test_answers_cut_off_do_not_count_as_inside() -> None:
    """An answer cut off within its interval may have ended beyond it: only the others tell the width."""
    atoms = np.repeat(np.geomspace(50.0, 200.0, FORECAST_ATOMS)[None, :], 200, axis=0)
    rng = np.random.default_rng(1)
    wide = 100.0 * np.exp(rng.normal(0.0, 1.2, 200))
    early = np.full(200, 95.0)
    none, all_cut = np.zeros(200, dtype=bool), np.ones(200, dtype=bool)
    alone = _spread(atoms, wide, none)
    assert alone > 1.5
    both, tokens = np.concatenate([atoms, atoms]), np.concatenate([wide, early])
    assert _spread(both, tokens, np.concatenate([none, all_cut])) == pytest.approx(alone)
    assert _spread(both, tokens, np.concatenate([none, none])) < 0.8 * alone
    # Cut off beyond the interval: outside it, however long it would have become.
    assert _spread(atoms, wide, wide > 400) == pytest.approx(_spread(atoms, wide, none))
    assert _spread(atoms, early, all_cut) == 1.0


def test_conformal_calibration_covers() -> None:
    """Whatever the noise: heavy tails, spread that grows with the score."""
    for seed in range(3):
        rng = np.random.default_rng(seed)
        score = rng.normal(size=4000)
        tokens = np.exp(5 + score + (0.2 + 0.3 * (score > 0)) * rng.standard_t(3, size=4000)).clip(1)
        made = calibrate(score[:2000], tokens[:2000], np.zeros(2000, bool), seed=seed)
        low, high = interval(made.atoms(score[2000:]))
        inside = (low <= tokens[2000:]) & (tokens[2000:] <= high)
        assert 0.76 < inside.mean() < 0.84
        assert abs(inside[score[2000:] > 0].mean() - inside[score[2000:] <= 0].mean()) < 0.08


# bad input --------------------------------------------------------------------------------------------------


def rows(n: int) -> list[dict[str, object]]:
    return [{"prompt": f"Say {i}", "output_tokens": 1 + i} for i in range(n)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "must be not empty"),
        ('{"prompt": "a", "output_tokens": 3}\n', "at least 20 prompts with answers, got 1"),
        ("\n".join(json.dumps(r | {"output_tokens": 7}) for r in rows(30)), "must differ, got 7 in all 30"),
        ("\n".join(json.dumps(r | {"cut": True}) for r in rows(30)), "cut must be false for some"),
        (
            "\n".join(json.dumps(r | {"prompt": "a"}) for r in rows(30)),
            "at least 20 prompts with answers, got 1",
        ),
        ('{"prompt": "a"}\n', r"columns must be output_tokens \(or .*got 'prompt'"),
        ('{"output_tokens": 4}\n', r"columns must be prompt \(or text\)"),
        ('{"prompt": "a", "output_tokens": 5}\n{"prompt": "b"}\n', "row 2: output_tokens must be"),
        ('{"prompt": 7, "output_tokens": 5}\n', "row 1: prompt must be a text"),
        ('{"prompt": "a", "output_tokens": true}\n', "row 1: output_tokens must be"),
        ('{"prompt": "a", "output_tokens": -4}\n', "row 1: output_tokens must be"),
        ('{"prompt": "a", "output_tokens": 2.5}\n', "row 1: output_tokens must be"),
        ('{"prompt": "a", "output_tokens": NaN}\n', "row 1: output_tokens must be"),
        ('{"prompt": "a", "output_tokens": [1, 2], "cut": [true]}\n', "row 1: cut must be"),
        ('{"prompt": "a", "output_tokens": 5}\n{"prom', "row 2: line must be one JSON object"),
        ("[1]\n", "row 1: record must be a JSON object"),
        ("prompt,output_tokens\nSay, 1,5\n", "row 1: row must be 2 fields, got '3 fields'"),
    ],
)
def test_bad_training_files_are_refused_by_name(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_answers(path)


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "answers.csv"
    path.write_bytes(b"prompt,output_tokens\ncaf\xe9,3\n")
    with pytest.raises(InputError, match="UTF-8"):
        read_answers(path)
    packed = tmp_path / "answers.jsonl.gz"
    packed.write_bytes(b"\x1f\x8bnot gzip")
    with pytest.raises(InputError, match="a whole gzip file"):
        read_answers(packed)


def test_csv_and_samples_are_read(tmp_path: Path) -> None:
    """CSV with cut flags; lists and objects of lengths."""
    table = tmp_path / "a.csv"
    table.write_text("prompt,out_tok,cut\n" + "".join(f'"Say, {i}",{i + 1},{i % 2}\n' for i in range(30)))
    read = read_answers(table)
    assert (len(read.prompts), int(read.cut.sum()), read.prompts[3].text) == (30, 15, "Say, 3")
    lines = tmp_path / "a.jsonl"
    lines.write_text(
        "\n".join(
            json.dumps({"prompt": f"{i}", "lens": {"x": i + 1, "y": 0}, "set": "ab"[i % 2]})
            for i in range(44)
        )
    )
    read = read_answers(lines, slo_class="b")
    assert (len(read.prompts), len(read.output_tokens), int(read.output_tokens.min())) == (22, 44, 1)


def test_files_as_people_have_them(tmp_path: Path) -> None:
    """A list in brackets, other separators, a prompt longer than the CSV library reads by itself, and a
    server's own names.
    """
    known = rows(30)
    listed = tmp_path / "a.json"
    listed.write_text(json.dumps(known))
    assert len(read_answers(listed).prompts) == 30
    table = tmp_path / "a.csv"
    table.write_text(
        "prompt;output_tokens\n" + "".join(f"{'long ' * 50_000}{i};{i + 1}\n" for i in range(20))
    )
    assert len(read_answers(table).prompts[3].text) == 250_001
    served = tmp_path / "a.jsonl"
    served.write_text(
        "\n".join(
            json.dumps(
                {"prompt": f"{i}", "completion_tokens": i + 1, "finish_reason": ("stop", "length")[i % 2]}
            )
            for i in range(30)
        )
    )
    read = read_answers(served)
    assert (read.output_tokens[4], read.cut[4], read.cut[5]) == (5, False, True)


def test_a_class_that_no_row_has_is_refused_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(r | {"slo_class": "chat"}) for r in rows(30)))
    with pytest.raises(InputError, match=r"slo_class must be one of the file's \(chat\), got 'agents'"):
        read_answers(path, slo_class="agents")


def test_equal_prompts_stay_on_one_side_of_a_split() -> None:
    texts = [f"Say {i // 4}" for i in range(400)]
    first, second = Answers.single(texts, np.arange(1, 401)).split(0.7, 1)
    assert not {p.text for p in first.prompts} & {p.text for p in second.prompts}
    assert len(first.prompts) + len(second.prompts) == 400


def test_broken_model_folders_are_refused_by_name(ranker: Ranker, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="predictor must be a folder"):
        load_predictor(tmp_path / "none")
    folder = ranker.save(tmp_path / "r")
    about, tensors = folder / ABOUT, folder / "ranker.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="safetensors"):
        load_predictor(folder)
    import pickle

    tensors.write_bytes(pickle.dumps({"weights": 1}))
    with pytest.raises(InputError, match="safetensors"):
        load_predictor(folder)
    for content, words in (
        ("{", "JSON"),
        ("[]", "kind"),
        ("[" * 100_000, "JSON"),
        ('{"kind": "oracle"}', "light, encoder, transformer or history"),
    ):
        about.write_text(content)
        with pytest.raises(InputError, match=words):
            load_predictor(folder)


@pytest.mark.parametrize(
    ("tensor", "change", "words"),
    [
        ("weights", lambda a: np.where(np.arange(len(a)) == 3, np.nan, a), "weights must be finite, got nan"),
        ("rarity", lambda a: a * np.float32(np.inf), "rarity must be finite, got inf"),
        ("scores", lambda a: a * np.nan, "scores must be finite, got nan"),
        ("log_atoms", lambda a: a + 1e6, r"log_atoms must be at most 300, got 1000\d{3}"),
        ("lexical_scale", lambda a: a * 0, r"lexical_scale must be above 0, got 0\.0"),
        ("lexical_scale", np.negative, "lexical_scale must be above 0, got -"),
        ("buckets", lambda a: a * 0 - 5, "buckets must be at least 0, got -5"),
        ("buckets", lambda a: a.astype(np.float32), "tensors must fit each other"),
        ("scores", lambda a: a[None], r"scores must be one or more numbers in a row, got \(1, "),
    ],
)
def test_a_rankers_broken_numbers_are_refused_by_file_tensor_and_value(
    ranker: Ranker, tmp_path: Path, tensor: str, change: Callable[[Any], Any], words: str
) -> None:
    """When it is read, not at the first forecast."""
    folder = ranker.save(tmp_path / "r")
    path = folder / "ranker.safetensors"
    arrays, about = read_tensors(path)
    arrays[tensor] = change(arrays[tensor])
    write_tensors(path, arrays, about)
    with pytest.raises(InputError, match=rf"{path}: {words}"):
        load_predictor(folder)


def test_a_type_that_numpy_lacks_is_named(ranker: Ranker, tmp_path: Path) -> None:
    """Such as bfloat16, in which others like to save."""
    path = ranker.save(tmp_path / "r") / "ranker.safetensors"
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    head = json.loads(content[8 : 8 + size])
    head["weights"] |= {"dtype": "BF16", "shape": [2 * head["weights"]["shape"][0]]}
    new = json.dumps(head).encode()
    path.write_bytes(len(new).to_bytes(8, "little") + new + content[8 + size :])
    with pytest.raises(InputError, match=r"safetensors: weights must be of a type that numpy has, got BF16"):
        load_predictor(tmp_path / "r")


ODD = ("", "x" * 1_000_000, "\x00\xff\ud800", "one\u2028two\u0085three", "列出十首歌 🎵", " \t\r\n " * 99)


def test_prompts_of_any_content_get_a_forecast(ranker: Ranker) -> None:
    """Empty, huge, binary, in any script, with separators that some take for ends of lines."""
    atoms = ranker.forecast([Prompt(text) for text in ODD])
    assert np.isfinite(atoms).all()
    assert atoms.min() >= 1


def test_separators_within_prompts_do_not_end_lines(tmp_path: Path) -> None:
    """U+2028 unescaped in JSON lines and CSV, as our own writer and others leave it."""
    texts = [f"first {i}\u2028second\u0085third\x1cfourth" for i in range(25)]
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.csv"
    lines.write_text(
        "".join(
            json.dumps({"prompt": t, "output_tokens": 3 + i}, ensure_ascii=False) + "\n"
            for i, t in enumerate(texts)
        ),
        encoding="utf-8",
    )
    table.write_text(
        "prompt,output_tokens\n" + "".join(f'"{t}",{3 + i}\n' for i, t in enumerate(texts)), encoding="utf-8"
    )
    for path in (lines, table):
        assert [prompt.text for prompt in read_answers(path).prompts] == texts


def test_labels_that_tell_nothing_train_or_are_named() -> None:
    """All equal, all cut, one prompt over and over: through the API nothing is checked by a file's reader."""
    texts = [f"say {i} words of {i % 7}" for i in range(40)]
    same = train_ranker(Answers.single(texts, [7] * 40)).forecast([Prompt("say 3")])
    assert same == pytest.approx(7.0)
    cut = Answers.single(texts, list(range(10, 50))).capped(9)
    assert train_ranker(cut).forecast([Prompt("say 3")]).min() >= 9
    with pytest.raises(InputError, match="at least 20 different prompts, got 1"):
        train_ranker(Answers.single(["x"] * 40, list(range(10, 50))))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"output_tokens": np.array([5.0, np.nan])}, r"output_tokens must be from 1 to 1000000000, got nan"),
        ({"output_tokens": np.array([5.0, np.inf])}, r"output_tokens must be from 1 to 1000000000, got inf"),
        ({"output_tokens": np.array([5, -3])}, r"output_tokens must be from 1 to 1000000000, got -3"),
        ({"output_tokens": np.array([0, 3])}, r"output_tokens must be from 1 to 1000000000, got 0"),
        ({"output_tokens": np.array([5, 2**40])}, r"output_tokens must be from 1 to 1000000000"),
        ({"output_tokens": np.array(["5", "6"])}, r"output_tokens must be numbers, got"),
        ({"prompt": np.array([0, 2])}, r"prompt must be below 2, as prompts are, got 2"),
        ({"prompt": np.array([0, -1])}, r"prompt must be below 2"),
        ({"prompt": np.array([0.0, 1.0])}, r"prompt must be integers, got 'float64'"),
        ({"cut": np.array([0, 1])}, r"cut must be true or false, got 'int64'"),
        (
            {"cut": np.zeros(3, bool)},
            r"columns of one length, got \(\(2,\), \(2,\), \(3,\)\)",
        ),
    ],
)
def test_answers_that_are_none_are_refused(change: dict[str, Any], words: str) -> None:
    """Not a number, negative, beyond the prompts: what a file's reader refuses, through the API."""
    good: dict[str, Any] = {
        "prompts": [Prompt("a"), Prompt("b")], "prompt": np.array([0, 1]),
        "output_tokens": np.array([5, 6]), "cut": np.zeros(2, bool),
    }  # fmt: skip
    assert len(Answers(**good).output_tokens) == 2
    with pytest.raises(InputError, match=words):
        Answers(**good | change)


@pytest.mark.parametrize("text", [None, b"bytes", 5])
def test_a_prompt_is_a_text(text: Any) -> None:
    with pytest.raises(InputError, match="prompt must be a text, got"):
        Prompt(text)
    with pytest.raises(InputError, match="prompt must be a text, got"):
        Answers.single([text, "b"], [3, 4])


def test_rules_of_thumb_tell_what_a_rankers_own_prompts_do_not() -> None:
    """Trained on sums alone, a ranker still knows that an essay is longer than a greeting."""
    texts = [f"What is {i} plus {i % 7}?" + " Show each step." * (i % 2) for i in range(80)]
    known = Answers.single(texts, [5 + i % 3 + 60 * (i % 2) for i in range(80)])
    asked = [
        "Write an essay about tides.",
        "hello",
        "Write a haiku about tides.",
        "Write a story about tides",
    ]
    told = train_ranker(known).score(asked)
    assert min(told[0], told[3]) > max(told[1], told[2])
    own = train_ranker(known).score(["What is 4 plus 3?", "What is 4 plus 3? Show each step."])
    assert own[0] < own[1]
    alone = train_ranker(known, rules=0.0).score(asked)
    assert not (min(alone[0], alone[3]) > max(alone[1], alone[2]))
    with pytest.raises(InputError, match="rules must be at least 0"):
        train_ranker(known, rules=-1.0)


def test_rules_of_thumb_are_the_same_each_time_and_filled_in() -> None:
    rules = rules_of_thumb()
    texts = [prompt.text for prompt in rules.prompts]
    assert len(set(texts)) == len(texts) > len(PATTERNS)
    assert not any(f"{{{kind}}}" in text for text in texts for kind in PLACES)
    rules_of_thumb.cache_clear()
    assert [p.text for p in rules_of_thumb().prompts] == texts
