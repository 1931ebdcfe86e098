// The documentation of the HTTP interface, drawn from /openapi.json. Nothing is asked of any other machine.

const METHODS = ["get", "post", "put", "delete"];
let api;

/** An element with attributes and children; texts are texts, never markup. */
function el(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((c) => c !== undefined && c !== null && c !== ""));
  return made;
}

/** A description: what stands between backticks is code. */
const said = (text) => (text ?? "").split(/`+/).map((part, n) => (n % 2 ? el("code", {}, part) : part));

const resolved = (schema) => (schema?.$ref ? api.components.schemas[schema.$ref.split("/").pop()] : (schema ?? {}));
const refName = (schema) => schema?.$ref?.split("/").pop();

/** A schema in a word or two: "list of Hit", "text or null". */
function typeName(schema) {
  if (!schema) return "";
  if (schema.$ref) return refName(schema);
  const several = schema.anyOf ?? schema.oneOf;
  if (several) return [...new Set(several.map(typeName))].join(" or ");
  if (schema.type === "array") return `list of ${typeName(schema.items) || "anything"}`;
  if (schema.type === "object" && schema.additionalProperties?.type) return `object of ${typeName(schema.additionalProperties)}`;
  if (schema.enum) return schema.enum.map((v) => JSON.stringify(v)).join(" or ");
  const names = { string: "text", integer: "whole number", boolean: "true or false" };
  return schema.format === "binary" ? "file" : (names[schema.type] ?? schema.type ?? "anything");
}

/** What a value must keep to, and what it is when left out. */
function limits(schema) {
  const out = [];
  if (schema.minimum !== undefined || schema.maximum !== undefined) out.push(`${schema.minimum ?? "…"} to ${schema.maximum ?? "…"}`);
  if (schema.maxLength) out.push(`at most ${schema.maxLength} characters`);
  if (schema.maxItems) out.push(`at most ${schema.maxItems}`);
  if (schema.default !== undefined && schema.default !== null && schema.default !== "") out.push(`default ${JSON.stringify(schema.default)}`);
  return out.join(", ");
}

/** The names of schemas that a schema mentions, itself included, in order. */
function mentioned(schema, seen = []) {
  if (!schema || typeof schema !== "object") return seen;
  const name = refName(schema);
  if (name) {
    if (!seen.includes(name)) {
      seen.push(name);
      mentioned(resolved(schema), seen);
    }
    return seen;
  }
  for (const part of Object.values(schema)) mentioned(part, seen);
  return seen;
}

/** A value that fits a schema: its example, its default, or one made up of its parts. */
function example(schema, depth = 0) {
  const s = resolved(schema);
  if (s.example !== undefined) return s.example;
  if (s.examples?.length) return s.examples[0];
  if (s.default !== undefined && s.default !== null) return s.default;
  const several = s.anyOf ?? s.oneOf;
  if (several) return example(several[0], depth);
  if (depth > 4) return null;
  if (s.type === "object" || s.properties)
    return Object.fromEntries(Object.entries(s.properties ?? {}).map(([k, v]) => [k, example(v, depth + 1)]));
  if (s.type === "array") return [example(s.items, depth + 1)];
  return { string: "", integer: 1, number: 0.5, boolean: false }[s.type] ?? null;
}

function fieldTable(properties, required = []) {
  const rows = Object.entries(properties).map(([name, schema]) =>
    el("tr", {},
      el("td", {}, el("code", {}, name), required.includes(name) ? " *" : ""),
      el("td", {}, typeName(schema)),
      el("td", {}, ...said([schema.description, limits(schema)].filter(Boolean).join(" · ")))));
  const head = el("tr", {}, el("th", { scope: "col" }, "Field"), el("th", { scope: "col" }, "Type"), el("th", { scope: "col" }, "What it is"));
  return el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Fields" },
    el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
}

/** The fields of a schema, then those of the schemas that it mentions. */
function schemaParts(schema) {
  const parts = [];
  if (!schema) return parts;
  if (schema.properties) parts.push(fieldTable(schema.properties, schema.required));
  for (const name of mentioned(schema)) {
    const s = api.components.schemas[name];
    if (!s?.properties) continue;
    parts.push(el("h4", {}, name), el("p", { class: "said" }, ...said(s.description)), fieldTable(s.properties, s.required));
  }
  return parts;
}

const quoted = (text) => `'${String(text).replaceAll("'", "'\\''")}'`;

/** A line for a shell that makes the same call. */
function curl(method, path, parameters, body, type) {
  const query = parameters.filter((p) => p.in === "query" && (p.required || p.example));
  let line = "curl";
  if (method !== "get") line += ` -X ${method.toUpperCase()}`;
  line += ' -H "Authorization: Bearer $KEY"';
  if (type === "multipart/form-data") {
    for (const [name, s] of Object.entries(resolved(body.schema).properties ?? {})) {
      const file = s.format === "binary" || s.items?.format === "binary";
      if (file) line += ` -F ${name}=@photo.jpg`;
      else if (s.examples) line += ` -F ${quoted(`${name}=${s.examples[0]}`)}`;
    }
  } else if (body) {
    line += ` -H 'Content-Type: application/json' -d ${quoted(JSON.stringify(bodyExample(body)))}`;
  }
  const address = location.origin + path + (query.length ? `?${query.map((p) => `${p.name}=${encodeURIComponent(p.example ?? "")}`).join("&")}` : "");
  return `${line} ${quoted(address)}`;
}

function bodyExample(content) {
  if (content.example !== undefined) return content.example;
  if (content.examples) return Object.values(content.examples)[0].value;
  return example(content.schema);
}

function field(label, input) {
  return el("label", {}, label, input);
}

/** A form that makes the call from here. */
function tryIt(method, path, parameters, contents) {
  const inputs = parameters.map((p) => [p, el("input", { name: p.name, placeholder: typeName(p.schema) })]);
  const types = Object.keys(contents);
  const json = contents["application/json"];
  const kinds = types.length > 1 ? el("select", {}, ...types.map((t) => el("option", { value: t }, t))) : null;
  const text = json ? el("textarea", { spellcheck: "false" }) : null;
  if (text) text.value = JSON.stringify(bodyExample(json), null, 2);
  const form = contents["multipart/form-data"];
  const parts = form
    ? Object.entries(resolved(form.schema).properties ?? {}).map(([name, s]) => {
        const file = s.format === "binary" || s.items?.format === "binary" || name === "image";
        return [name, el("input", { type: file ? "file" : "text", multiple: Boolean(s.items) && file, name })];
      })
    : [];
  const answer = el("div", { class: "answer", "aria-live": "polite" });
  const jsonPart = el("div", {}, text ? field("Body (JSON)", text) : "");
  const formPart = el("div", {}, ...parts.map(([name, input]) => field(name, input)));
  const showPart = () => {
    const type = kinds ? kinds.value : types[0];
    jsonPart.hidden = type !== "application/json";
    formPart.hidden = type !== "multipart/form-data";
  };
  kinds?.addEventListener("change", showPart);
  showPart();

  async function send(event) {
    event.preventDefault();
    let address = path;
    const query = new URLSearchParams();
    for (const [p, input] of inputs) {
      if (p.in === "path") address = address.replace(`{${p.name}}`, input.value.split("/").map(encodeURIComponent).join("/"));
      else if (input.value) query.append(p.name, input.value);
    }
    const options = { method: method.toUpperCase(), headers: {} };
    const key = document.querySelector("#key input").value.trim();
    if (key) options.headers.authorization = `Bearer ${key}`;
    const type = kinds ? kinds.value : types[0];
    if (type === "multipart/form-data") {
      options.body = new FormData();
      for (const [name, input] of parts)
        if (input.type === "file") for (const file of input.files) options.body.append(name, file);
        else if (input.value) options.body.append(name, input.value);
    } else if (type) {
      options.headers["content-type"] = "application/json";
      options.body = text.value;
    }
    answer.replaceChildren(el("p", {}, "Waiting …"));
    const start = performance.now();
    try {
      const response = await fetch(address + (query.size ? `?${query}` : ""), options);
      const took = Math.round(performance.now() - start);
      const kind = response.headers.get("content-type") ?? "";
      const head = el("p", {}, `${response.status} ${response.statusText} in ${took} ms · request ${response.headers.get("x-request-id") ?? ""}`);
      if (kind.startsWith("image/")) {
        answer.replaceChildren(head, el("img", { src: URL.createObjectURL(await response.blob()), alt: "The photo that was answered" }));
        return;
      }
      let shown = await response.text();
      if (kind.includes("json")) shown = JSON.stringify(JSON.parse(shown), null, 2);
      answer.replaceChildren(head, el("pre", { tabindex: "0" }, shown.slice(0, 200_000)));
    } catch (error) {
      answer.replaceChildren(el("p", {}, `It could not be sent: ${error.message}`));
    }
  }

  return el("form", { class: "try", onsubmit: send }, el("h3", {}, "Try it"),
    ...inputs.map(([p, input]) => field(p.name + (p.required ? " *" : ""), input)),
    kinds ? field("Content type", kinds) : "", jsonPart, formPart, el("button", {}, "Send"), answer);
}

function bodyPart(method, path, operation) {
  const parameters = operation.parameters ?? [];
  const contents = operation.requestBody?.content ?? {};
  const [type] = Object.keys(contents);
  const parts = [];
  if (operation.security)
    parts.push(el("p", { class: "said" }, operation.security.some((s) => !Object.keys(s).length)
      ? "Needs a key of scope search where the server has keys." : "Needs a key of scope write."));
  if (parameters.length)
    parts.push(el("h3", {}, "In the address"), fieldTable(
      Object.fromEntries(parameters.map((p) => [p.name, { ...p.schema, description: p.description ?? p.schema?.description }])),
      parameters.filter((p) => p.required).map((p) => p.name)));
  for (const [kind, content] of Object.entries(contents))
    if (kind === type || JSON.stringify(content.schema) !== JSON.stringify(contents[type].schema))
      parts.push(el("h3", {}, `Body: ${kind}`), ...schemaParts(content.schema));
  for (const [name, one] of Object.entries(contents["application/json"]?.examples ?? {}))
    parts.push(el("h3", {}, `Example: ${one.summary ?? name}`), el("pre", { tabindex: "0" }, JSON.stringify(one.value, null, 2)));
  parts.push(el("h3", {}, "With curl"));
  for (const kind of type ? Object.keys(contents) : [undefined])
    parts.push(el("pre", { tabindex: "0" }, curl(method, path, parameters, contents[kind], kind)));
  const problems = [];
  for (const [code, answer] of Object.entries(operation.responses)) {
    const [kind, content] = Object.entries(answer.content ?? {})[0] ?? [];
    if (kind === "application/problem+json") {
      problems.push(el("tr", {}, el("td", {}, el("code", {}, code)), el("td", {}, ...said(answer.description))));
      continue;
    }
    parts.push(el("h3", {}, `Answer ${code}${kind ? `: ${kind}` : ""}`), ...schemaParts(content?.schema));
    if (kind === "application/json" && content.schema)
      parts.push(el("pre", { tabindex: "0" }, JSON.stringify(example(content.schema), null, 2)));
  }
  if (problems.length)
    parts.push(el("h3", {}, "Problems"), el("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Problems" },
      el("table", {}, el("tbody", {}, ...problems))));
  parts.push(tryIt(method, path, parameters, contents));
  return el("div", {}, ...parts);
}

function route(method, path, operation) {
  const id = `${method}-${path.replace(/\W+/g, "-")}`;
  const box = el("details", { class: "route", id },
    el("summary", {}, el("span", { class: "method" }, method.toUpperCase()), el("span", { class: "path" }, path),
      el("span", { class: "said" }, ...said(operation.description ?? operation.summary))));
  box.addEventListener("toggle", () => {
    if (box.open && box.children.length === 1) box.append(bodyPart(method, path, operation));
  });
  return box;
}

async function main() {
  const about = document.getElementById("about");
  document.getElementById("key").addEventListener("submit", (event) => event.preventDefault());
  try {
    api = await (await fetch("/openapi.json")).json();
  } catch (error) {
    about.textContent = `The description could not be loaded (${error.message}); reload the page.`;
    return;
  }
  const paragraphs = `Version ${api.info.version}. ${api.info.description}`.split("\n\n");
  about.replaceWith(...paragraphs.map((text) => el("p", { class: "about" }, ...said(text))));
  const groups = new Map();
  for (const [path, operations] of Object.entries(api.paths))
    for (const method of METHODS)
      if (operations[method]) {
        const tag = operations[method].tags?.[0] ?? "Other";
        groups.set(tag, [...(groups.get(tag) ?? []), route(method, path, operations[method])]);
      }
  const routes = document.getElementById("routes");
  for (const [tag, found] of groups) routes.append(el("section", {}, el("h2", {}, tag), ...found));
  const wanted = location.hash && document.getElementById(location.hash.slice(1));
  if (wanted) {
    wanted.open = true;
    wanted.scrollIntoView();
  }
}

main();
