// Renews the page every two seconds by fetching it again and swapping the parts that changed, so that there is one
// renderer: the server's.
"use strict";

const PERIOD = 2000;
const PATIENCE = 5000;

const renew = async () => {
  const stale = document.getElementById("stale");
  try {
    const response = await fetch("./", { signal: AbortSignal.timeout(PATIENCE) });
    if (!response.ok) throw new Error(response.statusText);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    document.title = fresh.title;
    swap(fresh, "header h1");
    swap(fresh, "#verdict");
    for (const section of fresh.querySelectorAll("main > section")) {
      // The section of the backends holds the token's input, which must not be touched.
      swap(fresh, section.id === "backends" ? "#backends-table" : `#${section.id}`);
    }
    stale.hidden = true;
  } catch {
    stale.hidden = false;
  }
  allow();
};

const swap = (fresh, selector) => {
  const part = fresh.querySelector(selector);
  const old = document.querySelector(selector);
  if (!old) {
    document.querySelector("main").append(part);
  } else if (old.innerHTML !== part.innerHTML || old.className !== part.className) {
    const focused = old.contains(document.activeElement) ? document.activeElement : null;
    const index = focused ? focusable(old).indexOf(focused) : -1;
    // Changing the element's content rather than the element lets a screen reader announce the verdict.
    old.innerHTML = part.innerHTML;
    old.className = part.className;
    if (index >= 0) {
      allow();
      focusable(old)[index]?.focus();
    }
  }
};

const focusable = (part) => [...part.querySelectorAll("button, a, [tabindex]")];

const token = () => document.getElementById("token");

// Without a token the buttons can do nothing.
const allow = () => {
  for (const button of document.querySelectorAll("[data-action]")) button.disabled = !token().value;
};

const act = async (button) => {
  const { action, backend } = button.dataset;
  const outcome = document.getElementById("outcome");
  try {
    const response = await fetch(`api/v1/${action}`, {
      method: "POST",
      headers: { "Authorization": `Bearer ${token().value}`, "Content-Type": "application/json" },
      body: JSON.stringify({ backend }),
      signal: AbortSignal.timeout(PATIENCE),
    });
    const answer = await response.json();
    outcome.textContent = response.ok ? answer.map(({ name, state }) => `${name} is ${state}`).join(", ") : answer.error;
  } catch (error) {
    outcome.textContent = error.message;
  }
  await renew();
};

if (token()) {
  const form = document.getElementById("token-form");
  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());
  token().addEventListener("input", allow);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-action]");
    if (button) act(button);
  });
}
document.getElementById("still").hidden = true;
setInterval(renew, PERIOD);
