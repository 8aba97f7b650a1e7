// The description of the API, made readable. Everything is put in as text: what the service says is never markup.

const METHODS = ["get", "put", "post", "delete"];

const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children.filter((child) => child !== null));
  return element;
};
const code = (text) => make("code", {}, text);
const nameOf = (reference) => reference.split("/").at(-1);

// Words between backticks are code.
const prose = (text) => (text ?? "").split("`").map((part, index) => (index % 2 ? code(part) : part));

// A schema in a line: nodes, references as links.
const told = (schema) => {
  if (schema === undefined || schema === true || Object.keys(schema).length === 0) return ["anything"];
  if (schema.$ref) return [make("a", { href: `#${nameOf(schema.$ref)}` }, nameOf(schema.$ref))];
  if ("const" in schema) return [code(JSON.stringify(schema.const))];
  if (schema.enum) return between(schema.enum.map((value) => [code(JSON.stringify(value))]), " or ");
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return between(several.map(told), " or ");
  if (schema.allOf) return told(schema.allOf[0]);
  if (schema.type === "array" && schema.prefixItems) return ["[", ...between(schema.prefixItems.map(told), ", "), "]"];
  if (schema.type === "array") return ["list of ", ...told(schema.items), ...within(schema)];
  if (schema.type === "object" && schema.additionalProperties) return ["object of ", ...told(schema.additionalProperties)];
  return [[schema.type ?? "anything"].flat().join(" or "), ...within(schema)];
};

const between = (parts, word) => parts.flatMap((part, index) => (index ? [word, ...part] : part));

const within = (schema) => {
  const [low, high] = [schema.minimum ?? schema.minItems ?? schema.minLength, schema.maximum ?? schema.maxItems ?? schema.maxLength];
  const found = [];
  if (low !== undefined || high !== undefined) found.push(` (${low ?? "…"} to ${high ?? "…"})`);
  if (schema.pattern) found.push(" like ", code(schema.pattern));
  return found;
};

const members = (schema) => {
  const list = make("dl");
  for (const [name, member] of Object.entries(schema.properties ?? {})) {
    const must = (schema.required ?? []).includes(name);
    list.append(make("dt", { className: must ? "must" : "" }, name));
    const given = "default" in member ? ["; ", code(JSON.stringify(member.default)), " without it"] : [];
    const says = member.description ? [" ", ...prose(member.description)] : [];
    list.append(make("dd", {}, ...told(member), ...given, ...says));
  }
  return list;
};

const shown = (path, method, operation, url) => {
  const parts = [];
  if (operation.parameters.length) {
    const list = make("dl");
    for (const each of operation.parameters) {
      list.append(make("dt", { className: each.required ? "must" : "" }, each.name));
      list.append(make("dd", {}, `in ${each.in}: `, ...told(each.schema), ". ", ...prose(each.description)));
    }
    parts.push(make("h3", {}, "Parameters"), list);
  }
  const body = operation.requestBody?.content["application/json"];
  if (body) parts.push(make("h3", {}, "Body"), make("p", {}, ...told(body.schema)));
  for (const [name, example] of Object.entries(body?.examples ?? {})) parts.push(make("pre", {}, `# ${name}\n${called(path, method, example.value, url)}`));
  if (!body && method === "get") parts.push(make("pre", {}, called(path, method, null, url)));
  const answers = make("dl");
  for (const [status, answer] of Object.entries(operation.responses)) {
    answers.append(make("dt", {}, status), make("dd", {}, ...answered(status, answer)));
  }
  parts.push(make("h3", {}, "Answers"), answers);
  const says = make("span", { className: "says" }, ...prose(operation.summary));
  const summary = make("summary", {}, make("code", { className: "method" }, method.toUpperCase()), code(path), says);
  return make("details", { id: operation.operationId }, summary, ...parts);
};

const answered = (status, answer) => {
  if (status >= 400) return prose(answer.description);
  const kinds = Object.entries(answer.content).map(([kind, content]) =>
    content["x-item-schema"] ? [`${kind}: each `, ...told(content["x-item-schema"])] : [`${kind}: `, ...told(content.schema)]);
  return between(kinds, "; ");
};

const called = (path, method, body, url) => {
  const verb = method === "get" || (method === "post" && body) ? "" : ` -X ${method.toUpperCase()}`;
  const sent = body === null ? "" : ` -H 'Content-Type: application/json' -d '${JSON.stringify(body).replaceAll("'", "'\\''")}'`;
  return `curl${verb}${sent} '${url}${path}'`;
};

const find = (wanted) => {
  for (const each of document.querySelectorAll("details")) each.hidden = !each.textContent.toLowerCase().includes(wanted);
  for (const section of document.querySelectorAll("section")) section.hidden = !section.querySelector("details:not([hidden])");
};

// A link to a part opens it.
const open = () => {
  const part = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (part instanceof HTMLDetailsElement) part.open = true;
  part?.scrollIntoView();
};

// Of the service, which may be under a path of a proxy.
const base = new URL(".", import.meta.url).href.replace(/\/$/, "");
const answer = await fetch(new URL("schema", import.meta.url));
if (answer.ok) {
  const description = await answer.json();
  document.querySelector("#about").append(...prose(`${description.info.version}. ${description.info.description}`));
  for (const { name } of description.tags) {
    const section = make("section", {}, make("h2", {}, name));
    for (const [path, item] of Object.entries(description.paths)) {
      for (const method of METHODS.filter((each) => item[each]?.tags.includes(name))) section.append(shown(path, method, item[method], base));
    }
    document.querySelector("#operations").append(section);
  }
  for (const [name, schema] of Object.entries(description.components.schemas)) {
    const says = make("span", { className: "says" }, ...prose(schema.description));
    const union = schema.properties ? members(schema) : make("p", {}, ...told(schema));
    document.querySelector("#schemas").append(make("details", { id: name }, make("summary", {}, code(name), says), union));
  }
  document.querySelector("#find").addEventListener("input", (event) => find(event.target.value.trim().toLowerCase()));
  document.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", open);
  open();
} else {
  document.querySelector("#refused").hidden = false;
}
document.body.dataset.state = "ready";
