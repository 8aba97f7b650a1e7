"""The clients that are tried."""

from __future__ import annotations

from tests.environments import TORCH

from .frame import Client

OF_TORCH = f"torch=={TORCH}"
"""Where a client asks for torch: a newer one would come with CUDA, some gigabytes."""
VLLM = (
    OF_TORCH, "transformers>=5.16.1,<5.21", "xgrammar==0.2.8", "llguidance>=1.7,<1.8", "openai>=2.25", "pydantic>=2.12",
    "aiohttp", "blake3", "cachetools", "cbor2", "cloudpickle", "einops", "fastapi>=0.133,<0.137", "ijson", "msgspec",
    "numpy", "openai-harmony", "opencv-python-headless", "partial-json-parser", "pillow>=13", "prometheus_client",
    "psutil", "py-cpuinfo", "pybase64", "python-json-logger", "pyzmq", "regex", "requests", "setproctitle", "tiktoken",
    "tqdm", "uvloop",
)  # fmt: skip
"""What vLLM's benchmark of a server imports. The rest of what vLLM asks for is for engines on a GPU, many gigabytes."""
CLIENTS = (
    Client("openapi-python-client", ("openapi-python-client>=0.29",), "openapi_python_client.py"),
    Client("openapi-generator-python", ("openapi-generator-cli>=7.20",), "openapi_generator_python.py", ("java",)),
    Client(
        "openapi-generator-typescript",
        ("openapi-generator-cli>=7.20",),
        "openapi_generator_typescript.py",
        ("java", "node", "npm"),
    ),
    Client("lm-evaluation-harness", ("lm-eval[hf,api]>=0.4.9", OF_TORCH), "lm_eval_harness.py", real=True),
    Client("guidellm", ("guidellm>=0.8.1", OF_TORCH), "guidellm_run.py", real=True),
    Client("vllm-bench-serve", VLLM, "vllm_bench_serve.py", bare=("vllm==0.33.0",), real=True),
    Client("openai-python", ("openai>=3",), "openai_python.py"),
    Client("openai-node", (), "openai_node.mjs", packages=("openai@>=6",)),
    Client(
        "openai-chromium",
        (),
        "openai_chromium.py",
        ("chromium|chromium-browser|google-chrome",),
        packages=("openai@>=6",),
    ),
    Client("instructor", ("instructor>=1.17",), "instructor_client.py", real=True),
    Client("langchain-openai", ("langchain-openai>=1",), "langchain_openai_client.py"),
    Client("litellm", ("litellm>=1.110",), "litellm_client.py"),
    Client("pydantic-ai", ("pydantic-ai-slim[openai]>=2",), "pydantic_ai_client.py", real=True),
    Client("llm", ("llm>=0.36",), "llm_client.py"),
    Client("openai-agents", ("openai-agents>=0.24",), "openai_agents_client.py", real=True),
    Client("inspect", ("inspect-ai>=0.3.285", "openai"), "inspect_client.py"),
    Client("dspy", ("dspy>=3.4",), "dspy_client.py", real=True),
    Client("llama-index", ("llama-index-llms-openai-like>=0.8",), "llama_index_client.py"),
    Client("autogen", ("autogen-ext[openai]>=0.7.5", "autogen-agentchat>=0.7.5"), "autogen_client.py"),
    Client("ai-sdk", (), "ai_sdk_node.mjs", packages=("@ai-sdk/openai", "ai")),
)
