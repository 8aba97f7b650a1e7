"use strict";
// Everything shown is set as text, never as markup: names come from repositories of strangers.
const byId = (id) => document.getElementById(id);
const element = (tag, text) => Object.assign(document.createElement(tag), { textContent: text ?? "" });

async function call(method, path, body) {
  const answer = await fetch(path, {
    method,
    headers: body === undefined ? {} : { "Content-Type": "application/json" },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.detail ?? value.error?.message ?? answer.statusText);
  return value;
}

function guarded(action) {
  return async (event) => {
    event?.preventDefault?.();
    const button = event?.submitter ?? event?.currentTarget;
    if (button) button.disabled = true;
    byId("problem").textContent = "";
    try {
      await action(event);
    } catch (error) {
      byId("problem").textContent = error.message;
    } finally {
      if (button) button.disabled = false;
    }
  };
}

let attachment = { is_attached: false };

function button(label, action) {
  const made = element("button", label);
  made.addEventListener("click", guarded(action));
  return made;
}

async function refresh() {
  const [model, all] = await Promise.all([call("GET", "/api/model"), call("GET", "/api/saes")]);
  attachment = all.attachment;
  byId("model").textContent =
    model.status === "loaded" ? `${model.model_id} · ${model.dtype} on ${model.device} · ${model.num_layers} layers` : `model: ${model.status}`;
  byId("saes").replaceChildren(...all.saes.map((sae) => {
    const row = element("tr");
    const point = sae.hook_point ? `${sae.hook_point.kind}.${sae.hook_point.layer}` : "";
    row.append(element("td", sae.name), element("td", sae.status), element("td", point), element("td", sae.d_sae ?? ""));
    const cell = element("td");
    const path = `/api/saes/${encodeURIComponent(sae.sae_id)}`;
    if (sae.status === "cached") cell.append(button("Attach", () => call("POST", `${path}/attach`, {})));
    if (sae.status === "attached") cell.append(button("Detach", () => call("POST", `${path}/detach`)));
    row.append(cell);
    return row;
  }));
  byId("edits").replaceChildren(...(attachment.steering ?? []).map((edit, index) => {
    const row = element("li");
    row.append(element("span", `feature ${edit.feature} · ${edit.method} ${edit.strength}`));
    row.append(button("Remove", () => steer(attachment.steering.filter((_, other) => other !== index))));
    return row;
  }));
}

async function steer(features) {
  if (!attachment.is_attached) throw new Error("no SAE is attached");
  await call("PUT", `/api/saes/${encodeURIComponent(attachment.sae_id)}/steering`, { features });
}

byId("steer").addEventListener("submit", guarded(async (event) => {
  const form = new FormData(event.target);
  const edit = {
    feature: Number(form.get("feature")), strength: Number(form.get("strength")),
    method: form.get("method"), exclude: ["sink"],
  };
  await steer([...(attachment.steering ?? []), edit]);
}));

async function text(prompt, max_tokens, sae) {
  const body = { messages: [{ role: "user", content: prompt }], max_tokens, temperature: 0, sae };
  return (await call("POST", "/v1/chat/completions", body)).choices[0].message.content;
}

byId("ask").addEventListener("submit", guarded(async (event) => {
  const form = new FormData(event.target);
  const ask = (sae) => text(form.get("prompt"), Number(form.get("max_tokens")), sae);
  const [baseline, steered] = await Promise.all([ask({ baseline: true }), ask(undefined)]);
  byId("baseline").textContent = baseline;
  byId("steered").textContent = steered;
}));

const TYPES = [
  "ActorStarted", "ActorStopped", "ModelLoadRequested", "ModelLoaded", "ModelLoadFailed", "ModelUnloaded",
  "DownloadRequested", "DownloadCompleted", "DownloadFailed", "DownloadCancelled", "AttachRequested", "SaeAttached",
  "AttachFailed", "DetachRequested", "SaeDetached", "DeleteRequested", "SaeDeleted", "DeleteFailed",
  "SteeringChanged", "MonitoringChanged", "EffectInterrupted", "HookFaulted", "GpuLost", "CommandRejected",
  "GenerationStarted", "GenerationFinished", "PayloadRedacted", "LogTruncated",
];

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => { waiting = false; refresh().catch(() => {}); }, 100);
}

const stream = new EventSource("/api/events");
for (const type of TYPES) {
  stream.addEventListener(type, (message) => {
    const event = JSON.parse(message.data);
    const row = element("li");
    row.append(element("span", event.position), element("span", event.type), element("span", JSON.stringify(event.data)));
    const list = byId("events");
    list.prepend(row);
    while (list.children.length > 500) list.lastChild.remove();
    if (!type.startsWith("Generation")) soon();
  });
}
refresh().catch((error) => { byId("problem").textContent = error.message; });
