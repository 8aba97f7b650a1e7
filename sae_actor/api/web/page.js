// Everything shown is set as text, never as markup: names come from repositories of strangers.
import { entered, stillEntered } from "./login.js";
import { ask, call, chunks, follow } from "./wire.js";

const byId = (id) => document.getElementById(id);

function element(tag, text, properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text ?? "", ...properties });
}

// — problems —

function complain(message) {
  byId("problem").hidden = !message;
  byId("problem").firstElementChild.textContent = message ?? "";
}
byId("problem").lastElementChild.addEventListener("click", () => complain());

/** Do it, and show what went wrong. */
async function reported(action) {
  complain();
  try {
    await action();
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
    saesShown = ""; // what was pressed may look as if it had worked
    soon();
    if (error.status === 401) await stillEntered();
  }
}

/** An event handler that disables its button while it runs, gives the focus back, and shows what went wrong. */
function guarded(action) {
  return async (event) => {
    event.preventDefault();
    const pressed = event.submitter ?? event.currentTarget;
    const focused = document.activeElement === pressed;
    pressed.disabled = true;
    await reported(() => action(event));
    pressed.disabled = false;
    if (focused && document.activeElement === document.body) (pressed.isConnected ? pressed : twin(pressed))?.focus();
  };
}

/** What stands in the place of an element that a refresh has replaced. */
const twin = (old) => (old.dataset.key ? document.querySelector(`[data-key="${CSS.escape(old.dataset.key)}"]`) : null);

/** Replace the rows of a list; what had the focus in it has it after. */
function fill(list, rows) {
  const focused = list.contains(document.activeElement) ? document.activeElement : null;
  list.replaceChildren(...rows);
  if (focused) twin(focused)?.focus();
}

function button(label, action, className = "") {
  const made = element("button", label, { type: "button", className });
  made.addEventListener("click", guarded(action));
  return made;
}

// — what there is —

let attachments = [];
let revision = "*";
let model = { status: "none" };
let monitors = [];
let saesShown = "";

const sides = { gain: " before the gain of its norm", norm: " before its norm" };
const hook = (point) => (point ? `${point.kind}.${point.layer}${sides[point.before] ?? ""}` : "no hook point");
const bytes = (count) => (count < 1e6 ? `${(count / 1e3).toFixed(1)} kB` : count < 1e9 ? `${(count / 1e6).toFixed(1)} MB` : `${(count / 1e9).toFixed(1)} GB`);
const pathOf = (saeId, action) => `/api/saes/${encodeURIComponent(saeId)}/${action}`;

async function refresh() {
  // Users may not ask for the state, nor are they sent activations.
  const watched = document.body.dataset.role === "user" ? { monitors: [] } : call("GET", "/api/state");
  const [modelNow, { value: all, etag }, state] = await Promise.all([call("GET", "/api/model"), ask("GET", "/api/saes"), watched]);
  model = modelNow;
  monitors = state.monitors;
  attachments = all.attachment.attachments;
  revision = etag;
  showModel();
  byId("no-saes").hidden = all.saes.length > 0;
  const toShow = JSON.stringify([all.saes, monitors]);
  if (toShow !== saesShown) fill(byId("saes"), all.saes.map(saeRow)); // else a click that is under way would be lost
  saesShown = toShow;
  byId("watching").hidden = monitors.length === 0;
  showSteering(new Map(all.saes.map((sae) => [sae.sae_id, sae])));
}

function showModel(progress) {
  const shape = model.num_layers ? ` · ${model.dtype} on ${model.device} · ${model.num_layers} layers of ${model.hidden_size}` : "";
  const name = model.model_id?.split("/").filter(Boolean).slice(-2).join("/") ?? "";
  byId("model").title = model.model_id ?? "";
  byId("model").textContent =
    model.status === "loaded" ? name + shape
      : model.status === "none" ? "no model is loaded"
        : `${name}: ${model.status}${progress ? ` (${progress})` : ""}${model.error ? `: ${model.error.detail}` : ""}`;
}

function saeRow(sae) {
  const row = element("li");
  const about = element("div", "", { className: "main" });
  const name = element("div", sae.name, { title: sae.sae_id });
  const status = element("span", sae.status, { className: "status" });
  status.dataset.status = sae.status;
  name.append(status);
  const facts = [hook(sae.hook_point), sae.architecture, sae.d_sae && `${sae.d_sae} features`, bytes(sae.file_size_bytes)];
  about.append(name, element("p", facts.filter(Boolean).join(" · ")));
  for (const warning of sae.warnings ?? []) about.append(element("p", `warning: ${warning}`));
  if (sae.error) about.append(element("p", sae.error.detail, { className: "bad" }));
  row.append(about);
  if (sae.status === "cached") row.append(button("Attach", () => call("POST", pathOf(sae.sae_id, "attach"), {})));
  if (sae.status === "attached") row.append(watchBox(sae.sae_id), button("Detach", () => call("POST", pathOf(sae.sae_id, "detach")), "plain"));
  return row;
}

// — what fires —

const FIRING = 12;

function watchBox(saeId) {
  const label = element("label", "", { className: "check" });
  const box = element("input", "", { type: "checkbox", checked: monitors.some((each) => each.sae_id === saeId) });
  box.dataset.key = `watch ${saeId}`;
  box.addEventListener("change", guarded(async () => {
    const wanted = { type: "Monitor", sae_id: saeId, enabled: box.checked, top_k: 5 };
    await call("POST", "/api/commands", wanted).finally(refresh);
  }));
  label.append(box, " watch");
  return label;
}

/** One token of a text that is being made. */
function showFiring({ token, features }) {
  const row = element("li");
  const strongest = features.map((each) => `${each.feature} (${each.activation.toFixed(1)})`);
  row.append(element("code", token === null ? "…" : JSON.stringify(token)), element("span", strongest.join(", ") || "nothing"));
  byId("firing").prepend(row);
  while (byId("firing").children.length > FIRING) byId("firing").lastElementChild.remove();
}

// — steering —

function showSteering(saes) {
  const form = byId("steer").elements;
  byId("steering").hidden = attachments.length === 0;
  byId("nothing-attached").hidden = attachments.length > 0;
  const chosen = form.sae.value;
  form.sae.replaceChildren(...attachments.map((each) => new Option(`${saes.get(each.sae_id)?.name} at ${hook(each.hook_point)}`, each.sae_id)));
  if (attachments.some((each) => each.sae_id === chosen)) form.sae.value = chosen;
  byId("which").hidden = attachments.length < 2;
  const widest = Math.max(0, ...attachments.map((each) => saes.get(each.sae_id)?.d_sae ?? 0));
  if (widest > 0) form.feature.max = widest - 1;
  // A strength that is being typed is left alone; the next refresh brings the list up to date.
  if (!byId("edits").contains(document.activeElement) || document.activeElement.type !== "number") {
    fill(byId("edits"), attachments.flatMap(editRows));
  }
  byId("under").textContent = `under the intervention${withoutEffect()}`;
}

/** What the heading of the steered text adds where no edit is in force. */
function withoutEffect() {
  const edited = attachments.filter((each) => each.steering.length);
  if (edited.some((each) => each.steering_enabled)) return "";
  return edited.length ? " (its edits are out of force)" : " (no edit is set)";
}

const sameEdit = (one, other) => ["feature", "method", "positions"].every((key) => JSON.stringify(one[key]) === JSON.stringify(other[key]));

let turns = Promise.resolve();

/** Replace the steering by what `change` makes of it; one after the other, and only if it is still what the page shows. */
function steer(saeId, change) {
  const turn = turns.then(async () => {
    const attachment = attachments.find((each) => each.sae_id === saeId);
    if (!attachment) throw new Error("the SAE is not attached any more");
    const { steering, steering_enabled: enabled } = attachment;
    try {
      await ask("PUT", pathOf(saeId, "steering"), { features: steering, enabled, ...change(steering) }, { "If-Match": revision });
    } finally {
      await refresh();
    }
  });
  turns = turn.catch(() => {});
  return turn;
}

function editRows(attachment) {
  const { sae_id: saeId, steering: edits } = attachment;
  const rows = edits.map((edit) => {
    const row = element("li", "", { className: attachment.steering_enabled ? "" : "off" });
    const positions = typeof edit.positions === "string" ? edit.positions : JSON.stringify(edit.positions);
    const details = [edit.method, `positions ${positions}`, edit.exclude.length && `without ${edit.exclude.join(", ")}`];
    const about = element("div", `feature ${edit.feature}`, { className: "main" });
    about.append(element("p", details.filter(Boolean).join(" · ")));
    const strength = element("input", "", { type: "number", step: "any", value: edit.strength, ariaLabel: `strength of feature ${edit.feature}` });
    // Each step of an arrow key is a change: they keep the focus, and those that come while one is sent are sent as one.
    let sent = true;
    strength.addEventListener("change", () => {
      if (!sent || strength.value === "") return;
      sent = false;
      reported(() => steer(saeId, (now) => {
        sent = true;
        const strengthOf = (each) => (strength.value === "" ? each.strength : Number(strength.value));
        return { features: now.map((each) => (sameEdit(each, edit) ? { ...each, strength: strengthOf(each) } : each)) };
      }));
    });
    strength.addEventListener("blur", (event) => byId("edits").contains(event.relatedTarget) || soon());
    const remove = () => steer(saeId, (now) => ({ features: now.filter((each) => !sameEdit(each, edit)) }));
    row.append(about, strength, button("Remove", remove, "plain"));
    return row;
  });
  if (edits.length > 0) {
    const force = element("label", "", { className: "check main" });
    const box = element("input", "", { type: "checkbox", checked: attachment.steering_enabled });
    box.dataset.key = `force ${saeId}`;
    box.addEventListener("change", guarded(() => steer(saeId, () => ({ enabled: box.checked }))));
    force.append(box, " in force");
    const row = element("li");
    row.append(force, button("Clear all", () => steer(saeId, () => ({ features: [] })), "plain"));
    rows.push(row);
  }
  return rows;
}

const ROLES = ["system", "user", "assistant"];

/** Positions as the choice of the form names them: a name, or the object of a role. */
const positionsOf = (chosen) => (chosen.startsWith("{") ? JSON.parse(chosen) : chosen);

byId("steer").addEventListener("submit", guarded(async (event) => {
  const form = event.target.elements;
  const sent = [form.feature.value, form.strength.value];
  const edit = {
    feature: Number(form.feature.value), strength: Number(form.strength.value), method: form.method.value,
    positions: positionsOf(form.positions.value), exclude: form.sink.checked ? ["sink"] : [],
  };
  await steer(form.sae.value, (now) => ({ features: [...now, edit] }));
  // The list may be up to date before the answer is here: what was typed since then stays.
  if (form.feature.value !== sent[0] || form.strength.value !== sent[1]) return;
  form.feature.value = form.strength.value = "";
  form.feature.focus();
}));

// — text —

/** Tokens as they come, coloured by a feature's activation before any edit, and underlined where an edit held. */
class Shaded {
  constructor(output, shade) {
    this.output = output;
    this.shade = shade;
    this.tokens = [];
    this.read = []; // of each token: the feature's activation
    this.most = 0;
  }

  /** What a chunk brings: text, and the positions that were run for it; of the prompt's the last come first. */
  add(said, positions) {
    const token = element("span", said);
    this.output.append(token);
    if (positions === undefined) return;
    if (this.tokens.length > 0) positions.forEach((each) => this.tell(this.tokens.length - 1, each));
    this.tokens.push(token);
  }

  tell(at, { edits, features = [] }) {
    this.tokens[at].classList.toggle("edited", edits.length > 0);
    const found = features.find((each) => each.feature === this.shade?.feature && each.sae_id === this.shade.sae_id);
    if (!found) return;
    this.read[at] = Math.abs(found.before);
    this.most = Math.max(this.most, this.read[at]);
    this.tokens[at].title = `feature ${found.feature}${found.label ? ` (${found.label})` : ""}: ${Number(found.before.toPrecision(4))}`;
  }

  /** Five shades, of the largest activation. */
  colour() {
    this.read.forEach((value, at) => {
      if (value > 0) this.tokens[at].dataset.shade = Math.min(5, Math.floor((5 * value) / this.most) + 1);
    });
  }
}

async function text(asked, own, output, signal) {
  const receipt = output.nextElementSibling;
  output.textContent = receipt.textContent = "";
  const path = asked.kind === "chat" ? "/v1/chat/completions" : "/v1/completions";
  const prompt = asked.kind === "chat" ? { messages: [{ role: "user", content: asked.prompt }] } : { prompt: asked.prompt };
  const sae = { ...own, details: true, ...(asked.shade && { details_of: [asked.shade] }) };
  const body = { ...prompt, max_tokens: asked.max_tokens, temperature: asked.temperature, seed: asked.seed, stream: true, sae };
  const shaded = new Shaded(output, asked.shade);
  let thinking = false;
  for await (const chunk of chunks(path, body, signal)) {
    const choice = chunk.choices[0];
    const thought = choice?.delta?.reasoning_content ?? "", said = choice?.delta?.content ?? choice?.text ?? "";
    shaded.add(thought + (said && (thinking || thought) ? "\n\n" : "") + said, chunk.sae?.receipt ? undefined : chunk.sae?.positions);
    thinking = (thinking || thought !== "") && said === "";
    if (chunk.sae?.receipt) {
      shaded.colour();
      const { receipt: count, position, warnings, finish_reason: reason } = chunk.sae;
      const told = [`${count.tokens_generated} tokens (${reason})`, `${count.tokens_edited} positions edited`, `log position ${position}`];
      receipt.textContent = [...told, ...warnings.map((warning) => `warning: ${warning}`)].join(" · ");
    }
  }
}

byId("ask").addEventListener("submit", guarded(async (event) => {
  const form = event.target.elements;
  const asked = {
    prompt: form.prompt.value, kind: form.kind.value, max_tokens: Number(form.max_tokens.value),
    temperature: Number(form.temperature.value), seed: Math.floor(Math.random() * 2 ** 31),
    shade: form.shade.value !== "" && attachments.length > 0 ? { feature: Number(form.shade.value), sae_id: byId("steer").elements.sae.value } : null,
  };
  const stopped = new AbortController();
  const stop = () => stopped.abort();
  byId("stop").addEventListener("click", stop);
  byId("stop").hidden = false;
  try {
    const both = [text(asked, { baseline: true }, byId("baseline"), stopped.signal), text(asked, undefined, byId("steered"), stopped.signal)];
    const failed = (await Promise.allSettled(both)).find((each) => each.status === "rejected");
    if (failed) throw failed.reason;
  } finally {
    byId("stop").hidden = true;
    byId("stop").removeEventListener("click", stop);
  }
}));

// — events —

const KEPT = 300;

/** What an event is about, on one line. */
function summary(data) {
  const edits = (data.features ?? data.steering)?.map((each) => (each.feature === undefined ? each : `${each.feature}=${each.strength} ${each.method}`));
  const model = typeof data.model === "string" ? data.model : data.model?.model_id;
  const parts = [
    data.restored && "restored", data.command, model, data.sae_id, data.hook_point && hook(data.hook_point),
    edits && (edits.join(", ") || "no edits"), data.enabled === false && "out of force", data.generation_id, data.baseline && "baseline",
    data.finish_reason, data.freed_bytes && `${bytes(data.freed_bytes)} freed`, data.error?.detail ?? data.detail, data.reason, data.version,
  ];
  return parts.filter(Boolean).join(" · ");
}

function eventRow(event) {
  const details = element("details");
  const line = element("summary");
  const time = element("time", new Date(event.time).toLocaleTimeString(), { dateTime: event.time });
  line.append(
    element("span", event.position, { className: "position" }), time, element("span", event.type, { className: "type" }),
    element("span", summary(event.data), { className: "about" }),
  );
  details.append(line);
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(element("pre", JSON.stringify(event, null, 1)));
  });
  const row = element("li");
  row.dataset.position = event.position;
  row.append(details);
  return row;
}

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => {
    waiting = false;
    refresh().catch((error) => complain(error.message));
  }, 60);
}

function onEvent(event) {
  byId("events").prepend(eventRow(event));
  while (byId("events").children.length > KEPT) byId("events").lastElementChild.remove();
  if (!event.type.startsWith("Generation")) soon();
}

function onPassing(type, data) {
  if (type === "reset") byId("events").replaceChildren();
  if (type === "model_progress") showModel(data.stage);
  if (type === "activations") showFiring(data);
}

function onLink(live) {
  byId("link").dataset.state = live ? "live" : "waiting";
  byId("link").textContent = live ? "live" : "connection lost, trying again";
  if (live) soon();
}

async function begin() {
  await entered();
  const [can, health] = await Promise.all([call("GET", "/api/capabilities"), call("GET", "/health")]);
  byId("steer").elements.method.replaceChildren(...can.methods.map((name) => new Option(name)));
  const named = can.positions.filter((name) => /^[a-z_]+$/.test(name) && !["tokens", "role"].includes(name));
  const roles = can.positions.includes("role") ? ROLES : [];
  byId("steer").elements.positions.replaceChildren(
    ...named.map((name) => new Option(name)), ...roles.map((role) => new Option(`${role} messages`, JSON.stringify({ role }))),
  );
  await refresh();
  follow(Math.max(0, health.position - KEPT), { onEvent, onPassing, onLink, onRefused: stillEntered });
}
begin().catch((error) => complain(error.message));
