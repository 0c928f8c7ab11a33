// The few lines of a server that the clients for editors need.
const { Patch } = await import(new URL("ximler.js", process.argv[2]));

export class Server {
  constructor(records) {
    this.records = new Map(records.map((record) => [record.id, record]));
    this.revision = 0;
    this.sent = [];
    this.reads = 0;
    this.marks = new Map();
    this.next = []; // answers other than saving
    this.streams = new Set();
    this.held = null; // before saving
    this.slow = null; // after it
  }

  fetch = async (path, { method, body, signal }) => {
    if (path.includes("/changes")) {
      const stream = new ReadableStream({
        start: (controller) => {
          this.streams.add(controller);
          signal.addEventListener("abort", () => (this.streams.delete(controller), controller.close()), { once: true });
        },
      });
      return new Response(stream);
    }
    if (method === "GET") {
      this.reads++;
      return Response.json({ elements: [...this.records.values()] }, { headers: { "Canvas-Revision": this.revision } });
    }
    const patch = JSON.parse(body);
    this.sent.push(patch);
    await this.held;
    const other = this.next.shift();
    if (other === "lost") {
      this.save(patch);
      throw new TypeError("connection lost");
    }
    const answer = other ?? Response.json(this.save(patch));
    await this.slow;
    return answer;
  };

  save(patch) {
    const mark = this.marks.get(patch.client);
    if (mark?.seq === patch.seq) return mark.answer;
    const rejected = Object.keys(patch.set ?? {}).filter((id) => !this.records.has(id));
    new Patch(patch).apply(this.records);
    const answer = { revision: ++this.revision, rejected };
    this.marks.set(patch.client, { seq: patch.seq, answer });
    this.tell("patch", { ...patch, revision: this.revision });
    return answer;
  }

  tell(event, data) {
    const text = `: ping\n\nevent: ${event}\nid: 1\ndata: ${JSON.stringify(data)}\n\n`;
    for (const stream of this.streams) stream.enqueue(new TextEncoder().encode(text));
  }
}
