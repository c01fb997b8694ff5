// What Node believes: the request's own properties and every header, in the names of CGI.
// Runs as `node server.mjs PORT SEEN_FILE`.
import { createHash } from "node:crypto";
import { openSync, writeSync } from "node:fs";
import { createServer } from "node:http";

const [port, seen] = process.argv.slice(2);
const log = openSync(seen, "a");
const ANSWERS = {
  "/answer/426": [426, { Connection: "Upgrade", Upgrade: "TLS/1.0", "Content-Length": 0 }],
  "/answer/407": [407, { "Proxy-Authenticate": 'Basic realm="node"', "Content-Length": 0 }],
  "/answer/date": [200, { Connection: "Date", Date: "Thu, 01 Jan 1970 00:00:00 GMT", "Content-Length": 0 }],
};

const server = createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  const hash = createHash("sha256");
  request.on("data", (data) => hash.update(data));
  request.on("end", () => {
    const path = decodeURIComponent(url.pathname);
    writeSync(log, `${request.method} ${path}\n`);
    if (Object.hasOwn(ANSWERS, path)) {
      response.writeHead(...ANSWERS[path]).end();
      return;
    }
    const told = [
      ["REQUEST_METHOD", request.method],
      ["PATH_INFO", path],
      ["SCRIPT_NAME", ""],
      ["QUERY_STRING", url.search.slice(1)],
      ["REQUEST_URI", request.url],
      ["REQUEST_SCHEME", "http"],
      ["REMOTE_ADDR", request.socket.remoteAddress],
      ["CONTENT_LENGTH", request.headers["content-length"] ?? ""],
      ["BODY_SHA256", hash.digest("hex")],
    ];
    for (let at = 0; at < request.rawHeaders.length; at += 2) {
      const name = "HTTP_" + request.rawHeaders[at].toUpperCase().replaceAll("-", "_");
      told.push([name, request.rawHeaders[at + 1]]);
    }
    const answer = Buffer.from(told.map(([name, value]) => `${name}=${value}\n`).join(""), "latin1");
    response.writeHead(200, { "Content-Type": "text/plain", "Content-Length": answer.length });
    response.end(answer);
  });
});
server.keepAliveTimeout = 600_000;
server.headersTimeout = 610_000;
server.listen(Number(port), "127.0.0.1");
