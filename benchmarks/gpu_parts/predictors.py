"""The probe beside a decode step, and the transformer ranker on texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch  # noqa: TID253
from gpu_parts.decoder import Work, captured, seconds_of
from gpu_parts.settings import Settings


def random_probe(hidden: int, layer: int, *, width: int) -> Any:
    """Our probe with its default number of bins and random weights: what it says means nothing."""
    from slosched.predictors.probe import About, Mlp, Probe

    rng = np.random.default_rng(0)
    bins, edges = 10, tuple(51.2 * i for i in range(11))
    values = tuple((a + b) / 2 for a, b in pairwise(edges))

    def mlp(inputs: int) -> Mlp:
        w1, w2 = rng.normal(0, inputs**-0.5, (inputs, width)), rng.normal(0, width**-0.5, (width, bins))
        b1, b2 = np.zeros(width), np.zeros(bins)
        return Mlp(*(np.asarray(x, dtype=np.float32) for x in (w1, b1, w2, b2)))

    about = About(model="random", hidden_size=hidden, layer=layer, edges=edges, values=values)
    return Probe(about, mlp(2 * hidden), mlp(hidden + bins + 1))


class DeviceProbe:
    """The decode network of a probe in torch, for states that stay on the device."""

    def __init__(self, probe: Any, n: int, device: str) -> None:
        mlp = probe.decode
        self.w1, self.b1, self.w2, self.b2 = (
            torch.from_numpy(x).to(device) for x in (mlp.w1, mlp.b1, mlp.w2, mlp.b2)
        )
        self.more = torch.zeros(n, len(self.w1) - probe.about.hidden_size, device=device)
        self.out = torch.empty(n, len(self.b2), pin_memory=device == "cuda")

    def __call__(self, states: Any) -> Any:
        """Chances of the bins, on their way to the host's memory."""
        inputs = torch.cat([states.float(), self.more], 1)
        hidden = torch.addmm(self.b1, inputs, self.w1).relu_()
        self.out.copy_(torch.addmm(self.b2, hidden, self.w2).softmax(1), non_blocking=True)
        return self.out


def host_probe(probe: Any, states: Any, settings: Settings) -> dict[str, float]:
    """Our probe as it runs in vLLM: its first layer on the device, the rest on the host; microseconds.

    `begin` is the time until the device has been told what to do, `wait` that until the sums are here, and
    the rest is numpy.
    """
    from slosched.integrations.vllm.probe import Forecaster, Step, read

    n = len(states)
    names, ones, place = [str(i) for i in range(n)], np.ones(n, dtype=np.int64), np.arange(n)
    forecaster = Forecaster(probe)

    def reading(at: dict[int, int], begun: dict[int, Any]) -> Any:
        step = Step(names, place, place, 64 * ones, 16 * ones, 80 * ones, states)
        return read(forecaster, step, at, begun)

    forecaster.take(reading({}, {i: states[i].float() for i in range(n)}).seen())
    begins: list[float] = []
    waits: list[float] = []
    takes: list[float] = []
    warm, rounds = (1, 3) if settings.tiny else (10, 40)
    for k in range(warm + rounds):
        if settings.device == "cuda":
            torch.cuda.synchronize()
        times = [time.perf_counter()]
        found = reading(dict.fromkeys(range(n), 49 + k), {})
        times.append(time.perf_counter())
        seen = found.seen()
        times.append(time.perf_counter())
        forecaster.take(seen)
        times.append(time.perf_counter())
        for taken, seconds in zip((begins, waits, takes), np.diff(times), strict=True):
            taken.append(float(seconds))
    if forecaster.bad_states or forecaster.forecasts != n * (1 + warm + rounds):
        raise RuntimeError("the decoder's states are not finite, or some were not read")
    quantiles = {
        "begin_p50_us": (begins, 0.5), "wait_p50_us": (waits, 0.5), "p50_us": (takes, 0.5),
        "p99_us": (takes, 0.99),
    }  # fmt: skip
    return {name: float(np.quantile(taken[warm:], q)) * 1e6 for name, (taken, q) in quantiles.items()}


def probe(settings: Settings) -> dict[str, Any]:
    """Probe beside a decode step of Llama-3.1-8B: as it is, on the processor, and as it could be."""
    shape, gpus = settings.models["llama-3.1-8b"]
    decoder = settings.decoder(shape, gpus)
    out: list[dict[str, Any]] = []
    for width in (128, 512):
        made = random_probe(shape.hidden, shape.layers // 2, width=width)
        every = made.about.every_tokens
        for n in settings.batches:
            call = decoder.step(Work(sequences=n, context=settings.context))
            network = DeviceProbe(made, n, settings.device)
            replay, (_, states) = captured(call, settings.device)
            replay()
            host = host_probe(made, states, settings)
            alone, _ = captured(lambda: network(states), settings.device)  # noqa: B023
            both, _ = captured(lambda: network(call()[1]), settings.device)  # noqa: B023
            plain_s, both_s = (seconds_of(x, settings.device) for x in (replay, both))
            replay(), alone()
            if settings.device == "cuda":
                torch.cuda.synchronize()
            inputs = torch.cat([states.float(), network.more], 1).cpu().numpy()
            apart = float(np.abs(made.decode.probabilities(inputs) - network.out.numpy()).max())
            out.append({
                "width": width, "sequences": n, "context": settings.context,
                "step_us": plain_s * 1e6, "layer_us": plain_s * 1e6 / shape.layers,
                "host": host, "host_share_of_step": host["p50_us"] / plain_s / 1e6,
                "host_share_each_step": host["p50_us"] / plain_s / 1e6 / every,
                "device_us": seconds_of(alone, settings.device) * 1e6,
                "device_within_step_us": (both_s - plain_s) * 1e6,
                "device_share_of_step": both_s / plain_s - 1, "largest_difference": apart,
            })  # fmt: skip
    return {"every_tokens": every, "hidden": shape.hidden, "rows": out}


def random_ranker(name: str, *, tiny: bool) -> Any:
    """The transformer ranker around a model of that size with random weights; a word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, OPTConfig, OPTModel, PreTrainedTokenizerFast

    from slosched.predictors.transformer import TransformerRanker

    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    if name == "opt-125m":
        more = {**small, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 128}
        body = OPTModel(OPTConfig(**(more if tiny else {})))
    else:
        size = {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        }
        body = BertModel(BertConfig(**(small if tiny else size)), add_pooling_layer=False)
    words = {"<pad>": 0, "<unk>": 1, **{f"w{i}": i + 2 for i in range(1000)}}
    tokens = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>")
    head = torch.nn.Linear(body.config.hidden_size, 1, bias=False)
    return TransformerRanker(body, tokenizer, head, "listmle")


def ranker(settings: Settings) -> dict[str, Any]:
    """Seconds of `TransformerRanker.score`, texts to scores, for some lengths and batches."""
    rng = np.random.default_rng(0)
    out: list[dict[str, Any]] = []
    lengths, batches = ((8,), (1, 2)) if settings.tiny else ((32, 128, 512), (1, 8, 32, 256))
    for name in ("opt-125m", "minilm-l6"):
        made, scores = random_ranker(name, tiny=settings.tiny), {}
        for device in dict.fromkeys((settings.device, "cpu")):
            made.body.to(device), made.head.to(device)
            for length in lengths:
                texts = [
                    " ".join(f"w{i}" for i in rng.integers(0, 1000, length)) for _ in range(max(batches))
                ]
                for n in batches:
                    if device == "cpu" and n * length > 4096:
                        continue  # seconds each
                    taken = walls(lambda: made.score(texts[:n]), 3 if device == "cpu" else 20)  # noqa: B023
                    out.append({
                        "model": name, "device": device, "tokens": length, "prompts": n,
                        "batch_ms": taken * 1e3, "prompt_ms": taken * 1e3 / n,
                    })  # fmt: skip
            probe_texts = [f"w{i} w{i + 1} w{2 * i}" for i in range(16)]
            scores[device] = made.score(probe_texts)
        first, last = scores[settings.device], scores["cpu"]
        out.append({"model": name, "largest_difference": float(np.abs(first - last).max() / np.ptp(last))})
    return {"rows": out}


def walls(call: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call that waits for its result."""
    call()
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken))
