"""The table of published fields, for completions and chats; `published` says what a row means.

OpenAI's are those of its Python library (`openai.types`), vLLM's those of its protocol, older spellings too. What the
bodies honour is in their structs (`requests`, `messages`), not here.
"""

from __future__ import annotations

from typing import Any, Literal

from .published import Inert, Lacking, Neutral, Row, Shape, Unsaid, together

_MARKS = "it is for the cache of a provider"
_TOOLS = "the model is given no tools"
_TEXT_ONLY = "messages are text"
_GRAMMAR = "send response_format"

_BOTH = together(
    {
        "model": Unsaid(("", None)),
        "stop": Unsaid(("",)),
        # — OpenAI —
        "user": Inert(str, "it names the caller's own user"),
        "metadata": Inert(dict[str, Any], "it is for the caller"),
        "store": Inert(bool, "no text is stored but as the log is told to"),
        "service_tier": Inert(str, "there is one tier"),
        "prompt_cache_key": Inert(str, _MARKS),
        "prompt_cache_retention": Inert(str, _MARKS),
        "prompt_cache_options": Inert(dict[str, Any], _MARKS),
        "safety_identifier": Inert(str, "it names the caller's own user"),
        "moderation": Neutral("object", "texts are not moderated"),
        # — vLLM —
        "use_beam_search": Neutral("boolean", "tokens are sampled", (False,)),
        "length_penalty": Inert(float, "it belongs to beam search"),
        "early_stopping": Neutral("boolean", "it belongs to beam search", (False,)),
        "watermarking": Neutral("boolean", "texts are not watermarked", (False,)),
        "spaces_between_special_tokens": Neutral("boolean", "the tokenizer decides about spaces", (True,)),
        "truncate_prompt_tokens": Neutral("integer", "prompts are read whole or refused"),
        "truncation_side": Inert(Literal["left", "right"], "prompts are not cut"),
        "prompt_logprobs": Neutral("integer", "send echo and logprobs to /v1/completions"),
        "logprob_token_ids": Neutral("array", "the most probable tokens are reported"),
        "allowed_token_ids": Neutral("array", "any token may follow"),
        "bad_words": Neutral("array", "any token may follow"),
        "logits_processors": Neutral("array", "no code of a request is run"),
        "structured_outputs": Neutral("object", _GRAMMAR),
        "guided_json": Neutral("any", _GRAMMAR),
        "guided_regex": Neutral("string", _GRAMMAR),
        "guided_choice": Neutral("array", _GRAMMAR),
        "guided_grammar": Neutral("string", _GRAMMAR),
        "guided_decoding_backend": Neutral("string", _GRAMMAR),
        "guided_whitespace_pattern": Neutral("string", _GRAMMAR),
        "structural_tag": Neutral("string", _GRAMMAR),
        "thinking_token_budget": Neutral("integer", "thoughts are not limited by themselves", (-1,)),
        "repetition_detection": Neutral("object", "texts are not searched for repetitions"),
        "priority": Neutral("integer", "requests run in the order in which they came", (0,)),
        "request_id": Neutral("string", "the answer's id is that of the generation on record"),
        "session_id": Inert(str, "it is for the routing of requests"),
        "cache_salt": Inert(str, "no prefix is shared between requests"),
        "return_tokens_as_token_ids": Neutral("boolean", "tokens are texts", (False,)),
        "return_token_ids": Neutral("boolean", "POST /tokenize gives the ids of a text", (False,)),
        "return_token_offsets": Inert(bool, "it belongs to vLLM's render routes"),
        "return_mm_kwargs": Inert(bool, "it belongs to vLLM's render routes"),
        "routed_experts_prompt_start": Neutral("integer", "routed experts are not reported", (0,)),
        "kv_transfer_params": Neutral("object", "keys and values stay where they are"),
        "ec_transfer_params": Neutral("object", "keys and values stay where they are"),
        "vllm_xargs": Neutral("object", "they are for extensions of vLLM"),
        "stream_interval": Neutral("integer", "each token is sent when it is there", (1,)),
    },
)
_COMPLETION: dict[str, Row] = {
    "suffix": Neutral("string", "texts are continued at their end"),
    "prompt_embeds": Neutral("any", "prompts are texts or token ids"),
}
_CHAT: dict[str, Row] = {
    # — OpenAI —
    "tools": Neutral("array", _TOOLS, unless=("tool_choice", "none")),
    "tool_choice": Neutral("any", _TOOLS, ("none", "auto")),
    "parallel_tool_calls": Inert(bool, _TOOLS),
    "functions": Neutral("array", _TOOLS, unless=("function_call", "none")),
    "function_call": Neutral("any", _TOOLS, ("none", "auto")),
    "modalities": Neutral("array", "answers are text", (["text"],)),
    "audio": Neutral("object", "answers are text"),
    "prediction": Neutral("object", "predicted texts are not used"),
    "verbosity": Neutral("string", "the model has no setting for it", ("medium",)),
    "web_search_options": Neutral("object", "nothing is searched for"),
    # — vLLM —
    "best_of": Neutral("integer", "every text that is made is answered", (1,)),
    "echo": Neutral("boolean", "send the prompt to /v1/completions", (False,)),
    "documents": Neutral("array", "the template is given messages alone"),
    "chat_template": Neutral("string", "the template is the model's own"),
    "media_io_kwargs": Neutral("object", _TEXT_ONLY),
    "mm_processor_kwargs": Neutral("object", _TEXT_ONLY),
    "return_prompt_text": Neutral("boolean", "POST /tokenize shows how a chat is read", (False,)),
}
_STREAM_OPTIONS = Shape(
    "StreamOptions",
    {
        "include_usage": Unsaid((None,)),
        "continuous_usage_stats": Unsaid((None,)),
        "include_obfuscation": Neutral("boolean", "chunks are as long as what they say", (False,)),
    },
)
_PART = Shape(
    "TextPart",
    {
        "type": Lacking(
            ("image_url", "input_audio", "audio_url", "video_url", "file", "refusal", "image_embeds", "audio_embeds",
             "image_pil", "input_image", "input_text", "output_text", "thinking", "tool_reference"),
            _TEXT_ONLY,
        ),
        "cache_control": Inert(dict[str, Any], _MARKS),
        "prompt_cache_breakpoint": Inert(dict[str, Any], _MARKS),
    },
)  # fmt: skip
MESSAGE = Shape(
    "ChatMessage",
    {
        "role": Lacking(("tool", "function"), _TOOLS),
        # lm-evaluation-harness puts it beside the content.
        "type": Neutral("string", _TEXT_ONLY, ("text",)),
        "name": Inert(str, "templates name roles, not speakers"),
        "refusal": Neutral("string", _TEXT_ONLY),
        "annotations": Neutral("array", _TEXT_ONLY),
        "audio": Neutral("object", _TEXT_ONLY),
        "tool_calls": Neutral("array", _TOOLS),
        "tool_call_id": Neutral("string", _TOOLS),
        "function_call": Neutral("object", _TOOLS),
        "tools": Neutral("array", _TOOLS),
        "cache_control": Inert(dict[str, Any], _MARKS),
        "prompt_cache_breakpoint": Inert(dict[str, Any], _MARKS),
    },
    {"content": _PART},
)
MESSAGES = Shape("", {}, {"messages": MESSAGE})
"""Of a body that has messages, and nothing else of OpenAI's."""
COMPLETION = Shape("CompletionBody", together(_BOTH, _COMPLETION), {"stream_options": _STREAM_OPTIONS})
CHAT = Shape("ChatBody", together(_BOTH, _CHAT), {"stream_options": _STREAM_OPTIONS, "messages": MESSAGE})
