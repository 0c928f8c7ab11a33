// Uploads standard input: node upload.mjs TUS-JS-CLIENT ENDPOINT TOKEN. Prints the address of the upload.
import { createRequire } from "node:module";

const tus = createRequire(import.meta.url)(process.argv[2]);
const pieces = [];
for await (const piece of process.stdin) pieces.push(piece);

const upload = new tus.Upload(Buffer.concat(pieces), {
  endpoint: process.argv[3],
  headers: { Authorization: `Bearer ${process.argv[4]}` },
  metadata: { filename: "报告.bin" },
  retryDelays: [50, 100, 500, 1000, 3000, 3000],
  onError: (error) => {
    console.error(String(error));
    process.exitCode = 1;
  },
  onSuccess: () => console.log(upload.url),
});
upload.start();
