/**
 * The chat page of one agent.
 *
 * Two sources tell what happened, and both name the task: the messages over HTTP (questions, and
 * answers that are finished), and the session's log over the socket (answers while they grow). A
 * finished turn ignores whatever the log repeats about it, so the two may overlap but never add up
 * to a text twice.
 *
 * What is kept for a reload is not the last seq that was heard but the last one before the oldest
 * answer that is still running: everything up to it stands in the messages, everything after it is
 * replayed from the log, the running answer from its first token on.
 */

const body = document.getElementById("chat");
const { agent_id: agentId, agent_name: agentName, sockets, signers, strings } = JSON.parse(body.dataset.config);
const part = (id) => document.getElementById(id);

const REQUEST_MS = 30_000;
const CONNECT_MS = 15_000;
const ASK_MS = 25_000; // of silence, before we ask whether anybody is there
const SILENCE_MS = 45_000; // of silence, before we believe that nobody is
const PROBE_MS = 5_000;
const MOVE_MS = 5_000; // within which those come back whom a server that stops sends away
const OPEN = new Set(["waiting", "running", "cancelling"]);
const SIGNER_MS = 10_000; // that the page around us may take to say who is chatting

const fill = (text, values) => text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const comeback = () => new Promise((resolve) => addEventListener("online", resolve, { once: true }));

/** A page in the background gets no frames, but a reader who comes back finds it up to date. */
function nextFrame(write) {
  const once = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    write();
  };
  const frame = requestAnimationFrame(once);
  const timer = setTimeout(once, 200);
}

/** Backoff: 1 s, growing by half up to 30 s, spread so that clients do not come back in step. */
const backoff = (failures) => Math.min(30_000, 1000 * 1.5 ** failures) * (0.5 + Math.random() / 2);

/** So that not all of those who are sent away come back at once. */
const jitter = () => MOVE_MS * Math.random();

/** Unicode code points, in which the server counts its offsets. */
const codePoints = (text) => text.length - (text.match(/[\uD800-\uDBFF][\uDC00-\uDFFF]/g)?.length ?? 0);

/** 128 random bits; `crypto.randomUUID` exists on secure origins only. */
function randomKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

// --- what is remembered ------------------------------------------------------------------------

/**
 * The conversation that a reload goes on with, shared by the tabs of this agent.
 * @typedef {{id: string, token: string, after: number}} Session
 */
class Memory {
  #key = `nooble.chat.${agentId}`;
  #instead = null; // where the browser keeps nothing for us

  /** @returns {Session | null} */
  read() {
    try {
      const kept = JSON.parse(localStorage.getItem(this.#key));
      const sound =
        typeof kept?.id === "string" && typeof kept.token === "string" && Number.isSafeInteger(kept.after);
      return sound ? kept : null;
    } catch {
      return this.#instead;
    }
  }

  /** @param {Session} session */
  write(session) {
    this.#instead = session;
    try {
      localStorage.setItem(this.#key, JSON.stringify(session));
    } catch {
      // Private windows may refuse: then a reload begins anew.
    }
  }

  /** Another tab may have begun a new conversation: that one stays remembered. */
  renew(session) {
    if (this.read()?.id === session.id) this.write(session);
  }

  forget(session) {
    this.#instead = null;
    try {
      if (!session || this.read()?.id === session.id) localStorage.removeItem(this.#key);
    } catch {
      // Nothing was kept.
    }
  }
}

// --- who is chatting ---------------------------------------------------------------------------

/**
 * The end user's token, where the agent asks for one. The page that shows ours in a frame has it of
 * its own server: we ask `{nooble: "token"}` and are answered `{nooble: "token", token}`. It is taken
 * from that page only, if the agent allows its origin, and is kept nowhere but here.
 */
class Signer {
  #token = null;
  #asking = null;

  /** @returns {Promise<string | null>} null where none is needed; throws Refusal where none comes */
  async token() {
    if (!signers) return null;
    this.#token ??= await (this.#asking ??= this.#ask().finally(() => (this.#asking = null)));
    return this.#token;
  }

  /** The one that we have, for those who cannot wait. */
  get present() {
    return this.#token;
  }

  /** It was refused: the next one is asked for. */
  forget() {
    this.#token = null;
  }

  #ask() {
    return new Promise((resolve, reject) => {
      const nobody = () => reject(new Refusal(401, { type: "Unknown", message: strings.unknown }));
      if (window.parent === window) {
        nobody();
        return;
      }
      const answered = ({ source, origin, data }) => {
        if (source !== window.parent || !signers.includes(origin)) return;
        if (data?.nooble !== "token" || typeof data.token !== "string") return;
        end();
        resolve(data.token);
      };
      const timer = setTimeout(() => {
        end();
        nobody();
      }, SIGNER_MS);
      const end = () => {
        clearTimeout(timer);
        removeEventListener("message", answered);
      };
      addEventListener("message", answered);
      // There is nothing in the question that anybody must not hear.
      window.parent.postMessage({ nooble: "token" }, "*");
    });
  }
}

const signer = new Signer();

// --- HTTP --------------------------------------------------------------------------------------

/** A request that did not succeed; `status` 0: no answer came. */
class Refusal extends Error {
  constructor(status, error, seconds) {
    super(error?.message);
    this.status = status;
    this.type = error?.type;
    this.seconds = seconds;
  }

  /** Why, in words for the reader. */
  get reason() {
    if (this.status === 0) return strings.offline;
    if (this.status === 429 && this.type !== "BudgetExhausted") return fill(strings.slow_down, { seconds: this.seconds || 10 });
    if (this.status >= 502) return strings.unavailable;
    return this.message || strings.unexpected;
  }
}

/** The refusal, or whatever else was thrown, thrown again. */
function expected(error) {
  if (error instanceof Refusal) return error;
  throw error;
}

/** A token may have run out since it was given to us: then once more, with a new one. */
async function call(method, path, options = {}) {
  try {
    return await callOnce(method, path, options);
  } catch (error) {
    if (!options.signed || !signer.present || expected(error).status !== 401) throw error;
    signer.forget();
    return callOnce(method, path, options);
  }
}

async function callOnce(method, path, { fields, headers, signed }) {
  const token = signed ? await signer.token() : null;
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: {
        "Accept-Language": document.documentElement.lang,
        ...(fields && { "Content-Type": "application/json" }),
        ...(token && { Authorization: `Bearer ${token}` }),
        ...headers,
      },
      body: fields && JSON.stringify(fields),
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(REQUEST_MS),
    });
  } catch {
    throw new Refusal(0);
  }
  const answer = await response.json().catch(() => null);
  if (response.ok && answer) return answer;
  const seconds = Number.parseInt(response.headers.get("Retry-After"), 10);
  throw new Refusal(response.status || 502, answer?.error, seconds);
}

// --- text to nodes -----------------------------------------------------------------------------

// A small part of Markdown, made of nodes and text only: what a model writes is never parsed as HTML.

const MAX_DEPTH = 5;
const FENCE = /^(\s*)(`{3,}|~{3,})(.*)$/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;
const INLINE = new RegExp(
  [
    String.raw`\\(?<escaped>[\\\x60*_[\](){}#+.!|>-])`,
    // Every alternative fails within a few characters of where it began: hostile text costs no time.
    String.raw`(?<!\x60)(?<ticks>\x60+)(?!\x60)(?<code>[^\x60]+)\k<ticks>(?!\x60)`,
    String.raw`\*\*(?![\s*])(?<strong>(?:[^*]|\*(?!\*))+)\*\*`,
    String.raw`\*(?![\s*])(?<em>[^*\n]+)(?<!\s)\*`,
    String.raw`(?<![\w_])_(?![\s_])(?<em2>[^_\n]+)(?<!\s)_(?![\w_])`,
    String.raw`!?\[(?<label>[^\[\]\n]+)\]\((?<target>(?:[^()\s<>]|\([^()\s<>]*\))+)(?:\s"[^"\n]*")?\)`,
    String.raw`(?<![\w])(?<address>https?:\/\/[^\s<>"\x60]*[^\s<>"\x60.,;:!?'”’)\]*_])`,
  ].join("|"),
  "gu",
);

/** The address if it may be followed, else null. */
function safeAddress(text) {
  try {
    const address = new URL(text);
    return ["http:", "https:", "mailto:"].includes(address.protocol) ? address.href : null;
  } catch {
    return null;
  }
}

function link(address, label, depth) {
  const made = element("a");
  made.href = address;
  made.title = address;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  if (depth === null) made.textContent = label;
  else writeInline(made, label, depth);
  return made;
}

function inlineNode(found, depth) {
  const { escaped, code, strong, em, em2, label, target, address } = found.groups;
  if (escaped) return escaped;
  if (code) return element("code", "", code);
  if (label || address) {
    const safe = safeAddress(target ?? address);
    return safe ? link(safe, label ?? address, label ? depth + 1 : null) : found[0];
  }
  const made = element(strong ? "strong" : "em");
  writeInline(made, strong ?? em ?? em2, depth + 1);
  return made;
}

function writeInline(parent, text, depth = 0) {
  let written = 0;
  if (depth < MAX_DEPTH) {
    for (const found of text.matchAll(INLINE)) {
      parent.append(text.slice(written, found.index), inlineNode(found, depth));
      written = found.index + found[0].length;
    }
  }
  parent.append(text.slice(written));
  parent.normalize();
}

function kindOf(line) {
  if (FENCE.test(line)) return "code";
  if (/^#{1,6}\s/.test(line)) return "heading";
  if (/^\s*(?:-{3,}|\*{3,}|_{3,})\s*$/.test(line)) return "rule";
  if (line.startsWith(">")) return "quote";
  return ITEM.test(line) ? "list" : "text";
}

/**
 * @typedef {{kind: string, start: number, lines: string[], fence?: RegExpExecArray}} Block
 * @returns {Block[]} the text in blocks; where one starts does not depend on what stands before it
 */
function blocksOf(text) {
  const blocks = [];
  let block = null;
  let start = 0;
  for (const line of text.split("\n")) {
    if (block?.kind === "code") {
      const mark = line.trim();
      const closes = mark.startsWith(block.fence[2]) && !mark.slice(block.fence[2].length).replaceAll(mark[0], "");
      if (closes) block = null;
      else block.lines.push(line);
    } else if (!line.trim()) {
      block = null;
    } else {
      const kind = kindOf(line);
      const goesOn =
        ["text", "list", "quote"].includes(block?.kind) && (kind === block.kind || kind === "text");
      if (goesOn) {
        block.lines.push(line);
      } else {
        block = { kind, start, lines: kind === "code" ? [] : [line], fence: FENCE.exec(line) };
        blocks.push(block);
        if (kind === "heading" || kind === "rule") block = null;
      }
    }
    start += line.length + 1;
  }
  return blocks;
}

function codeNode(block) {
  const made = element("pre");
  made.tabIndex = 0; // wide code scrolls, with the keyboard too
  const indent = block.fence[1].length;
  const lines = block.lines.map((line) => line.slice(Math.min(indent, line.search(/\S|$/))));
  made.append(element("code", "", lines.join("\n")));
  return made;
}

function headingNode(line) {
  const [marks] = /^#+/.exec(line);
  const made = element(marks.length < 3 ? "h2" : "h3");
  writeInline(made, line.slice(marks.length).trim());
  return made;
}

function listNode(lines) {
  const root = document.createDocumentFragment();
  const open = []; // the list we are in, and those around it
  let text = null;
  const write = () => text && writeInline(text.item, text.lines.join("\n"));
  for (const line of lines) {
    const found = ITEM.exec(line);
    if (!found) {
      text.lines.push(line.trim());
      continue;
    }
    write();
    const [, { length: indent }, number, rest] = found;
    while (open.length > 1 && indent < open.at(-1).indent) open.pop();
    const deeper = !open.length || (indent > open.at(-1).indent + 1 && open.length < MAX_DEPTH);
    const tag = number === undefined ? "ul" : "ol";
    if (deeper || open.at(-1).list.localName !== tag) {
      const list = element(tag);
      if (number !== undefined) list.start = Number(number);
      const parent = deeper ? open.at(-1) : open.at(-2);
      (parent?.list.lastElementChild ?? root).append(list);
      if (!deeper) open.pop();
      open.push({ list, indent });
    }
    const item = element("li");
    open.at(-1).list.append(item);
    text = { item, lines: [rest] };
  }
  write();
  return root;
}

/** @param {Block} block */
function nodesOf(block) {
  if (block.kind === "code") return [codeNode(block)];
  if (block.kind === "heading") return [headingNode(block.lines[0])];
  if (block.kind === "rule") return [element("hr")];
  if (block.kind === "list") return [...listNode(block.lines).childNodes];
  const paragraph = element("p");
  if (block.kind === "text") {
    writeInline(paragraph, block.lines.join("\n"));
    return [paragraph];
  }
  writeInline(paragraph, block.lines.map((line) => line.replace(/^>\s?/, "")).join("\n"));
  const quote = element("blockquote");
  quote.append(paragraph);
  return [quote];
}

/**
 * A text that grows. Blocks that cannot change any more are written once; only the end of the text
 * is written anew, at most once a frame, and less often where that takes long.
 */
class Prose {
  #text = "";
  #settled = 0; // where the part begins that may still change
  #loose = []; // the nodes of that part
  #asked = false;
  #cost = 0;
  #wroteAt = -Infinity;

  constructor(parent, written) {
    this.parent = parent;
    this.written = written;
  }

  get text() {
    return this.#text;
  }

  set(text) {
    if (!text.startsWith(this.#text)) {
      this.parent.replaceChildren();
      this.#settled = 0;
      this.#loose = [];
    }
    this.#text = text;
    this.#ask();
  }

  append(piece) {
    this.#text += piece;
    this.#ask();
  }

  #ask() {
    if (this.#asked) return;
    this.#asked = true;
    nextFrame(() => this.#frame());
  }

  #frame() {
    if (performance.now() - this.#wroteAt < 8 * this.#cost) {
      nextFrame(() => this.#frame());
      return;
    }
    this.#asked = false;
    const began = performance.now();
    this.#write();
    this.written();
    this.#wroteAt = performance.now();
    this.#cost = this.#wroteAt - began;
  }

  #write() {
    for (const node of this.#loose) node.remove();
    this.#loose = [];
    const rest = this.#text.slice(this.#settled);
    const blocks = blocksOf(rest);
    // The last block may grow; and until its first line is complete it may not even be one.
    const last = blocks.at(-1);
    const whole = last && rest.includes("\n", last.start);
    const settled = Math.max(0, blocks.length - (whole ? 1 : 2));
    blocks.forEach((block, index) => {
      const nodes = nodesOf(block);
      this.parent.append(...nodes);
      if (index >= settled) this.#loose.push(...nodes);
    });
    if (settled) this.#settled += blocks[settled].start;
  }
}

// --- what is seen ------------------------------------------------------------------------------

/** Keeps the newest text in view, as long as the reader has not scrolled away from it. */
class Scroller {
  #box = part("scroller");
  #button = part("latest");
  #follows = true;
  #top = 0;

  constructor() {
    this.#box.addEventListener("scroll", () => this.#look(), { passive: true });
    this.#button.addEventListener("click", () => {
      this.toEnd();
      this.#box.focus({ preventScroll: true });
    });
    new ResizeObserver(() => this.follow()).observe(this.#box);
  }

  #look() {
    const { scrollHeight, scrollTop, clientHeight } = this.#box;
    const upwards = scrollTop < this.#top;
    this.#top = scrollTop;
    // Who moves away, however little, is not pulled back; who comes near the end is at the end.
    this.#follows = scrollHeight - scrollTop - clientHeight < (upwards ? 2 : 40);
    this.#button.hidden = this.#follows;
  }

  follow() {
    if (this.#follows) this.#box.scrollTop = this.#box.scrollHeight;
    else this.#look();
  }

  toEnd() {
    this.#follows = true;
    this.#button.hidden = true;
    this.follow();
  }
}

/**
 * A question and its answer. `phase`: sending, unsent, waiting, running, cancelling, done, stopped, failed.
 */
class Turn {
  /** The seq of the event that began the running attempt, or null. */
  startedSeq = null;
  /** Code points of the answer so far. */
  #points = 0;
  /** Whether the log was asked again for a piece that was missing. */
  replayed = false;
  /** Whether anything was heard since the last look. */
  heard = false;
  task = null;
  question = null;
  key = randomKey();

  #said = element("p", "question");
  #answer = element("div", "answer");
  #note = element("p", "note");
  #noteText = element("span");
  #retry = element("button", "quiet", strings.retry);

  constructor(chat, phase) {
    this.element = element("article", "turn");
    this.prose = new Prose(this.#answer, () => chat.scroller.follow());
    this.#said.hidden = true;
    this.#retry.type = "button";
    this.#retry.addEventListener("click", () => chat.retry(this));
    this.#note.append(this.#noteText, " ", this.#retry);
    this.element.append(this.#said, this.#answer, this.#note);
    this.to(phase);
  }

  get open() {
    return OPEN.has(this.phase);
  }

  ask(question) {
    this.question = question;
    this.#said.replaceChildren(element("span", "unseen", `${strings.question}: `), question);
    this.#said.hidden = false;
  }

  to(phase, note = "") {
    this.phase = phase;
    this.element.dataset.phase = phase;
    this.#answer.ariaBusy = String(this.open);
    this.#noteText.textContent = note;
    this.#retry.hidden = !this.question || !["unsent", "failed"].includes(phase);
    this.#note.hidden = !note;
  }

  /** An attempt begins: what an earlier one streamed is forgotten. */
  restart(seq) {
    this.startedSeq = seq;
    this.#points = 0;
    this.prose.set("");
    if (this.phase !== "cancelling") this.to("running");
  }

  /** @returns {boolean} whether the piece belongs here */
  append({ token, offset }) {
    if (offset === 0 && this.#points) {
      // The server has lost what it had sent, and sends the whole.
      this.prose.set("");
      this.#points = 0;
    }
    if (offset !== this.#points) return false;
    if (this.phase === "waiting") this.to("running");
    this.#points += codePoints(token);
    this.prose.append(token);
    return true;
  }

  /** What has come of an answer that we did not hear from its beginning. */
  resume(text) {
    this.prose.set(text);
    this.#points = codePoints(text);
    if (this.phase !== "cancelling") this.to("running");
  }

  /** The attempt was given up, and another one will begin. */
  requeue() {
    this.prose.set("");
    this.#points = 0;
    if (this.phase !== "cancelling") this.to("waiting");
  }

  finish(text, reason) {
    this.prose.set(text);
    if (reason === "cancelled") this.to("stopped", strings.stopped);
    else if (reason === "failed") this.to("failed", strings.failed);
    else if (reason === "length") this.to("done", strings.cut_short);
    else if (reason === "budget") this.to("done", strings.out_of_budget);
    else this.to("done", text ? "" : strings.empty);
  }

  fail(reason) {
    this.to("failed", reason ? fill(strings.failed_because, { reason }) : strings.failed);
  }
}

// --- the socket --------------------------------------------------------------------------------

/** A connection that comes back: by itself, and at once when the reader does. */
class Line {
  #socket = null;
  #timer = 0;
  #failures = 0;
  #began = 0;
  #heardAt = 0;
  #wanted = false;

  /**
   * @param {{
   *   address: () => {url: string, protocols: string[]},
   *   hear: (message: object) => void,
   *   refused: () => void,
   *   lost: () => void,
   *   changed: (connected: boolean) => void,
   * }} owner
   */
  constructor(owner) {
    this.owner = owner;
    setInterval(() => this.#watch(), 5000);
    addEventListener("online", () => this.probe());
    addEventListener("pageshow", (event) => event.persisted && this.probe());
    document.addEventListener("visibilitychange", () => document.hidden || this.probe());
  }

  start() {
    this.#wanted = true;
    this.#failures = 0;
    this.#connect();
  }

  stop() {
    this.#wanted = false;
    clearTimeout(this.#timer);
    this.#drop();
    this.owner.changed(true);
  }

  say(message) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message));
  }

  /** Make sure that the line is alive now, without waiting for a timer. */
  probe() {
    if (!this.#wanted) return;
    if (this.#socket?.readyState !== WebSocket.OPEN) {
      if (!this.#socket || Date.now() - this.#began > PROBE_MS) this.#connect();
      return;
    }
    const asked = Date.now();
    const socket = this.#socket;
    this.say({ action: "ping" });
    setTimeout(() => socket === this.#socket && this.#heardAt < asked && this.#connect(), PROBE_MS);
  }

  #connect() {
    clearTimeout(this.#timer);
    this.#drop();
    const { url, protocols } = this.owner.address();
    const socket = new WebSocket(url, protocols);
    this.#socket = socket;
    this.#began = this.#heardAt = Date.now();
    socket.addEventListener("message", ({ data }) => socket === this.#socket && this.#take(data));
    socket.addEventListener("close", ({ code }) => socket === this.#socket && this.#closed(code));
  }

  #drop() {
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #take(data) {
    this.#heardAt = Date.now();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return;
    }
    if (message.event === "reconnect") {
      this.#again(jitter());
      return;
    }
    if (message.event === "connection_established") {
      this.#failures = 0;
      this.owner.changed(true);
    }
    if (message.event === "ping") this.say({ action: "ping" });
    this.owner.hear(message);
  }

  #closed(code) {
    this.#socket = null;
    if ([4400, 4403, 4404].includes(code)) {
      this.#wanted = false;
      this.owner.refused();
    } else if (code === 1012) {
      this.#again(jitter()); // the server stops, and another one takes its place
    } else {
      // Away for a moment (1013), or we were silent (4408), slow (4409), or one too many (4429): what was
      // missed comes after the cursor.
      this.#again(code === 4429 ? 5000 + backoff(this.#failures) : backoff(this.#failures));
    }
  }

  #again(ms) {
    this.#drop();
    clearTimeout(this.#timer);
    this.#failures += 1;
    this.#timer = setTimeout(() => this.#connect(), ms);
    this.owner.changed(false);
    this.owner.lost();
  }

  #watch() {
    if (!this.#socket) return;
    const silent = Date.now() - this.#heardAt;
    if (this.#socket.readyState === WebSocket.CONNECTING ? silent > CONNECT_MS : silent > SILENCE_MS) {
      this.#again(backoff(this.#failures));
    } else if (silent > ASK_MS) {
      this.say({ action: "ping" });
    }
  }
}

// --- the conversation --------------------------------------------------------------------------

class Chat {
  scroller = new Scroller();
  #memory = new Memory();
  /** @type {Session | null} */
  #session = null;
  #cursor = 0; // the last seq heard
  /** @type {Map<string, Turn>} by task */
  #turns = new Map();
  /** @type {Turn | null} the one that the server does not know yet */
  #unsent = null;
  #restoring = false;
  #asking = false;
  #renewed = false; // the token, since the socket was accepted last
  #disconnected = 0;
  #list = part("conversation");
  #line = new Line({
    address: () => this.#address(),
    hear: (message) => this.#hear(message),
    refused: () => this.#turnedAway(),
    lost: () => this.#look(),
    changed: (connected) => this.#connection(connected),
  });

  constructor() {
    const form = part("composer");
    const field = part("message");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
      event.preventDefault();
      this.#submit();
    });
    field.addEventListener("input", () => this.#typed());
    part("stop").addEventListener("click", () => this.#stop());
    part("begin").addEventListener("click", () => this.#begin());
    // A conversation begun in another tab, while this one has none.
    addEventListener("storage", () => !this.#session && !this.#unsent && this.#restore());
    if (matchMedia("(pointer: fine)").matches) field.focus();
    this.#typed();
    this.#restore();
  }

  get #open() {
    return [...this.#turns.values()].filter((turn) => turn.open);
  }

  get #busy() {
    return this.#restoring || this.#unsent?.phase === "sending" || this.#open.length > 0;
  }

  // From the reader.

  #typed() {
    const field = part("message");
    if (!CSS.supports("field-sizing", "content")) {
      field.style.height = "auto";
      field.style.height = `${field.scrollHeight}px`;
    }
    this.#refresh();
  }

  #submit() {
    const field = part("message");
    if (this.#busy || !field.value.trim()) return;
    // What JSON or the database cannot carry: half characters, and the null character.
    const text = field.value.replaceAll("\0", "");
    field.value = "";
    this.#typed();
    // What was not sent before stays readable, but is no longer waited for.
    this.#unsent = this.#newTurn("sending");
    this.#unsent.ask(text.toWellFormed?.() ?? text);
    this.#send(this.#unsent);
    if (matchMedia("(pointer: fine)").matches) field.focus();
  }

  /** @param {Turn} turn */
  retry(turn) {
    if (this.#busy) return;
    if (turn.phase === "unsent") {
      this.#unsent = turn;
      this.#list.append(turn.element);
    } else {
      this.#unsent = this.#newTurn("sending");
      this.#unsent.ask(turn.question);
    }
    this.#send(this.#unsent);
  }

  /** @param {Turn} turn */
  async #send(turn) {
    turn.to("sending");
    this.#say("");
    this.scroller.toEnd();
    this.#refresh();
    const session = this.#session;
    let accepted = null;
    let refusal = null;
    try {
      accepted = await call("POST", "/api/v1/chat/message", {
        fields: { agent_id: agentId, message: turn.question, ...(session && { session_id: session.id }) },
        // Said again after an answer that was lost, it is still the same message.
        headers: { "Idempotency-Key": turn.key, ...this.#proof() },
        signed: true,
      });
    } catch (error) {
      refusal = expected(error);
    }
    if (this.#unsent === turn && this.#session === session) {
      if (accepted) this.#accepted(turn, accepted.result);
      else this.#refused(turn, refusal);
    } else {
      // Meanwhile the reader began a new conversation, or this one was closed to us.
      if (accepted) this.#cancel(accepted.result.task_id);
      if (this.#unsent === turn) this.#sendAnew(turn);
    }
    this.#refresh();
  }

  #accepted(turn, { task_id: task, session_id: id, resume_token: token }) {
    this.#unsent = null;
    this.#bind(turn, task);
    if (!this.#session) {
      // From the beginning of the log: what was said since the message came in is not missed.
      this.#cursor = 0;
      this.#session = { id, token, after: 0 };
      this.#memory.write(this.#session);
      this.#line.start();
    }
    this.#askForQuestions();
  }

  #refused(turn, refusal) {
    const busy = refusal.type === "SessionBusy"; // with a message of another tab
    if (this.#session && !busy && [403, 404, 409].includes(refusal.status)) {
      // The conversation is closed to us: the message opens a new one.
      this.#end(strings.ended);
      this.#sendAnew(turn);
      return;
    }
    const reason = refusal.status === 404 ? strings.agent_gone : refusal.reason;
    turn.to("unsent", fill(strings.not_sent, { reason }));
    this.#announce(fill(strings.not_sent, { reason }));
    this.scroller.follow();
    this.#askForQuestions();
  }

  #sendAnew(turn) {
    turn.key = randomKey();
    this.#list.append(turn.element);
    this.#send(turn);
  }

  async #stop() {
    const turns = this.#open;
    for (const turn of turns) turn.to("cancelling", strings.stopping);
    this.#refresh();
    for (const turn of turns) {
      try {
        const { result } = await call("POST", `/api/v1/chat/cancel/${turn.task}`);
        if (result.status === "cancelled" && turn.open) this.#settle(turn, () => turn.finish("", "cancelled"));
      } catch (error) {
        const refusal = expected(error);
        if (refusal.status === 404 || refusal.status === 409) {
          await this.#check(turn);
        } else if (turn.open) {
          turn.to(turn.prose.text ? "running" : "waiting");
          this.#say(fill(strings.cannot_stop, { reason: refusal.reason }));
        }
      }
    }
    this.#refresh();
  }

  /** Stop what nobody waits for any more. */
  #cancel(task) {
    call("POST", `/api/v1/chat/cancel/${task}`).catch(() => {});
  }

  #begin() {
    for (const turn of this.#open) this.#cancel(turn.task);
    this.#leave();
    for (const turn of this.#list.querySelectorAll(".turn, .divider")) turn.remove();
    this.#unsent = null;
    this.#say("");
    this.#typed();
    part("message").focus();
  }

  // The session.

  #proof() {
    return this.#session ? { "Nooble-Resume": this.#session.token } : {};
  }

  #address() {
    const url = new URL(`${sockets}${this.#session.id}`);
    if (location.protocol === "https:") url.protocol = "wss:";
    url.searchParams.set("after", this.#cursor);
    const protocols = ["nooble.v1", `nooble.resume.${this.#session.token}`];
    if (signer.present) protocols.push(`nooble.bearer.${signer.present}`);
    return { url: url.href, protocols };
  }

  /** The last seq before the oldest running answer: a reload goes on from there. */
  get #safe() {
    const begins = this.#open.map((turn) => turn.startedSeq).filter((seq) => seq !== null);
    return Math.min(this.#cursor, ...begins.map((seq) => seq - 1));
  }

  #keep(token = this.#session.token) {
    const after = this.#safe;
    if (token === this.#session.token && after === this.#session.after) return;
    Object.assign(this.#session, { token, after });
    this.#memory.renew(this.#session);
  }

  async #restore() {
    const session = this.#memory.read();
    if (!session) return;
    this.#session = session;
    this.#cursor = session.after;
    this.#restoring = true;
    this.#refresh();
    for (let failures = 0; this.#session === session; failures += 1) {
      try {
        this.#learn(await this.#history());
        if (this.#session !== session) return;
        await this.#checkUnanswered();
        break;
      } catch (error) {
        const refusal = expected(error);
        if (this.#session !== session) return;
        if ([400, 401, 403, 404].includes(refusal.status)) {
          this.#end(refusal.status === 401 ? refusal.reason : strings.ended);
          return;
        }
        this.#connection(false);
        await Promise.race([pause(backoff(failures)), comeback()]);
      }
    }
    if (this.#session !== session) return;
    this.#restoring = false;
    this.scroller.toEnd();
    this.#refresh();
    this.#line.start();
  }

  /** The socket was refused. Perhaps our token has run out: once, another one is tried. */
  async #turnedAway() {
    const session = this.#session;
    if (signer.present && !this.#renewed) {
      this.#renewed = true;
      signer.forget();
      try {
        await signer.token();
        if (this.#session === session) this.#line.start();
        return;
      } catch (error) {
        expected(error);
      }
    }
    if (this.#session === session) this.#end(strings.ended);
  }

  /** The session cannot be gone on with: what was said stays on the screen, the next message begins anew. */
  #end(notice) {
    for (const turn of this.#open) turn.fail();
    this.#leave();
    if (this.#list.querySelector(".turn")) {
      this.#list.append(element("p", "divider", notice));
      this.#announce(notice);
      this.scroller.follow();
    } else {
      this.#say(notice);
    }
    this.#refresh();
  }

  #leave() {
    this.#line.stop();
    this.#memory.forget(this.#session);
    this.#session = null;
    this.#restoring = false;
    this.#cursor = 0;
    this.#turns.clear();
  }

  // What was said, over HTTP.

  async #history() {
    const items = [];
    let next = "";
    do {
      const path = `/api/v1/sessions/${this.#session.id}/messages?limit=200${next && `&cursor=${next}`}`;
      const page = await call("GET", path, { headers: this.#proof(), signed: true });
      items.push(...page.items);
      next = page.next ? encodeURIComponent(page.next) : "";
    } while (next && this.#session);
    return items;
  }

  /** Bring the turns up to what the messages say. */
  #learn(items) {
    let last = null;
    for (const item of items) {
      const known = this.#turns.get(item.task_id ?? `message ${item.id}`);
      if (item.role === "user") {
        last = typeof known?.question === "string" ? known : this.#adopt(item);
      } else {
        const turn = known ?? last;
        if (turn?.open) turn.finish(item.text, item.finish_reason);
      }
    }
  }

  /** A question that is new to us: one whose sending seemed to fail, or another tab's. */
  #adopt(item) {
    const task = item.task_id ?? `message ${item.id}`;
    if (this.#unsent?.phase === "unsent" && this.#unsent.question === item.text) {
      const turn = this.#unsent;
      this.#unsent = null;
      return this.#bind(turn, task);
    }
    const turn = this.#turnOf(task);
    turn.ask(item.text);
    return turn;
  }

  /** The task of a turn is known now; the socket may have told of it before. */
  #bind(turn, task) {
    const heard = this.#turns.get(task);
    if (heard) {
      heard.ask(turn.question);
      turn.element.replaceWith(heard.element);
      return heard;
    }
    turn.task = task;
    turn.to("waiting");
    this.#turns.set(task, turn);
    return turn;
  }

  #turnOf(task) {
    let turn = this.#turns.get(task);
    if (!turn) {
      turn = this.#newTurn("waiting");
      turn.task = task;
      this.#turns.set(task, turn);
    }
    return turn;
  }

  #newTurn(phase) {
    const turn = new Turn(this, phase);
    this.#list.append(turn.element);
    this.scroller.follow();
    return turn;
  }

  /** Answers to questions of other tabs come over the socket, the questions do not. */
  async #askForQuestions() {
    const session = this.#session;
    const unknown = [...this.#turns.values()].filter((turn) => turn.question === null);
    // While a message is on its way, an unknown task may be its own.
    if (!session || !unknown.length || this.#asking || this.#restoring || this.#unsent?.phase === "sending") return;
    this.#asking = true;
    try {
      const items = await this.#history();
      if (this.#session === session) this.#learn(items);
      // Not in what our token opens: shown without its question.
      for (const turn of unknown) turn.question ??= "";
    } catch (error) {
      expected(error);
    }
    this.#asking = false;
    this.#refresh();
  }

  /** Turns that the messages know no answer of: running, or ended without one. */
  async #checkUnanswered() {
    const turns = this.#open;
    for (const turn of turns.slice(0, -10)) turn.fail();
    for (const turn of turns.slice(-10)) await this.#check(turn);
  }

  /** Ask how a task stands: for what the log does not tell, or not any more. */
  async #check(turn) {
    const session = this.#session;
    let state;
    try {
      state = (await call("GET", `/api/v1/chat/status/${encodeURIComponent(turn.task)}`)).result;
    } catch (error) {
      if (expected(error).status !== 404) return;
      state = { status: "failed" };
    }
    if (this.#session !== session || !turn.open) return;
    const { status, output, error } = state;
    if (status === "completed") this.#settle(turn, () => turn.finish(output?.text ?? "", "stop"));
    else if (status === "cancelled") this.#settle(turn, () => turn.finish(output?.text ?? "", "cancelled"));
    else if (status === "failed") this.#settle(turn, () => turn.fail(error?.message ?? error?.error));
    else if (status === "cancelling") turn.to("cancelling", strings.stopping);
  }

  /** Answers that nothing was heard of for a while: perhaps they ended, and the log has lost it. */
  #look() {
    for (const turn of this.#open) {
      if (!turn.heard && !this.#restoring) this.#check(turn);
      turn.heard = false;
    }
  }

  // What happens, over the socket.

  #hear(message) {
    const { event, seq, task_id: task, data } = message;
    if (event === "connection_established") this.#established(data);
    else if (event === "snapshot") this.#snapshot(data);
    else if (event === "ping") this.#look();
    if (typeof seq !== "number" || seq <= this.#cursor) return;
    this.#cursor = seq;
    if (task) this.#happened(event, seq, task, data ?? {});
    this.#keep();
  }

  #established({ last_seq: lastSeq, resume_token: token }) {
    this.#renewed = false;
    // A tail before our cursor: the log was lost, and with it what it had not told yet.
    if (lastSeq < this.#cursor) {
      this.#cursor = lastSeq;
      for (const turn of this.#open) this.#check(turn);
    }
    this.#keep(token);
  }

  /** The log does not reach back to where we are: this is how things stand instead. */
  #snapshot({ messages, running, last_seq: lastSeq }) {
    this.#cursor = lastSeq;
    this.#learn(messages ?? []);
    // In the order in which they were said, behind those that are older than what we are told.
    for (const { task_id: task } of messages ?? []) {
      const turn = this.#turns.get(task);
      if (turn) this.#list.append(turn.element);
    }
    if (running) {
      const turn = this.#turnOf(running.task_id);
      if (turn.open) turn.resume(running.text);
      turn.startedSeq = 1; // unknown, and no longer in the log: a reload asks for a snapshot again
    }
    if (this.#unsent) this.#list.append(this.#unsent.element);
    this.#checkUnanswered().then(() => this.#refresh());
    this.#keep();
    this.#refresh();
  }

  #happened(event, seq, task, data) {
    const happenings = {
      agent_execution_started: (turn) => turn.restart(seq),
      agent_response_token: (turn) => turn.append(data) || this.#replay(turn),
      agent_execution_completed: (turn) => turn.finish(data.text, data.finish_reason),
      agent_execution_failed: (turn) => turn.fail(data.error),
      task_completed: (turn) => turn.finish(data.text ?? turn.prose.text, data.finish_reason),
      task_failed: (turn) => turn.fail(data.error),
      task_status_update: (turn) => this.#moved(turn, data.status),
    };
    if (!Object.hasOwn(happenings, event)) return;
    const turn = this.#turnOf(task);
    turn.heard = true;
    if (turn.open) this.#settle(turn, () => happenings[event](turn));
    if (turn.question === null) this.#askForQuestions();
  }

  /** @param {Turn} turn */
  #moved(turn, status) {
    if (status === "cancelling") turn.to("cancelling", strings.stopping);
    else if (status === "cancelled") turn.finish(turn.prose.text, "cancelled");
    else if (status === "queued") turn.requeue();
    else if (status === "waiting") turn.to("waiting");
  }

  /** Do what may end the turn, and say so if it did. */
  #settle(turn, change) {
    const was = turn.phase;
    change();
    if (turn.phase === was) return;
    if (turn.phase === "done") this.#announce(fill(strings.answer_from, { name: agentName, text: turn.prose.text }));
    else if (turn.phase === "stopped") this.#announce(strings.stopped);
    else if (turn.phase === "failed") this.#announce(strings.failed);
    this.scroller.follow();
    this.#refresh();
  }

  /** A piece is missing: hear the answer again from its start, once. Its end brings the whole text anyway. */
  #replay(turn) {
    if (turn.replayed) return;
    turn.replayed = true;
    this.#cursor = turn.startedSeq === null ? 0 : turn.startedSeq - 1;
    this.#line.start();
  }

  // What the reader is told.

  #refresh() {
    const open = this.#open;
    const stoppable = open.some((turn) => turn.phase !== "cancelling");
    const busy = this.#busy;
    part("send").hidden = open.length > 0;
    part("send").disabled = busy || !part("message").value.trim();
    part("stop").hidden = open.length === 0;
    part("stop").disabled = !stoppable;
    part("stop").textContent = open.length && !stoppable ? strings.stopping : strings.stop;
    part("begin").disabled = !this.#session && !this.#list.querySelector(".turn");
  }

  #say(notice) {
    part("notice").textContent = notice;
    part("notice").hidden = !notice;
  }

  #announce(text) {
    part("announcer").textContent = text;
  }

  /** A short break is nobody's business. */
  #connection(connected) {
    clearTimeout(this.#disconnected);
    const show = (text) => {
      part("connection").textContent = text;
      part("connection").hidden = !text;
    };
    if (connected) show("");
    else this.#disconnected = setTimeout(() => show(strings.connecting), 1500);
  }
}

new Chat();
