// Draws what picture.py says of a run. Streamlit calls the default export at each update on the same
// element, so all that must outlive an update (where playback is, what is drawn) is kept on it.

const SVG = "http://www.w3.org/2000/svg";
const OFF = 1, REPLIED = 2, FAILED = 3, WAITING = 4;
const FEW = 24; // clients up to which each is a circle with a wire of its own
const TRAINING = 0.35, REPLYING = 0.6, COMBINING = 0.92; // when a playback's parts of a round begin
const ICONS = { play: "M4 3l9 5-9 5z", pause: "M4 3h3v10H4zM9 3h3v10H9z" };
const calm = matchMedia("(prefers-reduced-motion: reduce)");

const known = (v) => typeof v === "number" && !Number.isNaN(v);
const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
const plural = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

function num(v) {
  if (!known(v)) return "–";
  const size = Math.abs(v);
  if (size >= 1e6 || (size < 1e-3 && size > 0)) return v.toExponential(2);
  return size >= 1e4 ? v.toFixed(0) : Number.isInteger(v) ? String(v) : v.toPrecision(4);
}

function bytes(b) {
  if (!known(b)) return "";
  const step = b < 1e3 ? 0 : b < 1e6 ? 1 : b < 1e9 ? 2 : 3;
  return `${step ? +(b / 1e3 ** step).toPrecision(3) : b} ${["B", "kB", "MB", "GB"][step]}`;
}

function unpacked(text, kind) {
  return new kind(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
}

function put(element, values) {
  const had = (element.had ??= {});
  for (const key in values) {
    if (had[key] === values[key]) continue;
    had[key] = values[key];
    if (key === "text") element.textContent = values[key];
    else if (values[key] === null) element.removeAttribute(key);
    else element.setAttribute(key, values[key]);
  }
  return element;
}

function add(parent, tag, values) {
  return put(parent.appendChild(document.createElementNS(SVG, tag)), values);
}

// A wire from (a, b) down to (x, y), and where one is on it at p in 0 ... 1.
function wire([a, b, x, y]) {
  const bend = (y - b) * 0.5;
  return `M${a} ${b}C${a} ${b + bend} ${x} ${y - bend} ${x} ${y}`;
}
function along([a, b, x, y], p) {
  const q = 1 - p, bend = (y - b) * 0.5;
  const at = (s, t, u, v) => q * q * q * s + 3 * q * q * p * t + 3 * q * p * p * u + p * p * p * v;
  return [at(a, a, x, x), at(b, b + bend, y - bend, y)];
}

// Where a wire is so far below its beginning; p grows with the depth.
function atDepth(path, depth) {
  let low = 0, high = 1;
  for (let i = 0; i < 12; i++) {
    const p = (low + high) / 2;
    if (along(path, p)[1] - path[1] < depth) low = p; else high = p;
  }
  return low;
}

function listed(names, most) {
  if (names.length === 1) return `client ${names[0]}`;
  if (names.length > most) return `clients ${names.slice(0, most).join(", ")} and ${names.length - most} more`;
  return `clients ${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}

const cross = (x, y, s) => `M${x - s} ${y - s}L${x + s} ${y + s}M${x - s} ${y + s}L${x + s} ${y - s}`;

class Picture {
  constructor(root) {
    this.root = root;
    for (const part of "say scene failures note tip strip pad column cell legend back play next round speed follow".split(" "))
      this[part] = root.querySelector(`.${part}`);
    this.canvas = root.querySelector(".strip canvas");
    this.output = root.querySelector("output");
    this.at = null; // a round's number, or null: the newest
    this.playing = false;
    this.frame = this.timer = 0;
    this.client = null;
    this.listen();
    this.watch = new ResizeObserver(() => this.data && this.render());
    this.watch.observe(root);
  }

  end() {
    this.watch.disconnect();
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
  }

  // ------------------------------------------------------------------ data
  update(data, set) {
    this.set = set;
    const old = this.data, other = !old || old.run !== data.run;
    if (other) {
      this.stop();
      this.at = data.at;
      this.client = null;
      this.told = data.at;
    }
    if (other || old.values !== data.values) this.values = unpacked(data.values, Float32Array);
    if (other || old.marks !== data.marks) this.marks = unpacked(data.marks, Uint8Array);
    const grown = !other && data.rounds.length > old.rounds.length && data.rounds.length > 1;
    this.data = data;
    this.places = new Map(data.rounds.map((r, i) => [r, i]));
    this.first = data.rounds[0] === 0 ? 1 : 0;
    this.failed = new Map();
    for (const [r, ...failure] of data.failures)
      this.failed.set(r, [...(this.failed.get(r) ?? []), failure]);
    this.scale();
    this.render();
    if (grown && this.at === null && !this.playing && !calm.matches) this.glide();
  }

  // One colour scale for all rounds, from the bulk of the values.
  scale() {
    const d = this.data, from = this.first * d.clients;
    const all = this.values.slice(from).filter((v) => !Number.isNaN(v)).sort();
    this.range = all.length ? [all[Math.floor(all.length * 0.02)], all[Math.ceil(all.length * 0.98) - 1]] : null;
    this.rgb = d.ramp.map((h) => [1, 3, 5].map((i) => parseInt(h.slice(i, i + 2), 16)));
    const [worst, best] = !this.range ? ["", ""] : (d.higher ? this.range : [...this.range].reverse()).map(num);
    put(this.legend.querySelector(".worst"), { text: worst });
    put(this.legend.querySelector(".best"), { text: best });
    const pen = this.legend.querySelector("canvas").getContext("2d");
    for (let x = 0; x < 64; x++) {
      pen.fillStyle = `rgb(${this.mixed(x / 63)})`;
      pen.fillRect(x, 0, 1, 1);
    }
    this.legend.querySelector(".ramp").hidden = !this.range;
    this.legend.querySelector(".off").hidden = !this.marks.includes(OFF) && !d.now?.marks.includes(OFF);
    put(this.legend.querySelector(".off em"), { text: d.clients > FEW ? "not asked (small), not measured (white)" : "not asked" });
    this.legend.querySelector(".lost").hidden = !d.failed.some(Boolean) && !d.now?.failures.length;
    for (const part of this.legend.querySelectorAll(".sent")) part.hidden = !d.rounds.length && !d.now;
  }

  goodness(v) {
    const [low, high] = this.range, t = high > low ? clamp((v - low) / (high - low), 0, 1) : 0.5;
    return this.data.higher ? t : 1 - t;
  }

  mixed(t) {
    const at = t * (this.rgb.length - 1), i = Math.min(Math.floor(at), this.rgb.length - 2);
    return this.rgb[i].map((c, j) => Math.round(c + (at - i) * (this.rgb[i + 1][j] - c)));
  }

  get last() { return this.data.rounds.length - 1; }
  get place() { return this.at === null ? this.last : this.places.get(this.at) ?? this.last; }
  get follows() { return this.at === null; }

  value(i, k) { return i < 0 ? NaN : this.values[i * this.data.clients + k] ?? NaN; }
  mark(i, k) { return i < 0 ? 0 : this.marks[i * this.data.clients + k] ?? 0; }

  // All that is drawn of a round; t is where a playback is in it, null if it is over.
  facts(t) {
    const d = this.data, i = this.place, now = this.follows && t === null ? d.now : null;
    if (now) {
      const failed = now.failures.map(([k, reason]) => [k, reason, now.evaluates]);
      return {
        now, number: now.round, server: d.server[i], before: null, down: null, up: null, failed,
        asked: now.asked, replied: now.one || now.closed ? now.replied : null, lost: failed.length,
        mark: (k) => now.marks[k] ?? 0, value: (k) => this.value(i, k),
        doing: now.evaluates ? "clients evaluate" : now.closed ? "combines the replies" : "clients train",
      };
    }
    const early = t !== null && t < COMBINING, past = t !== null && t < 0.5 ? i - 1 : i;
    const doing = t === null ? null : t < TRAINING ? "sends the model" : t < REPLYING ? "clients train"
      : early ? "collects the replies" : "combines them";
    const failed = (this.failed.get(d.rounds[i]) ?? []).map(([k, n, evaluates]) => [k, d.reasons[n], evaluates]);
    return {
      now: null, number: d.rounds[i], server: d.server[early ? i - 1 : i], before: early ? null : d.server[i - 1],
      down: d.down[i], up: d.up[i], asked: d.asked[i], replied: d.replied[i], lost: d.failed[i], failed,
      mark: (k) => this.mark(i, k), value: (k) => this.value(past, k),
      doing: [d.phases[i], doing].filter(Boolean).join(": "),
    };
  }

  // ------------------------------------------------------------------ the scene
  layout(width) {
    const d = this.data, K = d.clients, mid = width / 2;
    const box = { w: clamp(width * 0.42, 150, 210), h: 80, y: 2 };
    const spots = [];
    let height = box.y + box.h + 8, group = null, labels = 0, kind = "none";
    if (d.nodes.length && !K) {
      kind = "nodes";
      const size = clamp(width / d.nodes[1], 6, 26);
      const per = Math.max(1, Math.floor(width / size));
      for (let k = 0; k < d.nodes[1]; k++) {
        const inRow = Math.min(per, d.nodes[1] - Math.floor(k / per) * per);
        spots.push({ x: mid + ((k % per) - (inRow - 1) / 2) * size, y: height + 34 + Math.floor(k / per) * size, r: size * 0.32 });
      }
      height = spots.length ? spots.at(-1).y + 20 : height;
    } else if (K && K <= FEW && !d.private) {
      kind = "few";
      const want = K <= 14 ? 60 : 46, rows = Math.ceil(K / Math.max(1, Math.floor(width / want)));
      const per = Math.ceil(K / rows), gap = Math.min(width / (per + (rows > 1 ? 0.5 : 0)), 120);
      const most = Math.max(1, ...d.rows.map((n) => n ?? 0)), top = Math.min(21, gap * 0.36);
      labels = gap >= 56 ? 2 : gap >= 44 ? 1 : 0;
      const rise = 2 * top + [12, 24, 36][labels];
      for (let k = 0; k < K; k++) {
        const row = Math.floor(k / per), inRow = Math.min(per, K - row * per);
        const shift = rows > 1 && inRow === per ? (row % 2 ? 0.25 : -0.25) : 0;
        const share = d.rows.length ? Math.sqrt((d.rows[k] ?? 0) / most) : 0.6;
        spots.push({
          x: mid + ((k % per) - (inRow - 1) / 2 + shift) * gap,
          y: box.y + box.h + 46 + top + row * rise, r: Math.max(9, top * (0.5 + 0.5 * share)),
        });
      }
      height = spots.at(-1).y + top + [6, 20, 34][labels];
    } else if (K) {
      kind = d.private ? "private" : "many";
      let size = d.private ? 18 : 22;
      while (size > 3 && Math.ceil(K / Math.floor((width - 16) / size)) * size > 170) size -= 0.5;
      const per = Math.min(K, Math.floor((width - 16) / size)), rows = Math.ceil(K / per);
      group = { w: per * size + 12, h: rows * size + 12, x: mid - (per * size) / 2 - 6, y: box.y + box.h + 40 };
      for (let k = 0; k < K; k++)
        spots.push({ x: group.x + 6 + ((k % per) + 0.5) * size, y: group.y + 6 + (Math.floor(k / per) + 0.5) * size, r: size / 2 - (size > 6 ? 1 : 0.25) });
      height = group.y + group.h + 4;
    }
    return { width, mid, box, spots, height, group, labels, kind };
  }

  build(width) {
    const L = (this.L = this.layout(width)), svg = this.scene;
    svg.replaceChildren();
    svg.had = {};
    put(svg, { viewBox: `0 0 ${width} ${L.height}`, height: L.height });
    const left = L.mid - L.box.w / 2, right = L.mid + L.box.w / 2, bottom = L.box.y + L.box.h;
    const ends = L.kind === "few" || L.kind === "nodes" ? L.spots.map((s) => [s.x, s.y - s.r])
      : L.group ? Array.from({ length: 9 }, (_, j) => [L.group.x + L.group.w * ((j + 0.5) / 9), L.group.y]) : [];
    const far = Math.max(1, ...ends.map(([x]) => Math.abs(x - L.mid)));
    L.paths = ends.map(([x, y]) => [L.mid + ((x - L.mid) / far) * (L.box.w / 2 - 14), bottom, x, y]);
    L.rest = L.paths.map((p) => [atDepth(p, 15), atDepth(p, 29)]);
    L.wires = L.paths.map((p) => add(svg, "path", { d: wire(p), class: "wire" }));
    L.boxed = add(svg, "rect", { x: left, y: L.box.y, width: L.box.w, height: L.box.h, rx: 10, class: "box" });
    const text = (x, y, kind) => add(svg, "text", { x, y, class: kind });
    L.name = text(left + 12, L.box.y + 20, "name");
    L.metric = text(right - 12, L.box.y + 20, "small soft end");
    L.big = text(left + 12, L.box.y + 48, "large");
    L.delta = text(right - 12, L.box.y + 48, "end");
    L.doing = text(left + 12, L.box.y + 69, "small soft");
    L.down = text(left - 10, L.box.y + 24, "bytes down end");
    L.downTo = text(left - 10, L.box.y + 42, "small soft end");
    L.up = text(right + 10, L.box.y + 24, "bytes up");
    L.upFrom = text(right + 10, L.box.y + 42, "small soft");
    L.lost = text(right + 10, L.box.y + 60, "small bad");
    if (L.group) add(svg, "rect", { x: L.group.x, y: L.group.y, width: L.group.w, height: L.group.h, rx: 8, class: "box" });
    L.clients = L.spots.map((s, k) => this.client_(s, k));
    const size = (L.size = L.paths.length > 14 ? 3.2 : 4.4);
    L.dots = L.paths.map(() => add(svg, "circle", { r: size, class: "mover down" }));
    L.squares = L.paths.map(() => add(svg, "rect", { width: 1.9 * size, height: 1.9 * size, class: "mover up" }));
  }

  client_(s, k) {
    const L = this.L, g = add(this.scene, "g", {}), round = L.kind !== "many";
    const disc = round ? add(g, "circle", { cx: s.x, cy: s.y, r: s.r, class: "disc blank" }) : add(g, "rect", {});
    if (L.kind === "nodes" || L.kind === "private") return { g, disc };
    const found = { g, disc, title: add(g, "title", {}) };
    if (L.kind === "few") {
      found.pulse = add(g, "circle", { cx: s.x, cy: s.y, class: "pulse" });
      found.name = add(g, "text", { x: s.x, y: s.y + 4, class: "small middle", text: String(k) });
      if (L.labels) found.value = add(g, "text", { x: s.x, y: s.y + s.r + 14, class: "middle" });
      if (L.labels > 1) found.word = add(g, "text", { x: s.x, y: s.y + s.r + 27, class: "small middle soft" });
    }
    const size = Math.max(2, s.r * (round ? 0.62 : 0.6)), path = cross(s.x, s.y, size);
    found.crosses = ["halo", "cross"].map((kind) => add(g, "path", { d: path, class: kind, ...(round ? {} : { style: `stroke-width:${kind === "halo" ? 4 : 2}` }) }));
    return found;
  }

  draw(t) {
    const d = this.data, L = this.L, f = this.facts(t), exchanged = f.asked > 0;
    const start = !d.rounds.length && !f.now;
    put(L.boxed, { class: t !== null && t >= COMBINING ? "box combining" : "box" });
    put(L.name, { text: "server" });
    put(L.metric, { text: start ? "" : d.whose ? `${d.metric}, ${d.whose}` : d.metric });
    put(L.big, { text: start ? "…" : num(f.server) });
    const change = known(f.before) && known(f.server) ? f.server - f.before : NaN;
    put(L.delta, { text: known(change) ? `${change < 0 ? "−" : "+"}${+Math.abs(change).toPrecision(2)}` : "" });
    put(L.doing, { text: f.doing ?? "" });
    put(L.down, { text: exchanged && known(f.down) ? `● ${bytes(f.down)}` : "" });
    put(L.downTo, { text: exchanged ? `to ${plural(f.asked, "client")}` : "" });
    put(L.up, { text: exchanged && known(f.up) ? `■ ${bytes(f.up)}` : "" });
    put(L.upFrom, { text: exchanged && f.replied !== null ? `from ${f.replied} of ${f.asked}` : "" });
    put(L.lost, { text: f.lost && (t === null || t > REPLYING) ? `✕ ${f.lost} failed` : "" });
    if (L.kind === "few" || L.kind === "many") L.clients.forEach((c, k) => this.paint(c, k, f, t));
    if (L.kind === "private") for (const c of L.clients) put(c.disc, { class: "disc some" });
    if (L.kind === "nodes") L.clients.forEach((c, k) => put(c.disc, { class: k < d.nodes[0] ? "disc some" : "disc blank off" }));
    this.move(f, t, exchanged);
  }

  paint(c, k, f, t) {
    const L = this.L, s = L.spots[k], d = this.data, v = f.value(k), mark = f.mark(k), has = known(v) && this.range;
    const failed = mark === FAILED && (t === null || t > REPLYING), good = has ? this.goodness(v) : 0;
    const kind = `disc${has ? "" : " blank"}${mark === OFF ? " off" : failed ? " bad" : mark === WAITING ? " wait" : ""}`;
    put(c.disc, { class: kind, fill: has ? `rgb(${this.mixed(good)})` : null });
    if (L.kind === "many") {
      const r = mark === OFF ? s.r * 0.55 : s.r;
      put(c.disc, { x: s.x - r, y: s.y - r, width: 2 * r, height: 2 * r });
    }
    const rows = d.rows[k], word = this.word(mark);
    const about = `client ${k}${rows ? `, ${plural(rows, "row")}` : ""}: ${[word, has ? `${d.metric} ${num(v)}` : ""].filter(Boolean).join(", ")}`;
    const why = f.failed.filter(([j]) => j === k).map(([, reason]) => `; ${reason}`).join("");
    put(c.title, { text: about + why });
    put(c.g, { role: "img", "aria-label": about + why, tabindex: failed ? 0 : null });
    for (const path of c.crosses) put(path, { display: failed ? "inline" : "none" });
    if (L.kind !== "few") return;
    put(c.name, { fill: null, style: failed ? "display:none" : has && mark !== OFF ? `fill:${good > 0.45 ? "#fff" : "#000"}` : "" });
    const trains = t !== null && t >= TRAINING && t < REPLYING && mark > OFF;
    const swell = trains ? Math.sin((Math.PI * (t - TRAINING)) / (REPLYING - TRAINING)) : 0;
    put(c.pulse, { r: s.r + 2 + 5 * swell, opacity: trains ? swell : 0 });
    if (c.value) put(c.value, { text: has ? num(v) : mark === REPLIED && d.metric ? "–" : "" });
    if (c.word) put(c.word, { text: mark === OFF || failed || mark === WAITING ? word : rows ? `n_k ${rows}` : "", class: `small middle ${failed ? "bad" : "soft"}` });
  }

  word(mark) {
    const waits = this.data.now?.one ? "waiting" : "training";
    return ["", "not asked", "replied", "failed", waits][mark];
  }

  // What travels on the wires; between rounds it lies where it says what went both ways.
  move(f, t, exchanged) {
    const L = this.L, few = L.kind === "few", part = f.asked ? (f.replied ?? 0) / f.asked : 0;
    L.paths.forEach((path, j) => {
      const mark = few ? f.mark(j) : REPLIED, asked = exchanged && mark !== OFF && L.kind !== "nodes";
      const back = few ? mark === REPLIED : (j + 0.5) / L.paths.length <= part;
      put(L.wires[j], { class: few && mark === OFF ? "wire off" : "wire" });
      let down = null, up = null;
      if (t === null) {
        if (asked) down = L.rest[j][0];
        if (asked && back) up = L.rest[j][1];
      } else if (asked) {
        if (t < TRAINING) down = t / TRAINING;
        if (back && t >= REPLYING && t < COMBINING) up = 1 - (t - REPLYING) / (COMBINING - REPLYING);
      }
      if (down !== null) { const [cx, cy] = along(path, down); put(L.dots[j], { cx, cy }); }
      if (up !== null) { const [x, y] = along(path, up); put(L.squares[j], { x: x - 0.95 * L.size, y: y - 0.95 * L.size }); }
      put(L.dots[j], { display: down === null ? "none" : "inline" });
      put(L.squares[j], { display: up === null ? "none" : "inline" });
    });
  }

  // ------------------------------------------------------------------ in words
  sentence(f) {
    const d = this.data;
    const shown = d.metric && known(f.server) ? `${d.metric} ${num(f.server)}${d.unit ? ` ${d.unit}` : ""} on ${d.where}` : "";
    if (!d.rounds.length || f.now) return [d.phase, f.now ? shown && `${shown} after round ${d.rounds[this.last]}` : ""].filter(Boolean).join("; ");
    const where = `round ${f.number} of ${d.total}`, phase = d.phases[this.place];
    if (!f.asked) return [`${where}${f.number ? "" : ", before training"}`, shown].filter(Boolean).join(": ");
    const some = d.clients > f.asked ? `${f.asked} of ${plural(d.clients, "client")} asked` : `${plural(f.asked, "client")} asked`;
    const parts = [`${some}, ${f.replied} replied`], names = f.failed.map(([k]) => k);
    if (names.length === 1) parts[0] += `, client ${names[0]} failed${f.failed[0][2] ? " in evaluation" : ""}: ${f.failed[0][1]}`;
    else if (names.length) parts[0] += `, ${listed(names, 8)} failed`;
    else if (f.lost) parts[0] += `, ${f.lost} failed`;
    if (known(f.down) && known(f.up)) parts.push(`${bytes(f.down)} down, ${bytes(f.up)} up`);
    if (shown) parts.push(shown);
    if (d.back.includes(f.number)) parts.push("the step was thrown away and the model before it kept");
    return `${where}${phase ? `, ${phase}` : ""}: ${parts.join("; ")}`;
  }

  tell(f) {
    put(this.say, { text: this.sentence(f), "aria-live": this.playing ? "off" : "polite" });
    put(this.scene, { "aria-label": "The server and its clients" });
    put(this.note, { text: this.data.private });
    this.note.hidden = !this.data.private;
    const groups = new Map(); // one failure alone stands in the sentence
    if (f.failed.length > 1)
      for (const [k, reason, evaluates] of f.failed) {
        const why = `${evaluates ? " in evaluation" : ""}: ${reason}`;
        groups.set(why, [...(groups.get(why) ?? []), k]);
      }
    const lines = [...groups].map(([why, names]) => listed(names, 12) + why), text = lines.join("\n");
    if (this.listed === text) return;
    this.listed = text;
    this.failures.replaceChildren(...lines.map((line) => Object.assign(document.createElement("li"), { textContent: line })));
  }

  // ------------------------------------------------------------------ the strip
  strips(width) {
    const d = this.data, K = d.clients, T = Math.max(1, d.total), c = this.canvas;
    this.strip.hidden = this.tip.hidden = !K || !!d.private || this.last < this.first;
    if (this.strip.hidden) return;
    const tall = K <= 12 ? 12 : K <= FEW ? 9 : clamp(160 / K, 0.25, 6), gutter = 26, H = Math.round(tall * K);
    const wide = Math.min(40, (width - gutter - 2) / T), W = wide * T, dense = devicePixelRatio || 1;
    this.grid = { gutter, tall, wide, T, K };
    c.width = width * dense; // which also wipes it
    c.height = (H + 16) * dense;
    c.style.height = `${H + 16}px`;
    Object.assign(this.pad.style, { left: `${gutter}px`, top: 0, width: `${W}px`, height: `${H}px` });
    const pen = c.getContext("2d"), style = getComputedStyle(this.root), bad = [213, 94, 0];
    pen.scale(dense, dense);
    const image = new ImageData(T, K), marked = [], room = wide >= 6 && tall >= 6;
    for (let i = this.first; i <= this.last; i++) {
      for (let k = 0; k < K; k++) {
        const column = d.rounds[i] - 1, mark = this.mark(i, k), v = this.value(i, k);
        if (mark === OFF || column >= T || (mark === 0 && Number.isNaN(v))) continue;
        if (mark === FAILED && room) { marked.push([column, k]); continue; }
        const rgb = mark === FAILED ? bad : Number.isNaN(v) ? [154, 163, 173] : this.mixed(this.goodness(v));
        image.data.set([...rgb, 255], 4 * (k * T + column));
      }
    }
    const small = Object.assign(document.createElement("canvas"), { width: T, height: K });
    small.getContext("2d").putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, gutter, 0, W, H);
    pen.strokeStyle = "#d55e00";
    pen.lineWidth = 2;
    const arm = Math.min(wide, tall) / 2 - 1.5;
    for (const [column, k] of marked) pen.stroke(new Path2D(cross(gutter + (column + 0.5) * wide, (k + 0.5) * tall, arm)));
    pen.lineWidth = 1;
    pen.strokeStyle = pen.fillStyle = style.color;
    pen.globalAlpha = 0.35;
    pen.strokeRect(gutter - 0.5, 0.5, W + 1, H - 1);
    pen.globalAlpha = 0.85;
    pen.font = `11px ${style.fontFamily}`;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    const nice = (size, room) => [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000].find((n) => n * size >= room) ?? 10000;
    const each = nice(tall, 12);
    for (let k = 0; k < K; k += each) if (k + each / 2 < K || k === 0) pen.fillText(k, gutter - 5, clamp((k + 0.5) * tall, 6, H - 5));
    pen.textAlign = "center";
    const step = nice(wide, 30);
    for (let r = step; r <= T; r += step)
      pen.fillText(r, Math.min(gutter + (r - 0.5) * wide, width - 1 - pen.measureText(r).width / 2), H + 9);
  }

  point(number) {
    if (this.strip.hidden) return;
    const { gutter, tall, wide, T, K } = this.grid, inside = number >= 1 && number <= T;
    const box = { left: `${gutter + (number - 1) * wide - 1}px`, width: `${Math.max(wide, 2) + 2}px` };
    Object.assign(this.column.style, { ...box, top: "-1px", height: `${tall * K + 2}px`, display: inside ? "block" : "none" });
    Object.assign(this.cell.style, { ...box, display: inside && this.client !== null ? "block" : "none" });
    if (this.client !== null) Object.assign(this.cell.style, { top: `${this.client * tall - 1}px`, height: `${Math.max(tall, 2) + 2}px` });
    const said = this.client === null ? `round ${number}` : this.cellText(number, this.client);
    put(this.pad, { "aria-valuemin": 1, "aria-valuemax": Math.max(1, this.data.rounds[this.last]), "aria-valuenow": Math.max(1, number), "aria-valuetext": said });
    if (!this.hovers) put(this.tip, { text: this.client === null ? this.hint() : said });
  }

  hint() {
    const d = this.data, own = d.own ? ` on own ${d.own} rows` : "";
    return this.range ? `clients × rounds: ${d.metric}${own}, dark is better` : "clients × rounds: who replied; no client's own value is recorded";
  }

  cellText(number, k) {
    const i = this.places.get(number), d = this.data;
    if (i === undefined) return `round ${number} is not over`;
    const v = this.value(i, k), mark = this.mark(i, k);
    const why = (this.failed.get(number) ?? []).filter(([j]) => j === k).map(([, n]) => d.reasons[n]);
    const parts = [mark ? this.word(mark) : "", known(v) ? `${d.metric} ${num(v)}` : "", ...why];
    return `client ${k} in round ${number}: ${parts.filter(Boolean).join(", ") || "nothing is known"}`;
  }

  under(event) {
    const { wide, tall, T, K } = this.grid, box = this.pad.getBoundingClientRect();
    return [clamp(1 + Math.floor((event.clientX - box.left) / wide), 1, T), clamp(Math.floor((event.clientY - box.top) / tall), 0, K - 1)];
  }

  // ------------------------------------------------------------------ all of it
  render() {
    const width = Math.floor(this.root.clientWidth);
    if (width < 40) return;
    const d = this.data, key = JSON.stringify([width, d.clients, !!d.private, d.nodes[1], d.rows, d.metric]);
    if (this.built !== key) { this.built = key; this.build(width); }
    const size = [width, devicePixelRatio, getComputedStyle(this.root).color].join();
    if (this.stripOf !== d || this.size !== size) { this.stripOf = d; this.size = size; this.strips(width); }
    this.show(this.t ?? null);
  }

  show(t) {
    this.t = t;
    const d = this.data, i = this.place, number = d.rounds[i] ?? 0, still = t === null;
    this.draw(t);
    if (still || this.toldPlace !== i) { this.toldPlace = i; this.tell(this.facts(null)); }
    this.point(number);
    const none = this.last < 0;
    put(this.round, { min: d.rounds[0] ?? 0, max: none ? 0 : d.rounds[this.last] });
    this.round.value = number;
    this.round.disabled = this.back.disabled = this.next.disabled = this.play.disabled = none;
    put(this.round, { "aria-valuetext": none ? "no round yet" : `round ${number} of ${d.total}` });
    put(this.output, { text: none ? "no round yet" : `${number} / ${d.total}` });
    put(this.play, { "aria-label": this.playing ? "pause" : "play" });
    put(this.play.querySelector("path"), { d: this.playing ? ICONS.pause : ICONS.play });
    put(this.play.querySelector("span"), { text: this.playing ? "Pause" : "Play" });
    this.follow.hidden = !d.live || this.follows;
  }

  // ------------------------------------------------------------------ moving
  report(soon = 150) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      if (this.told === this.at) return;
      this.told = this.at;
      this.set("round", this.at);
    }, soon);
  }

  go(i, said = true) {
    if (this.last < 0) return;
    this.stop();
    this.at = this.data.rounds[clamp(i, 0, this.last)];
    this.show(null);
    if (said) this.report();
  }

  stop() {
    this.playing = false;
    this.t = null;
    cancelAnimationFrame(this.frame);
  }

  toggle() {
    if (this.last < 0) return;
    if (this.playing) { this.stop(); this.show(null); this.report(0); return; }
    this.stop();
    this.playing = true;
    const from = this.place >= this.last ? 0 : this.place;
    this.at = this.data.rounds[Math.min(from + 1, this.last)];
    this.run((lasts) => {
      if (this.place >= this.last) {
        this.stop();
        if (this.data.live) this.at = null;
        this.show(null);
        this.report(0);
        return false;
      }
      this.at = this.data.rounds[this.place + 1];
      if (lasts >= 1000) this.report();
      return true;
    });
  }

  // Show the newest round's exchange once, as it has just come.
  glide() { this.stop(); this.run(() => { this.stop(); this.show(null); return false; }, 900); }

  run(over, given = 0) {
    let from = null;
    const step = (now) => {
      const lasts = given || +this.speed.value;
      from ??= now;
      if (now - from >= lasts) {
        if (!over(lasts)) return;
        from = now;
      }
      this.show(calm.matches || lasts < 300 ? null : Math.max(0, now - from) / lasts);
      this.frame = requestAnimationFrame(step);
    };
    step(performance.now());
  }

  listen() {
    this.back.onclick = () => this.go(this.place - 1);
    this.next.onclick = () => this.go(this.place + 1);
    this.play.onclick = () => this.toggle();
    this.follow.onclick = () => { this.stop(); this.at = null; this.show(null); this.report(0); this.play.focus(); };
    this.round.oninput = () => this.go(this.places.get(+this.round.value) ?? this.last, false);
    this.round.onchange = () => this.report(0);
    this.pad.onclick = (e) => { const [r, k] = this.under(e); this.client = k; this.go(this.places.get(r) ?? this.last); };
    this.pad.onpointermove = (e) => { this.hovers = true; put(this.tip, { text: this.cellText(...this.under(e)) }); };
    this.pad.onpointerleave = () => { this.hovers = false; this.show(this.t); };
    this.root.onkeydown = (e) => this.key(e);
  }

  key(e) {
    const on = e.composedPath()[0], plain = !(e.ctrlKey || e.metaKey || e.altKey);
    if (!plain || on === this.speed) return;
    const onPad = on === this.pad, steps = { ArrowLeft: -1, ArrowRight: 1 };
    if (e.key === " " && on.tagName !== "BUTTON") this.toggle();
    else if (e.key in steps && on !== this.round) this.go(this.place + steps[e.key]);
    else if (e.key === "Home" && on !== this.round) this.go(0);
    else if (e.key === "End" && on !== this.round) this.go(this.last);
    else if (onPad && (e.key === "ArrowUp" || e.key === "ArrowDown")) {
      const down = e.key === "ArrowDown" ? 1 : -1;
      this.client = this.client === null ? 0 : clamp(this.client + down, 0, this.data.clients - 1);
      this.point(this.data.rounds[this.place]);
    } else return;
    e.preventDefault();
    e.stopPropagation();
  }
}

export default function ({ data, parentElement, setStateValue }) {
  const root = parentElement.querySelector(".picture");
  if (parentElement.picture?.root !== root) {
    parentElement.picture?.end();
    parentElement.picture = new Picture(root);
  }
  parentElement.picture.update(data, setStateValue);
  return () => {
    parentElement.picture?.end();
    parentElement.picture = undefined;
  };
}
