// The explorer: everything about the person who looks goes through the service's own API; nothing else is sent anywhere.

const PAIRS = 200; // asked about at a time: the service says which of them would tell most
const CONTRASTS = 3; // by which a leaning is told
const DEVIATIONS = 1.96;

const at = (id) => document.getElementById(id);
const BINS = 16; // of a histogram
const state = { gallery: null, model: null, user: name(), answered: [], pair: null, skipped: new Set(), busy: false };

// `crypto.randomUUID` is there on this machine and over https only.
function drawn() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const fingerprint = (model) => model.split("@")[1];

const pairOf = (one, other) => `${Math.min(one, other)}-${Math.max(one, other)}`;

function name() {
  const kept = sessionStorage.getItem("user");
  if (kept) return kept;
  const fresh = `explorer-${drawn()}`;
  sessionStorage.setItem("user", fresh);
  return fresh;
}

class Refused extends Error {
  constructor(status, { message, param } = {}) {
    super(message ?? `The service answers ${status}.`);
    this.status = status;
    this.param = param;
  }
}

async function call(method, path, body) {
  const headers = {};
  const key = sessionStorage.getItem("key");
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Refused(answer.status, found.error);
  return found;
}

const score = (candidates, more = {}) => call("POST", "v1/score", { candidates, ...more });

function svg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function html(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function say(text) {
  at("status").textContent = text;
}

// One thing at a time: what is clicked meanwhile does not count.
async function doing(work) {
  if (state.busy) return;
  state.busy = true;
  document.body.setAttribute("aria-busy", "true");
  try {
    await work();
  } catch (error) {
    if (error.status === 401) return askKey(error.message);
    say(error.message);
  } finally {
    state.busy = false;
    document.body.removeAttribute("aria-busy");
  }
}

function askKey(message) {
  at("me").hidden = at("all").hidden = true;
  at("key-form").hidden = false;
  say(message);
  at("key").focus();
}

async function begin() {
  const models = await call("GET", "v1/models");
  state.model = models.data[0];
  state.gallery = await call("GET", "explore/gallery.json");
  at("key-form").hidden = true;
  at("name").textContent = state.user;
  at("text-form").hidden = !state.model.accepts.includes("text");
  const kept = await call("GET", `v1/users/${state.user}/export`);
  kept.comparisons.sort((one, other) => one.timestamp - other.timestamp);
  state.answered = kept.comparisons.map(({ event_id: event, chosen, rejected }) => ({ event, id: pairOf(chosen.item, rejected.item) }));
  for (const { id } of state.answered) state.skipped.add(id);
  at("ranked").replaceChildren(at("ranked").options[0], ...state.gallery.questions.map(({ prompt }, place) => new Option(prompt, place)));
  population();
  view("me");
  await next();
}

function view(which) {
  at("me").hidden = which !== "me";
  at("all").hidden = which !== "all";
  at("show-me").setAttribute("aria-pressed", which === "me");
  at("show-all").setAttribute("aria-pressed", which === "all");
}

function pairs() {
  const found = [];
  for (const question of state.gallery.questions) {
    const { responses } = question;
    for (let one = 0; one < responses.length; one++) {
      for (let other = one + 1; other < responses.length; other++) {
        const id = pairOf(responses[one].item, responses[other].item);
        if (!state.skipped.has(id)) found.push({ id, question, first: responses[one], second: responses[other] });
      }
    }
  }
  for (let last = found.length - 1; last > 0; last--) {
    const other = Math.floor(Math.random() * (last + 1));
    [found[last], found[other]] = [found[other], found[last]];
  }
  return found.slice(0, PAIRS);
}

// Null where the method has errors of its own, but no posterior of people that an answer could narrow.
async function suggest(body) {
  try {
    return await call("POST", "v1/suggest", body);
  } catch (error) {
    if (error.status === 422 && error.param === "model") return null;
    throw error;
  }
}

async function next() {
  const found = pairs();
  if (!found.length) {
    state.skipped.clear();
    found.push(...pairs());
  }
  let best = found[0];
  let why = "Drawn at random: this method does not say what an answer would tell.";
  if (state.model.uncertain) {
    const suggested = await suggest({
      user: state.user,
      pairs: found.map((pair) => ({ chosen: { item: pair.first.item }, rejected: { item: pair.second.item } })),
      top: 1,
    });
    if (suggested) {
      const [top] = suggested.data;
      best = found[top.index];
      why = `Asked because your answer is expected to tell most: ${top.gain.toFixed(3)} of ${Math.LN2.toFixed(3)} nats.`;
    }
  }
  if (Math.random() < 0.5) best = { ...best, first: best.second, second: best.first };
  state.pair = best;
  at("prompt").textContent = best.question.prompt;
  at("first").lastElementChild.textContent = best.first.text;
  at("second").lastElementChild.textContent = best.second.text;
  at("why").textContent = why;
  await show();
}

async function show() {
  const known = await call("GET", `v1/users/${state.user}`);
  at("undo").disabled = !state.answered.length;
  at("stale").hidden = fingerprint(known.model) === fingerprint(state.gallery.model);
  map(known);
  await Promise.all([leanings(), ranking()]);
  say(known.shots === 0 ? "Nothing is known of you yet." : `${known.shots} answer${known.shots > 1 ? "s" : ""} so far.`);
}

function answer(side) {
  return doing(async () => {
    const { first, second, id } = state.pair;
    const [chosen, rejected] = side === "first" ? [first, second] : [second, first];
    const event = drawn();
    await call("POST", `v1/users/${state.user}/comparisons`, {
      comparisons: [{ event_id: event, chosen: { item: chosen.item }, rejected: { item: rejected.item } }],
    });
    state.answered.push({ event, id });
    state.skipped.add(id);
    await next();
  });
}

const skip = () =>
  doing(async () => {
    state.skipped.add(state.pair.id);
    await next();
  });

const undo = () =>
  doing(async () => {
    if (!state.answered.length) return;
    const { event, id } = state.answered.at(-1);
    await call("DELETE", `v1/users/${state.user}/comparisons/${event}`);
    state.answered.pop();
    state.skipped.delete(id);
    await next();
  });

const forget = () =>
  doing(async () => {
    await call("DELETE", `v1/users/${state.user}`);
    sessionStorage.removeItem("user");
    state.user = name();
    at("name").textContent = state.user;
    state.answered = [];
    state.skipped.clear();
    await next();
    say("You are forgotten. This tab has a new name.");
  });

// The map: users of the bundle as dots, bases as rings, the person as a dot in one deviation.

function frame(places) {
  const xs = places.map((place) => place[0]);
  const ys = places.map((place) => place[1]);
  const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
  const scale = Math.min(280 / (right - left || 1), 220 / (high - low || 1));
  const x = (value) => 160 + (value - (left + right) / 2) * scale;
  const y = (value) => 130 - (value - (low + high) / 2) * scale;
  return { x, y, scale };
}

function project(mean, std) {
  const { center, axes } = state.gallery.population;
  const place = axes.map((axis) => axis.reduce((sum, part, row) => sum + part * (mean[row] - center[row]), 0));
  if (!std) return { place };
  const moment = (one, other) => one.reduce((sum, part, row) => sum + part * other[row] * std[row] ** 2, 0);
  const [xx, xy, yy] = [moment(axes[0], axes[0]), moment(axes[0], axes[1]), moment(axes[1], axes[1])];
  const middle = (xx + yy) / 2;
  const apart = Math.hypot((xx - yy) / 2, xy);
  const turn = (Math.atan2(2 * xy, xx - yy) / 2) * (180 / Math.PI);
  return { place, major: Math.sqrt(middle + apart), minor: Math.sqrt(Math.max(0, middle - apart)), turn };
}

function dots(target, { x, y }) {
  const { users, bases } = state.gallery.population;
  for (const place of users) target.append(svg("circle", { class: "user", cx: x(place[0]), cy: y(place[1]), r: 2.5 }));
  (bases ?? []).forEach((place, number) => {
    target.append(svg("circle", { class: "base", cx: x(place[0]), cy: y(place[1]), r: 7 }));
    target.append(svg("text", { x: x(place[0]), y: y(place[1]) + 3.5, "text-anchor": "middle" }, number + 1));
  });
}

function map(known) {
  const held = state.gallery.population;
  at("map").hidden = !held || !known.weights;
  if (at("map").hidden) {
    at("map-text").textContent = "This method has no map of people.";
    certainty(held?.ellipses);
    return;
  }
  const me = project(known.weights, known.std);
  const fitted = frame([...held.users, ...(held.bases ?? []), me.place]);
  at("map").replaceChildren();
  dots(at("map"), fitted);
  const [x, y] = [fitted.x(me.place[0]), fitted.y(me.place[1])];
  if (me.major !== undefined) {
    const [rx, ry] = [me.major * fitted.scale, me.minor * fitted.scale];
    at("map").append(svg("ellipse", { class: "sure", cx: x, cy: y, rx, ry, transform: `rotate(${-me.turn} ${x} ${y})` }));
  }
  at("map").append(svg("circle", { class: "self", cx: x, cy: y, r: 5 }));
  const size = me.major === undefined ? "" : ` Your position is known to within ${me.major.toFixed(2)}.`;
  at("map").dataset.major = me.major ?? "";
  const near = held.bases && known.nearest.length ? ` Nearest to ring ${known.nearest.map(({ basis }) => basis + 1).join(", then ")}.` : "";
  at("map-text").textContent = `You among ${held.users.length} people that the model was trained on${held.bases ? ", rings are its bases" : ""}.${near}${size}`;
  certainty(held.ellipses, me.major);
}

// Bars: a mean with what it is known to within.

function bar(mean, std, limit) {
  const picture = svg("svg", { viewBox: "0 0 200 16", preserveAspectRatio: "none", "aria-hidden": "true" });
  const x = (value) => 100 + (96 * Math.max(-limit, Math.min(limit, value))) / limit;
  picture.append(svg("line", { class: "axis", x1: 100, x2: 100, y1: 0, y2: 16 }));
  if (std) picture.append(svg("line", { class: "span", x1: x(mean - DEVIATIONS * std), x2: x(mean + DEVIATIONS * std), y1: 8, y2: 8 }));
  picture.append(svg("rect", { class: "mark", x: x(mean) - 2, y: 2, width: 4, height: 12 }));
  return picture;
}

const signed = (value) => `${value >= 0 ? "+" : "−"}${Math.abs(value).toFixed(2)}`;

const numbers = (mean, std) => `${signed(mean)}${std ? ` ± ${(DEVIATIONS * std).toFixed(2)}` : ""}`;

// What is not known yet of the person's margin for each contrast; null where the method does not say.
async function spreads(contrasts) {
  if (!state.model.uncertain) return null;
  const pairs = contrasts.map(({ higher, lower }) => ({ chosen: { item: higher.item }, rejected: { item: lower.item } }));
  const suggested = await suggest({ user: state.user, pairs, top: pairs.length });
  if (!suggested) return null;
  const stds = new Array(pairs.length);
  for (const { index, std } of suggested.data) stds[index] = std;
  return stds;
}

const titleOf = ({ title }) => (title === "common" ? "What all share" : title.replace("axis", "Direction"));

async function leanings() {
  const axes = state.gallery.description.bases.filter((basis) => basis.kind === "axis" && basis.contrasts.length).slice(0, 4);
  const contrasts = axes.map((basis) => basis.contrasts.slice(0, CONTRASTS));
  const candidates = contrasts.flat().flatMap(({ higher, lower }) => [{ item: higher.item }, { item: lower.item }]);
  if (!candidates.length) {
    at("leanings").replaceChildren(html("li", "This model says the same of everybody."));
    return;
  }
  const [everybodys, mine] = (await Promise.all([score(candidates), score(candidates, { user: state.user })])).map(({ data }) => data[0].mean);
  const stds = await spreads(contrasts.flat());
  const gaps = contrasts.flat().map((_, place) => {
    const [high, low] = [2 * place, 2 * place + 1];
    return { mean: mine[high] - mine[low] - (everybodys[high] - everybodys[low]), std: stds?.[place] ?? 0 };
  });
  const average = (some, what) => some.reduce((sum, gap) => sum + gap[what], 0) / some.length;
  const rows = axes.map((basis, place) => {
    const own = gaps.splice(0, contrasts[place].length);
    // The error of an average is at most the average of the errors.
    return { basis, shown: contrasts[place][0], mean: average(own, "mean"), std: average(own, "std") };
  });
  const limit = Math.max(1, ...rows.map((row) => Math.abs(row.mean) + DEVIATIONS * row.std));
  at("leanings").replaceChildren(
    ...rows.map(({ basis, shown, mean, std }) => {
      const item = html("li");
      const title = basis.name === "unnamed" ? titleOf(basis) : basis.name;
      item.append(html("strong", `${title}: ${numbers(mean, std)}`), bar(mean, std, limit));
      item.append(html("p", `more: ${shown.higher.text ?? `item ${shown.higher.item}`}`, "hint"));
      item.append(html("p", `less: ${shown.lower.text ?? `item ${shown.lower.item}`}`, "hint"));
      return item;
    }),
  );
}

function ranked() {
  const chosen = at("ranked").value;
  return chosen === "" ? state.pair.question : state.gallery.questions[Number(chosen)];
}

async function ranking() {
  const { responses } = ranked();
  const scored = (await score(responses.map(({ item }) => ({ item })), { user: state.user })).data[0];
  const middle = scored.mean.reduce((sum, mean) => sum + mean, 0) / scored.mean.length;
  const rows = responses.map((response, place) => ({ response, mean: scored.mean[place] - middle, std: scored.std?.[place] }));
  rows.sort((one, other) => other.mean - one.mean);
  const limit = Math.max(1e-6, ...rows.map((row) => Math.abs(row.mean) + DEVIATIONS * (row.std ?? 0)));
  at("ranking").replaceChildren(
    ...rows.map(({ response, mean, std }) => {
      const item = html("li");
      item.dataset.item = response.item;
      item.append(html("strong", numbers(mean, std)), bar(mean, std, limit), html("p", response.text));
      return item;
    }),
  );
}

const scoreText = (event) => {
  event.preventDefault();
  return doing(async () => {
    const { prompt, responses } = ranked();
    const candidates = [{ text: at("text").value }, ...responses.map(({ item }) => ({ item }))];
    const [row] = (await score(candidates, { user: state.user, prompt })).data;
    const others = row.mean.slice(1);
    const better = others.filter((mean) => mean < row.mean[0]).length;
    // On the ranking's scale: above the mean of the answers there.
    const middle = others.reduce((sum, mean) => sum + mean, 0) / others.length;
    const spans = row.mean.map((mean, place) => Math.abs(mean - middle) + DEVIATIONS * (row.std?.[place] ?? 0));
    const [mean, std] = [row.mean[0] - middle, row.std?.[0]];
    at("text-score").replaceChildren(
      html("strong", numbers(mean, std)),
      bar(mean, std, Math.max(1e-6, ...spans)),
      html("span", `You would like it better than ${better} of the ${responses.length} answers above.`),
    );
  });
};

// Everybody.

function population() {
  const { population: held, description } = state.gallery;
  at("all-map").hidden = !held;
  at("all-map-text").textContent = held
    ? `${held.users.length} people; the axes show ${Math.round(100 * (held.explained[0] + held.explained[1]))} % of how they differ.`
    : "This method has no map of people.";
  if (held) {
    at("all-map").replaceChildren();
    dots(at("all-map"), frame([...held.users, ...(held.bases ?? [])]));
  }
  at("bases").replaceChildren(...description.bases.map(basisOf));
  drift(description.drift);
  at("notes").replaceChildren(...description.notes.map((note) => html("li", note)));
}

// Counts of values from 0 to most, as bars and as a table.
function histogram(id, values, most, mark) {
  const counts = new Array(BINS).fill(0);
  const binOf = (value) => Math.min(BINS - 1, Math.floor((BINS * value) / (most || 1)));
  for (const value of values) counts[binOf(value)]++;
  const highest = Math.max(...counts);
  const width = 316 / BINS;
  const bars = counts.map((count, place) => {
    const height = (110 * count) / highest;
    return svg("rect", { class: "bar", x: 2 + place * width, y: 120 - height, width: width - 1.8, height });
  });
  if (mark !== undefined) {
    const x = 2 + 316 * Math.min(1, mark / (most || 1));
    bars.push(svg("line", { class: "self-mark", x1: x, x2: x, y1: 4, y2: 120 }));
  }
  at(id).replaceChildren(...bars);
  const rows = counts.map((count, place) => {
    const row = html("tr");
    row.append(html("td", `${((place * most) / BINS).toFixed(2)} to ${(((place + 1) * most) / BINS).toFixed(2)}`), html("td", count));
    return row;
  });
  at(`${id}-rows`).replaceChildren(...rows);
}

function certainty(ellipses, mine) {
  at("certain").hidden = at("certain-table").hidden = !ellipses;
  if (!ellipses) {
    at("certain-text").textContent = "This method does not say how well it knows people.";
    return;
  }
  const sizes = ellipses.map((one) => one.major);
  const most = Math.max(...sizes);
  histogram("certain", sizes, Math.max(most, mine ?? 0), mine);
  const sorted = [...sizes].sort((one, other) => one - other);
  at("certain-text").textContent = `Left: well known. Half of them to within ${sorted[sorted.length >> 1].toFixed(2)}, the least known to within ${most.toFixed(2)}.${mine === undefined ? "" : ` The line is you, ${mine.toFixed(2)}.`}`;
}

function drift(found) {
  at("drift").hidden = !found;
  if (!found) return;
  const percent = (share) => `${Math.round(100 * share)} %`;
  const half = found.agreement[(found.users - 1) >> 1];
  at("drift-text").textContent =
    `Since ${found.against}: of ${found.pairs} pairs of answers, at least ${percent(half)} are ordered as before for half of the ` +
    `${found.users} people that both models know; ${percent(found.average)} for their average.`;
  histogram("agree", found.agreement, 1);
  at("matches").replaceChildren(
    ...found.bases.map(({ basis, earlier, correlation }) => {
      const row = html("tr");
      row.append(html("td", titleOf({ title: basis })), html("td", titleOf({ title: earlier })), html("td", numbers(correlation)));
      return row;
    }),
  );
  for (const side of ["rose", "fell"]) {
    at(side).replaceChildren(
      ...found[side].map(({ before, now }) => html("li", `${numbers(before)} → ${numbers(now.score)}: ${now.text ?? `item ${now.item}`}`)),
    );
  }
}

function basisOf(basis) {
  const article = html("article");
  const named = basis.name === "unnamed" ? "no name, see the texts" : basis.name;
  article.append(html("h3", `${titleOf(basis)}: ${named} (${Math.round(100 * basis.share)} %)`));
  const leaning = basis.leaning;
  if (leaning) article.append(html("p", `${leaning.positive} for, ${leaning.negative} against, ${leaning.undecided} undecided`, "hint"));
  const list = html("dl");
  for (const [term, items] of [["Highest", basis.top], ["Lowest", basis.bottom]]) {
    list.append(html("dt", term));
    for (const item of items) list.append(html("dd", item.text ?? `item ${item.item}`));
  }
  article.append(list);
  const telling = basis.features.filter(({ significant }) => significant);
  if (telling.length) article.append(table(["It goes with", "correlation"], telling.map(({ name, rho, low, high }) => [name, `${signed(rho)} (${signed(low)} to ${signed(high)})`])));
  if (basis.contrasts.length) {
    const pairs = html("details");
    pairs.append(html("summary", "Pairs that differ in this alone"));
    pairs.append(table(["Higher", "Lower"], basis.contrasts.map(({ higher, lower }) => [higher, lower].map((side) => side.text ?? `item ${side.item}`))));
    article.append(pairs);
  }
  return article;
}

function table(head, rows) {
  const made = html("table");
  const line = (kind, cells) => {
    const row = html("tr");
    row.append(...cells.map((cell) => html(kind, cell)));
    return row;
  };
  made.append(line("th", head), ...rows.map((row) => line("td", row)));
  return made;
}

at("first").addEventListener("click", () => answer("first"));
at("second").addEventListener("click", () => answer("second"));
at("skip").addEventListener("click", skip);
at("undo").addEventListener("click", undo);
at("forget").addEventListener("click", () => at("sure").showModal());
at("sure").addEventListener("close", () => at("sure").returnValue === "yes" && forget());
at("text-form").addEventListener("submit", scoreText);
at("ranked").addEventListener("change", () => doing(ranking));
at("show-me").addEventListener("click", () => view("me"));
at("show-all").addEventListener("click", () => view("all"));
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("key", at("key").value);
  doing(begin);
});
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest("input, textarea, select, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || at("me").hidden) return;
  const done = { 1: () => answer("first"), ArrowLeft: () => answer("first"), 2: () => answer("second"), ArrowRight: () => answer("second"), s: skip, u: undo }[event.key];
  if (done) {
    event.preventDefault();
    done();
  }
});

doing(begin);
