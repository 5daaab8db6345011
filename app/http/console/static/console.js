"use strict";
// The open chat and the list follow the ledger: server-sent events name what changed, and the server draws
// it. Needs page.js and htmx.

const chat = document.body.dataset.chat || "";
const log = document.getElementById("messages");
const scroller = document.getElementById("scroll");
const list = document.getElementById("chats");
const filter = document.getElementById("filter");
const down = document.getElementById("down");
const NEAR_BOTTOM_PX = 120;
const GATHER_MS = 40;
const LIST_MS = 250;
const BUBBLES_MAX = 40;
const SHOWN_MAX = 400; // chosen: a browser lays out so many in a few milliseconds, whatever the length of the chat
const HIDDEN_MS = 60000;
const RETRY_MS_MIN = 500;
const RETRY_MS_MAX = 15000;
let position = Number(document.body.dataset.live || 0);

// Words for the reader.

function say(text) {
  document.getElementById("announce").textContent = text;
}

function showState(words, alive) {
  document.getElementById("live-words").textContent = words;
  document.getElementById("live-dot").classList.toggle("on", alive);
}

class SignedOut extends Error {}

async function fragment(path) {
  const answer = await fetch(path, { headers: { Accept: "text/html", "HX-Request": "true" }, redirect: "manual" });
  if (answer.status === 401 || answer.type === "opaqueredirect") throw new SignedOut();
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  const made = document.createElement("template");
  made.innerHTML = await answer.text();
  return made.content;
}

// Draw one change after another, so that two changes of one message make one bubble.
let chain = Promise.resolve();
function inOrder(work) {
  chain = chain.then(work).catch((error) => {
    if (error instanceof SignedOut) signedOut();
    else reopen();
  });
}

function signedOut() {
  close();
  complain("You are signed out. Reload the page to sign in again.");
}

// Messages.

function bubble(id) {
  return log.querySelector(`[data-message="${CSS.escape(id)}"]`);
}

function isNearBottom() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_BOTTOM_PX;
}

function toBottom() {
  scroller.scrollTop = scroller.scrollHeight;
  down.hidden = true;
}

// Days and runs of one speaker, by the reader's own calendar. Only the messages given are looked at: each of
// them, and the one after a new one, depend on nothing but the message before.
function arrange(messages) {
  for (const one of messages) {
    const before = neighbour(one, "previousElementSibling");
    const newDay = !before || !isSameDay(new Date(before.dataset.at), new Date(one.dataset.at));
    const line = one.previousElementSibling;
    if (line?.classList.contains("day")) line.remove();
    if (newDay) one.before(dayLine(one.dataset.at));
    one.classList.toggle("follows", !newDay && before.dataset.speaker === one.dataset.speaker);
  }
}

function neighbour(one, direction) {
  let found = one[direction];
  while (found && !found.dataset.message) found = found[direction];
  return found;
}

function arrangeAround(one) {
  arrange([one, neighbour(one, "nextElementSibling")].filter(Boolean));
}

function remove(one) {
  const after = neighbour(one, "nextElementSibling");
  const line = one.previousElementSibling;
  if (line?.classList.contains("day")) line.remove();
  one.remove();
  if (after) arrange([after]);
}

function dayLine(at) {
  const line = document.createElement("li");
  line.className = "day";
  const time = line.appendChild(document.createElement("time"));
  time.dateTime = at;
  time.dataset.show = "day";
  time.textContent = writtenDay(new Date(at));
  return line;
}

// Replace only the parts that differ, so that an open picture or a playing recording stays as it is.
function exchange(known, fresh) {
  known.dataset.status = fresh.dataset.status;
  for (const part of fresh.querySelectorAll("[data-part]")) {
    const old = known.querySelector(`[data-part="${part.dataset.part}"]`);
    if (part.dataset.part === "body" && part.dataset.version === old.dataset.version) continue;
    const focused = old.contains(document.activeElement);
    old.replaceWith(part);
    localize(part);
    if (focused) part.querySelector("a, button")?.focus();
  }
}

// A message goes where its position is, looked for from the end. It is left out if it belongs to what is not
// loaded: above the first page, or below the last one while a page from the past is shown.
function insert(fresh) {
  const at = Number(fresh.dataset.position);
  let before = log.lastElementChild;
  while (before && !(Number(before.dataset.position) < at)) before = before.previousElementSibling;
  const next = before ? neighbour(before, "nextElementSibling") : log.querySelector("[data-message]");
  if (!next && log.querySelector(".newer")) {
    down.hidden = false;
    return false;
  }
  if (!before && log.querySelector(".older")) return false;
  if (before) before.after(fresh);
  else log.prepend(fresh);
  arrangeAround(fresh);
  localize(fresh);
  return !next;
}

// At most SHOWN_MAX messages are in the page. What is taken out at one end is a button there, as what was never
// loaded is.
function trim(end) {
  const shown = log.querySelectorAll("[data-message]");
  const surplus = shown.length - SHOWN_MAX;
  if (surplus <= 0) return;
  const above = scroller.scrollHeight;
  const gone = [...shown].slice(...(end === "newer" ? [-surplus] : [0, surplus]));
  const next = end === "newer" ? null : neighbour(gone[surplus - 1], "nextElementSibling");
  log.querySelector(`.${end}`)?.remove();
  for (const one of gone) {
    const line = one.previousElementSibling;
    if (line?.classList.contains("day")) line.remove();
    one.remove();
  }
  if (next) arrange([next]);
  const kept = log.querySelectorAll("[data-message]");
  const further = furtherButton(end, kept[end === "newer" ? kept.length - 1 : 0].dataset.position);
  if (end === "newer") {
    log.append(further);
    down.hidden = false;
  } else log.prepend(further);
  htmx.process(further);
  if (end === "older") scroller.scrollTop -= above - scroller.scrollHeight;
}

function furtherButton(end, from) {
  const item = document.createElement("li");
  item.className = end;
  const button = item.appendChild(document.createElement("button"));
  button.type = "button";
  button.className = "quiet";
  button.textContent = end === "newer" ? "Show newer messages" : "Show older messages";
  const query = `${end === "newer" ? "after" : "before"}=${from}`;
  button.setAttribute("hx-get", `/fragments/conversations/${encodeURIComponent(chat)}/messages?${query}`);
  button.setAttribute("hx-target", "closest li");
  button.setAttribute("hx-swap", "outerHTML");
  return item;
}

async function drawMessages(ids) {
  const path = `/fragments/conversations/${encodeURIComponent(chat)}/bubbles?ids=${ids.map(encodeURIComponent).join(",")}`;
  const drawn = await fragment(path);
  const stay = isNearBottom();
  const added = [];
  for (const id of ids) {
    const fresh = drawn.querySelector(`[data-message="${CSS.escape(id)}"]`);
    const known = bubble(id);
    if (known && !fresh) remove(known);
    else if (known) exchange(known, fresh);
    else if (fresh && insert(fresh)) added.push(fresh);
  }
  if (added.length) announce(added, stay);
  if (!stay || log.querySelector(".newer")) return;
  trim("older");
  toBottom();
}

function announce(added, stay) {
  const last = added[added.length - 1];
  const who = last.querySelector(".who").textContent.trim();
  const text = last.querySelector(".text")?.textContent.slice(0, 300) ?? last.querySelector(".kind, .file, .picture-name")?.textContent;
  say(`${who}: ${text || "sent something"}`);
  if (!stay) down.hidden = false;
  hideTyping();
}

// The list of chats.

// The filter that was last applied, not the one that is being typed.
let applied = new URLSearchParams(new FormData(filter));
filter.addEventListener("htmx:beforeRequest", () => {
  applied = new URLSearchParams(new FormData(filter));
});

function listPath() {
  return `/fragments/conversations?${applied}`;
}

async function drawList() {
  const drawn = await fragment(listPath());
  const fresh = [...drawn.querySelectorAll("[data-conversation]")];
  const ids = new Set(fresh.map((one) => one.dataset.conversation));
  const loaded = [...list.querySelectorAll("[data-conversation]")];
  const focused = document.activeElement?.closest?.("#chats a")?.id;
  const rest = loaded.filter((one) => !ids.has(one.dataset.conversation) && fresh.length &&
    Number(one.dataset.position) < Number(fresh[fresh.length - 1].dataset.position));
  const more = rest.length ? list.querySelector(".more") : drawn.querySelector(".more");
  list.replaceChildren(...(fresh.length ? [...fresh, ...rest] : drawn.children), ...(more && fresh.length ? [more] : []));
  if (more) htmx.process(more);
  localize(list);
  if (focused) document.getElementById(focused)?.focus();
}

async function drawHead() {
  const head = document.getElementById("head");
  const open = head.querySelector("details")?.open;
  head.replaceChildren(await fragment(`/fragments/conversations/${encodeURIComponent(chat)}/head`));
  if (open) head.querySelector("details").open = true;
}

// Changes are collected for a moment, then drawn together.

const pending = new Set();
let gathering = 0;
function gather(ids) {
  for (const id of ids) pending.add(id);
  if (!gathering && pending.size) gathering = setTimeout(drawPending, GATHER_MS);
}

function drawPending() {
  gathering = 0;
  const ids = [...pending];
  pending.clear();
  for (let start = 0; start < ids.length; start += BUBBLES_MAX) {
    inOrder(() => drawMessages(ids.slice(start, start + BUBBLES_MAX)));
  }
}

let listing = 0;
function refreshList() {
  if (listing) return;
  listing = setTimeout(() => {
    listing = 0;
    inOrder(drawList);
  }, LIST_MS);
}

// Typing.

let typingTimer = 0;
function showTyping(name, milliseconds) {
  const typing = document.getElementById("typing");
  typing.querySelector(".typing-who").textContent = `${name} is typing`;
  typing.hidden = false;
  clearTimeout(typingTimer);
  typingTimer = setTimeout(hideTyping, milliseconds);
}

function hideTyping() {
  document.getElementById("typing").hidden = true;
}

// The stream, opened again from the last position whenever it ends.

let source = null;
let retry = RETRY_MS_MIN;
let retryTimer = 0;

function open() {
  close();
  const asked = new URLSearchParams({ after: position });
  if (chat) asked.set("conversation", chat);
  source = new EventSource(`/live?${asked}`);
  source.addEventListener("open", () => {
    retry = RETRY_MS_MIN;
    showState("Live", true);
    complain("");
  });
  source.addEventListener("error", () => {
    showState("Reconnecting", false);
    if (source.readyState === EventSource.CLOSED) reopen();
  });
  source.addEventListener("change", (event) => changed(event.lastEventId, JSON.parse(event.data)));
  source.addEventListener("typing", (event) => {
    const typing = JSON.parse(event.data);
    if (log) showTyping(typing.name, typing.milliseconds);
  });
}

function close() {
  clearTimeout(retryTimer);
  if (source) source.close();
  source = null;
}

// Any answer but a stream ends an EventSource for good: reconnect here, with a growing delay.
function reopen() {
  close();
  showState("Reconnecting", false);
  retryTimer = setTimeout(async () => {
    try {
      await fragment(listPath());
      open();
    } catch (error) {
      if (error instanceof SignedOut) signedOut();
      else {
        complain("chatledger is not responding. Retrying.");
        reopen();
      }
    }
  }, retry);
  retry = Math.min(retry * 2, RETRY_MS_MAX);
}

function changed(at, change) {
  position = Math.max(position, Number(at));
  if (change.reload) {
    location.reload();
    return;
  }
  if (log) gather(change.messages);
  if (log && change.head) inOrder(drawHead);
  if (change.chats) refreshList();
}

// A hidden page closes its connection after a while, because a browser opens only a few.
let hidden = 0;
document.addEventListener("visibilitychange", () => {
  clearTimeout(hidden);
  if (document.visibilityState === "hidden") hidden = setTimeout(close, HIDDEN_MS);
  else if (!source) open();
});
window.addEventListener("pagehide", close);
window.addEventListener("pageshow", (event) => {
  if (event.persisted) open();
});

// Older messages are added on top, newer ones of a page from the past below; what is in view stays in view.
let height = 0;
let loading = null;
document.addEventListener("htmx:beforeSwap", (event) => {
  if (!log?.contains(event.detail.target)) return;
  loading = event.detail.target;
  height = loading.classList.contains("older") ? scroller.scrollHeight - scroller.scrollTop : 0;
  loading = { before: loading.previousElementSibling, after: loading.nextElementSibling };
});
document.addEventListener("htmx:afterSettle", () => {
  if (!log || !loading) return;
  const { before, after } = loading;
  loading = null;
  const fresh = [];
  for (let one = before ? before.nextElementSibling : log.firstElementChild; one && one !== after; one = one.nextElementSibling) {
    if (one.dataset.message) fresh.push(one);
  }
  const next = after?.dataset.message ? after : after && neighbour(after, "nextElementSibling");
  arrange(next ? [...fresh, next] : fresh);
  localize(log);
  if (height) scroller.scrollTop = scroller.scrollHeight - height;
  trim(height ? "newer" : "older");
  height = 0;
  scroller.focus({ preventScroll: true });
});

// A picture or a recording is fetched from the server that hosts it only when the reader asks for it.
function showMedia(event, link) {
  event.preventDefault();
  if (link.dataset.media === "image") showPicture(link);
  else play(link);
}

function play(link) {
  const player = document.createElement(link.dataset.media);
  player.className = "media";
  player.controls = true;
  player.autoplay = true;
  player.setAttribute("aria-label", link.querySelector(".picture-name").textContent);
  player.src = link.href;
  player.addEventListener("error", () => {
    const focused = player.contains(document.activeElement);
    player.replaceWith(link);
    cannotShow(link);
    if (focused) link.focus();
  }, { once: true });
  link.replaceWith(player);
  player.focus();
}

function showPicture(link) {
  const image = new Image();
  image.referrerPolicy = "no-referrer";
  image.alt = link.querySelector(".picture-name").textContent;
  image.addEventListener("load", () => {
    const stay = isNearBottom();
    link.classList.add("shown");
    link.replaceChildren(image);
    link.removeAttribute("data-media");
    if (stay) toBottom();
  });
  image.addEventListener("error", () => cannotShow(link));
  image.src = link.href;
}

function cannotShow(link) {
  link.querySelector(".picture-host").textContent = "Cannot be shown here. Open in a new tab";
  link.removeAttribute("data-media");
}

// A quoted message that is not loaded is where the link leads: a page of the chat around it.
function jump(event, link) {
  const target = bubble(link.dataset.jump);
  if (!target) return;
  event.preventDefault();
  show(target);
}

function show(target) {
  target.scrollIntoView({ block: "center" });
  target.classList.add("found");
  setTimeout(() => target.classList.remove("found"), 1600);
}

function toLatest() {
  if (log.querySelector(".newer")) location.href = `/conversations/${encodeURIComponent(chat)}`;
  else toBottom();
}

// The reader's day begins at the reader's midnight, which the server does not know.
function jumpToDay(event) {
  const day = new Date(`${event.target.elements.day.value}T00:00`);
  if (Number.isNaN(day.getTime())) return;
  event.preventDefault();
  location.href = `/conversations/${encodeURIComponent(chat)}?day=${encodeURIComponent(day.toISOString())}`;
}

function clicked(event) {
  if (event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  const media = event.target.closest("[data-media]");
  if (media) showMedia(event, media);
  const quote = event.target.closest("[data-jump]");
  if (quote) jump(event, quote);
}

if (log) {
  arrange(log.querySelectorAll("[data-message]"));
  localize(log);
  log.addEventListener("click", clicked);
  down.addEventListener("click", toLatest);
  document.getElementById("head").addEventListener("submit", jumpToDay);
  scroller.addEventListener("scroll", () => {
    if (isNearBottom() && !log.querySelector(".newer")) down.hidden = true;
  });
  const target = document.getElementById(log.dataset.around ? `m-${log.dataset.around}` : location.hash.slice(1));
  if (target?.dataset.message) show(target);
  else toBottom();
  if (log.querySelector(".newer")) down.hidden = false;
}
document.addEventListener("click", (event) => {
  for (const about of document.querySelectorAll(".about[open]")) {
    if (!about.contains(event.target)) about.open = false;
  }
});
open();
