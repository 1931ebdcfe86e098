/**
 * Lookalike as web components, for its own page and for any shop's:
 *
 *     <script type="module" src="https://lookalike.example/web/lookalike-search.js"></script>
 *     <lookalike-search></lookalike-search> or <lookalike-similar product="4711"></lookalike-similar>
 *
 * docs/widget.md has their attributes, events and custom properties. Each lives in a shadow root, so that its style and the
 * page's do not meet. Data reaches the document as text and attributes only, never as HTML; nothing is asked of any server
 * but Lookalike's.
 */

const PAGE = 48; // hits of one answer; scrolling asks for the next
const MOST = 1000; // hits that one answer may have, when one comes back to a page scrolled far down
const SAMPLE = 24; // products on the start page
const SIMILAR = 8; // products like the one that is shown
const SHOWN = 8; // values of a filter before "more"
const PAUSE_MS = 350; // typing searches after a pause this long
const GUESS_MS = 1500; // a photo's search waits no longer than this for the guess where the garment is
const SURE = 0.5; // what is seen on a photo is offered as a filter from this confidence on
const LEXICAL = 0.3; // share of word matching in a search by words alone
const VARIETY = 0.5; // diversity, where more variety is asked for
const THUMB_SIDE = 640; // pixels; the copy of a photo that the history keeps
const UPLOAD_SIDE = 1600; // pixels; a photo larger than this, or than UPLOAD_BYTES, is uploaded as that copy
const UPLOAD_BYTES = 2 * 1024 * 1024;
const LEAST_BOX = 0.05; // a box drawn on a photo is at least this wide and high
const NUDGE = 0.02; // of the photo, for one press of an arrow key
const CARD_ROLES = ["category", "colour", "gender"]; // the columns to describe a product by, best first
const WIDE = 960; // pixels, from which the filters stand beside the results; also in style.css
const HOME = new URL("..", import.meta.url).href.replace(/\/$/, ""); // the server that this file came from
const STYLE = new URL("style.css", import.meta.url).href;

const PALETTE = {
  Black: "#1c1c1e", White: "#f7f7f5", Grey: "#8e9196", Beige: "#d9c5a5", Brown: "#74492f", Red: "#c8262c",
  Maroon: "#6f1a2d", Pink: "#ef97b4", Orange: "#ec7a25", Yellow: "#f3c93f", Olive: "#6f7040", Green: "#2f8a4e",
  Teal: "#1f8a8a", Blue: "#2f6cc4", Navy: "#202c56", Purple: "#77419b",
};

const ICONS = {
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.5 15.5 20 20",
  photo: "M4 5h16v14H4zM4 16l4.5-4.5L14 17M12.5 15.5l3-3L20 17M15.5 8.5h.01",
  camera: "M4 8h3.5L9 5.5h6L16.5 8H20v11H4zM12 10a3.2 3.2 0 1 0 0 6.4A3.2 3.2 0 0 0 12 10",
  close: "M7 7l10 10M17 7 7 17",
  plus: "M12 6v12M6 12h12",
  minus: "M6 12h12",
  like: "M9.5 7a5 5 0 1 0 0 10 5 5 0 0 0 0-10M14.5 7a5 5 0 1 1 0 10 5 5 0 0 1 0-10",
  up: "M7.5 11v8H5v-8zM7.5 11l4-7c1.8 0 2.4 1.3 2 3l-.6 3h5.2c1 0 1.6.8 1.4 1.8l-1.3 5.7c-.2.9-.8 1.5-1.7 1.5h-9",
  down: "M16.5 13V5H19v8zM16.5 13l-4 7c-1.8 0-2.4-1.3-2-3l.6-3H5.9c-1 0-1.6-.8-1.4-1.8l1.3-5.7C6 5.6 6.6 5 7.5 5h9",
  dots: "M6 12h.01M12 12h.01M18 12h.01",
  same: "M6 12.5l4 4 8-9",
};

/** An element with its properties (`on…` is a listener, `true` a bare attribute, `false` and null leave it out). */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null && child !== false));
  return node;
}

export function icon(name) {
  const make = (tag, attributes) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const svg = make("svg", { viewBox: "0 0 24 24", class: "lk-icon", "aria-hidden": "true" });
  svg.append(make("path", { d: ICONS[name] }));
  return svg;
}

export const number = (value, digits = 0) => value.toLocaleString(undefined, { maximumFractionDigits: digits });
const readable = (value) => (value === true ? "Yes" : value === false ? "No" : String(value));
const capital = (words) => words.charAt(0).toUpperCase() + words.slice(1);
const path = (id) => String(id).split("/").map(encodeURIComponent).join("/");

/** Text in which `…` stands for code. */
export const rich = (text) => text.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part));

/** `baseColour` and `base_colour` as people write them: "Base colour". */
export function label(column) {
  const words = column.replace(/([a-z\d])([A-Z])/g, "$1 $2").replace(/[_\s]+/g, " ").trim().toLowerCase();
  return capital(words);
}

/** Whether a press of a link is left to the browser: it opens a tab, or downloads. */
const isBrowsers = (event) => event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey;

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

  show(facets, columns, filters, wide) {
    this.#filters = filters;
    const isFlag = ({ column }) => columns.some(({ name, kind }) => name === column && kind === "flag");
    const flag = ({ value, count }) => ({ value: String(value) === "true", count }); // "true" and true alike
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
    const bars = el("div", { class: "lk-bars", "aria-hidden": "true", title: "Draw over the bars to choose a range" });
    body.append(bars, el("div", { class: "lk-range" }, least, el("span", { "aria-hidden": "true" }, "–"), most));
    body.addEventListener("change", () => this.#change(this.#filters.within(column, read(least), read(most))));
    let bins = [];
    const under = ({ clientX }) => {
      const { left, width } = bars.getBoundingClientRect();
      return Math.min(bins.length - 1, Math.max(0, Math.floor(((clientX - left) / width) * bins.length)));
    };
    bars.addEventListener("pointerdown", (event) => {
      const start = under(event);
      bars.setPointerCapture(event.pointerId);
      bars.onpointerup = (end) => {
        const [first, last] = [start, under(end)].sort((a, b) => a - b);
        this.#change(this.#filters.within(column, bins[first].from, bins[last].to));
      };
    });
    return (facet) => {
      const range = this.#filters.ranges.get(column) ?? {};
      for (const [field, bound, hint] of [[least, range[">="], facet.min], [most, range["<="], facet.max]]) {
        field.placeholder = hint;
        if (field !== this.getRootNode().activeElement) field.value = bound ?? "";
      }
      bins = facet.bins ?? [];
      bars.hidden = bins.length < 2;
      const highest = Math.max(1, ...bins.map(({ count }) => count));
      bars.replaceChildren(...bins.map(({ from, to, count }) => {
        const inside = to > (range[">="] ?? -Infinity) && from < (range["<="] ?? Infinity);
        const bar = el("i", { class: inside ? "" : "lk-outside" });
        bar.style.height = count ? `${Math.max(6, (100 * count) / highest)}%` : "0";
        return bar;
      }));
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
      const active = this.getRootNode().activeElement;
      const focused = ticks.contains(active) ? active.value : null;
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

/** What is asked for, and how the answer is to be ordered. */
class Query {
  text = "";
  likes = []; // ids of products
  photo = null; // a data URL
  crop = null; // [x0, y0, x1, y1] in fractions of the photo, null for all of it
  balance = 0.5; // 0: the photo alone counts, 1: the words alone
  colour = ""; // "#rrggbb"
  without = []; // unwanted words
  unlikes = []; // ids of unwanted products
  up = []; // ids of hits that were voted for, and against
  down = [];
  filters = new Filters();
  sort = ""; // a column, with "-" from the highest down
  variety = false;

  /** Reads the address, and from the history entry the photo and the box on it. */
  static fromHistory() {
    const params = new URLSearchParams(location.search);
    const balance = Number(params.get("balance") ?? 0.5);
    const colour = params.get("colour") ?? "";
    return Object.assign(new Query(), {
      text: params.get("text") ?? "",
      likes: params.getAll("like"),
      photo: history.state?.lookalike?.photo ?? null,
      crop: history.state?.lookalike?.crop ?? null,
      balance: balance >= 0 && balance <= 1 ? balance : 0.5,
      colour: /^#[\da-f]{6}$/i.test(colour) ? colour : "",
      without: params.getAll("without"),
      unlikes: params.getAll("unlike"),
      up: params.getAll("up"),
      down: params.getAll("down"),
      filters: Filters.parse(params.get("where") ?? ""),
      sort: params.get("sort") ?? "",
      variety: params.has("variety"),
    });
  }

  with(change) {
    return Object.assign(new Query(), this, change);
  }

  /** Whether there is nothing to be like: filters alone only browse. */
  get isOpen() {
    const { text, photo, colour, likes, without, unlikes } = this;
    return !(text || photo || colour || likes.length || without.length || unlikes.length);
  }

  /** Whether words stand beside a photo or a product, so that the two can be balanced. */
  get isMixed() {
    return Boolean(this.text && (this.photo || this.likes.length));
  }

  /** Whether words alone are asked for: then they also match titles, and that, not the cosine, makes the order. */
  get isWords() {
    return Boolean(this.text) && !this.photo && !this.likes.length;
  }

  /** The address that stands for it, with `extra` fields (null takes one away). The photo does not go there. */
  address(extra = {}) {
    const { text, likes, unlikes, without, colour, up, down, filters, sort } = this;
    const balance = this.isMixed && this.balance !== 0.5 ? this.balance : null;
    const fields = { text, like: likes, unlike: unlikes, without, colour, balance, where: String(filters), sort,
      variety: this.variety ? 1 : null, up, down, product: null, ...extra };
    const params = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(fields)) {
      params.delete(name);
      for (const one of [value ?? ""].flat()) if (one !== "") params.append(name, one);
    }
    return String(params) ? `?${params}` : location.pathname;
  }

  /** The fields of /api/search that ask for it, but for the photo itself. */
  fields() {
    const { text, likes, unlikes, without, colour, up, down, filters, sort, balance, photo, crop } = this;
    const shares = { photo: 1 - balance, like: 1 - balance, text: balance };
    const all = {
      text, like: likes, where: String(filters), colour, sort, fold: true,
      not: (without.length || unlikes.length) && { text: without, like: unlikes },
      feedback: (up.length || down.length) && { up, down },
      weights: this.isMixed && balance !== 0.5 && shares,
      crop: photo && crop,
      diversity: this.variety && VARIETY,
      lexical: this.isWords && LEXICAL,
    };
    return Object.fromEntries(Object.entries(all).filter(([, value]) => value && value.length !== 0));
  }

  /** Whether both ask for the same, the order and the filters aside. */
  asks(other) {
    const key = ({ text, likes, photo, crop, colour }) => JSON.stringify([text, likes, photo, crop, colour]);
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

/** The HTTP API of one server. */
export class Api {
  #asking = null;

  /** `element` says which server and key; `askKey(again)` gets a key from the user and says whether there is one. */
  constructor(element, askKey = null) {
    this.base = (element.getAttribute("server") ?? HOME).replace(/\/$/, "");
    this.key = element.getAttribute("key") ?? "";
    this.askKey = askKey;
  }

  async fetch(path, { headers, ...options } = {}) {
    const cookies = document.cookie;
    let response;
    try {
      response = await fetch(this.base + path,
        { ...options, headers: { ...headers, ...(this.key && { authorization: `Bearer ${this.key}` }) } });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Problem("The server does not answer", "Is `lookalike serve` still running, and the network up?");
    }
    if (response.status === 401 && this.askKey) {
      // Of several requests sent without the key, the last may be refused when the key is there already: then it is sent again.
      const entered = document.cookie !== cookies;
      if (!entered) this.#asking ??= this.askKey(cookies.includes("lookalike_key=")).finally(() => (this.#asking = null));
      if (entered || (await this.#asking)) return this.fetch(path, { headers, ...options });
    }
    if (response.ok) return response;
    const body = await response.json().catch(() => ({}));
    throw new Problem("That did not work", body.detail ?? `The server answered ${response.status}.`);
  }

  async json(path, options) {
    return (await this.fetch(path, options)).json();
  }

  /** Sends `fields` to a route: as a form where there is a photo, else in the address. */
  async ask(route, fields, upload, signal) {
    const data = upload ? new FormData() : new URLSearchParams();
    for (const [name, value] of Object.entries(fields)) {
      if (name === "like") value.forEach((id) => data.append(name, id));
      else data.set(name, typeof value === "object" ? JSON.stringify(value) : value);
    }
    if (!upload) return this.json(`${route}?${data}`, { signal });
    data.set("image", upload, "photo");
    return this.json(route, { method: "POST", body: data, signal });
  }

  async search(query, upload, k, offset, signal) {
    const answer = await this.ask("/api/search", { ...query.fields(), k, ...(offset && { offset }) }, upload, signal);
    if (!query.isWords) return answer;
    return { ...answer, hits: answer.hits.map(({ score, alike, ...hit }) => hit) };
  }

  /** Products without a query, in the shape of a search's answer. */
  async browse(filters, k, signal) {
    const where = String(filters);
    const [counts, { products }] = await Promise.all([
      this.json(`/api/facets?${new URLSearchParams(where && { where })}`, { signal }),
      this.json(`/api/products?${new URLSearchParams(where ? { where, limit: k } : { limit: SAMPLE })}`, { signal }),
    ]);
    const hits = products.map((product) => ({ ...product, photo: product.photos[0] }));
    return { hits, total: counts.products, facets: counts.facets, more: Boolean(where) && k < Math.min(MOST, counts.products) };
  }

  similar(id, k) {
    return this.ask("/api/search", { like: [id], k, fold: true });
  }

  product(id) {
    return this.json(`/api/products/${path(id)}`);
  }

  /** Shows a photo in an <img>, which can send a key in no other way than in the address. */
  show(image, id, ...widths) {
    const key = this.key && `&key=${encodeURIComponent(this.key)}`;
    const address = (width) => `${this.base}/api/photos/${path(id)}?width=${width}${key}`;
    if (widths.length > 1) image.srcset = widths.map((width) => `${address(width)} ${width}w`).join(", ");
    else image.src = address(widths[0]);
    return image;
  }
}

/** Asks for an API key in a dialog within `parent`. It goes into a cookie, for photos are asked for by the browser itself. */
export function askKey(parent, again) {
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
    parent.append(dialog);
    dialog.showModal();
  });
}

// ------------------------------------------------------------------------------------------------------- cards

/** One product of the results. */
class LookalikeCard extends HTMLElement {
  /** `href` and `onopen` lead to the product; `actions` are [icon, text, action, whether it is pressed]. */
  show(hit, { api, columns = [], href, onopen, actions = [] }) {
    const title = hit.title || hit.id;
    const photos = hit.photos ?? [hit.photo];
    const image = hit.photo != null && api.show(el("img", {
      alt: "", width: 240, height: 320, loading: "lazy", decoding: "async", draggable: "false",
      sizes: "(min-width: 60rem) 200px, 45vw", onerror: () => image.remove() }), hit.photo, 240, 480);
    const [text, says] = hit.alike == null ? [hit.score?.toFixed(2), "How alike: the cosine"]
      : [`${hit.alike}%`, "How alike: what such hits share of type, colour and gender"];
    const open = (event) => {
      if (!isBrowsers(event)) onopen?.(event);
    };
    const frame = el("span", { class: "lk-photo", part: "photo" }, image,
      text && el("span", { class: "lk-score", part: "score", title: says }, text,
        el("span", { class: "lk-said" }, hit.alike == null ? " cosine" : " alike")));
    if (photos.length > 1 && image) this.#flip(frame, image, photos, api);
    this.replaceChildren(
      el("a", { class: "lk-card", part: "card", href, onclick: open },
        frame, el("span", { class: "lk-title", part: "title" }, title), about(hit, columns)));
    if (!actions.length) return this;
    const more = el("button", { type: "button", class: "lk-round lk-dots", "aria-label": `Actions: ${title}`,
      "aria-expanded": "false", onclick: () => {
        more.setAttribute("aria-expanded", this.classList.toggle("lk-open"));
        if (this.classList.contains("lk-open")) this.querySelector(".lk-actions button").focus();
      } }, icon("dots"));
    this.append(more, el("div", { class: "lk-actions", role: "group", "aria-label": `Actions: ${title}` },
      ...actions.map(([symbol, name, action, pressed]) =>
        el("button", { type: "button", class: "lk-round", part: "action", title: name, "data-action": symbol,
          "aria-label": `${name}: ${title}`, "aria-pressed": pressed === undefined ? null : String(pressed),
          onclick: () => action(hit) }, icon(symbol)))));
    return this;
  }

  /** Moving over the photo leafs through the product's others; the dialog has them for the keyboard. */
  #flip(frame, image, photos, api) {
    const dots = photos.slice(0, 8).map(() => el("i"));
    frame.append(el("span", { class: "lk-dotted", "aria-hidden": "true" }, ...dots),
      el("span", { class: "lk-said" }, `${photos.length} photos`));
    let shown = 0;
    const show = (index) => {
      if (index === shown) return;
      shown = index;
      api.show(image, photos[index], 240, 480);
      mark();
    };
    const mark = () => dots.forEach((dot, index) => dot.classList.toggle("lk-on", index === shown));
    frame.addEventListener("pointermove", ({ offsetX, pointerType }) => {
      if (pointerType !== "mouse") return;
      show(Math.min(dots.length - 1, Math.max(0, Math.floor((offsetX / frame.clientWidth) * dots.length))));
    });
    frame.addEventListener("pointerleave", () => show(0));
    mark();
  }
}

/** A line about a hit: what of it agrees with what was asked and what differs, else two or three words that describe it. */
function about(hit, columns) {
  const [same, other] = [true, false].map((agrees) => (hit.why ?? []).filter((reason) => reason.agrees === agrees));
  const line = el("span", { class: "lk-about", part: "about" });
  if (!same.length && !other.length) {
    line.append(describe(hit.attributes ?? {}, columns).join(" · "));
    return line;
  }
  line.title = sentences(hit);
  const reason = (kind, symbol, said) => ({ has }) =>
    el("span", { class: kind }, icon(symbol), el("span", { class: "lk-said" }, said), capital(readable(has)));
  line.append(...same.map(reason("lk-same", "same", "same: ")), ...other.map(reason("lk-other", "close", "differs: ")));
  return line;
}

/** Why a hit is alike, as text: "Same: article type (Dresses). Differs: gender (Men, not Women)." */
function sentences({ why = [] }) {
  const list = (agrees) => why.filter((reason) => reason.agrees === agrees).map(({ column, asked, has }) =>
    `${label(column).toLowerCase()} (${readable(has)}${agrees ? "" : `, not ${readable(asked)}`})`).join(", ");
  const [same, other] = [list(true), list(false)];
  return [same && `Same: ${same}.`, other && `Differs: ${other}.`].filter(Boolean).join(" ");
}

/** Two or three short words about a product, from the columns whose role is known, then from other text columns. */
function describe(attributes, columns) {
  const roles = CARD_ROLES.map((role) => columns.find((column) => column.role === role));
  const others = columns.filter(({ kind, role }) => kind === "text" && !["id", "title", "image"].includes(role));
  const values = [...roles, ...others].map((column) => column && attributes[column.name]);
  return [...new Set(values.filter((value) => value != null && value !== "").map(String))]
    .filter((value) => value.length <= 28).slice(0, 3);
}

// -------------------------------------------------------------------------------------------- a part of the photo

/** A photo with a box on it. Says what was drawn by a `crop` event whose detail is [x0, y0, x1, y1], or null for all of it. */
class LookalikeCrop extends HTMLElement {
  #box = null;
  #image = el("img", { alt: "Your photo", draggable: "false" });
  #frame = el("div", { class: "lk-box", tabindex: 0, role: "application", "aria-roledescription": "box" },
    ...["00", "10", "01", "11"].map((corner) => el("i", { "data-corner": corner })));
  #pause = 0;

  show(url, box) {
    if (!this.firstChild) {
      this.append(this.#image, this.#frame);
      this.addEventListener("pointerdown", (event) => this.#drag(event));
      this.#frame.addEventListener("keydown", (event) => this.#key(event));
    }
    if (this.#image.src !== url) this.#image.src = url;
    this.#draw(box);
  }

  #draw(box) {
    this.#box = box;
    const [x0, y0, x1, y1] = box ?? [0, 0, 1, 1];
    const percent = (share) => `${100 * share}%`;
    Object.assign(this.#frame.style,
      { left: percent(x0), top: percent(y0), width: percent(x1 - x0), height: percent(y1 - y0) });
    this.classList.toggle("lk-whole", !box);
    const [left, top, right, bottom] = [x0, y0, x1, y1].map((share) => Math.round(100 * share));
    this.#frame.setAttribute("aria-label", (box
      ? `The part that counts: ${left} to ${right} % across, ${top} to ${bottom} % down.` : "The whole photo counts.")
      + " Arrows move the box, with Shift they size it, Delete takes it away.");
  }

  #say() {
    this.dispatchEvent(new CustomEvent("crop", { detail: this.#box?.map((share) => Number(share.toFixed(3))) ?? null }));
  }

  /** Draws a new box, or moves or sizes the one there is. */
  #drag(down) {
    if (down.button) return;
    down.preventDefault();
    this.#frame.focus({ preventScroll: true });
    const { left, top, width, height } = this.#image.getBoundingClientRect();
    const inside = (share) => Math.min(1, Math.max(0, share));
    const at = ({ clientX, clientY }) => [inside((clientX - left) / width), inside((clientY - top) / height)];
    const before = this.#box;
    const [x, y] = at(down);
    const corner = down.target.dataset.corner;
    const moves = before && down.target === this.#frame;
    const [ax, ay] = corner ? [(before ?? [0, 0, 1, 1])[corner[0] === "1" ? 0 : 2], (before ?? [0, 0, 1, 1])[corner[1] === "1" ? 1 : 3]] : [x, y];
    const life = new AbortController();
    const listen = (type, listener) => this.addEventListener(type, listener, { signal: life.signal });
    this.setPointerCapture(down.pointerId);
    listen("pointermove", (event) => {
      const [px, py] = at(event);
      if (moves) this.#draw(shifted(before, px - x, py - y));
      else this.#draw([Math.min(ax, px), Math.min(ay, py), Math.max(ax, px), Math.max(ay, py)]);
    });
    const end = () => {
      life.abort();
      const [x0, y0, x1, y1] = this.#box ?? [0, 0, 1, 1];
      if (x1 - x0 < LEAST_BOX || y1 - y0 < LEAST_BOX) this.#draw(before); // a press, not a box
      if (String(this.#box) !== String(before)) this.#say();
    };
    listen("pointerup", end);
    listen("pointercancel", end);
  }

  #key(event) {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] ?? [];
    const clears = event.key === "Delete" || event.key === "Backspace";
    if (dx === undefined && !clears) return;
    event.preventDefault();
    if (clears) this.#draw(null);
    else {
      const box = this.#box ?? [0.1, 0.1, 0.9, 0.9];
      const [x0, y0, x1, y1] = box;
      const far = (near, value, step) => Math.min(1, Math.max(near + LEAST_BOX, value + step * NUDGE));
      this.#draw(event.shiftKey ? [x0, y0, far(x0, x1, dx), far(y0, y1, dy)] : shifted(box, dx * NUDGE, dy * NUDGE));
    }
    clearTimeout(this.#pause);
    this.#pause = setTimeout(() => this.#say(), PAUSE_MS);
  }
}

/** A box moved by (dx, dy), as far as the photo goes. */
function shifted([x0, y0, x1, y1], dx, dy) {
  const x = Math.min(1 - x1, Math.max(-x0, dx));
  const y = Math.min(1 - y1, Math.max(-y0, dy));
  return [x0 + x, y0 + y, x1 + x, y1 + y];
}

// ------------------------------------------------------------------------------------------------ the elements

/** What the elements for other pages share. */
class LookalikeElement extends HTMLElement {
  /** Fills the shadow root; nothing is seen before the style is there. */
  fill(...nodes) {
    const root = el("div", { class: "lk-root", part: "root", hidden: true }, ...nodes);
    const seen = () => (root.hidden = false);
    const sheet = el("link", { rel: "stylesheet", href: STYLE, onload: seen, onerror: seen });
    (this.shadowRoot ?? this.attachShadow({ mode: "open" })).replaceChildren(sheet, root);
    return root;
  }

  /** Fires an event that a shop can listen to; false where it was cancelled. */
  emit(name, detail) {
    const options = { detail, bubbles: true, composed: true, cancelable: true };
    return this.dispatchEvent(new CustomEvent(`lookalike-${name}`, options));
  }

  /** Where a press of a product leads: the shop's page of it, where the attribute `product-url` says which. */
  productUrl(id) {
    return this.getAttribute("product-url")?.replaceAll("{id}", path(id));
  }
}

class LookalikeSearch extends LookalikeElement {
  #query = new Query();
  #count = 0; // hits that are shown
  #status = null; // the answer of /api/status, asked for once
  #columns = [];
  #uploads = new Map(); // data URL of a photo → what to upload for it
  #seen = new Map(); // data URL of a photo → promise of what /api/tag sees on it
  #products = new Map(); // id → product or hit, for the chips and the dialog
  #running = new AbortController(); // the search under way
  #life = new AbortController(); // the listeners outside this element
  #pause = 0; // timer of typing
  #live = false; // whether the newest history entry was made by typing or sliding
  #title = document.title; // the page's own
  #parts = {};

  /** Whether this is the page, and not a part of one: then the address, the history and whatever is dropped belong to it. */
  get #isPage() {
    return this.hasAttribute("page");
  }

  connectedCallback() {
    this.api = new Api(this, this.#isPage ? (again) => askKey(this.shadowRoot.lastChild, again) : null);
    this.#build();
    this.#life = new AbortController();
    const listen = (target, type, listener) => target.addEventListener(type, listener, { signal: this.#life.signal });
    const files = (event) => event.dataTransfer?.types.includes("Files");
    const scope = this.#isPage ? document : this;
    const drops = (yes) => this.#parts.overlay.classList.toggle("lk-dropping", yes);
    const isOurs = (event) => files(event) && !event.composedPath().some((node) => node.localName === "lookalike-catalog");
    listen(scope, "paste", (event) => {
      const words = event.clipboardData.types.includes("text/plain") && event.composedPath()[0].matches?.("input, textarea");
      if (event.clipboardData.files.length && !words) this.#take(event, event.clipboardData.files);
    });
    listen(scope, "dragover", (event) => {
      if (!isOurs(event)) return;
      event.preventDefault();
      drops(true);
    });
    listen(scope, "dragleave", (event) => event.relatedTarget ?? drops(false));
    listen(scope, "drop", (event) => {
      drops(false);
      if (isOurs(event)) this.#take(event, event.dataTransfer.files);
    });
    listen(window, "online", () => this.#parts.message.hidden || this.#run({}));
    if (this.#isPage) {
      listen(window, "popstate", () => this.#restore());
      listen(window, "pagehide", () => this.#keepPlace());
      history.scrollRestoration = "manual";
      this.#restore();
    } else this.#run({ fresh: true });
  }

  disconnectedCallback() {
    this.#life.abort();
    this.#running.abort();
  }

  /** Makes the parts that stay; what they hold is filled in by #showQuery and #show. */
  #build() {
    const part = (name, tag, props, ...children) =>
      (this.#parts[name] = el(tag, { class: `lk-${name}`, part: name, ...props }, ...children));
    const picker = (name, props) =>
      part(name, "input", { type: "file", accept: "image/*", hidden: true, ...props,
        onchange: (event) => this.#take(event, event.target.files).then(() => (this.#parts[name].value = "")) });
    const press = (name, text, symbol, props) =>
      el("button", { type: "button", class: `lk-button ${name}`, title: text, "aria-label": text, ...props }, icon(symbol));
    const home = (event) => {
      if (isBrowsers(event)) return;
      event.preventDefault();
      this.#ask({ ...new Query(), text: "" });
    };
    const pick = () => this.#parts.pick.click();
    const slide = (live) => () => this.#slide(live);
    const root = this.fill(
      el("header", { class: "lk-head" },
        this.#isPage && el("h1", { class: "lk-brand" }, el("a", { href: location.pathname, onclick: home }, "Lookalike")),
        el("form", { class: "lk-form", part: "form", role: "search", onsubmit: (event) => this.#submit(event) },
          part("likes", "ul", { "aria-label": "Products and photos that are asked for" }),
          part("words", "input", { type: "search", name: "text", "aria-label": "Words", autocomplete: "off",
            enterkeyhint: "search", oninput: () => this.#type() }),
          picker("pick"), picker("shoot", { capture: "environment" }),
          press("lk-touch", "Take a photo", "camera", { onclick: () => this.#parts.shoot.click() }),
          press("", "Choose a photo", "photo", { onclick: pick }),
          press("lk-go", "Search", "search", { type: "submit" })),
        part("desk", "a", { href: "#catalog", hidden: true }, "Catalog"),
        el("button", { type: "button", class: "lk-skip", onclick: () => this.#parts.results.focus() }, "Skip to results")),
      part("notice", "div", { role: "note", hidden: true }),
      part("catalog", "div", { hidden: true }),
      part("hero", "section", { hidden: true, "aria-label": "Start" },
        el("h2", {}, "Find the one that looks like it"),
        el("p", {}, "Start from a photo, from words, or from both: a picture of a dress and “but in red”."),
        el("button", { type: "button", class: "lk-drop", onclick: pick }, icon("photo"),
          el("span", {}, el("b", {}, "Choose a photo"), el("span", {}, " or drop or paste one anywhere"))),
        part("ideas", "p", { hidden: true })),
      part("body", "div", {},
        part("drawer", "details", {}, part("tally", "summary"),
          el("div", { class: "lk-scroll" },
            part("palette", "details", { class: "lk-group", open: true, hidden: true }, el("summary", {}, "Colour of the garment"),
              el("div", { class: "lk-group-body" }, part("swatches", "div", { role: "group", "aria-label": "Colour of the garment" }),
                el("label", { class: "lk-another" }, "Another ",
                  part("own", "input", { type: "color", value: "#7b2d46", onchange: (event) => this.#ask({ colour: event.target.value }) })))),
            part("filters", "lookalike-filters", { onfilters: ({ detail }) => this.#ask({ filters: detail }) }))),
        part("results", "section", { "aria-label": "Results", tabindex: -1 },
          part("compose", "section", { "aria-label": "Your photo and words", hidden: true },
            part("crop", "lookalike-crop", { oncrop: ({ detail }) => this.#ask({ crop: detail }) }),
            el("div", { class: "lk-tune" },
              part("hint", "p", {}, "Draw a box around the garment that counts. ",
                part("whole", "button", { type: "button", class: "lk-link", onclick: () => this.#ask({ crop: null }) }, "Whole photo")),
              part("balance", "label", {}, part("near", "span", {}, "this photo"),
                part("slider", "input", { type: "range", min: 0, max: 1, step: 0.05, "aria-label": "From this photo to these words",
                  oninput: slide(true), onchange: slide(false) }),
                el("span", {}, "these words")),
              part("mine", "div", { role: "group", "aria-label": "What is seen on the photo", hidden: true }))),
          el("div", { class: "lk-bar" },
            part("count", "p", { role: "status" }),
            part("without", "form", { onsubmit: (event) => this.#leaveOut(event) },
              el("input", { placeholder: "without …", "aria-label": "Without", autocomplete: "off", maxlength: 200 })),
            part("tools", "div", {},
              part("variety", "label", { title: "Hits that differ more from one another" },
                part("diverse", "input", { type: "checkbox", role: "switch",
                  onchange: (event) => this.#ask({ variety: event.target.checked }) }), "More variety"),
              part("sort", "select", { "aria-label": "Sort", onchange: (event) => this.#ask({ sort: event.target.value }) }))),
          part("chips", "ul", { "aria-label": "What is asked for" }),
          part("honest", "div", { role: "status" }),
          part("message", "div", { role: "alert", hidden: true }),
          part("grid", "ul", { "aria-label": "Products", onkeydown: (event) => this.#walk(event) }),
          part("more", "button", { type: "button", hidden: true, onclick: () => this.#more() }, "Show more"))),
      part("product", "dialog", { "aria-label": "Product", onclose: () => this.#closed(),
        onclick: (event) => event.target === this.#parts.product && this.#parts.product.close() }),
      part("overlay", "div", { "aria-hidden": "true" }, el("p", {}, icon("photo"), "Drop the photo to search")));
    const { drawer, more, swatches } = this.#parts;
    swatches.append(...Object.entries(PALETTE).map(([name, hex]) => this.#swatch(hex, name)));
    let wide = null;
    new ResizeObserver(() => {
      if (wide !== (wide = root.clientWidth >= WIDE)) drawer.open = wide;
    }).observe(root);
    new IntersectionObserver(([entry]) => entry.isIntersecting && this.#more(), { rootMargin: "600px" }).observe(more);
  }

  /** A colour to press; pressed again, it is taken away. */
  #swatch(hex, name) {
    const button = el("button", { type: "button", class: "lk-swatch", title: name, "aria-label": name, "data-hex": hex, "data-action": `colour ${hex}`,
      onclick: () => this.#ask({ colour: this.#query.colour === hex ? "" : hex }) });
    button.style.background = hex;
    return button;
  }

  // -- the query and the address bar

  /** Changes the query, writes it into the history and searches. */
  #ask(change, { live = false } = {}) {
    const before = this.#query;
    const { words } = this.#parts;
    let after = before.with({ text: words.value.trim(), ...change });
    if (!after.asks(before) && !change.up) after = after.with({ up: [], down: [] }); // votes are about one search
    if (!this.emit("search", { query: { ...after, filters: undefined, where: String(after.filters) } })) return;
    this.#query = after;
    if (words.value.trim() !== after.text) words.value = after.text;
    const fresh = !after.asks(before);
    if (this.#isPage) {
      const elsewhere = location.hash || new URLSearchParams(location.search).has("product");
      if (fresh || elsewhere || after.address() !== before.address()) {
        const replaces = live && this.#live;
        if (!replaces) this.#keepPlace();
        const state = { lookalike: { photo: after.photo, crop: after.crop } };
        history[replaces ? "replaceState" : "pushState"](state, "", after.address());
        this.#live = live;
      }
      this.#showPlace();
    }
    this.#run({ fresh });
  }

  /** Takes the query, and what is opened over it, from the address bar and the history. */
  #restore() {
    const before = this.#query;
    this.#query = Query.fromHistory();
    this.#live = false;
    this.#showPlace();
    if (this.#count && this.#query.asks(before) && this.#query.address() === before.address()) return;
    this.#parts.words.value = this.#query.text;
    const { count, y } = history.state?.lookalike ?? {};
    this.#run({ k: Math.min(MOST, Math.max(PAGE, count ?? 0)), y: y ?? 0, fresh: !this.#query.asks(before) });
  }

  /** Notes how far down the page one is, for coming back to it. */
  #keepPlace() {
    const lookalike = { ...history.state?.lookalike, count: this.#count, y: scrollY };
    history.replaceState({ ...history.state, lookalike }, "");
  }

  /** Opens what the address names beside the search: a product, or the work on the catalog. */
  async #showPlace() {
    const { body, hero, catalog, desk } = this.#parts;
    this.#showProduct(new URLSearchParams(location.search).get("product"));
    const works = /^#catalog(?:=(.*))?$/.exec(location.hash);
    if (works) desk.setAttribute("aria-current", "page");
    else desk.removeAttribute("aria-current");
    catalog.hidden = !works;
    body.hidden = Boolean(works);
    hero.classList.toggle("lk-away", Boolean(works));
    if (!works) return catalog.replaceChildren();
    const { LookalikeCatalog } = await import("./lookalike-catalog.js");
    if (location.hash.startsWith("#catalog")) {
      catalog.replaceChildren(new LookalikeCatalog(this.api, decodeURIComponent(works[1] ?? "")));
      scrollTo(0, 0);
    }
  }

  #type() {
    clearTimeout(this.#pause);
    const text = this.#parts.words.value.trim();
    this.#pause = setTimeout(() => text !== this.#query.text && this.#ask({}, { live: true }), PAUSE_MS);
  }

  #slide(live) {
    clearTimeout(this.#pause);
    const { slider } = this.#parts;
    this.#pause = setTimeout(() => {
      if (slider.valueAsNumber !== this.#query.balance) this.#ask({ balance: slider.valueAsNumber }, { live: true });
      if (!live) this.#live = false;
    }, live ? PAUSE_MS / 2 : 0);
  }

  #submit(event) {
    event.preventDefault();
    this.#ask({});
    this.#live = false;
  }

  #leaveOut(event) {
    event.preventDefault();
    const [input] = event.target.elements;
    const words = input.value.trim();
    input.value = "";
    if (words && !this.#query.without.includes(words)) this.#ask({ without: [...this.#query.without, words] });
  }

  async #take(event, [file]) {
    event.preventDefault();
    if (!file) return;
    try {
      const { url, upload } = await readPhoto(file);
      this.#uploads.set(url, upload);
      const late = new Promise((resolve) => setTimeout(resolve, GUESS_MS));
      const seen = await Promise.race([this.#see(url), late]);
      this.#ask({ photo: url, crop: seen?.box ?? null, likes: [] });
    } catch {
      this.#say("This is not a photo that can be read", `${file.name} was left out. JPEG, PNG and WebP work everywhere.`);
      this.#parts.message.scrollIntoView({ block: "nearest" });
    }
  }

  /** What the server sees on a photo: where the garment is, and its colours. */
  #see(photo) {
    if (!this.#seen.has(photo)) {
      const seen = this.api.ask("/api/tag", {}, this.#upload(photo)).catch(() => ({})); // the search says what is wrong
      this.#seen.set(photo, seen);
    }
    return this.#seen.get(photo);
  }

  #upload(photo) {
    if (!this.#uploads.has(photo)) this.#uploads.set(photo, toBlob(photo));
    return this.#uploads.get(photo);
  }

  // -- searching

  /** Asks the server and shows the answer; `fresh` where the present results have nothing to do with it. */
  async #run({ k = PAGE, y = null, more = false, fresh = false }) {
    this.#running.abort();
    clearTimeout(this.#pause);
    const { signal } = (this.#running = new AbortController());
    const { results, grid } = this.#parts;
    this.#showQuery();
    results.setAttribute("aria-busy", "true");
    if (!more) this.#parts.more.hidden = true; // else it comes into view below the skeletons, and presses itself
    const bones = () => Array.from({ length: 12 }, () => el("li", { class: "lk-skeleton" }));
    const skeletons = () => this.#redraw(() => grid.replaceChildren(...bones()));
    const waiting = fresh || !grid.children.length ? setTimeout(skeletons, 120) : 0;
    try {
      const asked = this.#status ?? this.api.json("/api/status", { signal });
      if (this.#query.text) this.#showStatus((this.#status = await asked)); // some encoders read no words: then there are none
      const [status, answer] = await Promise.all([asked, this.#answer(k, more ? this.#count : 0, signal)]);
      if (signal.aborted) return;
      this.#showStatus((this.#status = status));
      this.#show(answer, more);
      if (y !== null) scrollTo(0, y);
      else if (!more && grid.getBoundingClientRect().top < 0) this.scrollIntoView();
    } catch (error) {
      if (signal.aborted) return;
      if (!more) grid.replaceChildren();
      if (!more) this.#parts.count.textContent = "";
      this.#parts.more.hidden = true;
      this.#say(error.title ?? "Something went wrong", error.message, "Try again", () => this.#run({ k, more }));
      if (!error.title) throw error;
    } finally {
      clearTimeout(waiting);
      if (!signal.aborted) results.setAttribute("aria-busy", "false");
    }
  }

  #answer(k, offset, signal) {
    const { photo, filters, isOpen } = this.#query;
    if (isOpen) return this.api.browse(filters, offset + k, signal);
    return this.api.search(this.#query, photo && this.#upload(photo), k, offset, signal);
  }

  #more() {
    const { results, more } = this.#parts;
    if (more.hidden || results.getAttribute("aria-busy") === "true") return;
    this.#run({ more: true });
  }

  /** Changes part of the page, and puts the focus back where it was: on the same action, else on the results. */
  #redraw(change) {
    const { activeElement: active } = this.shadowRoot;
    const id = active?.closest("[data-id]")?.dataset.id;
    const action = active?.dataset.action;
    change();
    if (!active || active.isConnected) return;
    const place = id ? [...this.#parts.grid.children].find((item) => item.dataset.id === id) : this.#parts.compose;
    const same = action && [...(place?.querySelectorAll("[data-action]") ?? [])].find(({ dataset }) => dataset.action === action);
    (same ?? this.#parts.results).focus({ preventScroll: true });
  }

  // -- showing

  #showStatus({ encoder, columns, drawn, colours, scopes = [] }) {
    const { words, notice, palette, desk, sort } = this.#parts;
    words.disabled = !encoder.text;
    palette.hidden = !colours;
    desk.hidden = !this.#isPage || !scopes.includes("write");
    if (this.#columns !== columns) {
      this.#columns = columns;
      const numbers = columns.filter(({ kind }) => kind === "number");
      sort.replaceChildren(el("option", { value: "" }, "Best match first"), ...numbers.flatMap(({ name }) => [
        el("option", { value: name }, `${label(name)}, low to high`), el("option", { value: `-${name}` }, `${label(name)}, high to low`)]));
      sort.value = this.#query.sort;
    }
    const notes = [
      drawn && "These are drawings made by `lookalike demo`, not photos of real products. " +
        "Point Lookalike at yours: `lookalike index /my/photos`",
      !encoder.text && `Words are off: the encoder \`${encoder.name}\` understands photos only.`,
    ].filter(Boolean);
    notice.hidden = !notes.length || !this.#isPage;
    notice.replaceChildren(...notes.map((note) => el("p", {}, ...rich(note))));
    if (encoder.text || !words.value) return;
    words.value = "";
    this.#query = this.#query.with({ text: "" });
    this.#showQuery();
  }

  /** What is asked for: in the search box, above the results, and beside the photo. */
  #showQuery() {
    this.#redraw(() => {
      this.#showBox();
      this.#showChips();
      this.#showCompose();
    });
    if (this.#isPage) document.title = this.#query.text ? `${this.#query.text} – ${this.#title}` : this.#title;
  }

  /** The photos within the search box. */
  #showBox() {
    const { photo, likes, unlikes } = this.#query;
    const { words, likes: list } = this.#parts;
    const thumb = (image, title, without, mark) =>
      el("li", { class: "lk-like", title }, image ?? el("span", {}, title), mark && el("b", { "aria-hidden": "true" }, mark),
        el("button", { type: "button", "aria-label": `Remove: ${title}`, onclick: () => this.#ask(without) }, icon("close")));
    const product = (id, name, part, mark) => {
      const known = this.#product(id);
      const title = `${name} ${known.title || id}`;
      const image = known.photo == null ? null : this.api.show(el("img", { alt: title, draggable: "false" }), known.photo, 240);
      return thumb(image, title, { [part]: this.#query[part].filter((other) => other !== id) }, mark);
    };
    const own = photo && thumb(el("img", { src: photo, alt: "Your photo", draggable: "false" }), "Your photo", { photo: null });
    list.replaceChildren(...(own ? [own] : []), ...likes.map((id) => product(id, "Like", "likes")),
      ...unlikes.map((id) => product(id, "Less like", "unlikes", "−")));
    words.placeholder = words.disabled ? "Choose or drop a photo" : photo || likes.length ? "… but in red" : "Describe it";
  }

  /** What is asked for in words, each to be taken away, and the settings above the results. */
  #showChips() {
    const { filters, without, colour, up, down, isOpen, sort, variety, crop } = this.#query;
    const { chips, tally, tools, without: form, sort: menu, diverse, swatches, own } = this.#parts;
    const chip = (name, title, change, mark) => el("li", {}, el("button", { type: "button", class: "lk-chip", "aria-label": title,
      onclick: () => this.#ask(change) }, mark, name, name !== "Clear all" && icon("close")));
    const active = filters.active();
    const list = active.map(([name, rest]) => chip(name, `Remove the filter ${name}`, { filters: rest }));
    if (colour) {
      const [name] = Object.entries(PALETTE).find(([, hex]) => hex === colour) ?? [colour];
      const mark = el("i", { class: "lk-dot" });
      mark.style.background = colour;
      list.push(chip(name, `Remove the colour ${name}`, { colour: "" }, mark));
    }
    if (crop) list.push(chip("Part of the photo", "Search with the whole photo", { crop: null }));
    for (const words of without) {
      const rest = without.filter((other) => other !== words);
      list.push(chip(`without ${words}`, `Remove: without ${words}`, { without: rest }));
    }
    const votes = up.length + down.length;
    if (votes) list.push(chip(`${votes} ${votes === 1 ? "vote" : "votes"}`, "Forget the votes", { up: [], down: [] }));
    if (list.length > 1) {
      list.push(chip("Clear all", "Clear all",
        { filters: new Filters(), colour: "", crop: null, without: [], up: [], down: [] }));
    }
    chips.replaceChildren(...list);
    tally.textContent = active.length ? `Filters (${active.length})` : "Filters";
    form.hidden = tools.hidden = isOpen;
    menu.value = sort;
    diverse.checked = variety;
    own.classList.toggle("lk-on", Boolean(colour) && !Object.values(PALETTE).includes(colour));
    if (colour) own.value = colour;
    for (const swatch of swatches.children) swatch.setAttribute("aria-pressed", swatch.dataset.hex === colour);
  }

  /** The photo with its box and its colours, and the balance between it and the words. */
  async #showCompose() {
    const { photo, crop, isMixed, balance, likes, colour } = this.#query;
    const { compose, crop: frame, hint, whole, balance: row, slider, near, mine } = this.#parts;
    compose.hidden = !photo && !isMixed;
    frame.hidden = hint.hidden = !photo;
    whole.hidden = !crop;
    row.hidden = !isMixed;
    near.textContent = photo && !likes.length ? "this photo" : "this product";
    if (slider !== this.shadowRoot.activeElement) slider.value = balance;
    slider.setAttribute("aria-valuetext", `${Math.round(100 * balance)} % words`);
    if (!photo) {
      mine.hidden = true;
      return;
    }
    frame.show(photo, crop);
    const { colours = [], tags = [] } = await this.#see(photo);
    if (this.#query.photo !== photo) return;
    const { filters } = this.#query;
    const known = tags.filter(({ role }) => CARD_ROLES.includes(role)).map(({ column, values: [best] }) => ({ column, ...best }));
    const seen = known.filter(({ confidence }) => confidence >= SURE).map(({ column, value }) => {
      const on = filters.values.get(column)?.includes(value) ?? false;
      return el("button", { type: "button", class: "lk-chip", "data-action": `tag ${column}`, "aria-pressed": String(on),
        title: `Only ${value}`, onclick: () => this.#ask({ filters: this.#query.filters.tick(column, value, !on) }) }, value);
    });
    const swatches = this.#status?.colours ? colours.map(({ hex }) => this.#swatch(hex, `Colour ${hex}`)) : [];
    for (const swatch of swatches) swatch.setAttribute("aria-pressed", swatch.dataset.hex === colour);
    this.#redraw(() => mine.replaceChildren(...(seen.length ? [el("span", {}, "Looks like"), ...seen] : []),
      ...(swatches.length ? [el("span", {}, "in"), ...swatches] : [])));
    mine.hidden = !seen.length && !swatches.length;
  }

  /** What is known of a product; where nothing is, it is fetched and the chips are made anew. */
  #product(id) {
    if (!this.#products.has(id)) {
      this.#products.set(id, { id, title: id });
      this.api.product(id)
        .then((product) => this.#products.set(id, { ...product, photo: product.photos[0] }) && this.#showQuery())
        .catch(() => {}); // the search itself says what is wrong
    }
    return this.#products.get(id);
  }

  #show({ hits, total, more: goesOn, facets, took_ms: took, no_good_match: nothing, corrected = {} }, more) {
    const { grid, count, message, hero, filters, more: button, honest } = this.#parts;
    const start = this.#query.isOpen && !String(this.#query.filters);
    const before = more ? grid.querySelectorAll("[data-id]").length : 0;
    this.#redraw(() => {
      if (!more) grid.replaceChildren();
      const shown = new Set([...grid.children].map((item) => item.dataset.id));
      grid.append(...hits.filter(({ id }) => !shown.has(id)).map((hit, index) => this.#item(hit, before + index)));
    });
    this.#count = grid.querySelectorAll(":scope > :not(.lk-folded)").length;
    const time = took === undefined ? "" : `, ${number(took, took < 10 ? 1 : 0)} ms`;
    count.textContent = start ? `${number(total)} products` : `${number(this.#count)} of ${number(total)} products${more ? "" : time}`;
    const words = Object.entries(corrected);
    honest.replaceChildren(
      ...(words.length ? [el("p", {}, "Showing results for ", el("b", {}, words.map(([, right]) => right).join(", ")),
        ` instead of ${words.map(([wrong]) => wrong).join(", ")}.`)] : []),
      ...(nothing && hits.length ? [el("p", {}, el("b", {}, "No good match."), " Nothing here is much like that; these are the closest.")] : []));
    hero.hidden = !start || !this.#isPage;
    if (start) this.#showIdeas(facets);
    filters.show(facets, this.#columns, this.#query.filters, this.#parts.drawer.open);
    button.hidden = start || !goesOn;
    message.hidden = true;
    this.emit("results", { total, hits: hits.map(({ id, title, score, alike }) => ({ id, title, score, alike })) });
    if (hits.length || more) return;
    if (start) this.#say("The catalog is empty", "Fill it with your photos: `lookalike index /my/photos`");
    else if (total && this.#query.isOpen) this.#say("Now add a photo", `${number(total)} products pass these filters.`);
    else if (!String(this.#query.filters)) this.#say("Nothing found", "Try other words, or a photo.");
    else {
      const clear = () => this.#ask({ filters: new Filters() });
      this.#say("Nothing found", "No product passes these filters.", "Clear all filters", clear);
    }
  }

  /** A hit in the grid; what was folded under it comes after it when asked for. */
  #item(hit, index) {
    const item = el("li", { "data-id": hit.id }, this.#card(hit, index, this.#actions(hit)));
    if (!hit.folded?.length) return item;
    const name = `+${hit.folded.length} alike`;
    const fold = el("button", { type: "button", class: "lk-fold", "aria-expanded": "false", "data-action": "fold",
      "aria-label": `${name}: ${hit.title || hit.id}`, onclick: () => {
        const open = fold.getAttribute("aria-expanded") === "false";
        fold.setAttribute("aria-expanded", open);
        if (open) item.after(...hit.folded.map((other) => el("li", { class: "lk-folded", "data-under": hit.id }, this.#card(other, index))));
        else for (const other of [...item.parentNode.children]) if (other.dataset.under === hit.id) other.remove();
      } }, name);
    item.append(fold);
    return item;
  }

  #card(hit, index, actions = []) {
    const url = this.productUrl(hit.id);
    return el("lookalike-card").show(hit, { api: this.api, columns: this.#columns, actions,
      href: url ?? (this.#isPage ? this.#query.address({ product: hit.id }) : `${this.api.base}/?product=${encodeURIComponent(hit.id)}`),
      onopen: (event) => {
        if (!this.emit("click", { product: hit.id, title: hit.title, index })) event.preventDefault();
        else if (!url) {
          event.preventDefault();
          this.#open(hit);
        }
      } });
  }

  /** What can be done with a hit, as a card wants it. */
  #actions({ id }) {
    const { likes, unlikes, up, down, isOpen } = this.#query;
    const rest = (list) => list.filter((other) => other !== id);
    const keep = (change) => (hit) => {
      this.#products.set(id, hit);
      this.#ask(change);
    };
    const only = { ...new Query(), text: "", likes: [id], filters: this.#query.filters, variety: this.#query.variety };
    const actions = [["like", "More like this", keep(only)]];
    if (!isOpen) actions.push(["plus", "Add to the search", keep({ likes: [...rest(likes), id], unlikes: rest(unlikes) })]);
    actions.push(["minus", "Less like this", keep({ unlikes: [...rest(unlikes), id], likes: rest(likes) })]);
    if (isOpen) return actions;
    return [...actions,
      ["up", "A good match", () => this.#vote(id, "up"), up.includes(id)],
      ["down", "Not a match", () => this.#vote(id, "down"), down.includes(id)]];
  }

  /** Notes a vote, or takes it back; the present search is ordered by it, and the server keeps it where it does so. */
  #vote(id, kind) {
    const { up, down, text, likes, without, unlikes, filters, colour } = this.#query;
    const given = (kind === "up" ? up : down).includes(id) ? "none" : kind;
    const rest = (list) => list.filter((other) => other !== id);
    this.emit("feedback", { product: id, vote: given });
    if (this.#status?.feedback) {
      const query = { text, like: likes, where: String(filters), colour, not: { text: without, like: unlikes } };
      const body = JSON.stringify({ product: id, vote: given, query });
      this.api.fetch("/api/feedback", { method: "POST", body, headers: { "content-type": "application/json" } })
        .catch(() => {}); // a vote that was not kept still orders the search
    }
    this.#ask({ up: [...rest(up), ...(given === "up" ? [id] : [])], down: [...rest(down), ...(given === "down" ? [id] : [])] });
  }

  /** Arrow keys go from card to card. */
  #walk(event) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (!steps || !event.target.matches(".lk-card")) return;
    const cards = [...this.#parts.grid.querySelectorAll(".lk-card")];
    const tops = cards.map((card) => card.getBoundingClientRect().top);
    const across = Math.max(1, tops.findIndex((top) => top > tops[0] + 1));
    const next = cards[cards.indexOf(event.target) + steps[0] + steps[1] * across];
    if (!next) return;
    event.preventDefault();
    next.focus();
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

  // -- one product

  #open(hit) {
    if (!this.#products.get(hit.id)?.why) this.#products.set(hit.id, hit);
    if (!this.#isPage) return this.#showProduct(hit.id);
    this.#keepPlace();
    const depth = (history.state?.lookalike?.depth ?? 0) + 1;
    history.pushState({ lookalike: { ...history.state?.lookalike, depth } }, "", this.#query.address({ product: hit.id }));
    this.#showProduct(hit.id);
  }

  /** The dialog was closed by hand: the address no longer names the product. */
  #closed() {
    const { product } = this.#parts;
    product.replaceChildren();
    if (!this.#isPage || !new URLSearchParams(location.search).has("product")) return;
    const { depth, ...lookalike } = history.state?.lookalike ?? {};
    if (depth) history.go(-depth);
    else history.replaceState({ lookalike }, "", this.#query.address());
  }

  async #showProduct(id) {
    const { product: dialog } = this.#parts;
    if (!id) return dialog.close();
    dialog.dataset.id = id;
    const close = el("button", { type: "button", class: "lk-round lk-close", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
    if (!dialog.open) dialog.showModal();
    try {
      this.#showStatus((this.#status ??= await this.api.json("/api/status")));
      const product = await this.api.product(id);
      const similar = el("div", { class: "lk-strip" });
      if (dialog.dataset.id !== id || !dialog.open) return;
      dialog.replaceChildren(close, this.#sheet({ ...this.#products.get(id), ...product }), el("h3", {}, "Similar products"), similar);
      dialog.scrollTo(0, 0);
      close.focus();
      const { hits } = await this.api.similar(id, SIMILAR);
      similar.replaceChildren(...hits.map((hit, index) => this.#card(hit, index)));
    } catch (error) {
      dialog.replaceChildren(close, el("h2", {}, error.title ?? "Something went wrong"), el("p", {}, ...rich(error.message)));
    }
  }

  /** The photos of a product, what is known of it, and what can be done with it. */
  #sheet(product) {
    const { id, title, photos, attributes } = product;
    const image = el("img", { alt: title || id, class: "lk-large", part: "large" });
    const show = (photo) => {
      this.api.show(image, photo, 960);
      for (const button of strip.children) button.setAttribute("aria-pressed", button.dataset.photo === photo);
    };
    const strip = el("div", { class: "lk-thumbs", role: "group", "aria-label": "Photos" }, ...photos.map((photo, index) =>
      el("button", { type: "button", "aria-label": `Photo ${index + 1} of ${photos.length}`, "data-photo": photo, onclick: () => show(photo) },
        this.api.show(el("img", { alt: "" }), photo, 240))));
    show(product.photo && photos.includes(product.photo) ? product.photo : photos[0]);
    strip.hidden = photos.length < 2;
    const act = (action) => () => {
      action({ ...product, photo: photos[0] });
      this.#parts.product.close();
    };
    const actions = this.#actions(product).filter(([symbol]) => symbol !== "up" && symbol !== "down");
    const writes = this.#isPage && this.#status.scopes?.includes("write");
    const desk = `${this.#query.address()}#catalog=${encodeURIComponent(id)}`;
    const work = (event) => {
      if (isBrowsers(event)) return;
      event.preventDefault();
      history.pushState(history.state, "", desk);
      this.#showPlace();
    };
    const names = Object.entries(attributes).filter(([, value]) => value !== null && value !== "");
    return el("div", { class: "lk-sheet" },
      el("div", {}, el("div", { class: "lk-frame" }, image), strip),
      el("div", {},
        el("h2", {}, title || id),
        product.why?.length ? el("p", { class: "lk-why" }, sentences(product)) : null,
        el("div", { class: "lk-bar" }, ...actions.map(([symbol, name, action], index) =>
          el("button", { type: "button", class: `lk-chip${index ? "" : " lk-strong"}`, onclick: act(action) }, icon(symbol), name))),
        el("dl", {}, ...[["id", id], ...names].flatMap(([name, value]) =>
          [el("dt", {}, name === "id" ? "Product" : label(name)), el("dd", {}, typeof value === "number" ? String(value) : readable(value))])),
        writes && el("a", { class: "lk-link", href: desk, onclick: work }, "Change or remove it")));
  }
}

/** Products like one, for a shop's product page. */
class LookalikeSimilar extends LookalikeElement {
  static observedAttributes = ["product", "server", "key", "count", "product-url", "heading"];
  #seen = null;

  connectedCallback() {
    this.#seen = new IntersectionObserver(([entry]) => entry.isIntersecting && this.#load(), { rootMargin: "400px" });
    this.#seen.observe(this);
  }

  disconnectedCallback() {
    this.#seen.disconnect();
  }

  attributeChangedCallback() {
    if (!this.shadowRoot) return; // it was not seen yet
    this.#load();
  }

  async #load() {
    this.#seen.disconnect();
    const id = this.getAttribute("product");
    if (!id) return;
    const api = new Api(this);
    const count = Math.min(100, Math.max(1, Number(this.getAttribute("count")) || SIMILAR));
    const list = el("div", { class: "lk-strip", part: "strip", role: "list" });
    try {
      const [{ columns }, { hits }] = await Promise.all([api.json("/api/status"), api.similar(id, count)]);
      if (this.getAttribute("product") !== id) return; // another one meanwhile
      this.emit("results", { product: id, hits: hits.map(({ id, title, score, alike }) => ({ id, title, score, alike })) });
      list.append(...hits.map((hit, index) => el("div", { role: "listitem" }, el("lookalike-card").show(hit, { api, columns,
        href: this.productUrl(hit.id) ?? `${api.base}/?product=${encodeURIComponent(hit.id)}`,
        onopen: (event) => this.emit("click", { product: hit.id, title: hit.title, index, like: id }) || event.preventDefault() }))));
      this.fill(el("section", { "aria-label": this.getAttribute("heading") ?? "Similar products" },
        el("h2", { class: "lk-heading", part: "heading" }, this.getAttribute("heading") ?? "Similar products"), list));
    } catch (error) {
      this.shadowRoot?.replaceChildren(); // a shop's page goes on without
      this.emit("error", { title: error.title, detail: error.message });
    }
  }
}

customElements.define("lookalike-card", LookalikeCard);
customElements.define("lookalike-crop", LookalikeCrop);
customElements.define("lookalike-filters", LookalikeFilters);
customElements.define("lookalike-search", LookalikeSearch);
customElements.define("lookalike-similar", LookalikeSimilar);
