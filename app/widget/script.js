// The integration in Kommo's own windows: it frames our settings page there and hands it Kommo's one-time token.
// The page asks as often as it needs a session. Each answer has a new token, or a session, or the HTTP status that
// says why there is neither.
define([], function () {
  "use strict";

  var HOME = "{public_url}";
  var CLIENT = "{client_id}";
  var ORIGIN = new URL(HOME).origin;
  var ASK = "chatledger.token"; // what the page posts, and the type of what it is posted back

  return function () {
    var self = this;
    var frame = null;
    var isAsking = false;

    function words(name) {
      return self.i18n("page")[name];
    }

    // A new token. Kommo's `$authorizedAjax` asks the same address, but sends one token for 25 minutes, and ours
    // is a page that takes each token once: the second window within that time would be refused.
    function token() {
      var headers = { "X-Requested-With": "XMLHttpRequest" };
      return fetch("/ajax/v2/integrations/" + CLIENT + "/disposable_token", { headers: headers, cache: "no-store" })
        .then(function (answer) {
          if (!answer.ok) throw answer.status;
          return answer.json();
        })
        .then(function (given) {
          if (!given.token) throw 0;
          return { token: given.token };
        });
    }

    // Only `$authorizedAjax` is documented. Where the address above is no more, it sends its token to our service,
    // and the page gets the session that begins with it.
    function session() {
      return new Promise(function (begin, refuse) {
        self.$authorizedAjax({
          url: HOME + "/settings/session",
          method: "POST",
          type: "POST", // as jQuery before 1.9 calls it
          dataType: "json",
          contentType: "application/json",
          data: "{}"
        }).done(function (began) {
          begin({ session: began });
        }).fail(function (request) {
          refuse((request && request.status) || 0);
        });
      });
    }

    // Only our page in our own frame is answered; the origin to post to is ours alone.
    function heard(event) {
      if (!frame || event.source !== frame.contentWindow || event.origin !== ORIGIN) return;
      if (!event.data || event.data.type !== ASK || isAsking) return;
      isAsking = true;
      var page = event.source;
      function answer(told) {
        isAsking = false;
        told.type = ASK;
        page.postMessage(told, ORIGIN);
      }
      token().catch(session).then(answer, function (reason) {
        answer({ error: typeof reason === "number" ? reason : 0 });
      });
    }

    function close() {
      isAsking = false;
      window.removeEventListener("message", heard);
      if (frame) frame.remove();
      frame = null;
    }

    function open(place, height) {
      close();
      frame = document.createElement("iframe");
      frame.src = HOME + "/settings?lang=" + encodeURIComponent(words("language"));
      frame.title = words("frame");
      frame.referrerPolicy = "origin";
      frame.style.cssText = "display:block;width:100%;border:0;height:" + height;
      window.addEventListener("message", heard);
      place.appendChild(frame);
    }

    function isInstalled() {
      return !self.get_install_status || self.get_install_status() !== "install";
    }

    // Kommo gives the window's body, a jQuery object, and names it after the widget.
    function settingsPlace(body) {
      var code = self.get_settings().widget_code;
      var given = body && (body.jquery ? body[0] : body);
      return document.getElementById("widget_settings_block_" + code) || given
        || document.querySelector(".widget_settings_block");
    }

    this.callbacks = {
      init: function () { return true; },
      render: function () { return true; },
      bind_actions: function () { return true; },
      // The window of the integration, which the lead's sources open too.
      settings: function (body) {
        var place = settingsPlace(body);
        if (place && isInstalled()) open(place, "560px");
        else if (place) place.appendChild(document.createElement("p")).textContent = words("first");
        return true;
      },
      // A page of its own in Kommo's settings.
      advancedSettings: function () {
        var place = document.getElementById("work-area-" + self.get_settings().widget_code);
        if (place) open(place, "85vh");
        return true;
      },
      onSave: function () { return true; },
      destroy: function () { close(); return true; }
    };
    return this;
  };
});
