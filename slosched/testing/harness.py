"""A real vLLM scheduler and KV cache manager without a model: for the virtual clock and for tests."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from slosched.core.engine import EngineLimits
from slosched.core.errors import MissingExtraError

STOP = 7
"""Token that ends an answer. All other tokens made here are far above it."""


def make_scheduler(
    limits: EngineLimits, *, asynchronous: bool = False, priority: bool = False, factory: Any = None
) -> Any:
    """A scheduler of the installed vLLM with the given limits.

    Parameters
    ----------
    limits
        Capacity; the KV cache gets one block more, which vLLM keeps for itself.
    asynchronous
        Whether asynchronous scheduling is on.
    priority
        vLLM's own queue order: by priority instead of first come, first served.
    factory
        Called in place of vLLM's class, with the same keywords; by default the class vLLM would use.

    Raises
    ------
    MissingExtraError
        If vLLM is not installed.
    """
    config = _vllm_config(limits, asynchronous, priority)
    from vllm.v1 import kv_cache_interface as kv
    from vllm.v1.structured_output import StructuredOutputManager

    block = limits.block_tokens
    import torch

    spec = _call(
        kv.FullAttentionSpec,
        block_size=block,
        num_kv_heads=1,
        head_size=1,
        dtype=torch.float32,
        use_mla=False,
    )
    cache = kv.KVCacheConfig(
        num_blocks=limits.kv_blocks + 1,
        kv_cache_tensors=[],
        kv_cache_groups=[kv.KVCacheGroupSpec(["layer"], spec)],
    )
    base = config.scheduler_config.get_scheduler_cls()
    keywords = _known(
        base, vllm_config=config, kv_cache_config=cache, log_stats=False, block_size=block,
        structured_output_manager=StructuredOutputManager(config), hash_block_size=block,
    )  # fmt: skip
    return (factory or base)(**keywords)


@cache
def installed_loop() -> str:
    """The scheduling loop of the installed vLLM, for `EngineLimits.loop`: as the adapter finds it out.

    Raises
    ------
    MissingExtraError
        If vLLM is not installed.
    """
    from slosched.integrations.vllm.snapshots import limits_of

    return limits_of(make_scheduler(EngineLimits(max_model_len=512))).loop


def make_request(
    request_id: str,
    prompt: list[int],
    *,
    max_tokens: int,
    arrival_s: float,
    priority: int,
    block_tokens: int,
    extra: dict[str, Any] | None = None,
    hashed: bool = True,
    dress: Callable[[dict[str, Any]], None] | None = None,
) -> Any:
    """A request of vLLM that ends when it is given the token `STOP`.

    `dress` may change the keywords of vLLM's class before the request is made of them.
    """
    from vllm import SamplingParams
    from vllm.v1.request import Request

    params = SamplingParams(
        max_tokens=max_tokens, stop_token_ids=[STOP], ignore_eos=True, temperature=0.0, extra_args=extra
    )
    keywords = {
        "request_id": request_id, "prompt_token_ids": prompt, "sampling_params": params,
        "pooling_params": None, "arrival_time": arrival_s, "priority": priority, "eos_token_id": None,
        "block_hasher": _hasher(block_tokens) if hashed else None,
    }  # fmt: skip
    if dress is not None:
        dress(keywords)
    return _call(Request, **keywords)


def runner_output(request_ids: list[str], tokens: list[list[int]], pooled: list[Any] | None = None) -> Any:
    """What the model runner would hand back after a step: tokens, or for pooling requests their results."""
    from vllm.v1.outputs import ModelRunnerOutput

    index = {request_id: i for i, request_id in enumerate(request_ids)}
    return _call(
        ModelRunnerOutput, req_ids=request_ids, req_id_to_index=index, sampled_token_ids=tokens,
        logprobs=None, prompt_logprobs_dict={}, pooler_output=pooled or [], spec_token_ids=None,
    )  # fmt: skip


def _vllm_config(limits: EngineLimits, asynchronous: bool, priority: bool) -> Any:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import config as configs
    except ImportError as error:
        raise MissingExtraError("vllm", "vllm") from error
    model = _call(
        configs.ModelConfig, model=_tiny_model(limits.max_model_len), dtype="float32", seed=0,
        skip_tokenizer_init=True, max_model_len=limits.max_model_len, enforce_eager=True,
    )  # fmt: skip
    chosen = {
        "async_scheduling": asynchronous,
        "enable_chunked_prefill": limits.chunked_prefill,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "max_num_seqs": limits.max_num_seqs,
        "long_prefill_token_threshold": limits.long_prefill_token_threshold,
    }
    if limits.prefill_schedule_interval > 1:  # releases before 0.24 do not know it
        chosen["prefill_schedule_interval"] = limits.prefill_schedule_interval
    scheduler = _call(
        configs.SchedulerConfig, max_model_len=limits.max_model_len, is_encoder_decoder=False,
        policy="priority" if priority else "fcfs", max_num_partial_prefills=1, **chosen,
    )  # fmt: skip
    cache = _call(
        configs.CacheConfig, block_size=limits.block_tokens, gpu_memory_utilization=0.5, swap_space=0,
        cache_dtype="auto", enable_prefix_caching=limits.prefix_cache,
    )  # fmt: skip
    config = _call(
        configs.VllmConfig, model_config=model, scheduler_config=scheduler, cache_config=cache,
        device_config=configs.DeviceConfig("cpu"),
    )  # fmt: skip
    # The CPU platform has overwritten some of these.
    for name, value in chosen.items():
        setattr(config.scheduler_config, name, value)
    config.scheduler_config.max_num_scheduled_tokens = None
    config.cache_config.block_size = limits.block_tokens
    config.cache_config.enable_prefix_caching = limits.prefix_cache
    config.cache_config.num_gpu_blocks = limits.kv_blocks + 1
    return config


_FOLDERS: list[tempfile.TemporaryDirectory[str]] = []


def _tiny_model(max_model_len: int) -> str:
    """A folder with the configuration of a tiny Llama; no weights are ever needed."""
    folder = tempfile.TemporaryDirectory(prefix="slosched-model-")
    _FOLDERS.append(folder)
    content = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 512,
        "max_position_embeddings": max_model_len,
        "torch_dtype": "float32",
    }
    (Path(folder.name) / "config.json").write_text(json.dumps(content))
    return folder.name


_HASHERS: dict[int, Any] = {}


def _hasher(block_tokens: int) -> Any:
    if block_tokens not in _HASHERS:
        from vllm.v1.core import kv_cache_utils as utils

        try:
            sha256 = importlib.import_module("vllm.utils.hashing").sha256
        except ImportError:
            sha256 = importlib.import_module("vllm.utils").sha256
        utils.init_none_hash(sha256)
        _HASHERS[block_tokens] = utils.get_request_block_hasher(block_tokens, sha256)
    return _HASHERS[block_tokens]


def _call(target: Any, **keywords: Any) -> Any:
    """Call with those keywords that this release knows."""
    return target(**_known(target, **keywords))


def _known(target: Any, **keywords: Any) -> dict[str, Any]:
    """Those of the keywords that a class takes, its bases included."""
    known = _names(target)
    return {name: value for name, value in keywords.items() if name in known}


@cache
def _names(target: Any) -> frozenset[str]:
    known = set(inspect.signature(target).parameters)
    if is_dataclass(target):
        known.update(field.name for field in fields(target))
    for base in getattr(target, "__mro__", ()):
        if "__init__" in vars(base):
            known.update(inspect.signature(vars(base)["__init__"]).parameters)
    return frozenset(known)
