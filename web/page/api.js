// The two calls that the page makes, and what their faults mean in plain words.

const PATIENCE = 30_000; // Milliseconds; API Gateway gives up then, too.

// By status; `who` is behind the API.
const sentences = (who) => ({
  429: "Many photos are asked about right now.",
  502: `${who} is not available right now.`,
  503: "The service is not available right now.",
  504: `${who} took too long to answer.`,
});

// What went wrong, as a sentence; `retryAfter` in seconds is null where asking again is no use.
export class Fault extends Error {
  constructor(sentence, retryAfter, reference) {
    super(sentence);
    Object.assign(this, { retryAfter, reference });
  }
}

export async function classify(api, picture, signal) {
  const answer = await post("The model", `${api}/classify`, picture.type, picture, signal);
  const { label, confidence, scores } = answer;
  const numbers = [confidence, ...Object.values(scores ?? {})];
  const known = label === null || Object.hasOwn(scores ?? {}, label);
  if (known && numbers.length > 1 && numbers.every(Number.isFinite)) return answer;
  throw unreadable();
}

export async function correct(api, correction) {
  const body = JSON.stringify(correction);
  return post("The store of corrections", `${api}/corrections`, "application/json", body);
}

async function post(who, url, type, body, signal) {
  const timeout = new AbortController();
  const timer = setTimeout(() => timeout.abort(), PATIENCE);
  const signals = [timeout.signal, ...(signal ? [signal] : [])];
  try {
    const response = await fetch(url, {
      method: "POST",
      headers: { "content-type": type },
      body,
      signal: AbortSignal.any(signals),
    });
    const text = await response.text();
    const answer = parse(text);
    if (!response.ok) throw fault(who, response, answer ?? {});
    if (!answer) throw unreadable();
    return answer;
  } catch (error) {
    if (error instanceof Fault || signal?.aborted) throw error;
    if (timeout.signal.aborted) throw new Fault(sentences(who)[504], 0);
    throw new Fault(
      navigator.onLine ? "The service cannot be reached right now." : "You are offline.",
      0,
    );
  } finally {
    clearTimeout(timer);
  }
}

function fault(who, response, body) {
  const { status } = response;
  const reference = response.headers.get("x-correlation-id") ?? body.request_id;
  if (status === 429 || status >= 500) {
    const seconds = Number(response.headers.get("retry-after") ?? body.retry_after ?? 0);
    const sentence = sentences(who)[status] ?? "Something went wrong in the service.";
    // A longer wait is nobody's: the reader may as well ask before.
    return new Fault(sentence, Math.min(Math.ceil(seconds) || 0, 60), reference);
  }
  const said = typeof body.error === "string" ? `: ${body.error}` : "";
  return new Fault(`The service does not accept this${said}.`, null, reference);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function unreadable() {
  return new Fault("The answer of the service cannot be read.", 0);
}
