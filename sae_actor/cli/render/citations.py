"""BibTeX entries of what an answer was made with: the model, the SAEs, the libraries and releases that are known."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

View = dict[str, Any]

_LIBRARIES = {
    "torch": """@inproceedings{ansel2024pytorch2,
  title = {{PyTorch} 2: Faster Machine Learning Through Dynamic {Python} Bytecode Transformation and Graph Compilation},
  author = {Ansel, Jason and Yang, Edward and He, Horace and others},
  booktitle = {29th ACM International Conference on Architectural Support for Programming Languages and Operating
               Systems, Volume 2 (ASPLOS '24)},
  year = {2024},
  doi = {10.1145/3620665.3640366},
}""",
    "transformers": """@inproceedings{wolf-etal-2020-transformers,
  title = {Transformers: State-of-the-Art Natural Language Processing},
  author = {Wolf, Thomas and Debut, Lysandre and Sanh, Victor and Chaumond, Julien and others},
  booktitle = {Proceedings of the 2020 Conference on Empirical Methods in Natural Language Processing: System
               Demonstrations},
  year = {2020},
  pages = {38--45},
  url = {https://aclanthology.org/2020.emnlp-demos.6},
}""",
}
"""Library in the environment → what its authors ask to be cited."""

_SCHEMES = {
    "int8": """@misc{dettmers2022llmint8,
  title = {{LLM.int8()}: 8-bit Matrix Multiplication for Transformers at Scale},
  author = {Dettmers, Tim and Lewis, Mike and Belkada, Younes and Zettlemoyer, Luke},
  year = {2022},
  eprint = {2208.07339},
  archivePrefix = {arXiv},
}""",
    "nf4": """@misc{dettmers2023qlora,
  title = {{QLoRA}: Efficient Finetuning of Quantized {LLMs}},
  author = {Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke},
  year = {2023},
  eprint = {2305.14314},
  archivePrefix = {arXiv},
}""",
}
"""Scheme of quantised weights → the paper of it."""

_FORMATS = {
    "sae_lens": """@misc{bloom2024saetrainingcodebase,
  title = {{SAELens}},
  author = {Bloom, Joseph and Tigges, Curt and Duong, Anthony and Chanin, David},
  year = {2024},
  howpublished = {\\url{https://github.com/decoderesearch/SAELens}},
}""",
    "gemma_scope": """@inproceedings{lieberum-etal-2024-gemma,
  title = {{Gemma Scope}: Open Sparse Autoencoders Everywhere All At Once on {Gemma} 2},
  author = {Lieberum, Tom and Rajamanoharan, Senthooran and Conmy, Arthur and Smith, Lewis and Sonnerat, Nicolas and
            Varma, Vikrant and Kram{\\'a}r, J{\\'a}nos and Dragan, Anca and Shah, Rohin and Nanda, Neel},
  booktitle = {Proceedings of the 7th BlackboxNLP Workshop: Analyzing and Interpreting Neural Networks for NLP},
  year = {2024},
  pages = {278--300},
  url = {https://aclanthology.org/2024.blackboxnlp-1.19},
}""",
    "llama_scope": """@misc{he2024llamascope,
  title = {{Llama Scope}: Extracting Millions of Features from {Llama-3.1-8B} with Sparse Autoencoders},
  author = {He, Zhengfu and Shu, Wentao and Ge, Xuyang and Chen, Lingjie and Wang, Junxuan and Zhou, Yunhua and
            Liu, Frances and Guo, Qipeng and Huang, Xuanjing and Wu, Zuxuan and Jiang, Yu-Gang and Qiu, Xipeng},
  year = {2024},
  eprint = {2410.20526},
  archivePrefix = {arXiv},
}""",
    "openai": """@misc{gao2024scaling,
  title = {Scaling and evaluating sparse autoencoders},
  author = {Gao, Leo and Dupr{\\'e} la Tour, Tom and Tillman, Henk and Goh, Gabriel and Troll, Rajan and
            Radford, Alec and Sutskever, Ilya and Leike, Jan and Wu, Jeffrey},
  year = {2024},
  eprint = {2406.04093},
  archivePrefix = {arXiv},
}""",
}
"""Format of an SAE's files → the library or the release whose format it is."""


def entries(view: View) -> list[str]:
    """Each entry once: this program, the model, libraries, then SAEs and their formats."""
    return list(dict.fromkeys(_entries(view)))


def _entries(view: View) -> Iterator[str]:
    model = view["model"]
    environment = (model or {}).get("environment") or {}
    version = environment.get("sae_actor")
    yield _misc("sae-actor", "{sae-actor}", f"version {version}" if version else None, None)
    if model is not None:
        yield _hub(model["model_id"], model["commit"], "model")
        yield from (entry for name, entry in _LIBRARIES.items() if name in environment)
        if model["quantization"] in _SCHEMES:
            yield _SCHEMES[model["quantization"]]
    for sae in view["intervention"]:
        if sae["repository_id"]:
            yield _hub(sae["repository_id"], sae["commit"], "sae")
        if sae["format"] in _FORMATS:
            yield _FORMATS[sae["format"]]


def _hub(name: str, commit: str | None, kind: str) -> str:
    """A repository of the hub at a commit; without one it is a folder, which has no address."""
    note = f"commit {commit}" if commit else "local files; their sha256 are in the text"
    url = f"https://huggingface.co/{name}" if commit else None
    return _misc(f"{kind}-{name.rstrip('/').rpartition('/')[2]}", _escaped(name), note, url)


def _misc(key: str, title: str, note: str | None, url: str | None) -> str:
    fields = [f"  title = {{{title}}},"]
    fields += [f"  note = {{{note}}},"] if note else []
    fields += [f"  howpublished = {{\\url{{{url}}}}},"] if url else []
    return "\n".join([f"@misc{{{re.sub(r'[^A-Za-z0-9.:_-]', '-', key)},", *fields, "}"])


def _escaped(text: str) -> str:
    return re.sub(r"([#$%&_{}])", r"\\\1", text.replace("\\", "/"))
