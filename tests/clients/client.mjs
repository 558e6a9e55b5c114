// One thing that a program with the official client does: `node client.mjs <what>`, the rest in the
// environment. Prints what came of it as one line of JSON.
import OpenAI from "openai";

const { BASE_URL, KEY, AGENT, RETRIES = "0" } = process.env;
const client = new OpenAI({ baseURL: `${BASE_URL}/v1`, apiKey: KEY, maxRetries: Number(RETRIES) });
const question = { model: AGENT, messages: [{ role: "user", content: "Hello" }] };

const deeds = {
  async chat() {
    const answer = await client.chat.completions.create(question);
    return { ...answer, requestId: answer._request_id };
  },

  async stream() {
    const chunks = [];
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const chunk of await client.chat.completions.create({ ...question, ...options })) {
      chunks.push(chunk);
    }
    return chunks;
  },

  async helper() {
    const runner = client.chat.completions.stream(question);
    return { content: await runner.finalContent() };
  },

  async stop() {
    return await client.chat.completions.create({ ...question, stop: [" tok5"] });
  },

  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    return { ids, one: await client.models.retrieve(AGENT) };
  },

  async abort() {
    const stream = await client.chat.completions.create({ ...question, stream: true });
    let id;
    for await (const chunk of stream) {
      id = chunk.id;
      if (chunk.choices[0].delta.content) stream.controller.abort();
    }
    return { id };
  },

  async abortWhole() {
    const gone = AbortSignal.timeout(1000);
    try {
      await client.chat.completions.create(question, { signal: gone });
    } catch (error) {
      return { name: error.constructor.name };
    }
  },

  async refused() {
    return await failure(() => client.chat.completions.create({ ...question, n: 2 }));
  },

  async failed() {
    return await failure(() => client.chat.completions.create(question));
  },

  async limited() {
    for (let asked = 1; asked <= 20; asked += 1) {
      const found = await failure(() => client.models.list());
      if (found) return { asked, ...found };
    }
  },
};

async function failure(deed) {
  try {
    await deed();
  } catch (error) {
    const { status, code, param, type, requestID } = error;
    const retryAfter = error.headers?.get("retry-after");
    return { name: error.constructor.name, status, code, param, type, requestID, retryAfter };
  }
}

console.log(JSON.stringify((await deeds[process.argv[2]]()) ?? null));
