"""Features of real engines for chaos runs: adapters, images, grammars, drafts, pooling, KV connectors …"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

from slosched.core.errors import InputError


class Feature:
    """One feature: how it changes the scheduler, the requests and the replies, and what shows it happened.

    Attributes
    ----------
    name
        Name in options and reports.
    events
        How often the feature has made itself felt; a run in which it never did proves nothing.
    """

    name: ClassVar[str]
    asynchronous: ClassVar[bool] = True
    """Whether vLLM has it, and the stand-in for the runner can follow it, with asynchronous scheduling."""
    deepest: ClassVar[int] = 8
    """Steps in flight up to which vLLM has it."""
    deepest_asynchronous: ClassVar[int] = 8
    """The same with asynchronous scheduling."""

    resets_running: ClassVar[bool] = True
    """Whether vLLM can reset its prefix cache while requests with this feature run."""

    @classmethod
    def exists(cls) -> bool:
        """Whether the vLLM installed has it."""
        return True

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.events: Counter[str] = Counter()

    def prepare(self, engine: Any) -> None:
        """Change a scheduler that has just been made."""

    def dress(self, engine: Any, i: int, keywords: dict[str, Any]) -> None:
        """Change what request `i` is made of."""

    def made(self, engine: Any, i: int, request: Any) -> None:
        """Request `i` has been made."""

    def turn(self, engine: Any) -> None:
        """Another turn of the engine begins."""

    def sample(self, engine: Any, row: int, request: Any, output: Any) -> list[int] | None:
        """The tokens that the model gives a request in a step; None to leave that to the engine."""
        return None

    def scheduled(self, engine: Any, output: Any) -> None:
        """A step was scheduled."""

    def reply(self, engine: Any, reply: Any) -> None:
        """Add to what the runner says of a step."""

    def landed(self, engine: Any, flight: Any) -> None:
        """The output of a step has been taken in."""

    def close(self, engine: Any) -> None:
        """All requests have ended: end what is still under way."""


class Adapters(Feature):
    """Room for two LoRA adapters, four in use, and requests without any."""

    name = "lora"
    most: ClassVar[int] = 2

    def prepare(self, engine: Any) -> None:
        """Let the scheduler know of adapters; no weights are ever needed."""
        engine.scheduler.lora_config = SimpleNamespace(max_loras=self.most)

    def dress(self, engine: Any, i: int, keywords: dict[str, Any]) -> None:
        """One in five goes without."""
        from vllm.lora.request import LoRARequest

        number = i % 5
        if number:
            keywords["lora_request"] = LoRARequest(f"adapter-{number}", number, "/nowhere")

    def scheduled(self, engine: Any, output: Any) -> None:
        """Count steps that fill the room, and check that none overfills it."""
        requests = engine.scheduler.requests
        asked = [requests[name].lora_request for name in output.num_scheduled_tokens]
        present = {adapter.lora_int_id for adapter in asked if adapter}
        if len(present) > self.most:
            raise InputError(f"a step may hold {self.most} adapters, got {sorted(present)}.")
        self.events["adapter_room_full"] += len(present) == self.most


class Images(Feature):
    """One or two images in every other prompt; a step's budget and the cache for encoders are small."""

    name = "multimodal"
    budget: ClassVar[int] = 64
    longest: ClassVar[int] = 40

    def prepare(self, engine: Any) -> None:
        """Give the scheduler an encoder budget and an encoder cache."""
        from vllm.v1.core.encoder_cache_manager import EncoderCacheManager

        scheduler = engine.scheduler
        scheduler.max_num_encoder_input_tokens = self.budget
        scheduler.encoder_cache_manager = EncoderCacheManager(cache_size=2 * self.budget)

    def dress(self, engine: Any, i: int, keywords: dict[str, Any]) -> None:
        """Place images in the prompt; one in three is shared by many requests."""
        from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange

        length = len(keywords["prompt_token_ids"])
        if i % 2 or length < 12:
            return
        found: list[Any] = []
        at = int(self.rng.integers(0, 4))
        while at + 8 < length and len(found) < 2:
            shared = bool(self.rng.random() < 1 / 3)
            size = 8 if shared else int(self.rng.integers(4, min(self.longest, length - at - 1)))
            name = f"shared-{self.rng.integers(0, 4)}" if shared else f"image-{i}-{len(found)}"
            found.append(
                MultiModalFeatureSpec(
                    data=None, modality="image", identifier=name,
                    mm_position=PlaceholderRange(offset=at, length=size),
                )
            )  # fmt: skip
            at += size + int(self.rng.integers(0, 8))
        keywords["mm_features"] = found

    def scheduled(self, engine: Any, output: Any) -> None:
        """Count images encoded, and check the budget."""
        inputs = output.scheduled_encoder_inputs
        self.events["images_encoded"] += sum(map(len, inputs.values()))
        spent = sum(
            engine.scheduler.requests[name].mm_features[i].mm_position.length
            for name, items in inputs.items()
            for i in items
        )
        if spent > self.budget:
            raise InputError(f"a step may encode {self.budget} tokens of images, got {spent}.")


class Grammars(Feature):
    """Every third request has a grammar that takes some turns to compile."""

    name = "structured"

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._compiling: list[tuple[int, Future[Any]]] = []
        self._turns = 0

    def prepare(self, engine: Any) -> None:
        """Take the place of vLLM's manager of grammars, which needs a tokenizer."""
        from vllm.v1.structured_output.backend_types import StructuredOutputGrammar

        StructuredOutputGrammar.register(Grammars)  # some releases look at the class
        engine.scheduler.structured_output_manager = self

    def dress(self, engine: Any, i: int, keywords: dict[str, Any]) -> None:
        """Ask for a grammar."""
        if i % 3 == 0:
            from vllm.sampling_params import StructuredOutputsParams

            keywords["sampling_params"].structured_outputs = StructuredOutputsParams(regex="a*")

    def made(self, engine: Any, i: int, request: Any) -> None:
        """Begin to compile."""
        asked = request.structured_output_request
        if asked is not None:
            future: Future[Any] = Future()
            asked.grammar = future
            self._compiling.append((self._turns + int(self.rng.integers(0, 12)), future))

    def turn(self, engine: Any) -> None:
        """Some grammars are ready now."""
        self._turns += 1
        for due, future in self._compiling:
            if due <= self._turns and not future.done():
                future.set_result(self)
        self._compiling = [(due, future) for due, future in self._compiling if not future.done()]

    def scheduled(self, engine: Any, output: Any) -> None:
        """What the engine does between scheduling and sampling."""
        engine.scheduler.get_grammar_bitmask(output)

    # what vLLM asks of a manager and of a grammar

    def grammar_bitmask(self, requests: Any, names: Any, *_: Any) -> Any:
        """Note for whom a mask was asked."""
        self.events["grammar_rows"] += len(names)
        return np.zeros((len(names), 1), dtype=np.int32)

    def grammar_init(self, request: Any) -> None:
        """Compiled by `turn`."""

    def accept_tokens(self, *_: Any) -> bool:
        """Every token is allowed."""
        return True

    def should_advance(self, request: Any, **_: Any) -> bool:
        """Whether the grammar is to see the tokens."""
        return bool(request.use_structured_output)

    def should_fill_bitmask(self, request: Any) -> bool:
        """Whether this request needs a mask."""
        return True

    def validate_tokens(self, *arguments: Any) -> Any:
        """Every draft is allowed."""
        return arguments[-1]

    def trim_reasoning_for_advance(self, request: Any, tokens: Any, **_: Any) -> Any:
        """Nothing is thought about before the answer."""
        return tokens

    def is_terminated(self) -> bool:
        """No grammar ends an answer."""
        return False

    def clear_backend(self) -> None:
        """There is none."""


class Drafts(Feature):
    """Three draft tokens for each decoding request, some of them right.

    With asynchronous scheduling vLLM knows only how many drafts there are. The runner has the tokens, and
    says with a step's output how many of them were right.
    """

    name = "speculation"
    deepest = 1
    deepest_asynchronous = 2
    drafts: ClassVar[int] = 3

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._ahead: Counter[int] = Counter()  # tokens sampled in steps in flight, by row

    def prepare(self, engine: Any) -> None:
        """Make the scheduler expect drafts."""
        engine.scheduler.num_spec_tokens = self.drafts
        if engine.asynchronous:
            engine.scheduler._spec_token_placeholders = [-1] * self.drafts

    def sample(self, engine: Any, row: int, request: Any, output: Any) -> list[int] | None:
        """With asynchronous scheduling: the next token, and as many more as drafts were right."""
        if not engine.asynchronous:
            return None
        drafts = len(output.scheduled_spec_decode_tokens.get(request.request_id, ()))
        after = request.num_computed_tokens - drafts
        if after < request.num_prompt_tokens or request.is_prefill_chunk:
            return []
        right = int(self.rng.integers(0, drafts + 1))
        self.events["drafts_right"] += right
        self.events["drafts_wrong"] += drafts - right
        place = request.num_output_tokens + self._ahead[row]
        self._ahead[row] += 1 + right
        return [engine.token(row, place + k) for k in range(1 + right)]

    def landed(self, engine: Any, flight: Any) -> None:
        """Propose drafts for whoever got a token."""
        from vllm.v1.outputs import DraftTokenIds

        reply = flight.reply
        if engine.asynchronous:
            for name, tokens in zip(reply.req_ids, reply.sampled_token_ids, strict=True):
                self._ahead[engine.row[name]] -= len(tokens)
            return
        got = zip(reply.req_ids, reply.sampled_token_ids, strict=True)
        names = [name for name, tokens in got if tokens and name in engine.live]
        drafts = []
        for name in names:
            place = engine.live[name].num_output_tokens
            right = int(self.rng.integers(0, self.drafts + 1))
            drafts.append(
                [engine.token(engine.row[name], place + k) if k < right else 1 for k in range(self.drafts)]
            )
        engine.scheduler.update_draft_token_ids(DraftTokenIds(names, drafts))

    def scheduled(self, engine: Any, output: Any) -> None:
        """Count drafts that were taken along."""
        self.events["drafts_scheduled"] += sum(map(len, output.scheduled_spec_decode_tokens.values()))


class Pooling(Feature):
    """Requests for an embedding of the prompt: no sampling parameters, no tokens."""

    name = "pooling"
    asynchronous = False

    def dress(self, engine: Any, i: int, keywords: dict[str, Any]) -> None:
        """Ask for an embedding."""
        from vllm import PoolingParams

        keywords["sampling_params"] = None
        keywords["pooling_params"] = PoolingParams(task="embed")
        engine.pooled[i] = True

    def landed(self, engine: Any, flight: Any) -> None:
        """Count embeddings handed out."""
        self.events["embeddings"] = engine.embeddings


class Siblings(Feature):
    """Groups of three requests for one prompt, as ``n = 3`` makes them, arriving together."""

    name = "siblings"
    group: ClassVar[int] = 3

    def dress(self, engine: Any, i: int, keywords: dict[str, Any]) -> None:
        """Take the prompt of the group's first, cut to one's own length."""
        first = engine.prompt(i - i % self.group)
        own = keywords["prompt_token_ids"]
        if len(first) >= len(own):
            keywords["prompt_token_ids"] = first[: len(own)]

    def scheduled(self, engine: Any, output: Any) -> None:
        """Count steps in which two of a group run."""
        groups = Counter(engine.row[r.request_id] // self.group for r in engine.scheduler.running)
        self.events["siblings_together"] += any(n > 1 for n in groups.values())


class Priorities(Feature):
    """Clients' priorities: memory is taken from the worst, as vLLM's priority policy does."""

    name = "priority"

    def dress(self, engine: Any, i: int, keywords: dict[str, Any]) -> None:
        """Four levels."""
        keywords["priority"] = int(self.rng.integers(-2, 2))

    def scheduled(self, engine: Any, output: Any) -> None:
        """Count steps with several levels running."""
        self.events["levels_together"] += len({r.priority for r in engine.scheduler.running}) > 1


class RemoteKv(Feature):
    """A KV connector: what others have computed is loaded, at once or meanwhile, and sent away at the end.

    Some look-ups take their time, some loads fail, and the blocks of some answers are kept until sent. Loads
    fail only with synchronous scheduling and one step in flight: else vLLM alone fails this check, too.
    """

    name = "kv_connector"
    resets_running = False

    @classmethod
    def exists(cls) -> bool:
        """Since 0.31 vLLM keeps those who hold blocks in a queue of their own; before, this is different."""
        from vllm.v1.core.sched.scheduler import Scheduler

        return "kv_holding_waiting" in inspect.getsource(Scheduler.__init__)

    supports_divergent_local_hybrid_hits = False
    requires_kv_delivery = False

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._wanted: dict[str, tuple[bool, int]] = {}
        self._loading: dict[str, bool] = {}
        self._sending: dict[str, bool] = {}
        self._broken: set[int] = set()
        self._fails = True

    def prepare(self, engine: Any) -> None:
        """Take the connector's place; with steps in flight vLLM frees no block that they may still write."""
        engine.scheduler.connector = self
        engine.scheduler.defer_block_free = engine.depth > 1
        self._fails = engine.depth == 1 and not engine.asynchronous

    def reply(self, engine: Any, reply: Any) -> None:
        """Report loads and sendings that are done, and blocks that could not be loaded."""
        from vllm.v1.outputs import KVConnectorOutput

        loaded = {name for name in self._loading if self.rng.random() < 0.3}
        sent = {name for name in self._sending if self.rng.random() < 0.3}
        self._report(reply, loaded, sent, KVConnectorOutput)
        if self._fails:
            self.events["loads_failed"] += len(self._broken) > 0
        self._broken = set()

    def _report(self, reply: Any, loaded: set[str], sent: set[str], kind: Any) -> None:
        reply.kv_connector_output = kind(
            finished_recving=loaded, finished_sending=sent, invalid_block_ids=set(self._broken)
        )
        for name in loaded:
            del self._loading[name]
        for name in sent:
            del self._sending[name]
        self.events["loaded_meanwhile"] += len(loaded)
        self.events["sent"] += len(sent)

    def close(self, engine: Any) -> None:
        """Report the rest."""
        from vllm.v1.outputs import KVConnectorOutput

        from slosched.testing.harness import runner_output

        reply = runner_output([], [])
        self._report(reply, set(self._loading), set(self._sending), KVConnectorOutput)
        engine.scheduler.update_from_output(engine.scheduler.schedule(), reply)

    # what vLLM asks of a connector

    def get_num_new_matched_tokens(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """How many tokens beyond those `computed` here can be loaded, and whether meanwhile."""
        if self.rng.random() < 0.1:
            self.events["looked_up_later"] += 1
            return None, False
        blocks = (request.num_tokens - 1 - computed) // 16
        tokens = 16 * int(self.rng.integers(0, blocks + 1)) if blocks > 0 and self.rng.random() < 0.5 else 0
        meanwhile = tokens > 0 and bool(self.rng.random() < 0.5)
        self._wanted[request.request_id] = (meanwhile, (computed + tokens - 1) // 16)
        return tokens, meanwhile

    def update_state_after_alloc(self, request: Any, blocks: Any, tokens: int) -> None:
        """Blocks were given out: the load begins."""
        if not tokens:
            return
        meanwhile, last = self._wanted[request.request_id]
        if meanwhile:
            self._loading[request.request_id] = True
            return
        self.events["loaded_at_once"] += 1
        if self._fails and self.rng.random() < 0.2:
            self._broken.add(blocks.get_block_ids()[0][last])

    def request_finished(self, request: Any, blocks: Any) -> tuple[bool, None]:
        """Whether the blocks of a finished request stay until they are sent."""
        if request.status.name == "FINISHED_ABORTED" or self.rng.random() < 0.5:
            return False, None
        self._sending[request.request_id] = True
        return True, None

    def build_connector_meta(self, output: Any) -> Any:
        """Nothing for the workers."""
        return SimpleNamespace()

    def take_events(self) -> tuple[Any, ...]:
        """None."""
        return ()

    def __getattr__(self, name: str) -> Any:
        """What else is asked of connectors: there is nothing, or it is done."""
        if name.startswith("has_pending_"):
            return lambda: False
        if name == "get_loaded_kv_cache_group_ids":
            return lambda *_: ()
        if name in ("get_kv_connector_stats", "on_new_request", "update_connector_output", "reset_cache"):
            return lambda *_: None
        raise AttributeError(name)


class Throttled(Feature):
    """A data-parallel rank: in every other step it is told to leave prompts for later."""

    name = "throttle"

    @classmethod
    def exists(cls) -> bool:
        """Since 0.24."""
        from vllm.v1.core.sched.scheduler import Scheduler

        return "throttle_prefills" in inspect.signature(Scheduler.schedule).parameters

    def prepare(self, engine: Any) -> None:
        """Tell the scheduler so with every other step."""
        scheduler = engine.scheduler
        kind = type(scheduler)

        def schedule() -> Any:
            """As the scheduler's own, on half the steps without new prompts."""
            throttle = bool(self.rng.random() < 0.5)
            idle = all(request.is_prefill_chunk for request in scheduler.running)
            self.events["prompts_left_for_later"] += not (idle or scheduler.prefill_capacity_bound)
            return kind.schedule(scheduler, throttle_prefills=throttle)

        scheduler.schedule = schedule


class Pauses(Feature):
    """Operators pause the engine for newcomers or for all, as before new weights are loaded, and go on."""

    name = "pauses"

    @classmethod
    def exists(cls) -> bool:
        """Since 0.17."""
        from vllm.v1.core.sched import interface

        return hasattr(interface, "PauseState")

    def turn(self, engine: Any) -> None:
        """Perhaps another state."""
        from vllm.v1.core.sched.interface import PauseState

        if self.rng.random() < 0.1:
            state = PauseState(int(self.rng.integers(0, 3)))
            engine.scheduler.set_pause_state(state)
            self.events[f"pauses_{state.name.lower()}"] += 1

    def close(self, engine: Any) -> None:
        """Go on."""
        from vllm.v1.core.sched.interface import PauseState

        engine.scheduler.set_pause_state(PauseState.UNPAUSED)


FEATURES: dict[str, type[Feature]] = {
    feature.name: feature
    for feature in (
        Adapters,
        Images,
        Grammars,
        Drafts,
        Pooling,
        Siblings,
        Priorities,
        RemoteKv,
        Throttled,
        Pauses,
    )
}
"""Every feature by name."""


def can_have(kind: type[Feature], *, asynchronous: bool, depth: int) -> bool:
    """Whether the vLLM installed has a feature with this kind of scheduling and so many steps in flight."""
    if not kind.exists():
        return False
    if asynchronous:
        return kind.asynchronous and depth <= kind.deepest_asynchronous
    return depth <= kind.deepest


def features_of(names: Iterable[str], seed: int, *, asynchronous: bool, depth: int) -> list[Feature]:
    """The features of these names, each with a seed of its own.

    Raises
    ------
    InputError
        If there is no such feature, or not with this kind of scheduling.
    """
    found = []
    for k, name in enumerate(names):
        kind = FEATURES.get(name)
        if kind is None:
            raise InputError(f"feature must be one of {', '.join(FEATURES)}, got {name!r}.")
        if not can_have(kind, asynchronous=asynchronous, depth=depth):
            if not kind.exists():
                raise InputError(f"feature {name!r} must be one that the vLLM installed has.")
            how = "synchronously or not" if kind.asynchronous else "synchronously"
            most = max(kind.deepest, kind.deepest_asynchronous if kind.asynchronous else 0)
            raise InputError(f"feature {name!r} must run {how}, {most} steps in flight at most.")
        found.append(kind(seed + k))
    return found
