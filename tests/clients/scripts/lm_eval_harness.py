"""lm-evaluation-harness on local tasks: log likelihoods and texts, compared with those of its own `hf` model.

First of the model as it is, then with a feature steered: on the service by its SAE, set there for all or by a preset
that the model's name asks for; in the `hf` model by a plain hook that adds the decoder's row.
"""

import json
import sys
import urllib.request
from pathlib import Path

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from safetensors.torch import load_file

URL = sys.argv[1]
FEATURE, STRENGTH = 584, 85.0
EDIT = {"feature": FEATURE, "strength": STRENGTH, "method": "add"}
PRESET = "lm-evaluation-harness"
SINK = 5.0
"""Times the median length of a prompt's residuals: what is longer, and the first token, the service does not steer."""
TOLERANCE = 2e-3
"""Of a choice's log likelihood, a sum over its tokens: both calculate in float32, in batches of other shapes."""
FOLDER = json.loads(urllib.request.urlopen(f"{URL}/api/model").read())["model_id"]
"""Where the tokenizer lies; the harness' default, the model's name, is no hub id."""
SAE = json.loads(urllib.request.urlopen(f"{URL}/api/saes").read())["saes"][0]
FACTS = (
    ("The capital of France is", " Paris", " Rome", " Berlin", " Madrid"),
    ("The capital of Japan is", " Tokyo", " Seoul", " Hanoi", " Beijing"),
    ("The opposite of hot is", " cold", " warm", " dry", " loud"),
    ("The opposite of up is", " down", " left", " over", " high"),
    ("Water is made of hydrogen and", " oxygen", " carbon", " iron", " gold"),
    ("Bees make", " honey", " milk", " silk", " paper"),
    ("The Sun is a", " star", " planet", " moon", " comet"),
    ("A week has seven", " days", " months", " hours", " years"),
    ("Cows give", " milk", " wool and a little silk", " eggs", " honey"),
    ("The largest planet of our solar system is", " Jupiter", " Mars", " Venus", " Mercury"),
    ("Romeo and Juliet was written by", " William Shakespeare", " Jane Austen", " Mark Twain", " Leo Tolstoy"),
    ("Ice is frozen", " water", " air", " sand", " oil"),
    ("The colour of grass is", " green", " red", " blue", " orange"),
    ("Two plus two equals", " four", " five", " seven", " nine"),
    ("Die Hauptstadt von Österreich heißt", " Wien", " Zürich", " Köln", " München"),
    ("A triangle has three", " sides", " wheels", " legs", " colours"),
)
TASK = "dataset_path: json\ndataset_kwargs: {data_files: {test: FILE}}\ntest_split: test\n"
TASKS = {
    "facts": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "answers": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 12, do_sample: false, temperature: 0.0}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "perplexity": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}{{choices[answer]}}."
metric_list: [{metric: word_perplexity, higher_is_better: false}]
""",
}
rows = []
for number, (question, right, *wrong) in enumerate(FACTS):
    where = number % 4
    rows.append({"question": question, "choices": [*wrong[:where], right, *wrong[where:]], "answer": where})
Path("facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
Path("few.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]), "utf-8")
for name, text in TASKS.items():
    source = "few.jsonl" if name == "perplexity" else "facts.jsonl"
    task = f"task: {name}\n" + TASK.replace("FILE", str(Path(source).absolute())) + text
    Path(f"{name}.yaml").write_text(task, "utf-8")
manager = TaskManager(include_path=".", include_defaults=False)


def asked(kind, tasks, arguments, chat=False):
    """Task → the answers, in the order of the questions, and the main metric."""
    found = lm_eval.simple_evaluate(
        model=kind, model_args=arguments, tasks=tasks, task_manager=manager, apply_chat_template=chat, device="cpu"
    )
    given = {}
    for name, samples in found["samples"].items():
        samples.sort(key=lambda sample: sample["doc_id"])
        metric = next(value for key, value in found["results"][name].items() if key.endswith(",none"))
        given[name] = ([each for sample in samples for each in sample["filtered_resps"]], metric)
    return given


def difference(ours, theirs):
    """The largest of two answers' log likelihoods; which is the greedy text has to be the same."""
    if isinstance(theirs[0], tuple | list):
        assert [each[1] for each in ours] == [each[1] for each in theirs], (ours, theirs)
        ours, theirs = [each[0] for each in ours], [each[0] for each in theirs]
    return max(abs(one - other) for one, other in zip(ours, theirs, strict=True))


def sent(method, path, body):
    headers = {"Content-Type": "application/json", "Prefer": "wait=60"}
    request = urllib.request.Request(f"{URL}{path}", json.dumps(body).encode(), headers, method=method)
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200, (answer.status, answer.read())


def steer(features):
    sent("PUT", f"/api/saes/{SAE['sae_id']}/steering", {"features": features})


def command(kind, **fields):
    sent("POST", "/api/commands", {"type": kind, "name": PRESET, **fields})


def hooked():
    """An `hf` model whose residuals after the SAE's layer have the feature's direction added."""
    row = load_file(Path(SAE["path"]) / "sae_weights.safetensors")["W_dec"][FEATURE].float()
    model = HFLM(**own, device="cpu")
    median = None

    def add(module, given, residuals):
        nonlocal median
        assert residuals.shape[0] == 1  # so that nothing is padded
        lengths = residuals.norm(dim=-1, keepdim=True)
        prompt = residuals.shape[1] > 1
        if prompt:
            median = lengths[0, :512].median()
        steered = lengths <= SINK * median
        if prompt:
            steered[:, 0] = False
        return residuals + STRENGTH * row * steered

    model.model.model.layers[SAE["hook_point"]["layer"]].register_forward_hook(add)
    return model


def compared(reference, backends, model="default"):
    """What is to be told of the service's answers beside those of the `hf` model."""
    said = [f"acc {reference['facts'][1]:.4f}, perplexity {reference['perplexity'][1]:.4f} as of hf"]
    for backend, batch, tasks in backends:
        local = {**completions, "model": model, "tokenizer_backend": backend, "batch_size": batch}
        if backend == "huggingface":
            local["tokenizer"] = FOLDER
        found = asked("local-completions", tasks, local)
        for name in tasks:
            if name == "answers":
                assert found[name] == reference[name], (backend, found[name], reference[name])
                continue
            furthest = difference(found[name][0], reference[name][0])
            print(backend, batch, name, found[name][1], furthest, flush=True)
            assert furthest < TOLERANCE, (backend, batch, name, furthest, found[name], reference[name])
            assert name != "facts" or found[name][1] == reference[name][1], (found[name], reference[name])
            said.append(f"{backend} x{batch} {name} within {furthest:.1e}")
    return said


steer([])  # another client may have left something
command("SavePreset", interventions=[{"sae_id": SAE["sae_id"], "steering": [EDIT]}])
own = {"pretrained": FOLDER, "dtype": "float32"}
completions = {"model": "default", "base_url": f"{URL}/v1/completions"}
chat = {"model": "default", "base_url": f"{URL}/v1/chat/completions"}
backends = (("huggingface", 1, list(TASKS)), ("huggingface", 8, ["facts"]), ("remote", 1, ["facts", "answers"]))
plain = asked("hf", list(TASKS), own)
said = compared(plain, backends)

# Text goes to the service as it is, for which only generate_until has no need of tokens.
found = asked("local-completions", ["answers"], {**completions, "tokenizer_backend": None, "tokenized_requests": False})
assert found["answers"] == plain["answers"], (found["answers"], plain["answers"])

found = asked("local-chat-completions", ["answers"], chat, chat=True)
reference = asked("hf", ["answers"], own, chat=True)
assert found["answers"] == reference["answers"], (found["answers"], reference["answers"])

steered = asked(hooked(), list(TASKS), None)
preset = compared(steered, backends, f"default@{PRESET}")
command("DeletePreset")
steer([EDIT])
try:
    everywhere = compared(steered, backends[:1])
finally:
    steer([])
moved = [abs(one[0] - other[0]) for one, other in zip(steered["facts"][0], plain["facts"][0], strict=True)]
assert max(moved) > 1.0, moved
assert steered["answers"] != plain["answers"]
said += ["texts of completions and of chat equal", "steered, of hf with a hook:", *everywhere, "texts equal"]
print("; ".join([*said, "by a preset:", *preset, "texts equal"]))
