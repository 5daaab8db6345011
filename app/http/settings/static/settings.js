/* The settings page: Kommo's window gives a one-time token, which becomes a session; then come the parts.
   Where it cannot, it gives a session that its own page began, or the HTTP status that says why there is none.

   The page asks whoever framed or opened it; only an answer of Kommo's pages counts. Where the browser refuses
   the session's cookie, the bearer in this page's memory stands in. A session that has ended begins again with
   another token, without a word. */
"use strict";

const given = document.body.dataset;
const kommo = window.opener || (window.parent !== window ? window.parent : null);
const TOKEN_MS = 10000; // Chosen: Kommo's window asks its own server for the token.
const PARTS = ["account", "live", "crm"];
const AGAIN_MS = [1000, 3000, 8000, 20000]; // After a change: a message is delivered within a second or two.

let session = given.account ? { account_id: given.account, csrf: given.csrf } : null;
let usesBearer = false;

const element = (id) => document.getElementById(id);

function isKommo(origin) {
  return given.domains.split(" ").some((domain) => {
    if (domain.includes(":")) return origin === `http://${domain}`;
    const host = origin.startsWith("https://") ? origin.slice(8) : "";
    const label = host.endsWith(`.${domain}`) ? host.slice(0, -domain.length - 1) : "";
    return /^[a-z0-9-]+$/.test(label);
  });
}

function isAnswer(data) {
  if (!data || data.type !== "chatledger.token") return false;
  const began = data.session;
  return typeof data.token === "string" || typeof data.error === "number"
    || (began && typeof began.account_id === "string" && typeof began.bearer === "string");
}

function token() {
  return new Promise((resolve) => {
    if (!kommo) return resolve(null);
    const end = (value) => { removeEventListener("message", hear); clearTimeout(late); resolve(value); };
    const hear = (event) => {
      if (event.source === kommo && isKommo(event.origin) && isAnswer(event.data)) end(event.data);
    };
    const late = setTimeout(() => end(null), TOKEN_MS);
    addEventListener("message", hear);
    kommo.postMessage({ type: "chatledger.token" }, "*"); // The question holds nothing of ours.
  });
}

class Refused extends Error {}

async function failure(answer) {
  const problem = await answer.json().catch(() => null);
  return new Refused((problem && problem.detail) || `HTTP ${answer.status}`);
}

async function signIn() {
  const told = await token();
  if (!told) throw new Refused("");
  if (told.session) { // Kommo's page has no cookie of ours to give, so the bearer counts.
    session = told.session;
    usesBearer = true;
    return;
  }
  if (!told.token) throw new Refused(`${given.refused} (${told.error})`);
  const answer = await fetch("/settings/session", { method: "POST", headers: { "X-Auth-Token": told.token } });
  if (!answer.ok) throw await failure(answer);
  session = await answer.json();
  usesBearer = false;
}

function call(path, body) {
  const headers = { Accept: "text/html, application/problem+json" };
  if (usesBearer) headers.Authorization = `Bearer ${session.bearer}`;
  else if (body) headers["X-CSRF-Token"] = session.csrf;
  const url = `${path}?lang=${encodeURIComponent(given.language)}`;
  return fetch(url, body ? { method: "POST", headers, body } : { headers });
}

async function ask(path, body) {
  let answer = await call(path, body);
  if (answer.status === 401 && session.bearer && !usesBearer) {
    usesBearer = true; // The browser keeps no cookie for a framed page.
    answer = await call(path, body);
  }
  if (answer.status === 401 && kommo) {
    await signIn();
    answer = await call(path, body);
    if (answer.status === 401) { usesBearer = true; answer = await call(path, body); }
  }
  if (!answer.ok) throw await failure(answer);
  return answer.text();
}

function close(reason) {
  element("wait").hidden = true;
  element("closed").hidden = false;
  element("why").textContent = reason;
}

function complain(error) {
  const problem = element("problem");
  problem.textContent = error instanceof Refused ? error.message : given.unreached;
  problem.hidden = false;
  problem.scrollIntoView({ block: "nearest" });
}

async function show(part) {
  element(part).innerHTML = await ask(`/settings/accounts/${session.account_id}${part === "account" ? "" : `/${part}`}`);
}

let again = [];
function showAgain() {
  again.forEach(clearTimeout);
  again = AGAIN_MS.map((ms) => setTimeout(() => show("live").catch(() => {}), ms));
}

async function send(form, button) {
  const body = new URLSearchParams(new FormData(form));
  if (button && button.name) body.set(button.name, button.value);
  const buttons = form.querySelectorAll("button");
  buttons.forEach((one) => { one.disabled = true; });
  element("problem").hidden = true;
  try {
    element(form.dataset.part).innerHTML = await ask(form.getAttribute("action"), body);
    if (form.dataset.part !== "crm") showAgain();
  } catch (error) {
    complain(error);
  } finally {
    buttons.forEach((one) => { one.disabled = false; });
  }
}

document.addEventListener("submit", (event) => {
  event.preventDefault();
  send(event.target, event.submitter);
});

async function begin() {
  try {
    if (!session) await signIn();
    await show("account");
  } catch (error) {
    return close(error instanceof Refused ? error.message : given.unreached);
  }
  element("wait").hidden = true;
  await Promise.all(PARTS.slice(1).map((part) => show(part).catch(complain)));
}

begin();
