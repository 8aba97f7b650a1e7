"""The clients that are tried."""

from __future__ import annotations

from .frame import Client

CLIENTS = (
    Client("openapi-python-client", ("openapi-python-client>=0.29",), "openapi_python_client.py"),
    Client("openapi-generator-python", ("openapi-generator-cli>=7.20",), "openapi_generator_python.py", ("java",)),
    Client(
        "openapi-generator-typescript",
        ("openapi-generator-cli>=7.20",),
        "openapi_generator_typescript.py",
        ("java", "node", "npm"),
    ),
    Client("lm-evaluation-harness", ("lm-eval[hf,api]>=0.4.9", "torch"), "lm_eval_harness.py", real=True),
)
