/**
 * The search page of Lookalike, also a widget for other pages:
 *
 *     <link rel="stylesheet" href="/web/style.css">
 *     <script type="module" src="/web/lookalike-search.js"></script>
 *     <lookalike-search></lookalike-search>
 *
 * The address bar holds the search (text, like, where); an uploaded photo travels in `history.state`.
 * Data reaches the document as text and attributes only, never as HTML, and nothing is fetched from elsewhere.
 */

const PAGE = 48; // hits of the first answer; each "more" doubles it
const MOST = 1000; // the largest k that the server takes
const SAMPLE = 24; // products on the start page
const SHOWN = 8; // values of a filter before "more"
const PAUSE_MS = 350; // typing searches after a pause this long
const LEXICAL = 0.3; // share of word matching in a search by words alone
const THUMB_SIDE = 640; // pixels; the copy of a photo that the history keeps
const UPLOAD_SIDE = 1600; // pixels; a photo larger than this, or than UPLOAD_BYTES, is uploaded as that copy
const UPLOAD_BYTES = 2 * 1024 * 1024;
const CARD_ROLES = ["category", "colour", "gender"]; // the columns to describe a product by, best first

const ICONS = {
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.5 15.5 20 20",
  photo: "M4 5h16v14H4zM4 16l4.5-4.5L14 17M12.5 15.5l3-3L20 17M15.5 8.5h.01",
  camera: "M4 8h3.5L9 5.5h6L16.5 8H20v11H4zM12 10a3.2 3.2 0 1 0 0 6.4A3.2 3.2 0 0 0 12 10",
  close: "M7 7l10 10M17 7 7 17",
  plus: "M12 6v12M6 12h12",
};

/** An element with its properties (`on…` is a listener, `true` a bare attribute, `false` and null leave it out). */
function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

function icon(name) {
  const make = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const svg = make("svg", { viewBox: "0 0 24 24", class: "lk-icon", "aria-hidden": "true" });
  svg.append(make("path", { d: ICONS[name] }));
  return svg;
}

const number = (value, digits = 0) => value.toLocaleString(undefined, { maximumFractionDigits: digits });
const readable = (value) => (value === true ? "Yes" : value === false ? "No" : String(value));

/** `baseColour` and `base_colour` as people write them: "Base colour". */
function label(column) {
  const words = column.replace(/([a-z\d])([A-Z])/g, "$1 $2").replace(/[_\s]+/g, " ").trim().toLowerCase();
  return words.charAt(0).toUpperCase() + words.slice(1);
}

// ---------------------------------------------------------------------------------------------------- filters

const TOKEN = /'((?:[^']|'')*)'|"((?:[^"]|"")*)"|(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)|([a-z_]\w*)|>=|<=|\S/gi;
const KEYWORDS = /^(and|or|not|in|is|like|between|null|true|false)$/i;

/** What is ticked and typed beside the results; as a string, the `where` expression that asks for it. */
export class Filters {
  values = new Map(); // column → values of which one must hold
  ranges = new Map(); // column → {">=": least, "<=": most}, either may be missing
  other = ""; // an expression that somebody else wrote, kept as it is

  static parse(where) {
    try {
      return Filters.#read(where);
    } catch {
      return Object.assign(new Filters(), { other: where });
    }
  }

  /** Reads what `toString` writes; throws at anything else. */
  static #read(where) {
    const filters = new Filters();
    const tokens = [...where.matchAll(TOKEN)];
    const fail = () => {
      throw new SyntaxError(where);
    };
    const next = () => tokens.shift() ?? fail();
    const take = (...words) => (words.includes(tokens[0]?.[0].toLowerCase()) ? next()[0].toLowerCase() : null);
    const literal = () => {
      const [raw, text, , digits] = next();
      if (text !== undefined) return text.replaceAll("''", "'");
      return digits !== undefined ? Number(digits) : raw === "true" ? true : raw === "false" ? false : fail();
    };
    while (tokens.length) {
      if (take("(")) {
        const start = tokens[0]?.index;
        let end;
        for (let depth = 1; depth; depth += { "(": 1, ")": -1 }[end[0]] ?? 0) end = next();
        if (filters.other) fail();
        filters.other = where.slice(start, end.index);
      } else {
        const [, , quoted, , plain] = next();
        const column = quoted?.replaceAll('""', '"') ?? (plain && !KEYWORDS.test(plain) ? plain : fail());
        const operator = take("in", "=", ">=", "<=") ?? fail();
        if (operator === ">=" || operator === "<=") {
          const range = filters.ranges.get(column) ?? {};
          const bound = literal();
          if (operator in range || typeof bound !== "number") fail();
          filters.ranges.set(column, { ...range, [operator]: bound });
        } else {
          const values = [];
          if (operator === "in") take("(") ?? fail();
          do values.push(literal());
          while (operator === "in" && take(","));
          if (operator === "in") take(")") ?? fail();
          if (filters.values.has(column)) fail();
          filters.values.set(column, values);
        }
      }
      if (tokens.length) take("and") ?? fail();
    }
    return filters;
  }

  toString() {
    const name = (column) =>
      /^[a-z_]\w*$/i.test(column) && !KEYWORDS.test(column) ? column : `"${column.replaceAll('"', '""')}"`;
    const literal = (value) => (typeof value === "string" ? `'${value.replaceAll("'", "''")}'` : String(value));
    const clauses = this.other ? [`(${this.other})`] : [];
    for (const [column, values] of this.values) clauses.push(`${name(column)} in (${values.map(literal).join(", ")})`);
    for (const [column, range] of this.ranges) {
      for (const [operator, bound] of Object.entries(range)) clauses.push(`${name(column)} ${operator} ${bound}`);
    }
    return clauses.length === 1 && this.other ? this.other : clauses.join(" and ");
  }

  /** The same filters with one value ticked or not. */
  tick(column, value, on) {
    const values = (this.values.get(column) ?? []).filter((other) => other !== value);
    return this.#with("values", column, on ? [...values, value] : values.length ? values : null);
  }

  /** The same filters with one range; null takes a bound away. */
  within(column, least, most) {
    if (least !== null && most !== null && least > most) [least, most] = [most, least];
    const range = { ...(least !== null && { ">=": least }), ...(most !== null && { "<=": most }) };
    return this.#with("ranges", column, Object.keys(range).length ? range : null);
  }

  #with(part, column, value) {
    const map = new Map(this[part]);
    if (value) map.set(column, value);
    else map.delete(column);
    return Object.assign(new Filters(), this, { [part]: map });
  }

  /** What is active, for people: [text, the filters without it]. */
  active() {
    const list = [];
    for (const [column, values] of this.values) {
      for (const value of values) list.push([`${label(column)}: ${readable(value)}`, this.tick(column, value, false)]);
    }
    for (const [column, { ">=": least, "<=": most }] of this.ranges) {
      const text = least === undefined ? `up to ${most}` : most === undefined ? `from ${least}` : `${least} – ${most}`;
      list.push([`${label(column)}: ${text}`, this.within(column, null, null)]);
    }
    if (this.other) list.push([this.other, Object.assign(new Filters(), this, { other: "" })]);
    return list;
  }
}

/** The groups of filters beside the results. Says what was changed by a `filters` event whose detail is a Filters. */
class LookalikeFilters extends HTMLElement {
  #groups = new Map(); // kind and column → {node, update}
  #filters = new Filters();

  show(facets, columns, filters) {
    this.#filters = filters;
    const isFlag = ({ column }) => columns.some(({ name, kind }) => name === column && kind === "flag");
    const flag = ({ value, count }) => ({ value: String(value) === "true", count }); // "true" and true alike
    const wide = matchMedia("(min-width: 60rem)").matches;
    const nodes = facets
      .filter((facet) => (facet.kind === "range" ? facet.min != null : facet.values.length))
      .map((facet) => (isFlag(facet) ? { ...facet, values: facet.values.map(flag) } : facet))
      .map((facet, index) => {
        const key = `${facet.kind} ${facet.column}`;
        if (!this.#groups.has(key)) this.#groups.set(key, this.#group(facet, wide && (index < 4 || facet.kind === "range")));
        const { node, update } = this.#groups.get(key);
        update(facet);
        return node;
      });
    // moved nodes would lose the focus and the scroll
    const same = nodes.length === this.children.length && nodes.every((node, index) => node === this.children[index]);
    if (!same) this.replaceChildren(...nodes);
  }

  #change(filters) {
    this.dispatchEvent(new CustomEvent("filters", { detail: filters, bubbles: true }));
  }

  #group({ kind, column }, open) {
    const mark = el("span", { class: "lk-mark" });
    const body = el("div", { class: "lk-group-body", role: "group", "aria-label": label(column) });
    const node = el("details", { class: "lk-group", open }, el("summary", {}, label(column), mark), body);
    const inner = kind === "range" ? this.#range(column, body) : this.#values(column, body);
    const update = (facet) => {
      const count = this.#filters.values.get(column)?.length ?? (this.#filters.ranges.has(column) ? 1 : 0);
      mark.textContent = count || "";
      inner(facet);
    };
    return { node, update };
  }

  #range(column, body) {
    const input = (text) =>
      el("input", { type: "number", step: "any", inputmode: "decimal", "aria-label": `${label(column)}, ${text}` });
    const [least, most] = [input("least"), input("most")];
    const read = ({ value }) => (value === "" ? null : Number(value));
    body.append(el("div", { class: "lk-range" }, least, el("span", { "aria-hidden": "true" }, "–"), most));
    body.addEventListener("change", () => this.#change(this.#filters.within(column, read(least), read(most))));
    return ({ min, max }) => {
      const range = this.#filters.ranges.get(column) ?? {};
      for (const [field, bound, hint] of [[least, range[">="], min], [most, range["<="], max]]) {
        field.placeholder = hint;
        if (field !== document.activeElement) field.value = bound ?? "";
      }
    };
  }

  #values(column, body) {
    let all = false;
    const ticks = el("div", { class: "lk-ticks" });
    const more = el("button", { type: "button", class: "lk-link" });
    body.append(ticks, more);
    const update = (facet) => {
      const chosen = this.#filters.values.get(column) ?? [];
      const gone = chosen.filter((value) => !facet.values.some((other) => other.value === value));
      const values = [...facet.values, ...gone.map((value) => ({ value, count: 0 }))];
      const shown = values.filter(({ value }, index) => all || index < SHOWN || chosen.includes(value));
      const focused = ticks.contains(document.activeElement) ? document.activeElement.value : null;
      const rows = shown.map(({ value, count }) => {
        const box = el("input", { type: "checkbox", value });
        box.checked = chosen.includes(value);
        box.addEventListener("change", () => this.#change(this.#filters.tick(column, value, box.checked)));
        const text = el("span", { class: "lk-value" }, readable(value));
        return el("label", { class: "lk-tick" }, box, text, el("span", { class: "lk-count" }, number(count)));
      });
      ticks.replaceChildren(...rows);
      if (focused !== null) [...ticks.querySelectorAll("input")].find(({ value }) => value === focused)?.focus();
      more.hidden = !all && shown.length === values.length;
      more.textContent = all ? "Fewer" : `${values.length - shown.length} more`;
      more.setAttribute("aria-expanded", all);
      more.onclick = () => {
        all = !all;
        update(facet);
      };
    };
    return update;
  }
}

// ------------------------------------------------------------------------------------------- the search as data

/** What is asked for: words, products to be like, a photo, filters. */
class Query {
  text = "";
  likes = [];
  photo = null; // a data URL
  filters = new Filters();

  static fromHistory() {
    const params = new URLSearchParams(location.search);
    return Object.assign(new Query(), {
      text: params.get("text") ?? "",
      likes: params.getAll("like"),
      photo: history.state?.lookalike?.photo ?? null,
      filters: Filters.parse(params.get("where") ?? ""),
    });
  }

  with(change) {
    return Object.assign(new Query(), this, change);
  }

  /** Whether there is nothing to be like: filters alone only browse. */
  get isOpen() {
    return !(this.text || this.likes.length || this.photo);
  }

  /** Writes the query into `params`, which may be a URLSearchParams or a FormData. */
  into(params) {
    for (const name of ["text", "like", "where"]) params.delete(name);
    if (this.text) params.set("text", this.text);
    for (const id of this.likes) params.append("like", id);
    if (String(this.filters)) params.set("where", this.filters);
    return params;
  }

  get href() {
    const params = this.into(new URLSearchParams(location.search));
    return String(params) ? `?${params}` : location.pathname;
  }

  /** Whether both ask for the same, filters aside. */
  asks(other) {
    const key = ({ text, likes, photo }) => JSON.stringify([text, likes, photo]);
    return key(this) === key(other);
  }
}

/** Makes the small copy of a photo, a data URL, and what to upload for it. Throws where the file is no photo. */
async function readPhoto(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  const side = Math.max(bitmap.width, bitmap.height);
  const scale = Math.min(1, THUMB_SIDE / side);
  const canvas = el("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // JPEG has no transparency
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const url = canvas.toDataURL("image/jpeg", 0.9);
  return { url, upload: file.size > UPLOAD_BYTES || side > UPLOAD_SIDE ? toBlob(url) : file };
}

/** A data URL as a blob. (`fetch` would do it too, were it not that a strict CSP forbids it.) */
function toBlob(url) {
  const [head, body] = url.split(",");
  return new Blob([Uint8Array.from(atob(body), (byte) => byte.charCodeAt(0))], { type: head.slice(5).split(";")[0] });
}

// ------------------------------------------------------------------------------------------------------ server

/** An answer that is an error, in words for people. */
class Problem extends Error {
  constructor(title, detail) {
    super(detail);
    this.title = title;
  }
}

/** The HTTP API. `askKey(again)` gets an API key from the user and says whether there is one. */
class Api {
  #asking = null;

  constructor(base, askKey) {
    this.base = base;
    this.askKey = askKey;
  }

  async json(path, options) {
    const key = document.cookie;
    let response;
    try {
      response = await fetch(this.base + path, options);
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer", "Is `lookalike serve` still running, and the network up?");
    }
    if (response.status === 401) {
      this.#asking ??= this.askKey(key.includes("lookalike_key=")).finally(() => (this.#asking = null));
      if (document.cookie !== key || (await this.#asking)) return this.json(path, options);
    }
    const body = await response.json().catch(() => ({}));
    if (response.ok) return body;
    throw new Problem("That did not work", body.detail ?? `The server answered ${response.status}.`);
  }

  async search(query, upload, k, signal) {
    const data = query.into(upload ? new FormData() : new URLSearchParams());
    data.set("k", k);
    if (!upload && !query.likes.length) {
      // Words alone also match titles; that, and not the cosine, then makes the order, so no score is shown.
      data.set("lexical", LEXICAL);
      const body = await this.json(`/api/search?${data}`, { signal });
      return { ...body, hits: body.hits.map(({ score, alike, ...hit }) => hit) };
    }
    if (!upload) return this.json(`/api/search?${data}`, { signal });
    data.set("image", upload, "photo");
    return this.json("/api/search", { method: "POST", body: data, signal });
  }

  /** Products without a query, in the shape of a search's answer. */
  async browse(filters, k, signal) {
    const where = String(filters);
    const [counts, { products }] = await Promise.all([
      this.json(`/api/facets?${new URLSearchParams(where && { where })}`, { signal }),
      this.json(`/api/products?${new URLSearchParams(where ? { where, limit: k } : { limit: SAMPLE })}`, { signal }),
    ]);
    const hits = products.map((product) => ({ ...product, photo: product.photos[0] }));
    return { hits, total: counts.products, facets: counts.facets };
  }

  product(id) {
    return this.json(`/api/products/${id.split("/").map(encodeURIComponent).join("/")}`);
  }

  photo(id, width) {
    return `${this.base}/api/photos/${String(id).split("/").map(encodeURIComponent).join("/")}?width=${width}`;
  }
}

// ------------------------------------------------------------------------------------------------------- cards

/** One product of the results. */
class LookalikeCard extends HTMLElement {
  /** `href` starts a search for more like it, `onadd` adds it to the present one. */
  show(hit, { api, columns, href, onlike, onadd }) {
    const title = hit.title || hit.id;
    const image = hit.photo != null && el("img", {
      alt: "", width: 240, height: 320, loading: "lazy", decoding: "async", draggable: "false",
      sizes: "(min-width: 60rem) 200px, 45vw",
      srcset: [240, 480].map((width) => `${api.photo(hit.photo, width)} ${width}w`).join(", "),
      onerror: () => image.remove(),
    });
    const open = (event) => {
      if (event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
      event.preventDefault();
      onlike(hit);
    };
    const [text, says] = hit.alike == null ? [hit.score?.toFixed(2), "How alike: the cosine"]
      : [`${hit.alike}%`, "How alike: what such hits share of type, colour and gender"];
    const score = text && el("span", { class: "lk-score", title: says, "aria-hidden": "true" }, text);
    this.replaceChildren(
      el("a", { class: "lk-card", href, onclick: open },
        el("span", { class: "lk-photo" }, image, score,
          el("span", { class: "lk-hint", "aria-hidden": "true" }, "More like this")),
        el("span", { class: "lk-title" }, title),
        el("span", { class: "lk-about" }, describe(hit.attributes ?? {}, columns).join(" · "))),
      el("button", { type: "button", class: "lk-add", title: "Add to the search", onclick: () => onadd(hit),
        "aria-label": `Add to the search: ${title}` }, icon("plus")));
    return this;
  }
}

/** Two or three short words about a product, from the columns whose role is known, then from other text columns. */
function describe(attributes, columns) {
  const roles = CARD_ROLES.map((role) => columns.find((column) => column.role === role));
  const others = columns.filter(({ kind, role }) => kind === "text" && !["id", "title", "image"].includes(role));
  const values = [...roles, ...others].map((column) => column && attributes[column.name]);
  return [...new Set(values.filter((value) => value != null && value !== "").map(String))]
    .filter((value) => value.length <= 28).slice(0, 3);
}

// ---------------------------------------------------------------------------------------------------- the page

/** Text in which `…` stands for code. */
const rich = (text) => text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));

class LookalikeSearch extends HTMLElement {
  #query = new Query();
  #k = PAGE;
  #status = null; // the answer of /api/status, asked for once
  #columns = [];
  #uploads = new Map(); // data URL of a photo → what to upload for it
  #products = new Map(); // id → product or hit, for the chips
  #running = new AbortController(); // the search under way
  #life = new AbortController(); // the listeners outside this element
  #pause = 0; // timer of typing
  #typing = false; // whether the newest history entry was made by typing
  #title = document.title; // the page's own
  #parts = {};

  connectedCallback() {
    this.api = new Api(this.getAttribute("api") ?? "", (again) => this.#askKey(again));
    this.#build();
    this.#life = new AbortController();
    const listen = (target, type, listener) => target.addEventListener(type, listener, { signal: this.#life.signal });
    const files = (event) => event.dataTransfer?.types.includes("Files");
    listen(window, "popstate", () => this.#restore());
    listen(window, "pagehide", () => this.#keepPlace());
    listen(window, "online", () => this.#parts.message.hidden || this.#restore());
    listen(document, "paste", (event) => {
      const words = event.clipboardData.types.includes("text/plain") && event.target.matches?.("input, textarea");
      if (event.clipboardData.files.length && !words) this.#take(event, event.clipboardData.files);
    });
    listen(document, "dragover", (event) => {
      if (!files(event)) return;
      event.preventDefault();
      this.classList.add("lk-dropping");
    });
    listen(document, "dragleave", (event) => event.relatedTarget ?? this.classList.remove("lk-dropping"));
    listen(document, "drop", (event) => {
      this.classList.remove("lk-dropping");
      if (files(event)) this.#take(event, event.dataTransfer.files);
    });
    history.scrollRestoration = "manual";
    this.#restore();
  }

  disconnectedCallback() {
    this.#life.abort();
    this.#running.abort();
  }

  /** Makes the parts that stay; what they hold is filled in by #showQuery and #show. */
  #build() {
    const part = (name, tag, props, ...children) =>
      (this.#parts[name] = el(tag, { class: `lk-${name}`, ...props }, ...children));
    const picker = (name, props) =>
      part(name, "input", { type: "file", accept: "image/*", hidden: true, ...props,
        onchange: (event) => this.#take(event, event.target.files).then(() => (this.#parts[name].value = "")) });
    const press = (name, text, symbol, props) =>
      el("button", { type: "button", class: `lk-button ${name}`, title: text, "aria-label": text, ...props }, icon(symbol));
    const home = (event) => {
      event.preventDefault();
      this.#ask(new Query());
    };
    const pick = () => this.#parts.pick.click();
    this.replaceChildren(
      el("header", { class: "lk-head" },
        el("h1", { class: "lk-brand" }, el("a", { href: location.pathname, onclick: home }, "Lookalike")),
        el("form", { class: "lk-form", role: "search", onsubmit: (event) => this.#submit(event) },
          part("likes", "ul", { "aria-label": "Search for more like" }),
          part("words", "input", { type: "search", name: "text", "aria-label": "Words", autocomplete: "off",
            enterkeyhint: "search", oninput: () => this.#type() }),
          picker("pick"), picker("shoot", { capture: "environment" }),
          press("lk-touch", "Take a photo", "camera", { onclick: () => this.#parts.shoot.click() }),
          press("", "Choose a photo", "photo", { onclick: pick }),
          press("lk-go", "Search", "search", { type: "submit" })),
        el("button", { type: "button", class: "lk-skip", onclick: () => this.#parts.results.focus() }, "Skip to results")),
      part("notice", "p", { role: "note", hidden: true }),
      part("hero", "section", { hidden: true },
        el("h2", {}, "Find the one that looks like it"),
        el("p", {}, "Start from a photo, from words, or from both: a picture of a dress and “but in red”."),
        el("button", { type: "button", class: "lk-drop", onclick: pick }, icon("photo"),
          el("span", {}, el("b", {}, "Choose a photo"), el("span", {}, " or drop or paste one anywhere"))),
        part("ideas", "p", { hidden: true })),
      el("div", { class: "lk-body" },
        part("drawer", "details", {}, part("tally", "summary"), part("filters", "lookalike-filters", {
          onfilters: ({ detail }) => this.#ask({ filters: detail }) })),
        part("results", "section", { "aria-label": "Results", tabindex: -1 },
          el("div", { class: "lk-bar" },
            part("count", "p", { role: "status" }),
            part("chips", "ul", { "aria-label": "Filters" })),
          part("message", "div", { role: "alert", hidden: true }),
          part("grid", "ul", {}),
          part("more", "button", { type: "button", hidden: true, onclick: () => this.#more() }, "Show more"))),
      el("div", { class: "lk-overlay", "aria-hidden": "true" }, el("p", {}, icon("photo"), "Drop the photo to search")));
    const { drawer, more } = this.#parts;
    const wide = matchMedia("(min-width: 60rem)");
    const unfold = () => (drawer.open = wide.matches);
    unfold();
    wide.onchange = unfold;
    new IntersectionObserver(([entry]) => entry.isIntersecting && this.#more(), { rootMargin: "600px" }).observe(more);
  }

  // -- the query and the address bar

  /** Changes the query, writes it into the history and searches. */
  #ask(change, { typed = false } = {}) {
    const before = this.#query;
    const { words } = this.#parts;
    this.#query = before.with({ text: words.value.trim(), ...change });
    if (words.value.trim() !== this.#query.text) words.value = this.#query.text;
    const fresh = !this.#query.asks(before);
    if (fresh || this.#query.href !== before.href) {
      const state = { lookalike: { photo: this.#query.photo } };
      if (!typed || !this.#typing) this.#keepPlace();
      history[typed && this.#typing ? "replaceState" : "pushState"](state, "", this.#query.href);
      this.#typing = typed;
    }
    this.#run({ fresh });
  }

  /** Takes the query from the address bar and the history. */
  #restore() {
    const before = this.#query;
    this.#query = Query.fromHistory();
    this.#parts.words.value = this.#query.text;
    this.#typing = false;
    const { k, y } = history.state?.lookalike ?? {};
    this.#run({ k, y: y ?? 0, fresh: !this.#query.asks(before) });
  }

  /** Notes how far down the page one is, for coming back to it. */
  #keepPlace() {
    const lookalike = { ...history.state?.lookalike, k: this.#k, y: scrollY };
    history.replaceState({ ...history.state, lookalike }, "");
  }

  #type() {
    clearTimeout(this.#pause);
    const text = this.#parts.words.value.trim();
    this.#pause = setTimeout(() => text !== this.#query.text && this.#ask({}, { typed: true }), PAUSE_MS);
  }

  #submit(event) {
    event.preventDefault();
    this.#ask({});
    this.#typing = false;
  }

  async #take(event, [file]) {
    event.preventDefault();
    if (!file) return;
    try {
      const { url, upload } = await readPhoto(file);
      this.#uploads.set(url, upload);
      this.#ask({ photo: url, likes: [] });
    } catch {
      this.#say("This is not a photo that can be read", `${file.name} was left out. JPEG, PNG and WebP work everywhere.`);
      this.#parts.message.scrollIntoView({ block: "nearest" });
    }
  }

  // -- searching

  /** Asks the server and shows the answer; `fresh` where the present results have nothing to do with it. */
  async #run({ k = PAGE, y = null, more = false, fresh = false }) {
    this.#running.abort();
    clearTimeout(this.#pause);
    const { signal } = (this.#running = new AbortController());
    const { results, grid } = this.#parts;
    const focused = this.contains(document.activeElement);
    this.#showQuery();
    results.setAttribute("aria-busy", "true");
    if (!more) this.#parts.more.hidden = true; // else it comes into view below the skeletons, and presses itself
    const skeletons = () => grid.replaceChildren(...Array.from({ length: 12 }, () => el("li", { class: "lk-skeleton" })));
    const waiting = fresh || !grid.children.length ? setTimeout(skeletons, 120) : 0;
    try {
      this.#showStatus((this.#status ??= await this.api.json("/api/status", { signal })));
      const answer = await this.#answer(k, signal);
      if (signal.aborted) return;
      this.#k = k;
      this.#show(answer, more);
      if (y !== null) scrollTo(0, y);
      else if (!more && grid.getBoundingClientRect().top < 0) this.scrollIntoView();
    } catch (error) {
      if (signal.aborted) return;
      if (!more) grid.replaceChildren();
      if (!more) this.#parts.count.textContent = "";
      this.#parts.more.hidden = true;
      this.#say(error.title ?? "Something went wrong", error.message, "Try again", () => this.#run({ k, more }));
    } finally {
      clearTimeout(waiting);
      if (!signal.aborted) results.setAttribute("aria-busy", "false");
      if (focused && !this.contains(document.activeElement)) results.focus({ preventScroll: true });
    }
  }

  #answer(k, signal) {
    const { photo, filters, isOpen } = this.#query;
    if (isOpen) return this.api.browse(filters, k, signal);
    if (photo && !this.#uploads.has(photo)) this.#uploads.set(photo, toBlob(photo));
    return this.api.search(this.#query, photo && this.#uploads.get(photo), k, signal);
  }

  #more() {
    const { results, more } = this.#parts;
    if (more.hidden || results.getAttribute("aria-busy") === "true") return;
    this.#run({ k: Math.min(MOST, this.#k * 2), more: true });
  }

  // -- showing

  #showStatus({ encoder, columns, drawn }) {
    const { words, notice } = this.#parts;
    this.#columns = columns;
    words.disabled = !encoder.text;
    const notes = [
      drawn && "These are drawings made by `lookalike demo`, not photos of real products. " +
        "Point Lookalike at yours: `lookalike index /my/photos`",
      !encoder.text && `Words are off: the encoder \`${encoder.name}\` understands photos only.`,
    ].filter(Boolean);
    notice.hidden = !notes.length;
    notice.replaceChildren(...notes.map((note) => el("span", {}, ...rich(note))));
    if (encoder.text) return;
    words.value = "";
    this.#query = this.#query.with({ text: "" });
    this.#showQuery();
  }

  /** The chips in the search box and above the results. */
  #showQuery() {
    const { photo, likes, filters, text } = this.#query;
    const { words, chips, likes: list, tally } = this.#parts;
    const thumb = (src, title, without) =>
      el("li", { class: "lk-like", title },
        src ? el("img", { src, alt: title, draggable: "false" }) : el("span", {}, title),
        el("button", { type: "button", "aria-label": `Remove: ${title}`, onclick: () => this.#ask(without) },
          icon("close")));
    const liked = likes.map((id) => {
      const { title, photo: seen } = this.#product(id);
      const src = seen != null ? this.api.photo(seen, 240) : null;
      return thumb(src, `Like ${title || id}`, { likes: likes.filter((other) => other !== id) });
    });
    list.replaceChildren(...(photo ? [thumb(photo, "Your photo", { photo: null })] : []), ...liked);
    words.placeholder = photo || likes.length ? "… but in red" : "Describe it";
    if (words.disabled) words.placeholder = "Choose or drop a photo";
    const active = filters.active();
    const chip = (name, title, next) => el("li", {}, el("button", { type: "button", class: "lk-chip", "aria-label": title,
      onclick: () => this.#ask({ filters: next }) }, name, name !== "Clear all" && icon("close")));
    chips.replaceChildren(...active.map(([name, without]) => chip(name, `Remove the filter ${name}`, without)),
      active.length ? chip("Clear all", "Clear all filters", new Filters()) : "");
    tally.textContent = active.length ? `Filters (${active.length})` : "Filters";
    document.title = text ? `${text} – ${this.#title}` : this.#title;
  }

  /** What is known of a product; where nothing is, it is fetched and the chips are made anew. */
  #product(id) {
    if (!this.#products.has(id)) {
      this.#products.set(id, { title: id });
      this.api.product(id)
        .then(({ title, photos }) => this.#products.set(id, { title, photo: photos[0] }) && this.#showQuery())
        .catch(() => {}); // the search itself says what is wrong
    }
    return this.#products.get(id);
  }

  #show({ hits, total, facets, took_ms: took, no_good_match: nothing }, more) {
    const { grid, count, message, hero, filters, more: button } = this.#parts;
    const start = this.#query.isOpen && !String(this.#query.filters);
    if (!more) grid.replaceChildren();
    const shown = new Set([...grid.children].map((item) => item.dataset.id));
    for (const hit of hits.filter(({ id }) => !shown.has(id))) {
      const query = { text: "", photo: null, likes: [hit.id] };
      const card = el("lookalike-card").show(hit, {
        api: this.api,
        columns: this.#columns,
        href: this.#query.with(query).href,
        onlike: () => this.#like(hit, query),
        onadd: () => this.#like(hit, { likes: [...this.#query.likes.filter((id) => id !== hit.id), hit.id] }),
      });
      grid.append(el("li", { "data-id": hit.id }, card));
    }
    const time = took === undefined ? "" : `, ${number(took, took < 10 ? 1 : 0)} ms`;
    const found = `${number(hits.length)} of ${number(total)} products${time}`;
    count.textContent = start ? `${number(total)} products` : nothing ? `Nothing here is much like that. Closest: ${found}` : found;
    hero.hidden = !start;
    this.classList.toggle("lk-start", start);
    if (start) this.#showIdeas(facets);
    filters.show(facets, this.#columns, this.#query.filters);
    button.hidden = start || hits.length < this.#k || this.#k >= MOST || hits.length >= total;
    message.hidden = true;
    if (hits.length) return;
    if (start) this.#say("The catalog is empty", "Fill it with your photos: `lookalike index /my/photos`");
    else if (total && this.#query.isOpen) this.#say("Now add a photo", `${number(total)} products pass these filters.`);
    else if (!String(this.#query.filters)) this.#say("Nothing found", "Try other words, or a photo.");
    else {
      const clear = () => this.#ask({ filters: new Filters() });
      this.#say("Nothing found", "No product passes these filters.", "Clear all filters", clear);
    }
  }

  #like(hit, change) {
    this.#products.set(hit.id, hit);
    this.#ask(change);
  }

  /** A few searches to press, made of the catalog's own most frequent categories and colours. */
  #showIdeas(facets) {
    const values = (role) => {
      const name = this.#columns.find((column) => column.role === role)?.name;
      const facet = facets.find(({ column, kind }) => column === name && kind === "values");
      return facet?.values.map(({ value }) => value) ?? [];
    };
    const colours = values("colour");
    const ideas = values("category").slice(0, 4).map((value, index) =>
      [colours[index % colours.length], value].filter(Boolean).join(" ").toLowerCase());
    const { words, ideas: list } = this.#parts;
    list.hidden = !ideas.length || words.disabled;
    const press = (text) => el("button", { type: "button", class: "lk-chip", onclick: () => this.#ask({ text }) }, text);
    list.replaceChildren("Try ", ...ideas.map(press));
  }

  #say(title, detail, action, onclick) {
    const { message } = this.#parts;
    const [line, ...rest] = detail.split("\n"); // a wrong filter is shown with a caret under the place
    message.replaceChildren(el("h2", {}, title), el("p", {}, ...rich(line)),
      rest.length ? el("pre", {}, rest.join("\n")) : "",
      action ? el("button", { type: "button", class: "lk-chip", onclick }, action) : "");
    message.hidden = false;
  }

  /** Asks for the API key. It goes into a cookie, for photos are asked for by the browser itself. */
  #askKey(again) {
    const input = el("input", { type: "password", required: true, autocomplete: "current-password",
      pattern: "[!#-+\\-.\\/-:<-\\[\\]-~]+", title: "Letters, digits and signs, without spaces" });
    return new Promise((resolve) => {
      const dialog = el("dialog", { class: "lk-dialog", "aria-label": "API key" },
        el("form", { method: "dialog" }, el("h2", {}, again ? "That key was not accepted" : "This catalog is protected"),
          el("label", {}, "API key", input),
          el("div", {}, el("button", { type: "button", class: "lk-chip", onclick: () => dialog.close() }, "Cancel"),
            el("button", { class: "lk-chip lk-strong", value: "use" }, "Continue"))));
      dialog.addEventListener("close", () => {
        const secure = location.protocol === "https:" ? "; Secure" : "";
        if (dialog.returnValue) document.cookie = `lookalike_key=${input.value}; SameSite=Strict; path=/${secure}`;
        dialog.remove();
        resolve(Boolean(dialog.returnValue));
      });
      this.append(dialog);
      dialog.showModal();
    });
  }
}

customElements.define("lookalike-card", LookalikeCard);
customElements.define("lookalike-filters", LookalikeFilters);
customElements.define("lookalike-search", LookalikeSearch);
