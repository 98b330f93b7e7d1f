// What the page asks the service for: information, edits as a stream of events, the saved photo.

const key = new URLSearchParams(location.hash.slice(1)).get("key") || sessionStorage.getItem("key");
if (key) {
  sessionStorage.setItem("key", key);
  history.replaceState(null, "", location.pathname); // no key in the address that is shown
}
const headers = key ? { Authorization: `Bearer ${key}` } : {};

async function asked(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The service does not answer. Is `hilo app` still running?");
  }
  if (answer.ok) return answer;
  const body = await answer.json().catch(() => null);
  throw new Error(body?.error?.message ?? `The service answered ${answer.status}.`);
}

export async function info() {
  return (await asked("/app/info")).json();
}

function body(photo, patches, options) {
  const form = new FormData();
  form.append("image", photo, "photo");
  for (const patch of patches) form.append("patch", patch.png, "patch.png");
  const corners = patches.map((patch) => [patch.box[0], patch.box[1]]);
  form.append("options", JSON.stringify({ ...options, corners }));
  return form;
}

// Yields events as objects with a `type`; throws Error with the service's own words.
export async function* edit({ photo, mask, patches, options, signal }) {
  const form = body(photo, patches, options);
  form.append("mask", mask, "mask.png");
  const answer = await asked("/app/edits", { method: "POST", body: form, signal });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const parts = text.split("\n\n");
    text = parts.pop();
    for (const part of parts) {
      const line = part.split("\n").find((l) => l.startsWith("data: "));
      if (!line) continue;
      const event = JSON.parse(line.slice(6));
      if (event.type === "error") throw new Error(event.error.message);
      if (event.png) event.png = blob(event.png);
      yield event;
    }
  }
}

export async function save(photo, patches) {
  return (await asked("/app/save", { method: "POST", body: body(photo, patches, {}) })).blob();
}

function blob(base64) {
  const text = atob(base64);
  const bytes = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
  return new Blob([bytes], { type: "image/png" });
}
