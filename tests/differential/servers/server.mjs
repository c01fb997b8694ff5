// What Node believes: the WHATWG URL of the target, its pathname split at slashes and each segment decoded, as the
// usual routers do. An encoded slash inside a segment is written %2F again, so that it can be told from a separator.
// Runs as `node server.mjs PORT SEEN_FILE`.
import { openSync, writeSync } from "node:fs";
import { createServer } from "node:http";

const [port, seen] = process.argv.slice(2);
const log = openSync(seen, "a");
const AREAS = { admin: "admin", public: "public", open: "open", loose: "loose" };

function operation(segments) {
  const [first, second, third] = segments;
  if (segments.length > 1 && Object.hasOwn(AREAS, first)) {
    return [first === "open" && second === "secret" && segments.length > 2 ? "secret" : AREAS[first], "", ""];
  }
  const whole = segments.slice(1).every((segment) => segment !== "");
  if (first === "v1" && whole) {
    if (segments.length === 2) return ["collection", second, ""];
    if (segments.length === 3) return [second === "things" && third === "special" ? "special" : "item", second, third];
  }
  if (first === "lenient" && whole && segments.length === 3) return ["lenient", second, third];
  return ["other", "", ""];
}

const bytes = (text) => "[" + Buffer.from(text, "utf8").toString("latin1") + "]";

const server = createServer((request, response) => {
  const number = request.headers["x-case"] ?? "-";
  writeSync(log, number + "\n");
  try {
    const segments = new URL(request.url, "http://localhost").pathname.slice(1).split("/").map(decodeURIComponent);
    const [area, entity, id] = operation(segments);
    response.writeHead(204, {
      "X-Case": number,
      "X-Area": area,
      "X-Entity": bytes(entity),
      "X-Id": bytes(id),
      "X-Path": bytes("/" + segments.map((segment) => segment.replaceAll("/", "%2F")).join("/")),
      "X-Method": request.method,
    });
  } catch {
    // Not a URL, not UTF-8, or nothing that a header could tell: only a target that no gateway has judged.
    response.writeHead(400, { "Content-Length": 0 });
  }
  response.end();
});
server.keepAliveTimeout = 600_000;
server.headersTimeout = 610_000;
server.listen(Number(port), "127.0.0.1");
