"use strict";
// Live pages: what changes arrives by server-sent events and is fetched as the server renders it.

const side = document.body.dataset.side;
const chat = document.body.dataset.chat;
const who = document.body.dataset.who;
const log = document.getElementById("messages");
const scroller = document.getElementById("scroll");
const list = document.getElementById("chats");
const crm = document.getElementById("crm");
const composer = document.getElementById("composer");
const NEAR_BOTTOM_PX = 120;
const TYPING_MS = side === "customer" ? 3000 : 5000;
const LIST_MS = 120;
const MANY = 4;

// A piece of the page as the server renders it, escaped. Not by htmx.ajax: of several requests at once it
// keeps only the last, and every one of these counts.
async function piece(path, values) {
  const answer = await fetch(`/${side}/${path}?${new URLSearchParams(values)}`);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  return answer.text();
}

// Times are shown in the reader's own zone.
function localize(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    if (!Number.isNaN(moment.getTime())) {
      time.textContent = moment.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      time.title = moment.toLocaleString();
    }
  }
}

function isNearBottom() {
  return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_BOTTOM_PX;
}

function toBottom() {
  scroller.scrollTop = scroller.scrollHeight;
}

function say(text) {
  document.getElementById("announce").textContent = text;
}

function complain(text) {
  const notice = document.getElementById("notice");
  notice.hidden = !text;
  notice.querySelector("p").textContent = text;
}

async function post(path, values) {
  const answer = await fetch(`/${side}/${path}`, { method: "POST", body: new URLSearchParams(values) });
  if (!answer.ok) {
    complain(await reason(await answer.text()));
  }
}

function reason(text) {
  try {
    return JSON.parse(text).error || text;
  } catch {
    return text || "The sandbox did not answer";
  }
}

// One refresh after another, so that two events about one new message make one bubble.
let chain = Promise.resolve();
function inOrder(work) {
  chain = chain.then(work).catch(() => {});
}

function bubble(id) {
  return log.querySelector(`[data-message="${CSS.escape(id)}"]`);
}

async function refreshMessage(id) {
  const known = bubble(id);
  const stay = isNearBottom();
  const html = await piece("message", { id });
  if (known) known.outerHTML = html;
  else log.insertAdjacentHTML("beforeend", html);
  const fresh = bubble(id);
  localize(fresh);
  if (stay || (!known && fresh.classList.contains("own"))) toBottom();
  if (!known && fresh.classList.contains("other")) {
    const text = fresh.querySelector(".text");
    say(`${log.dataset.other}: ${text ? text.textContent : "sent something"}`);
    hideTyping();
    seen();
  }
}

// Several changes of one message are one refresh; many messages at once are one refresh of them all.
const wanted = new Set();
function want(id) {
  wanted.add(id);
  inOrder(async () => {
    const ids = [...wanted];
    wanted.clear();
    if (ids.length > MANY) {
      await refreshAll();
      seen();
      return;
    }
    for (const one of ids) await refreshMessage(one);
  });
}

async function refreshAll() {
  if (log) {
    const stay = isNearBottom();
    log.innerHTML = await piece("messages", { chat });
    localize(log);
    if (stay) toBottom();
  }
  refreshList();
  refreshCrm();
}

// What the CRM knows of the chat changes with its messages, and when its lead or talk is settled.
let crmTimer = 0;
function refreshCrm() {
  if (!crm || crmTimer) return;
  crmTimer = setTimeout(() => {
    crmTimer = 0;
    inOrder(async () => {
      const focused = crm.contains(document.activeElement) ? document.activeElement.dataset.crm : "";
      crm.innerHTML = await piece("crm", { chat });
      if (focused) (crm.querySelector(`[data-crm="${focused}"]`) || scroller).focus();
    });
  }, LIST_MS);
}

let listTimer = 0;
function refreshList() {
  if (!list || listTimer) return;
  listTimer = setTimeout(() => {
    listTimer = 0;
    inOrder(async () => {
      const html = await piece("list", { who, chat });
      const focused = list.contains(document.activeElement) ? document.activeElement.id : "";
      list.innerHTML = html;
      localize(list);
      if (focused) document.getElementById(focused)?.focus();
    });
  }, LIST_MS);
}

function seen() {
  if (chat && document.visibilityState === "visible") post("seen", { chat });
}

let typingTimer = 0;
function showTyping(milliseconds) {
  const typing = document.getElementById("typing");
  const stay = isNearBottom();
  typing.querySelector(".typing-who").textContent = `${log.dataset.other} is typing`;
  typing.hidden = false;
  if (stay) toBottom();
  clearTimeout(typingTimer);
  typingTimer = setTimeout(hideTyping, milliseconds);
}

function hideTyping() {
  document.getElementById("typing").hidden = true;
}

function follow() {
  const source = new EventSource(`/${side}/events`);
  let lost = false;
  source.addEventListener("open", () => {
    inOrder(refreshAll); // what changed between the page's making and this moment
    if (lost) complain("");
    lost = false;
  });
  source.addEventListener("error", () => {
    if (!lost) complain("The sandbox does not answer. Trying again.");
    lost = true;
  });
  source.addEventListener("message", (event) => {
    const told = JSON.parse(event.data || "{}");
    if (log && told.chat === chat) {
      want(told.message);
      refreshCrm();
    }
    refreshList();
  });
  source.addEventListener("typing", (event) => {
    const told = JSON.parse(event.data);
    if (log && told.chat === chat) showTyping(told.milliseconds);
  });
  source.addEventListener("chats", () => {
    refreshList();
    refreshCrm();
  });
  source.addEventListener("connections", () => {
    if (side === "manager" && !chat) location.reload();
  });
  source.addEventListener("resync", () => inOrder(refreshAll));
  window.addEventListener("pagehide", () => source.close());
}

function grow(text) {
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight + 2}px`;
}

function edit(id) {
  const text = bubble(id).querySelector(".text");
  document.getElementById("editing").value = id;
  document.getElementById("editing-bar").hidden = false;
  composer.text.value = text ? text.textContent : "";
  grow(composer.text);
  composer.text.focus();
}

function resetComposer() {
  composer.reset();
  document.getElementById("editing").value = "";
  document.getElementById("editing-bar").hidden = true;
  document.getElementById("attach").open = false;
  grow(composer.text);
}

function startComposer() {
  let typed = 0;
  composer.text.addEventListener("input", () => {
    grow(composer.text);
    const now = Date.now();
    if (composer.text.value.trim() && now - typed > TYPING_MS) {
      typed = now;
      post("typing", { chat });
    }
  });
  composer.text.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      composer.requestSubmit();
    }
    if (event.key === "Escape") resetComposer();
  });
  composer.addEventListener("htmx:afterRequest", (event) => {
    if (!event.detail.successful) return;
    typed = 0;
    resetComposer();
    composer.text.focus();
  });
  document.getElementById("cancel").addEventListener("click", resetComposer);
  if (window.matchMedia("(hover: hover)").matches) composer.text.focus();
}

function act(event) {
  const button = event.target.closest("[data-act]");
  if (!button) return;
  const id = button.closest("[data-message]").dataset.message;
  const menu = button.closest("details");
  if (menu) menu.open = false;
  if (button.dataset.act === "edit") edit(id);
  else if (button.dataset.act === "react") post("react", { id, emoji: button.dataset.emoji });
  else post(button.dataset.act, { id });
}

document.addEventListener("htmx:responseError", (event) => complain(reason(event.detail.xhr.responseText)));
document.addEventListener("htmx:sendError", () => complain("The sandbox does not answer. Is it still running?"));
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.matches("form")) complain("");
});
document.getElementById("dismiss").addEventListener("click", () => complain(""));
document.addEventListener("click", (event) => {
  for (const menu of document.querySelectorAll(".more[open]")) {
    if (!menu.contains(event.target)) menu.open = false;
  }
});

// A picture that cannot be loaded says so in words. Errors do not bubble, hence the capture.
document.addEventListener("error", (event) => {
  if (event.target instanceof HTMLImageElement) {
    const link = event.target.parentElement;
    link.className = "lost";
    link.textContent = `${event.target.alt} (cannot be shown)`;
  }
}, true);

localize(document);
if (side === "manager" || side === "customer") follow();
if (composer) startComposer();
if (crm) {
  crm.addEventListener("click", (event) => {
    const button = event.target.closest("[data-crm]");
    if (button) post("crm", { chat, action: button.dataset.crm });
  });
}
if (log) {
  log.addEventListener("click", act);
  toBottom();
  seen();
  document.addEventListener("visibilitychange", seen);
}
