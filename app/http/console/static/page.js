"use strict";
// For every page: times are shown in the reader's own zone (the server writes them in UTC), and a failed load
// is reported.

const FORMATS = {
  time: { hour: "2-digit", minute: "2-digit" },
  day: { weekday: "long", day: "numeric", month: "long" },
  dayOfYear: { day: "numeric", month: "long", year: "numeric" },
  date: { day: "numeric", month: "short" },
  dateOfYear: { day: "2-digit", month: "2-digit", year: "2-digit" },
  full: {
    day: "numeric", month: "short", year: "numeric",
    hour: "2-digit", minute: "2-digit", second: "2-digit", fractionalSecondDigits: 3, hourCycle: "h23",
  },
};

function isSameDay(one, other) {
  return one.toDateString() === other.toDateString();
}

// A formatter costs a thousand times what it takes to use it: each is made once.
const formatters = {};
function written(moment, format) {
  formatters[format] ??= new Intl.DateTimeFormat([], FORMATS[format]);
  return formatters[format].format(moment);
}

function writtenDay(moment) {
  const now = new Date();
  const yesterday = new Date(now.getFullYear(), now.getMonth(), now.getDate() - 1);
  if (isSameDay(moment, now)) return "Today";
  if (isSameDay(moment, yesterday)) return "Yesterday";
  return written(moment, moment.getFullYear() === now.getFullYear() ? "day" : "dayOfYear");
}

function writtenBriefly(moment) {
  const now = new Date();
  if (isSameDay(moment, now)) return written(moment, "time");
  return written(moment, moment.getFullYear() === now.getFullYear() ? "date" : "dateOfYear");
}

const WRITERS = {
  time: (moment) => written(moment, "time"),
  full: (moment) => written(moment, "full"),
  day: writtenDay,
  brief: writtenBriefly,
};

// Only what was not written yet: a long chat has ten thousand times, and a new message brings one.
function localize(root) {
  for (const time of root.querySelectorAll("time[data-show]:not([data-written])")) {
    time.dataset.written = "";
    const moment = new Date(time.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    time.textContent = WRITERS[time.dataset.show](moment);
    time.title = `${written(moment, "full")} (${time.dateTime})`;
  }
}

function complain(text) {
  const notice = document.getElementById("notice");
  notice.hidden = !text;
  notice.querySelector("p").textContent = text;
}

document.addEventListener("htmx:responseError", (event) => {
  if (event.detail.xhr.status === 401) complain("You are signed out. Reload the page to sign in again.");
  else complain("Loading failed. Try again.");
});
document.addEventListener("htmx:sendError", () => complain("chatledger is not responding. Try again."));
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.successful) complain("");
});
localize(document);
document.addEventListener("htmx:afterSettle", () => localize(document));

// At midnight "Today" is another day.
let today = new Date();
setInterval(() => {
  if (isSameDay(today, new Date())) return;
  today = new Date();
  for (const time of document.querySelectorAll("time[data-written]")) delete time.dataset.written;
  localize(document);
}, 60000);
