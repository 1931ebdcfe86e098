/**
 * Work on the catalog, loaded by the page at #catalog: add a product, remove one, see what could not be used, and watch the
 * indexing. Its routes want a key that may write.
 */

import { askKey, el, icon, label, number, rich } from "./lookalike-search.js";

const POLL_MS = 1000; // between two looks at a running index
const REFUSED = 20; // rows of the quarantine at a time

export class LookalikeCatalog extends HTMLElement {
  #api;
  #wanted; // id of the product to begin with
  #photos = []; // {file, url} of the product that is being added
  #life = new AbortController();
  #parts = {};
  #running = false; // whether the last look saw an index at work

  constructor(api, wanted = "") {
    super();
    this.#api = api;
    this.#wanted = wanted;
  }

  async connectedCallback() {
    this.#life = new AbortController();
    const status = await this.#try(() => this.#api.json("/api/status"));
    if (!status || !this.isConnected) return;
    if (!status.scopes?.includes("write")) return this.#askScope();
    this.#build(status);
    this.#watch();
    this.#showRefused();
    if (this.#wanted) this.#find(this.#wanted);
  }

  disconnectedCallback() {
    this.#life.abort();
    for (const { url } of this.#photos) URL.revokeObjectURL(url);
  }

  #askScope() {
    const enter = async () => {
      if (await askKey(this, false)) this.connectedCallback();
    };
    this.replaceChildren(el("section", { class: "lk-panel lk-full" }, el("h2", {}, "Work on the catalog"),
      el("p", {}, ...rich("This wants an API key that may write: `lookalike keys add NAME --scope write` makes one.")),
      el("div", { class: "lk-bar" }, el("button", { type: "button", class: "lk-chip lk-strong", onclick: enter }, "Enter a key"))));
  }

  #build({ products, photos, columns }) {
    const part = (name, tag, props, ...children) => (this.#parts[name] = el(tag, props, ...children));
    const panel = (title, props, ...children) =>
      el("section", { class: "lk-panel", ...props, "aria-label": title }, el("h2", {}, title), ...children);
    const field = (name, props) => el("label", {}, label(name), el("input", { name, autocomplete: "off", ...props }));
    const own = columns.filter(({ role }) => !["id", "title", "image"].includes(role));
    const pile = part("pile", "div", { class: "lk-pile" }, part("thumbs", "ul", { "aria-label": "Photos of the product" }),
      el("div", {}, el("button", { type: "button", class: "lk-chip", onclick: () => this.#parts.files.click() }, icon("photo"), "Choose photos"),
        el("span", { class: "lk-said-of" }, " or drop several here")),
      part("files", "input", { type: "file", accept: "image/*", multiple: true, hidden: true, onchange: ({ target }) => {
        this.#pick(target.files);
        target.value = "";
      } }));
    const drop = (type, listener) => pile.addEventListener(type, (event) => {
      event.preventDefault();
      pile.classList.toggle("lk-dropping", type === "dragover");
      listener?.(event);
    });
    drop("dragover");
    drop("dragleave");
    drop("drop", (event) => this.#pick(event.dataTransfer.files));
    this.replaceChildren(
      el("div", {}, panel("Index", {},
        part("size", "p", {}, `${number(products)} products, ${number(photos)} photos`),
        part("bar", "progress", { "aria-label": "Indexing", hidden: true }),
        part("indexing", "p", { role: "status" }),
        el("div", { class: "lk-bar" }, part("start", "button", { type: "button", class: "lk-chip", onclick: () => this.#start() }, "Index the source again"))),
      panel("Change or remove a product", {},
        el("form", { onsubmit: (event) => {
          event.preventDefault();
          this.#find(event.target.elements.product.value.trim());
        } },
          el("div", { class: "lk-row" }, part("wanted", "input", { name: "product", "aria-label": "Product id", placeholder: "Product id", required: true, autocomplete: "off" }),
            el("button", { class: "lk-chip" }, "Find"))),
        part("found", "div", { role: "status" })),
      panel("Add a product", {},
        part("form", "form", { onsubmit: (event) => this.#add(event) },
          el("div", { class: "lk-fields" }, field("id", { required: true }), field("title")),
          pile,
          own.length ? el("details", {}, el("summary", {}, "Attributes"), el("div", { class: "lk-fields" }, ...own.map(({ name, kind }) => kind === "flag"
            ? el("label", {}, label(name), el("select", { "data-column": name, "data-kind": kind }, ...["", "true", "false"].map((value) =>
              el("option", { value }, { true: "Yes", false: "No" }[value] ?? "–"))))
            : el("label", {}, label(name), el("input", { "data-column": name, "data-kind": kind, autocomplete: "off",
              ...(kind === "number" ? { type: "number", step: "any" } : {}) }))))) : null,
          el("div", { class: "lk-bar" }, part("send", "button", { class: "lk-chip lk-strong" }, "Add or replace"),
            part("added", "p", { role: "status" }))))),
      panel("Quarantine", {}, part("held", "p", {}), part("refused", "ul", { class: "lk-refused" }),
        part("next", "button", { type: "button", class: "lk-chip", hidden: true, onclick: () => this.#showRefused(true) }, "Show more")));
  }

  /** The result of an action, or null after its error was shown in `place`. */
  async #try(action, place = null) {
    try {
      return await action();
    } catch (error) {
      const text = el("p", { role: "alert" }, ...rich(error.message));
      if (place) place.replaceChildren(text);
      else this.replaceChildren(el("section", { class: "lk-panel lk-full" }, text));
      return null;
    }
  }

  // -- add

  #pick(files) {
    for (const file of files) this.#photos.push({ file, url: URL.createObjectURL(file) });
    this.#showPhotos();
  }

  #showPhotos() {
    this.#parts.thumbs.replaceChildren(...this.#photos.map((photo) => el("li", {}, el("img", { src: photo.url, alt: photo.file.name }),
      el("button", { type: "button", class: "lk-round", "aria-label": `Leave out ${photo.file.name}`, onclick: () => {
        URL.revokeObjectURL(photo.url);
        this.#photos.splice(this.#photos.indexOf(photo), 1);
        this.#showPhotos();
        this.#parts.pile.querySelector(".lk-chip").focus();
      } }, icon("close")))));
  }

  async #add(event) {
    event.preventDefault();
    const { form, added, send } = this.#parts;
    const { id, title } = form.elements;
    const attributes = {};
    for (const { dataset, value } of form.querySelectorAll("[data-column]")) {
      if (value === "") continue;
      attributes[dataset.column] = dataset.kind === "number" ? Number(value) : dataset.kind === "flag" ? value === "true" : value;
    }
    const body = new FormData();
    body.set("title", title.value.trim());
    body.set("attributes", JSON.stringify(attributes));
    for (const { file } of this.#photos) body.append("photo", file, file.name);
    send.disabled = true;
    added.replaceChildren("Encoding …");
    const report = await this.#try(() => this.#api.json(this.#address(id.value.trim()), { method: "PUT", body }), added);
    send.disabled = false;
    if (!report) return;
    const done = ["added", "updated", "unchanged", "removed"].filter((name) => report[name]).map((name) => `${number(report[name])} ${name}`);
    added.replaceChildren(`${id.value.trim()}: ${done.join(", ") || "nothing changed"} (photos)`,
      ...(report.problems ?? []).map(({ item, reason }) => el("span", { class: "lk-problem" }, `${item}: ${reason}`)));
    if (this.#parts.wanted.value === id.value.trim()) this.#find(id.value.trim());
    this.#forget();
    form.reset();
    this.#refresh();
  }

  #forget() {
    for (const { url } of this.#photos.splice(0)) URL.revokeObjectURL(url);
    this.#showPhotos();
  }

  // -- find, remove

  #address(id) {
    return `/api/products/${id.split("/").map(encodeURIComponent).join("/")}`;
  }

  async #find(id) {
    const { found, wanted, form } = this.#parts;
    wanted.value = id;
    const product = await this.#try(() => this.#api.product(id), found);
    if (!product) return;
    const image = this.#api.show(el("img", { alt: "" }), product.photos[0], 240);
    const change = () => {
      form.elements.id.value = id;
      form.elements.title.value = product.title ?? "";
      for (const field of form.querySelectorAll("[data-column]")) field.value = product.attributes[field.dataset.column] ?? "";
      form.elements.title.focus();
    };
    const sure = el("button", { type: "button", class: "lk-chip lk-strong", hidden: true, onclick: async () => {
      const gone = await this.#try(() => this.#api.fetch(this.#address(id), { method: "DELETE" }), found);
      if (!gone) return;
      found.replaceChildren(el("p", {}, `${product.title || id} was removed.`));
      wanted.value = "";
      wanted.focus();
      this.#refresh();
    } }, "Yes, remove it for good");
    const ask = el("button", { type: "button", class: "lk-chip", onclick: () => {
      ask.hidden = true;
      sure.hidden = false;
      sure.focus();
    } }, "Remove");
    found.replaceChildren(el("ul", { class: "lk-refused" }, el("li", {}, el("span", { class: "lk-frame" }, image),
      el("div", {}, el("b", {}, product.title || id), el("p", {}, `${id}, ${product.photos.length} ${product.photos.length === 1 ? "photo" : "photos"}`)))),
      el("div", { class: "lk-bar" }, el("button", { type: "button", class: "lk-chip", onclick: change }, "Change"), ask, sure));
  }

  // -- quarantine

  async #showRefused(more = false) {
    const { refused, held, next } = this.#parts;
    const offset = more ? refused.children.length : 0;
    const found = await this.#try(() => this.#api.json(`/api/quarantine?k=${REFUSED}&offset=${offset}`), held);
    if (!found) return;
    held.replaceChildren(found.total ? `${number(found.total)} could not be used, the rest went on.` : "Nothing: everything could be used.");
    const rows = found.items.map(({ n, item, reason, source, picture }) => {
      const image = picture && el("img", { alt: "", loading: "lazy", src: `${this.#api.base}/api/quarantine/${n}/picture`, onerror: () => image.replaceWith(icon("photo")) });
      return el("li", {}, el("span", { class: "lk-frame" }, image || icon("close")),
        el("div", {}, el("b", {}, item), el("p", {}, reason), source ? el("p", { class: "lk-said-of" }, source) : null));
    });
    if (more) refused.append(...rows);
    else refused.replaceChildren(...rows);
    next.hidden = refused.children.length >= found.total;
  }

  async #refresh() {
    this.#showRefused();
    const status = await this.#api.json("/api/status").catch(() => null);
    if (status) this.#parts.size.textContent = `${number(status.products)} products, ${number(status.photos)} photos`;
  }

  // -- indexing

  async #start() {
    const { indexing } = this.#parts;
    if (await this.#try(() => this.#api.fetch("/api/index", { method: "POST" }), indexing)) this.#watch();
  }

  /** Looks at the indexing again and again while it runs. */
  async #watch() {
    const { bar, indexing, start } = this.#parts;
    const found = await this.#try(() => this.#api.json("/api/indexing"), indexing);
    if (!found || this.#life.signal.aborted) return;
    const { running, done, total, photos_per_second: speed, seconds_left: left, report, error } = found;
    bar.hidden = !running;
    start.disabled = running;
    if (total) {
      bar.max = total;
      bar.value = done;
    } else bar.removeAttribute("value");
    if (running) {
      const rest = left == null ? "" : `, ${left < 90 ? `${Math.ceil(left)} s` : `${Math.ceil(left / 60)} min`} left`;
      indexing.replaceChildren(`${number(done ?? 0)} of ${number(total ?? 0)} photos${speed ? `, ${number(speed)} a second` : ""}${rest}`);
      setTimeout(() => this.#life.signal.aborted || this.#watch(), POLL_MS);
    } else if (error) indexing.replaceChildren(error);
    else if (report) {
      const { added = 0, updated = 0, unchanged = 0, removed = 0, quarantined = 0 } = report;
      indexing.replaceChildren(`Last run: ${number(added)} added, ${number(updated)} updated, ${number(unchanged)} unchanged, ` +
        `${number(removed)} removed, ${number(quarantined)} quarantined (photos)`);
    } else indexing.replaceChildren();
    if (this.#running && !running) this.#refresh();
    this.#running = running;
  }
}

customElements.define("lookalike-catalog", LookalikeCatalog);
