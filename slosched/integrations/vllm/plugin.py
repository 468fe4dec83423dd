"""Hidden states out of vLLM without a fork: a general plugin that wraps the model runner.

vLLM loads `register` in each of its processes. It does nothing unless the environment asks for it:
``SLOSCHED_PROBE=FOLDER`` serves a trained probe (``forecast: {probe: FOLDER}`` in the file that
``SLOSCHED_CONFIG`` names does the same), ``SLOSCHED_STATES=FOLDER`` writes training data, of the layer
``SLOSCHED_STATES_LAYER``, the middle one if not given. The model then hands out one layer's states through
vLLM's auxiliary-hidden-state interface, made for EAGLE-3. They are read before each step's tokens are
sampled, and what is found rides on the runner's output to the scheduler. On any surprise the plugin logs one
line and stays out of the way for good; tokens are never touched.

This module must import nothing heavy: vLLM 0.32 cannot start its CPU worker in a process with numba loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partialmethod
from typing import Any

from slosched.core.errors import InputError
from slosched.integrations.vllm.probe_settings import wanted

logger = logging.getLogger("vllm.slosched")

_MARK = "_slosched_probe"


def register() -> None:
    """Entry point of the group ``vllm.general_plugins``: wrap vLLM's model runner if asked to."""
    try:
        if not wanted():
            return
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        _wrap(GPUModelRunner)
        second = _second_runner()
        if second is not None:
            _wrap(second, "load_model")
    except Exception as error:
        _give_up(None, error)


def _second_runner() -> Any:
    """The class of Model Runner V2, the default on GPUs since 0.33; None where it cannot be imported."""
    try:
        from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    except Exception as error:  # without Triton or a GPU vLLM never uses it
        logger.debug("slosched: Model Runner V2 is not there: %s", error)
        return None
    return GPUModelRunner


def watch_of(runner: Any) -> Any:
    """The watch of a model runner; None if it has none or it gave up."""
    return runner.__dict__.get(_MARK)


def _wrap(runner_class: Any, loads: str = "_setup_eagle3_aux_hidden_state_outputs") -> None:
    """Wrap a runner's class: `loads` prepares for auxiliary states, or loads the model (V2)."""
    if getattr(runner_class, _MARK, False):
        return
    prepare = _load if loads == "load_model" else _set_up
    for name, watched in ((loads, prepare), ("sample_tokens", _sample)):
        setattr(runner_class, name, partialmethod(watched, getattr(runner_class, name)))
    setattr(runner_class, _MARK, True)


def _set_up(runner: Any, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """In place of vLLM's own preparation for EAGLE-3, which `native` is: watch this runner."""
    try:
        watch = _attach(runner)
    except Exception as error:
        _give_up(runner, error)
        return native(runner, *args, **kwargs)
    setattr(runner, _MARK, watch)
    return None


def _load(runner: Any, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around Model Runner V2's loading of the model, which `native` is: watch the runner from then on."""
    result = native(runner, *args, **kwargs)
    try:
        setattr(runner, _MARK, _attach(runner))
    except Exception as error:
        _give_up(runner, error)
    return result


def _sample(runner: Any, native: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around vLLM's sampling, which `native` is: read the step before, hand on what was found after."""
    watch = watch_of(runner)
    if watch is None:
        return native(runner, *args, **kwargs)
    try:
        found = watch.before(runner)
    except Exception as error:
        _give_up(runner, error)
        return native(runner, *args, **kwargs)
    output = native(runner, *args, **kwargs)
    try:
        watch.after(runner, output, found)
    except Exception as error:
        _give_up(runner, error)
    return output


def _attach(runner: Any) -> Any:
    from vllm.model_executor.models.interfaces import supports_eagle3

    from slosched.integrations.vllm.probe import Watch, reader_for
    from slosched.integrations.vllm.state_collector import Collector

    config, second = runner.vllm_config, hasattr(runner, "req_states")
    model = runner.get_model()
    if runner.use_aux_hidden_state_outputs or config.speculative_config is not None:
        raise InputError("the engine must run without speculative decoding.")
    if config.parallel_config.pipeline_parallel_size > 1:
        raise InputError("the engine must run without pipeline parallelism.")
    if not supports_eagle3(model):
        raise InputError(f"{type(model).__name__} must support auxiliary hidden states (EAGLE-3).")
    text = config.model_config.hf_text_config
    reader = reader_for(config.model_config.model, int(text.hidden_size), int(text.num_hidden_layers))
    if second and isinstance(reader, Collector):
        raise InputError("training data is collected with Model Runner V1: VLLM_USE_V2_MODEL_RUNNER=0.")
    # vLLM counts layers passed: number k is what leaves the k-th decoder layer.
    model.set_aux_hidden_state_layers(reader.layers)
    runner.use_aux_hidden_state_outputs = True
    numbers = ", ".join(map(str, reader.layers))
    logger.info("slosched: %s reads layer %s", type(reader).__name__.lower(), numbers)
    return Watch(reader)


def _give_up(runner: Any, error: Exception) -> None:
    """One line, and no more probing in this process."""
    logger.warning("slosched: no hidden states are read: %s: %s", type(error).__name__, error)
    if runner is not None:
        setattr(runner, _MARK, None)
