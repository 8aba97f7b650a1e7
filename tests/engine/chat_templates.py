"""Small chat templates with the habits of those that models come with, one for each family and some besides.

Each is written anew, and short; what it shares with a published one is what it does with messages.
"""

from __future__ import annotations

_ALTERNATE = (
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant take turns') }}{% endif %}{% endfor %}"
)
_SYSTEM_APART = (
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set rest = messages[1:] %}"
    "{% else %}{% set rest = messages %}{% endif %}"
)

LLAMA_2 = (
    _SYSTEM_APART + _ALTERNATE + "{% for m in rest %}"
    "{% if loop.first and system is defined %}{% set text = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + m['content'] %}"
    "{% else %}{% set text = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
"""The system message goes into the first of the user, joined to it and stripped with it; each round begins anew."""

LLAMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
    "{{ '<|head|>system<|neck|>\n\nToday: ' + strftime_now('%d %b %Y') + '\n\n' + system + '<|eot|>' }}"
    "{% if tools %}{% set asked = messages[0]['content'] | trim %}{% set messages = messages[1:] %}"
    "{{ '<|head|>user<|neck|>\n\nYou may call:\n' }}{% for tool in tools %}"
    "{{ tool | tojson(indent=4) }}\n\n{% endfor %}"
    "{{ asked + '<|eot|>' }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<|head|>' + m['role'] + '<|neck|>\n\n' + m['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|neck|>\n\n' }}{% endif %}"
)
"""A system turn with the date in any case; tools go into the user's first message."""

MISTRAL = (
    _SYSTEM_APART + _ALTERNATE + "{{ bos_token }}{% for m in rest %}{% if m['role'] == 'user' %}"
    "{% if loop.last and tools %}{{ '[TOOLS]' + tools | tojson + '[/TOOLS]' }}{% endif %}"
    "{% if loop.last and system is defined %}{{ '[INST]' + system + '\n\n' + m['content'] + '[/INST]' }}"
    "{% else %}{{ '[INST]' + m['content'] + '[/INST]' }}{% endif %}"
    "{% else %}{{ m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
"""System message and tools go into the user's last turn; nothing opens an answer."""

QWEN_2 = (
    "{% if tools %}{{ '<|im_start|>system\n' }}"
    "{{ messages[0].content if messages[0].role == 'system' else 'You help.' }}"
    "{{ '\n\n# Tools\n' + tools | tojson + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>system\n' }}"
    "{{ (messages[0].content if messages[0].role == 'system' else 'You help.') + '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if not (loop.first and m.role == 'system') %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A system message of its own where there is none; tools behind it."""

QWEN_3 = (
    "{% if messages[0].role == 'system' or tools %}{{ '<|im_start|>system\n' }}"
    "{{ messages[0].content if messages[0].role == 'system' }}"
    "{% if tools %}{{ '\n\n# Tools\n' + tools | tojson }}{% endif %}{{ '<|im_end|>\n' }}{% endif %}"
    "{% set ns = namespace(last=messages | length - 1, looking=true) %}"
    "{% for m in messages[::-1] %}{% set at = messages | length - 1 - loop.index0 %}"
    "{% if ns.looking and m.role == 'user' and m.content is string"
    " and not (m.content.startswith('<result>') and m.content.endswith('</result>')) %}"
    "{% set ns.looking = false %}{% set ns.last = at %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{% set content = m.content %}{% set thought = '' %}"
    "{% if m.reasoning_content is string %}{% set thought = m.reasoning_content %}"
    "{% elif '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ '<|im_start|>assistant\n' + content }}{% endif %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
"""Thoughts of earlier rounds are dropped, those since the user's last message are written apart."""

R1 = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] %}{% endif %}{% endfor %}{{ bos_token }}{{ ns.system }}"
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% elif m['role'] == 'assistant' %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|Assistant|>' + content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
"""The system message stands before all, bare; thoughts are dropped."""

GEMMA_2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% set rest = messages %}" + _ALTERNATE + "{% for m in rest %}"
    "{{ '<start>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + m['content'] | trim + '<stop>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)
"""No system message, another name for the assistant, contents trimmed."""

GEMMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set prefix = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set prefix = '' %}{% set rest = messages %}{% endif %}" + _ALTERNATE +
    "{% for m in rest %}"
    "{{ '<start>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' + (prefix if loop.first else '') }}"
    "{% if m['content'] is string %}{{ m['content'] | trim }}{% endif %}{{ '<stop>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start>model\n' }}{% endif %}"
)  # fmt: skip
"""The system message is a beginning of the user's first one."""

GPT_OSS = (
    "{% macro preamble() %}{{ 'You are a model.\nToday: ' + strftime_now('%Y-%m-%d') }}"
    "{{ '\n# Channels: analysis, final' }}{% endmacro %}"
    "{{ '<|start|>system<|message|>' }}{{ preamble() }}{{ '<|end|>' }}"
    "{% if messages[0].role in ('system', 'developer') %}{% set told = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set told = '' %}{% set rest = messages %}{% endif %}"
    "{% if told or tools %}{{ '<|start|>developer<|message|>' }}{% if told %}{{ '# Instructions\n\n' + told + '\n\n' }}"
    "{% endif %}{% if tools %}{{ '# Tools\n' + tools | tojson }}{% endif %}{{ '<|end|>' }}{% endif %}"
    "{% for m in rest %}{% if m.role == 'assistant' %}"
    "{% if '<|channel|>analysis<|message|>' in m.content %}{{ raise_exception('give thoughts apart') }}{% endif %}"
    "{% set later = namespace(found=false) %}"
    "{% for n in rest[loop.index:] %}{% if n.role == 'assistant' %}{% set later.found = true %}{% endif %}{% endfor %}"
    "{% if m.thinking and not later.found %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content }}"
    "{% if loop.last and not add_generation_prompt %}{{ '<|return|>' }}{% else %}{{ '<|end|>' }}{% endif %}"
    "{% else %}{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
"""A system turn of its own; the system message is the developer's; channels; the last answer ends otherwise."""

PHI_3 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '<|user|>\n' + m['content'] + '<|end|>\n<|assistant|>\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
)
"""No system message; the user's turn opens the answer."""

PHI_35 = (
    "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}"
    "{{ '<|system|>\n' + m['content'] + '<|end|>\n' }}"
    "{% elif m['role'] == 'user' %}{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ '<|assistant|>\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
"""A chat that stops ends with one more token; an empty system message is none."""

HEADINGS = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] + '\n\n' }}"
    "{% elif m['role'] == 'user' %}{{ '### Instruction:\n' + m['content'] + '\n\n' }}"
    "{% else %}{{ '### Response:\n' + m['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}"
)
"""Of models whose tokenizers have no tokens for turns, such as gpt_neox, gpt2, opt and phi: words for them."""

BARE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
"""Nothing but what is said."""

MACRO = (
    "{% macro written(content) %}{{ content if content is string else content[0].text }}{% endmacro %}"
    "{% for m in messages %}{% set content = written(m.content) | trim %}"
    "{% if m.role == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' ~ m.role ~ '\n' ~ content ~ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
"""What is said goes through a macro before it is looked at."""

QUOTED = (
    "{% for m in messages %}{{ {'from': m.role, 'value': m.content} | tojson ~ '\n' }}{% endfor %}"
    '{% if add_generation_prompt %}{{ \'{"from": "assistant", "value": "\' }}{% endif %}'
)
"""Messages as JSON, escaped."""

FAMILIES = {
    "llama 2": LLAMA_2,
    "llama 3": LLAMA_3,
    "mistral": MISTRAL,
    "qwen2": QWEN_2,
    "qwen3": QWEN_3,
    "r1": R1,
    "gemma, gemma2": GEMMA_2,
    "gemma3": GEMMA_3,
    "gpt_oss": GPT_OSS,
    "phi3": PHI_3,
    "phi3.5": PHI_35,
    "headings": HEADINGS,
    "bare": BARE,
    "macro": MACRO,
    "quoted": QUOTED,
}
