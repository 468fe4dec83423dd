"""What vLLM's ``schedule()`` reads: a release that reads more may count on something slosched changes."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

_SCHEDULER = """
    _allocate_encoder_inputs _build_kv_connector_meta _drafts_unused _ec_transfer_pending
    _free_cow_retained_blocks _get_encoder_input_updates _get_local_prefix_cache_hit
    _get_new_block_ids_to_zero _handle_blocked_waiting_request _holds_kv_blocks
    _inflight_prefill_reserved_blocks _inflight_prefills _is_blocked_waiting_status
    _load_restores_replay_window _make_cached_request_data _make_scheduled_encoder_input_stats
    _mamba_block_aligned_split _mark_prefix_replay _num_encoder_max_input_tokens _pause_state
    _preempt_request _request_blocks_can_be_freed _reserve_prefill_lookahead
    _select_waiting_queue_for_scheduling _set_kv_fetch_stage _skip_zero_block_ids _spec_decode_step_blocks
    _try_promote_blocked_waiting_request _try_schedule_encoder_inputs _update_after_schedule
    _update_connector_prefix_cache_stats _update_waiting_for_remote_kv adaptive_long_prefill_threshold
    aux_output_connector block_size can_skip_drafts connector connector_prefix_cache_stats current_step
    defer_async_loads defer_block_free deferred_loads deferred_waiting dynamic_sd_lookup ec_connector
    encoder_cache_manager finished_req_ids get_request_counts has_mamba_layers is_encoder_decoder
    is_mm_encoder_only kv_cache_config kv_cache_manager kv_holding_waiting last_prefill_step
    local_prefill_interval log_stats lora_config max_model_len max_num_active_reqs
    max_num_encoder_input_tokens max_num_running_reqs max_num_scheduled_tokens model_uses_mrope
    model_uses_xdrope need_mamba_block_aligned_split needs_kv_cache_zeroing num_executed_steps
    num_hash_lookahead_tokens num_lookahead_tokens num_prefill_lookahead num_sampled_tokens_per_step
    num_spec_tokens num_waiting_for_streaming_input observability_config policy prefill_capacity_bound
    prefix_replay_tokens prev_step_scheduled_req_ids processed_step_seq requests requires_kv_delivery
    reset_preempted_req_ids running sched_step_seq scheduler_config scheduler_reserve_full_isl
    skipped_waiting use_eagle use_pp use_v2_model_runner vllm_config waiting
"""
SCHEDULER = frozenset(_SCHEDULER.split())
"""Attributes of the scheduler that ``schedule()`` of 0.14 to 0.33 reads, each looked at."""

_REQUEST = """
    _all_token_ids arrival_time block_hashes drop_stale_output get_num_encoder_embeds has_encoder_inputs
    is_prefill_chunk last_sched_seq lora_request max_tokens mm_features next_decode_eligible_step
    num_cached_tokens num_computed_tokens num_external_computed_tokens num_output_placeholders
    num_preemptions num_prompt_tokens num_stale_output_tokens num_tokens num_tokens_with_spec prefill_stats
    priority record_event req_id request_id resumable shared_prefix_boundary skip_reading_prefix_cache
    spec_token_ids status streaming_queue structured_output_request update_block_hashes
"""
REQUEST = frozenset(_REQUEST.split())
"""Attributes of requests that it reads, each looked at."""

NAMES = ("request", "req", "r", "preempted_req")
"""What vLLM's loop calls a request."""


def reads(function: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Attributes of ``self``, and of any request, that a method reads or sets, from its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    own, requests = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id == "self":
                own.add(node.attr)
            elif node.value.id in NAMES:
                requests.add(node.attr)
    return frozenset(own), frozenset(requests)


def unknown(scheduler_class: Any) -> list[str]:
    """What ``schedule()`` of a vLLM scheduler class reads that nobody has looked at yet, sorted."""
    own, requests = reads(scheduler_class.schedule)
    return sorted([*(own - SCHEDULER), *(f"request.{name}" for name in requests - REQUEST)])
