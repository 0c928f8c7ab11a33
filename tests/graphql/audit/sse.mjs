// Subscribes with the official client and prints each response, until there are as many as asked for.
import { createClient } from "graphql-sse";

const [url, token, query, count] = process.argv.slice(2);
const client = createClient({ url, headers: { authorization: `Bearer ${token}` }, retryAttempts: 0 });
let left = Number(count);
for await (const response of client.iterate({ query })) {
  console.log(JSON.stringify(response));
  if (!--left) break;
}
client.dispose();
