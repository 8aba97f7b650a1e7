"""openai for JavaScript, unbundled in a page of another origin, in Chromium: whole and streamed chats and responses.

The page's origin, `http://page.test`, is one that the service has to allow.
"""

import json
import shutil
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue

PAGE = """<!doctype html><meta charset="utf-8"><title>page</title>
<script type="module">
const told = {};
try {
  const { default: OpenAI } = await import("/node_modules/openai/index.mjs");
  const client = new OpenAI({ baseURL: "ADDRESS/v1", apiKey: "none", dangerouslyAllowBrowser: true });
  const model = "default", messages = [{ role: "user", content: "Say this is a test" }];
  told.models = (await client.models.list()).data.map((each) => each.id);
  const max_tokens = 64;  // a small model may go on for long
  const completion = await client.chat.completions.create({ model, messages, max_tokens });
  told.chat = [completion.choices[0].message.content, completion.choices[0].finish_reason];
  told.streamed = ["", ""];
  for await (const { choices } of await client.chat.completions.create({ model, messages, max_tokens, stream: true })) {
    told.streamed[0] += choices[0]?.delta?.content ?? "";
    told.streamed[1] = choices[0]?.finish_reason ?? told.streamed[1];
  }
  const response = await client.responses.create({
    model, max_output_tokens: max_tokens, input: "Are semicolons optional in JavaScript?",
  });
  told.response = [response.output_text, response.status];
  const plain = await client.completions.create({ model, prompt: "Say this is a test", max_tokens: 7 });
  told.completion = [plain.choices[0].text, plain.choices[0].finish_reason];
} catch (error) {
  told.error = `${error} ${error.cause ?? ""} ${error.stack}`;
}
await fetch("/told", { method: "POST", body: JSON.stringify(told) });
</script>
"""
Path("index.html").write_text(PAGE.replace("ADDRESS", sys.argv[1]))
told: Queue[dict] = Queue()


class Handler(SimpleHTTPRequestHandler):
    def do_POST(self) -> None:
        told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
names = ("chromium", "chromium-browser", "google-chrome")
binary = next(found for name in names if (found := shutil.which(name)) is not None)
command = [
    binary, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--no-proxy-server", "--remote-debugging-port=0",
    f"--user-data-dir={Path('profile').resolve()}",
    f"--host-resolver-rules=MAP page.test:80 127.0.0.1:{server.server_port}", "http://page.test/",
]  # fmt: skip
browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
try:
    found = told.get(timeout=600)
except Empty:
    raise AssertionError("the page told nothing") from None
finally:
    browser.terminate()
    browser.wait(30)
assert "error" not in found, found["error"]
assert found["models"], found
ends = ("stop", "length", "completed", "incomplete")
for name in ("chat", "streamed", "response", "completion"):
    text, end = found[name]
    assert text, found
    assert end in ends, found
print("a page of another origin: models, chat completions whole and streamed, responses, completions")
