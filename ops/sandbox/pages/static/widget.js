"use strict";
// What Kommo's page is to a widget: its loader of modules, as much of jQuery as widgets need to call their
// servers, and the methods of the Web SDK that the windows of integrations use.

const told = JSON.parse(document.getElementById("widget").textContent);
const path = `/integrations/files/${encodeURIComponent(told.client)}`;

function fault(text) {
  const place = document.getElementById("fault");
  place.textContent = text;
  place.hidden = false;
}

// jQuery's promise of an answer, with its names.
function deferred(answer) {
  const one = {
    done(told) { answer.then(({ data, request }) => told(data, "success", request), () => {}); return one; },
    fail(told) { answer.catch((request) => told(request, "error", request.statusText)); return one; },
    always(told) { answer.then(told, told); return one; },
    then(good, bad) { return answer.then(({ data }) => data).then(good, bad); },
    catch(bad) { return answer.then(({ data }) => data).catch(bad); },
  };
  answer.catch(() => {});
  return one;
}

async function request(options) {
  const headers = new Headers(options.headers || {});
  const method = options.method || options.type || "GET";
  const isForm = options.data && typeof options.data === "object";
  const body = isForm ? new URLSearchParams(options.data).toString() : options.data;
  const inQuery = method === "GET" && body;
  if (body && !inQuery) headers.set("Content-Type", options.contentType || "application/x-www-form-urlencoded");
  const url = inQuery ? `${options.url}${options.url.includes("?") ? "&" : "?"}${body}` : options.url;
  const credentials = options.xhrFields?.withCredentials ? "include" : "same-origin";
  let answer;
  try {
    answer = await fetch(url, { method, headers, credentials, body: inQuery ? undefined : body });
  } catch (error) {
    throw { status: 0, statusText: String(error), responseText: "" };
  }
  const text = await answer.text();
  const shown = {
    status: answer.status, statusText: answer.statusText, responseText: text,
    getResponseHeader: (name) => answer.headers.get(name),
  };
  const isJson = options.dataType === "json" || (answer.headers.get("content-type") || "").includes("json");
  try {
    if (isJson && text) shown.responseJSON = JSON.parse(text);
  } catch (error) {
    throw { ...shown, statusText: "parsererror" };
  }
  if (!answer.ok) throw shown;
  return { data: isJson ? shown.responseJSON : text, request: shown };
}

function ajax(options) {
  const answer = deferred(request(options));
  if (options.success) answer.done(options.success);
  if (options.error) answer.fail(options.error);
  if (options.complete) answer.always(options.complete);
  return answer;
}

function jquery(found) {
  const all = typeof found === "string" ? [...document.querySelectorAll(found)] : [].concat(found || []);
  const one = {
    jquery: "sandbox", length: all.length, first: () => jquery(all[0]), find: (text) => jquery(all.flatMap((each) => [...each.querySelectorAll(text)])),
    append(html) { all.forEach((each) => each.insertAdjacentHTML("beforeend", html)); return one; },
    html(text) { all.forEach((each) => { each.innerHTML = text; }); return one; },
  };
  all.forEach((each, index) => { one[index] = each; });
  return one;
}
jquery.ajax = ajax;

const KEPT_MS = 25 * 60 * 1000;

class Widget {
  #kept = null;
  langs = told.texts;
  params = { widget_code: told.code, path, version: told.version };
  i18n(place) { return place.split(".").reduce((found, part) => found?.[part], told.texts); }
  get_settings() { return { ...this.params, widget_active: told.is_installed ? "Y" : "N" }; }
  get_version() { return told.version; }
  get_install_status() { return told.is_installed ? "installed" : "install"; }
  system() { return { area: told.area, amouser_id: told.user, subdomain: told.subdomain, domain: location.host }; }

  // As integrators found, Kommo's page sends the same token for 25 minutes.
  $authorizedAjax(options) {
    const answer = this.#token().then((token) => {
      return request({ ...options, headers: { ...(options.headers || {}), "X-Auth-Token": token } });
    });
    return deferred(answer);
  }

  async #token() {
    if (this.#kept && Date.now() - this.#kept.at < KEPT_MS) return this.#kept.token;
    const given = await fetch(`/ajax/v2/integrations/${encodeURIComponent(told.client)}/disposable_token`);
    if (!given.ok) throw { status: given.status, statusText: "no token", responseText: await given.text() };
    this.#kept = { at: Date.now(), token: (await given.json()).token };
    return this.#kept.token;
  }
}

const modules = { jquery };

window.define = (needs, factory) => {
  const missing = needs.filter((name) => !(name in modules));
  if (missing.length) return fault(`The sandbox has no module ${missing.join(", ")}`);
  const Script = factory(...needs.map((name) => modules[name]));
  const widget = new Widget();
  const callbacks = Script.call(widget)?.callbacks || widget.callbacks;
  for (const name of ["render", "init", "bind_actions"]) callbacks[name]?.();
  const place = document.querySelector(".widget_settings_block");
  if (told.area === "advanced_settings") callbacks.advancedSettings?.();
  else callbacks.settings?.(jquery(place));
  window.addEventListener("pagehide", () => callbacks.destroy?.());
};

const script = document.createElement("script");
script.src = `${path}/script.js?v=${encodeURIComponent(told.version)}`;
script.onerror = () => fault("The widget has no script.js");
document.head.append(script);
