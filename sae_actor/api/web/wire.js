// How the page speaks to the service: JSON, streams of text, and the events without a gap.

// Of the folder that this file is in: the service may be under a path of a proxy.
const at = (path) => new URL(`.${path}`, import.meta.url);

async function refusal(answer) {
  const value = await answer.json().catch(() => ({}));
  const error = new Error(value.detail ?? value.error?.message ?? `${answer.status} ${answer.statusText}`);
  return Object.assign(error, { status: answer.status });
}

/** One request: its JSON and its ETag, or an Error with the problem's detail. */
export async function ask(method, path, body, headers = {}) {
  const sent = body === undefined ? { headers } : { headers: { ...headers, "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(at(path), { method, ...sent }).catch(() => { throw new Error("the service does not answer"); });
  if (!answer.ok) throw await refusal(answer);
  return { value: await answer.json(), etag: answer.headers.get("ETag") };
}

export async function call(method, path, body) {
  return (await ask(method, path, body)).value;
}

/** The chunks of a streamed text as they come. */
export async function* chunks(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(at(path), { method: "POST", headers, body: JSON.stringify(body), signal });
  if (!answer.ok) throw await refusal(answer);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the text was cut off");
    const frames = (rest + value).split("\n\n");
    rest = frames.pop();
    for (const frame of frames) {
      const data = frame.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      yield chunk;
    }
  }
}

const DURABLE = [
  "ActorStarted", "ActorStopped", "ModelLoadRequested", "ModelLoaded", "ModelLoadFailed", "ModelUnloaded",
  "DownloadRequested", "DownloadCompleted", "DownloadFailed", "DownloadCancelled", "AttachRequested", "SaeAttached",
  "AttachFailed", "DetachRequested", "SaeDetached", "DeleteRequested", "SaeDeleted", "DeleteFailed",
  "SteeringChanged", "MonitoringChanged", "EffectInterrupted", "HookFaulted", "GpuLost", "CommandRejected",
  "GenerationStarted", "GenerationFinished", "PayloadRedacted", "LogTruncated",
  "SettingsReloaded", "PresetSaved", "PresetDeleted", "LogForked", "RunRequested", "RunCompleted",
  "RunFailed", "RunCancelled", "RunDeleted", "LabelsImported", "LabelsDeleted",
];
const PASSING = ["download_progress", "model_progress", "activations", "reset", "bye"];
const PATIENCE = 2000;

/** Every durable event behind a position, once and in order, through restarts of the service. */
export function follow(after, on) {
  const { onEvent, onPassing, onLink, onRefused } = on;
  let last = after;
  const stream = new EventSource(at(`/api/events?after=${after}`));
  stream.addEventListener("open", () => onLink(true));
  stream.addEventListener("error", () => {
    onLink(false);
    // The browser tries again on its own, with the last id, unless it was answered with an error status.
    if (stream.readyState !== EventSource.CLOSED) return;
    onRefused().catch(() => {});
    setTimeout(() => follow(last, on), PATIENCE);
  });
  for (const type of DURABLE) {
    stream.addEventListener(type, (message) => {
      const event = JSON.parse(message.data);
      last = event.position;
      onEvent(event);
    });
  }
  for (const type of PASSING) {
    stream.addEventListener(type, (message) => {
      if (type === "reset") last = 0;
      onPassing(type, JSON.parse(message.data));
    });
  }
}
