// Servers as Debian packages them, with a client of this very process connected: they come back with their state and their
// connection, go on, and can be saved again.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { CRIU } from "../real-criu.ts";
import { again, ask, connectTo, OTHER_USERS, place, received, ROUNDS, start } from "./program.ts";

test("redis-server keeps its data and its client", async () => {
  const { dir, port } = await place("redis");
  const options = ["--save", "", "--bind", "127.0.0.1", "--dir", dir];
  let pid = await start(dir, "redis-server", ["--port", String(port), ...options]);
  const client = await connectTo(port);
  const subscriber = await connectTo(port);
  expect(await ask(client, "SET answer 41\r\n")).toBe("+OK\r\n");
  expect(await ask(subscriber, "SUBSCRIBE news\r\n")).toContain("subscribe");
  let answer = 41;
  for (const round of ROUNDS) {
    pid = await again(pid, dir, round);
    expect(await ask(client, "INCR answer\r\n")).toBe(`:${(answer += 1)}\r\n`);
    const told = received(subscriber);
    expect(await ask(client, "PUBLISH news hello\r\n")).toBe(":1\r\n");
    expect(await told).toContain("hello");
  }
});

test("memcached with its threads keeps its data and its client", async () => {
  const { dir, port } = await place("memcached");
  let pid = await start(dir, "memcached", ["-p", String(port), "-l", "127.0.0.1", "-u", "root"]);
  const client = await connectTo(port);
  expect(await ask(client, "set answer 0 0 2\r\n41\r\n")).toBe("STORED\r\n");
  let answer = 41;
  for (const round of ROUNDS) {
    pid = await again(pid, dir, round);
    expect(await ask(client, "incr answer 1\r\n")).toBe(`${(answer += 1)}\r\n`);
  }
});

/** CRIU may not be able to save workers of another user, so it gets some that are root's. */
const USERS = CRIU === undefined ? ["www-data"] : ["www-data", "root"];

test.each(USERS)(
  "nginx keeps its workers (%s) and a connection that is kept alive",
  async (user) => {
    const { dir, port } = await place("nginx");
    const config = join(dir, "nginx.conf");
    writeFileSync(config, nginxConfig(dir, port, user));
    let pid = await start(dir, "nginx", ["-c", config]);
    const client = await connectTo(port);
    const request = "GET / HTTP/1.1\r\nHost: test\r\n\r\n";
    expect(await ask(client, request)).toMatch(/request 1$/);
    let requests = 1;
    for (const round of ROUNDS) {
      pid = await again(pid, dir, round, user === "root" ? {} : OTHER_USERS);
      expect(await ask(client, request)).toMatch(new RegExp(`request ${(requests += 1)}$`));
      expect(await ask(await connectTo(port), request)).toMatch(/request 1$/);
    }
  },
);

function nginxConfig(dir: string, port: number, user: string): string {
  const paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
  const temporary = paths.map((name) => `${name}_temp_path ${dir}/${name};`).join(" ");
  return `daemon off; user ${user}; worker_processes 2; pid ${dir}/pid; error_log ${dir}/errors;
events { worker_connections 64; }
http {
  access_log off; ${temporary}
  server { listen 127.0.0.1:${port}; location / { return 200 "request $connection_requests"; } }
}
`;
}
